"""Folders of images, one for each class: found, read, cut to one size, and kept decoded."""

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs
import torch
from PIL import Image, ImageOps
from scipy.cluster.hierarchy import DisjointSet

from dtl._checks import InputError, class_names, shown, some, whole
from dtl._files import load_tensors, save_tensors
from dtl.data import ImageDataset, TransferProblem, load
from dtl.engine.progress import progress

logger = logging.getLogger(__name__)

CACHE = "3"  # how images are decoded and kept: raise it when that changes
SPLIT_FOLDERS = {  # in any case
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
SYSTEM = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "thumbs.db", "desktop.ini"}  # and all .names
PICTURES = {".heic", ".heif", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw"}  # which Pillow does not open
Groups = Callable[[Path], object] | str


def from_folders(source_dir: str | Path, target_dir: str | Path, size: int = 32, **options: Any) -> TransferProblem:
    """Your own images: `dtl.load("folders", ...)`, see `dtl.datasets.folders.make` for the options.

    >>> dtl.from_folders("animals", "pets", size=16, show_progress=False).name
    'animals-pets'
    """
    return load("folders", source_dir=source_dir, target_dir=target_dir, size=size, **options)


def make(
    source_dir: str | Path,
    target_dir: str | Path,
    size: int = 32,
    *,
    holdout: float = 0.2,
    groups: Groups | None = None,
    limit: int | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    show_progress: bool = True,
) -> TransferProblem:
    """Your own images: two trees with one folder per class (ImageFolder layout).

    What is hidden, a system's, or no image is passed over, and the log says so. Transparent images are laid on white.

    Parameters
    ----------
    source_dir : folder of class folders, or one that holds such a tree as `train`
    target_dir : likewise; `validation` (or `val`) and `test` beside `train` are used where they are, and
        split off `train` with `seed`, the same share of each class, where they are not. Copies stay together
    size : images are resized and centre-cropped to size x size pixels, and become RGB
    holdout : share of the target's training images that each missing split takes
    groups : what must not be torn apart by that, such as the images of one patient: a regular expression, whose first
        group (or whole match) in a path such as `cat/p7-3.png` names its group, or a function of the path
    limit : at most this many images of each class, drawn with `seed`
    cache : folder for decoded images, by path, size and time of change; default is the user's cache folder

    Raises
    ------
    FileNotFoundError : a folder is missing or holds no class folders
    InputError : unreadable images (all are named), classes without images, or folders that may be splits or classes

    >>> dtl.load("folders", source_dir="animals", target_dir="pets", show_progress=False).target_validation.classes
    ('ant', 'bee')
    """
    check_reading(size, holdout, limit)
    source_dir, target_dir = Path(source_dir), Path(target_dir)
    beside = split_folders(source_dir)
    source_tree = beside.pop("train", source_dir)
    if beside:
        logger.info("%s: a source is its train folder alone, without its %s", shown(source_dir), " and ".join(beside))
    trees = split_folders(target_dir) or {"train": target_dir}
    for tree in trees.values():
        one, other = source_tree.resolve(), tree.resolve()
        if one in other.parents or other in one.parents:
            raise InputError(f"of {source_tree} and {tree} one lies in the other: give two folders of class folders")

    def read(folder: Path) -> ImageDataset:
        return read_files(list_tree(folder, limit, seed), folder, size, cache, show_progress)

    source, target = read(source_tree), {split: read(folder) for split, folder in trees.items()}
    missing = [split for split in SPLIT_FOLDERS if split not in target]
    if missing:
        share = f"{holdout:.0%} of its training images each"
        logger.info("no folder for %s in %s: held out, %s", " and ".join(missing), shown(target_dir), share)
        tied = None if groups is None else group_names(target["train"], groups, target_dir)
        target |= hold_out(target["train"], missing, holdout, seed, tied)
    (name,) = class_names([f"{source_dir.name}-{target_dir.name}"])
    return TransferProblem(name, source, target["train"], target["validation"], target["test"])


def check_reading(size: int, holdout: float, limit: int | None) -> None:
    """InputError for settings of reading images that make no sense."""
    whole("size", size, 1)
    if limit is not None:
        whole("limit", limit, 1)
    if not isinstance(holdout, Real) or not 0 < float(holdout) < 0.5:
        raise InputError(f"holdout must be a share between 0 and 0.5, not {holdout!r}")


def hidden(name: str) -> bool:
    """Whether a file or folder is what a system, a file manager or a notebook server leaves behind."""
    return name.startswith(".") or name.lower() in SYSTEM


def readable(name: str) -> bool:
    """Whether the ending of a file is that of an image that Pillow opens."""
    return Image.registered_extensions().get(os.path.splitext(name)[1].lower()) in Image.OPEN


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, hidden ones left out, in the order of their names as they are shown."""
    inside = [path for path in folder.iterdir() if path.is_dir() and not hidden(path.name)]
    return sorted(inside, key=lambda path: (class_names([path.name]), path.name))


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders of the splits, none in a tree of classes; an error where it is not clear which of the two it is."""
    inside = folders_in(folder) if folder.is_dir() else []
    splits = {path: split for split, names in SPLIT_FOLDERS.items() for path in inside if path.name.lower() in names}
    if not any(folders_in(path) for path in splits):  # a folder without folders in it may be a class of that name
        if inside and all(re.match("train|val|test|dev|eval", path.name, re.IGNORECASE) for path in inside):
            raise InputError(
                f"{folder} holds {some([path.name for path in inside])}: splits, not classes; name them train, "
                "validation and test, and give each one folder of images per class"
            )
        return {}
    found = {split: path for path, split in splits.items()}
    if "train" not in found or len(found) < len(splits):
        names = ", ".join(path.name for path in splits)
        raise InputError(f"{folder} has {names}: give it one train folder, and one of each other split, or classes")
    rest = sorted(class_names(path.name for path in folder.iterdir() if path not in splits))
    if rest:
        level = logging.INFO if all(map(hidden, rest)) else logging.WARNING
        logger.log(level, "%s: passed over beside its train folder: %s", shown(folder), some(rest, 20))
    return found


def group_names(dataset: ImageDataset, groups: Groups, root: Path) -> Sequence[object]:
    """The group of each image, by the path of its file relative to `root`."""
    paths = [Path(os.path.relpath(path, root)) for path in dataset.paths or ()]
    if callable(groups):
        return [groups(path) for path in paths]
    try:
        hits = [re.search(groups, path.as_posix()) for path in paths]
    except (re.error, TypeError) as error:
        raise InputError(f"groups must be a regular expression or a function ({error})") from None
    lost = [path.as_posix() for path, hit in zip(paths, hits, strict=True) if hit is None]
    if lost:
        raise InputError(f"groups names no group for {some(lost)}")
    return [hit[min(1, hit.re.groups)] for hit in hits if hit]


def hold_out(
    dataset: ImageDataset, splits: Sequence[str], share: float, seed: int, groups: Sequence[object] | None = None
) -> dict[str, ImageDataset]:
    """What stays in train, and the missing splits: the same share of every class for each, at least one image.

    Images that are equal, or of one group, stay together; a group that is too large for a split stays in train.
    """
    ties = DisjointSet(range(len(dataset)))
    for values in (dataset.digests.tolist(), groups or []):
        first: dict[object, int] = {}
        for i, value in enumerate(values):
            ties.merge(i, first.setdefault(value, i))
    tied = np.array([ties[i] for i in range(len(dataset))])
    rng, labels, part = np.random.default_rng(seed), dataset.labels.numpy(), np.zeros(len(dataset), dtype=np.int64)
    for k, n in enumerate(dataset.counts):
        members, take = rng.permutation(np.flatnonzero(labels == k)), max(1, int(share * n + 1e-9))
        within = np.bincount(tied[members])
        for i in range(1, len(splits) + 1):
            free = list(dict.fromkeys(tied[[m for m in members if part[m] == 0]]))
            have = np.count_nonzero(part[members] == i)
            for group in free:
                if have + within[group] <= take:
                    part[list(ties.subset(group))] = i
                    have += within[group]
            if not have and free:
                part[list(ties.subset(min(free, key=within.__getitem__)))] = i
    found = {split: dataset.subset(part == i) for i, split in enumerate(("train", *splits))}
    small = np.any([held.counts == 0 for held in found.values()], axis=0)
    if small.any():
        raise InputError(
            f"classes with too few images to hold out {' and '.join(splits)}, copies and groups counted once: "
            f"{some(np.array(dataset.classes)[small].tolist())}; add images or give validation and test folders"
        )
    return found


class Listing(NamedTuple):
    """Image files with one label each, not read yet."""

    paths: list[Path]
    labels: np.ndarray
    classes: tuple[str, ...]

    def take(self, index: np.ndarray) -> "Listing":
        """The files at `index`, with the same classes."""
        return Listing([self.paths[i] for i in index], self.labels[index], self.classes)


def list_tree(folder: Path, limit: int | None = None, seed: int = 0) -> Listing:
    """The files of an ImageFolder tree, at most `limit` of each class, drawn with `seed`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give a folder that holds one folder of images per class")
    tops = [path.name for path in folders_in(folder)]
    if not tops:
        raise FileNotFoundError(f"{folder} holds no class folders: put the images of each class into one")
    classes, found, passed = class_names(tops), [], Counter[str]()
    for place, name in _walk(folder, passed):
        if readable(name) and place != str(folder):
            top = Path(place).relative_to(folder).parts[0]
            found.append((tops.index(top), place, name))
        else:
            passed[os.path.splitext(name)[1].lower() or "without ending"] += 1
    found.sort()
    said = ", ".join(f"{n} {what}" for what, n in passed.most_common()) or "nothing"
    level = logging.WARNING if any(end in PICTURES or readable(f"x{end}") for end in passed) else logging.INFO
    logger.log(level, "%s: %d classes, %d images; passed over: %s", shown(folder), len(tops), len(found), said)
    labels = np.array([k for k, *_ in found], dtype=np.int64)
    empty = [name for k, name in enumerate(classes) if k not in labels]
    if empty:
        raise InputError(
            f"class folders without any image in {folder}: {some(empty)}; add images or remove them (passed over: "
            f"{said})"
        )
    files = Listing([Path(place, name) for _, place, name in found], labels, classes)
    return files if limit is None else files.take(at_most(limit, labels, seed))


def _walk(folder: Path, passed: Counter[str]) -> Iterator[tuple[str, str]]:
    """The folder and the name of each file in a tree; hidden ones are counted in `passed`."""

    def stop(error: OSError) -> None:
        raise InputError(f"cannot read the folder {error.filename} ({error.strerror}): see to its permissions")

    seen: dict[str, str] = {}
    for place, inside, files in os.walk(folder, onerror=stop, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            raise InputError(f"{real} is reached twice, as {seen[real]} and {place}: remove the link that does it")
        seen[real] = place
        passed.update(f"{name}/" for name in inside if hidden(name))
        passed.update("._*" if name.startswith("._") else name for name in files if hidden(name))
        inside[:] = sorted(name for name in inside if not hidden(name))
        yield from ((place, name) for name in files if not hidden(name))


def at_most(limit: int, labels: np.ndarray, seed: int) -> np.ndarray:
    """Indices of at most `limit` examples of each label, drawn with `seed`, in their order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.sort(np.concatenate([order[labels[order] == k][:limit] for k in np.unique(labels)]))


def read_files(files: Listing, where: Path, size: int, cache: str | Path | None, show_progress: bool) -> ImageDataset:
    """Files decoded in parallel at size x size pixels, or from the cache of the same, unchanged files.

    cache : folder of decoded images; None is the user's cache folder
    """
    n, cache = len(files.paths), Path(cache or platformdirs.user_cache_dir("dtl"))
    have, need = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), n * 3 * size**2
    if need > have:
        raise InputError(
            f"{n} images of {size} x {size} pixels take {need / 1e9:.0f} GB, of {have / 1e9:.0f} GB that this "
            "machine has: use a smaller size, a limit, or a .beton (dtl.datasets.ffcv)"
        )
    kept = cache / f"{_key(files.paths, size)}.safetensors"
    try:
        images = load_tensors(kept)[0]["images"] if kept.exists() else None
    except (OSError, InputError) as error:
        logger.warning("decoded images cannot be used (%s): they are decoded again", error)
        images = None
    if images is None:
        images = _decoded(files.paths, where, size, show_progress)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            save_tensors(kept, {"images": images}, {})
        except OSError as error:
            logger.warning("cannot keep decoded images in %s (%s): they are decoded again next time", cache, error)
    return ImageDataset(images, torch.from_numpy(files.labels), files.classes, tuple(map(str, files.paths)))


def _key(paths: Sequence[Path], size: int) -> str:
    """What the images decoded from these files are kept under: no file is read for it."""
    digest = hashlib.sha256(repr((CACHE, size)).encode())
    for path in paths:
        digest.update(repr(os.path.abspath(path)).encode())
        if path.exists():  # what is not there is for decoding to name
            found = path.stat()
            digest.update(repr((found.st_size, found.st_mtime_ns, found.st_ctime_ns)).encode())
    return digest.hexdigest()[:32]


def _decoded(paths: Sequence[Path], where: Path, size: int, show_progress: bool) -> torch.Tensor:
    """All images, uint8 (n, 3, size, size); InputError names all unreadable ones."""
    n, failed = len(paths), {}
    images = torch.empty(n, 3, size, size, dtype=torch.uint8)

    def decode(i: int) -> None:
        try:
            images[i] = square(open_rgb(paths[i], size), size)
        except InputError as error:
            failed[i] = error.__cause__

    with ThreadPoolExecutor() as pool, progress(n, "image", f"reading {where}", show_progress) as bar:
        for _ in pool.map(decode, range(n)):
            bar.update()
    if failed:
        names = some([f"{paths[i]} ({failed[i]})" for i in sorted(failed)], 1000)
        raise InputError(f"cannot read {len(failed)} of {n} images: {names}: replace or remove them")
    return images


def square(image: Image.Image, size: int) -> torch.Tensor:
    """An RGB image resized and centre-cropped, uint8 (3, size, size)."""
    fitted = image if image.size == (size, size) else ImageOps.fit(image, (size, size))
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def open_rgb(path: Path, size: int | None = None) -> Image.Image:
    """An image file, upright and in RGB; of a large JPEG only the detail that `size` pixels a side need."""
    try:
        if not path.is_file():
            raise FileNotFoundError("it is no file, or a link to none")
        with Image.open(path) as image:
            wide = ";16" in str(image.tile)
            if getattr(image, "is_animated", False):
                logger.info("%s holds several pictures, of which the first is taken", shown(path))
            if size:
                image.draft("RGB", (2 * size, 2 * size))  # lets the JPEG decoder skip detail that is resized away
            rgb = to_rgb(ImageOps.exif_transpose(image))
        if wide and 0 < np.max(rgb.getextrema()) < 64:
            raise InputError("its 16-bit channels use fewer than 14 bits, so that it is dark; save it with 8 bits")
        return rgb
    except Exception as error:  # decoders raise almost anything on a broken file
        raise InputError(f"cannot read the image {path} ({error}): replace or remove it") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image with 8 or 16 bits a channel in RGB with 8; a transparent one is laid on white."""
    if image.mode.startswith("I;16"):  # Pillow would clip it to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise InputError(f"its pixels are {image.mode!r}, 32 bits of unknown range; save it with 8 bits")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
