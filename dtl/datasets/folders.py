"""Folders of images, one for each class: found, read, cut to one size, and kept decoded."""

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs
import torch
from PIL import Image, ImageOps
from torchvision.datasets.folder import find_classes, make_dataset

from dtl._checks import InputError
from dtl._files import load_tensors, save_tensors
from dtl.data import ImageDataset, TransferProblem, load
from dtl.engine.progress import progress

logger = logging.getLogger(__name__)

CACHE = "2"  # how images are decoded and kept: raise it when that changes
SPLIT_FOLDERS = {  # in any case
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}


def from_folders(source_dir: str | Path, target_dir: str | Path, size: int = 32, **options: Any) -> TransferProblem:
    """Your own images: `dtl.load("folders", ...)`, see `dtl.datasets.folders.make` for the options.

    >>> dtl.from_folders("animals", "pets", size=16).name
    'animals-pets'
    """
    return load("folders", source_dir=source_dir, target_dir=target_dir, size=size, **options)


def make(
    source_dir: str | Path,
    target_dir: str | Path,
    size: int = 32,
    *,
    holdout: float = 0.2,
    limit: int | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    show_progress: bool = True,
) -> TransferProblem:
    """Your own images: two trees with one folder per class (ImageFolder layout).

    Parameters
    ----------
    source_dir : folder of class folders, or a folder that holds such a tree as `train`
    target_dir : likewise; `validation` (or `val`) and `test` beside `train` are used where they are, and
        split off `train` with `seed`, the same share of each class, where they are not
    size : images are resized and centre-cropped to size x size pixels, grey and palette images to RGB
    holdout : share of the target's training images that each missing split takes
    limit : at most this many images of each class, drawn with `seed`
    cache : folder for decoded images, by path, size and time of change; default is the user's cache folder
    show_progress : show a bar while images are decoded

    Raises
    ------
    FileNotFoundError : a folder is missing or holds no class folders
    ValueError : a class without images, an unreadable image (named), fewer than two classes, a bad setting

    >>> dtl.load("folders", source_dir="animals", target_dir="pets", size=16).target_validation.classes
    ('cat', 'dog')
    """
    check_reading(size, holdout, limit)
    source_dir, target_dir = Path(source_dir), Path(target_dir)
    cache = Path(cache) if cache else Path(platformdirs.user_cache_dir("dtl"))

    def read(folder: Path) -> ImageDataset:
        return _read_tree(folder, size, limit, seed, cache, show_progress)

    source = read(split_folders(source_dir).get("train", source_dir))
    target = {split: read(folder) for split, folder in (split_folders(target_dir) or {"train": target_dir}).items()}
    missing = [split for split in SPLIT_FOLDERS if split not in target]
    if missing:
        share = f"{holdout:.0%} of its training images each"
        logger.info("no folder for %s in %s: held out, %s", " and ".join(missing), target_dir, share)
        target |= hold_out(target["train"], missing, holdout, seed)
    return TransferProblem(
        f"{source_dir.name}-{target_dir.name}", source, target["train"], target["validation"], target["test"]
    )


def check_reading(size: int, holdout: float, limit: int | None) -> None:
    """InputError for settings of reading images that make no sense."""
    if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
        raise InputError(f"size must be a whole number of pixels, at least 1, not {size!r}")
    if not isinstance(holdout, Real) or not 0 < float(holdout) < 0.5:
        raise InputError(f"holdout must be a share between 0 and 0.5, not {holdout}")
    if limit is not None and (not isinstance(limit, Integral) or limit < 1):
        raise InputError(f"limit must be at least 1 image a class, not {limit}")


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders of the splits, none in a tree of classes; a folder without folders in it is a class of that name."""
    inside = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    found = {split: [path for path in inside if path.name.lower() in SPLIT_FOLDERS[split]] for split in SPLIT_FOLDERS}
    trees = [path for paths in found.values() for path in paths if any(p.is_dir() for p in path.iterdir())]
    if not trees:
        return {}
    names = ", ".join(path.name for paths in found.values() for path in paths)
    if not found["train"]:
        raise FileNotFoundError(f"{folder} has {names} but no train folder: add one, or give a tree of classes")
    for paths in found.values():
        if len(paths) > 1:
            raise InputError(f"{folder} has {' and '.join(path.name for path in paths)}: keep one of them")
        if paths and paths[0] not in trees:
            raise InputError(f"{paths[0]} holds no class folders: sort its images into them, or remove it")
    return {split: paths[0] for split, paths in found.items() if paths}


def hold_out(dataset: ImageDataset, splits: Sequence[str], share: float, seed: int) -> dict[str, ImageDataset]:
    """What stays in train, and the missing splits: the same share of every class for each, at least one image."""
    small = [name for name, n in zip(dataset.classes, dataset.counts, strict=True) if n <= len(splits)]
    if small:
        raise InputError(
            f"classes with too few images to hold out {' and '.join(splits)}: {', '.join(small[:5])}; add images or "
            "give validation and test folders"
        )
    rng = np.random.default_rng(seed)
    part = np.zeros(len(dataset), dtype=np.int64)  # 0: train, then the splits
    for k, n in enumerate(dataset.counts):
        members = rng.permutation(np.flatnonzero(dataset.labels.numpy() == k))
        take = max(1, int(share * n + 1e-9))
        for i in range(len(splits)):
            part[members[i * take : (i + 1) * take]] = i + 1
    return {split: dataset.subset(part == i) for i, split in enumerate(("train", *splits))}


class Listing(NamedTuple):
    """Image files with one label each, not read yet."""

    paths: list[Path]
    labels: np.ndarray
    classes: tuple[str, ...]

    def take(self, index: np.ndarray) -> "Listing":
        """The files at `index`, with the same classes."""
        return Listing([self.paths[i] for i in index], self.labels[index], self.classes)


def _read_tree(folder: Path, size: int, limit: int | None, seed: int, cache: Path, show_progress: bool) -> ImageDataset:
    """One ImageFolder tree, decoded in parallel, or from the cache of the same content."""
    return read_files(list_tree(folder, limit, seed), folder, size, cache, show_progress)


def list_tree(folder: Path, limit: int | None = None, seed: int = 0) -> Listing:
    """The files of an ImageFolder tree, at most `limit` of each class, drawn with `seed`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give a folder that holds one folder of images per class")
    try:
        classes, index = find_classes(folder)
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} holds no class folders: put the images of each class into one") from None
    endings = tuple(ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN)
    samples = np.array(make_dataset(folder, index, extensions=endings, allow_empty=True), dtype=object).reshape(-1, 2)
    labels = samples[:, 1].astype(np.int64)
    real = [os.path.realpath(path) for path in samples[:, 0]]
    if len(set(real)) < len(real):
        twice = next(path for path in real if real.count(path) > 1)
        raise InputError(f"{twice} is reached twice from {folder}: remove the link that leads back or repeats it")
    empty = [name for name, n in zip(classes, np.bincount(labels, minlength=len(classes)), strict=True) if n == 0]
    if empty:
        raise InputError(
            f"class folders without any image in {folder}: {', '.join(empty[:5])}; add images or remove them"
        )
    files = Listing([Path(path) for path in samples[:, 0]], labels, tuple(classes))
    return files if limit is None else files.take(at_most(limit, labels, seed))


def at_most(limit: int, labels: np.ndarray, seed: int) -> np.ndarray:
    """Indices of at most `limit` examples of each label, drawn with `seed`, in their order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.sort(np.concatenate([order[labels[order] == k][:limit] for k in np.unique(labels)]))


def read_files(files: Listing, where: Path, size: int, cache: Path, show_progress: bool) -> ImageDataset:
    """Files decoded in parallel at size x size pixels, or from the cache of the same, unchanged files."""
    labels, n = torch.from_numpy(files.labels), len(files.paths)
    with ThreadPoolExecutor() as pool:
        kept = cache / f"{_key(files, size, pool)}.safetensors"
        try:
            if kept.exists():
                tensors, facts = load_tensors(kept)
                if facts["version"] != CACHE or tensors["images"].shape != (n, 3, size, size):
                    raise InputError("it holds other images than its name says")
                return ImageDataset(tensors["images"], labels, files.classes)
        except (OSError, ValueError, KeyError) as error:
            logger.warning("decoded images in %s cannot be used (%s): they are decoded again", kept, error)
        images = torch.empty(n, 3, size, size, dtype=torch.uint8)
        with progress(n, "image", f"reading {where}", show_progress) as bar:
            for i, image in enumerate(pool.map(lambda path: _decode(path, size), files.paths)):
                images[i] = image
                bar.update()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        save_tensors(kept, {"images": images}, {"version": CACHE})
    except OSError as error:
        logger.warning("cannot keep decoded images in %s (%s): they are decoded again next time", cache, error)
    return ImageDataset(images, labels, files.classes)


def _key(files: Listing, size: int, pool: Executor) -> str:
    """What the images decoded from these files are kept under: no file is read for it."""

    def state(path: Path) -> tuple[str, ...]:
        try:
            found = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from error
        return os.path.abspath(path), str(found.st_size), str(found.st_mtime_ns), str(found.st_ctime_ns)

    digest = hashlib.sha256(repr((CACHE, size)).encode())
    for one in pool.map(state, files.paths):
        digest.update(repr(one).encode())
    return digest.hexdigest()[:32]


def _unreadable(path: Path, error: Exception) -> ValueError:
    return InputError(f"cannot read the image {path} ({error}): replace or remove it")


def _decode(path: Path, size: int) -> torch.Tensor:
    return square(open_rgb(path, size), size)


def square(image: Image.Image, size: int) -> torch.Tensor:
    """An RGB image resized and centre-cropped, uint8 (3, size, size)."""
    fitted = image if image.size == (size, size) else ImageOps.fit(image, (size, size))
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def open_rgb(path: Path, size: int | None = None) -> Image.Image:
    """An image file, upright and in RGB; of a large JPEG only the detail that `size` pixels a side need."""
    try:
        with Image.open(path) as image:
            if size:
                image.draft("RGB", (2 * size, 2 * size))  # lets the JPEG decoder skip detail that is resized away
            return to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders raise almost anything on a broken file
        raise _unreadable(path, error) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image with 8 bits a channel, or 16-bit grey, in RGB."""
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise InputError(f"its pixels are {image.mode!r}, 32 bits of unknown range; save it with 8 bits")
    elif image.mode in ("P", "PA"):  # what Pillow asks for where a palette is transparent
        image = image.convert("RGBA")
    return image.convert("RGB")
