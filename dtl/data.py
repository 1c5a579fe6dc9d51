"""Images with labels, transfer problems made of them, and where both come from."""

import hashlib
import inspect
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial, wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

import numpy as np
import platformdirs
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torchvision.datasets.folder import find_classes, make_dataset

from dtl.progress import progress

logger = logging.getLogger(__name__)

SPLIT_FOLDERS = {  # in any case
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images of one size with one label each, held in memory.

    Parameters
    ----------
    images : torch.Tensor, uint8, (n, 3, height, width)
    labels : torch.Tensor, int64, (n,), values in 0..K-1
    classes : tuple of str, length K

    >>> dataset = dtl.load("testbed").source
    >>> dataset.images.shape, dataset.classes[0]
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if self.images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or 0 in shape[2:]:
            raise ValueError(f"images must be uint8 of shape (n, 3, height, width), not {self.images.dtype} {shape}")
        if self.labels.dtype != torch.int64 or tuple(self.labels.shape) != shape[:1]:
            raise ValueError(
                f"labels must be int64, one for each of the {shape[0]} images, not {self.labels.dtype} "
                f"{tuple(self.labels.shape)}"
            )
        outside = (self.labels < 0) | (self.labels >= len(self.classes))
        if outside.any():
            where = int(outside.nonzero()[0])
            raise ValueError(
                f"label {int(self.labels[where])} of image {where} is out of range: there are "
                f"{len(self.classes)} classes, so labels are 0..{len(self.classes) - 1}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        height, width = self.images.shape[2:]
        return height, width

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each channel, (3,) each, of pixels in 0..1."""
        return self._statistics

    @cached_property
    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = self.images.float() / 255
        return pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp(min=1e-3)

    def subset(self, index: np.ndarray | torch.Tensor | Sequence[int]) -> "ImageDataset":
        """The images at `index` (integers or a boolean mask), with the same classes."""
        index = torch.as_tensor(np.asarray(index, dtype=None if len(index) else np.int64))
        return ImageDataset(self.images[index], self.labels[index], self.classes)

    @cached_property
    def counts(self) -> np.ndarray:
        """Images of each class, (K,)."""
        return np.bincount(self.labels.numpy(), minlength=self.n_classes)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of pixels, labels and class names."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Truth:
    """What was planted in a problem, so that an answer can be checked.

    Parameters
    ----------
    role : (K,) str, what each source class does: helpful, misleading, mislabelled, irrelevant or leaked
    helps : (K,) int, the target subpopulation that a source class shows, -1 for none
    subpopulations : names of the latent target subpopulations
    subpopulation : for each target split, (n,) int, the latent subpopulation of each example
    cue_agrees : for each target split, (n,) bool, whether the spurious cue points to the example's label
    leaked_by : for each target split, (n,) int, the source class that holds near copies of the example, -1 for none
    example_role : (N,) str, what each source example does: clean, leaked, mislabelled or ambiguous; None if not planted
    copy_of : (N,) int, the validation example that a source example copies, -1 for none; None if not planted
    moved : (N,) bool, whether a copy is also shifted, turned, scaled and tinted; None if not planted
    """

    role: np.ndarray
    helps: np.ndarray
    subpopulations: tuple[str, ...]
    subpopulation: dict[str, np.ndarray]
    cue_agrees: dict[str, np.ndarray]
    leaked_by: dict[str, np.ndarray]
    example_role: np.ndarray | None = None
    copy_of: np.ndarray | None = None
    moved: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class TransferProblem:
    """A source to pre-train on and a target, in three splits, to transfer to.

    Influences are estimated on `target_validation`; gains are reported on `target_test`. `origin` is the call of `load`
    or `from_folders` that made the problem, as plain data, so that another process can make it again; None for a
    problem made by hand.

    >>> problem = dtl.load("testbed")
    >>> problem.source.n_classes, len(problem.target_train)
    """

    name: str
    source: ImageDataset
    target_train: ImageDataset
    target_validation: ImageDataset
    target_test: ImageDataset
    truth: Truth | None = None
    origin: dict[str, Any] | None = field(default=None, init=False)  # so `dataclasses.replace` forgets it

    def __post_init__(self) -> None:
        sizes = {part: dataset.size for part, dataset in self.parts.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"all images of a problem must have one size, but they have {sizes}")
        for part, dataset in self.parts.items():
            if dataset.n_classes < 2:
                raise ValueError(f"{part} has {dataset.n_classes} class: influences and transfer need at least two")
            if len(dataset) == 0:
                raise ValueError(f"{part} has no images")
            if part.startswith("target") and dataset.classes != self.target_train.classes:
                raise ValueError(f"{part} has other classes than target_train: {dataset.classes}")
        for part in self.parts:
            empty = [c for c, n in zip(self.parts[part].classes, self.parts[part].counts, strict=True) if n == 0]
            if empty:
                raise ValueError(f"{part} has classes without images: {', '.join(empty[:5])}; add images or drop them")

    @property
    def parts(self) -> dict[str, ImageDataset]:
        """The four datasets by name."""
        names = ("source", "target_train", "target_validation", "target_test")
        return {name: getattr(self, name) for name in names}

    @property
    def fingerprints(self) -> dict[str, str]:
        return {part: dataset.fingerprint for part, dataset in self.parts.items()}


_LOADERS: dict[str, Callable[..., TransferProblem]] = {}


def loader(name: str) -> Callable[[Callable[..., TransferProblem]], Callable[..., TransferProblem]]:
    """Register a function as what `load(name)` calls."""

    def register(function: Callable[..., TransferProblem]) -> Callable[..., TransferProblem]:
        _LOADERS[name] = _remembered(function, lambda options: {"load": name, "options": options})
        return _LOADERS[name]

    return register


P = ParamSpec("P")


def _remembered(
    function: Callable[P, TransferProblem], call: Callable[[dict[str, Any]], dict[str, Any]]
) -> Callable[P, TransferProblem]:
    """The function, whose problems have their `origin`: arguments declared as paths absolute, None if not all plain."""
    signature = inspect.signature(function)

    @wraps(function)
    def remembering(*args: P.args, **options: P.kwargs) -> TransferProblem:
        problem, given = function(*args, **options), dict(signature.bind(*args, **options).arguments)
        for key, value in given.items():
            if value is not None and "Path" in str(signature.parameters[key].annotation):
                given[key] = os.path.abspath(value)
        try:
            json.dumps(given)
        except TypeError:
            return problem
        object.__setattr__(problem, "origin", call(given))
        return problem

    return remembering


def reopen(origin: dict[str, Any]) -> TransferProblem:
    """The problem that an `origin` describes.

    >>> reopen(dtl.load("testbed", seed=1).origin).name
    'testbed-1'
    """
    if "from_folders" in origin:
        return from_folders(**origin["from_folders"])
    return load(origin["load"], **origin["options"])


def load(name: str, root: str | Path | None = None, **options: object) -> TransferProblem:
    """A transfer problem by name.

    Parameters
    ----------
    name : "testbed" (procedural images with planted truth, option `seed`), "imagenet200-cifar10" (see
        `dtl.imagenet200`) or "imagenet-<target>" (see `dtl.targets`)
    root : folder of the data, for problems that are read from disk; default is $DTL_DATA
    options : passed to the problem's own loader

    >>> problem = dtl.load("testbed", seed=0)
    >>> problem.truth.role[:3]
    """
    if name not in _LOADERS:
        raise ValueError(
            f"unknown problem {name!r}: known are {', '.join(sorted(_LOADERS))}; for your own images use "
            "dtl.from_folders(source_dir, target_dir)"
        )
    given = options if root is None else {"root": Path(root), **options}
    unknown = set(given) - set(inspect.signature(_LOADERS[name]).parameters)
    if unknown:
        known = ", ".join(inspect.signature(_LOADERS[name]).parameters)
        raise ValueError(f"problem {name!r} takes no {', '.join(sorted(unknown))}: its options are {known}")
    return _LOADERS[name](**given)


@partial(_remembered, call=lambda options: {"from_folders": options})
def from_folders(
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
    cache : folder for decoded images, by content; default is the user's cache folder
    show_progress : show a bar while images are decoded

    Raises
    ------
    FileNotFoundError : a folder is missing or holds no class folders
    ValueError : a class without images, an unreadable image (named), fewer than two classes, a bad setting

    >>> problem = dtl.from_folders("animals", "pets/", size=32)
    >>> problem.target_validation.classes
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
    """ValueError for settings of reading images that make no sense."""
    if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
        raise ValueError(f"size must be a whole number of pixels, at least 1, not {size!r}")
    if not isinstance(holdout, Real) or not 0 < float(holdout) < 0.5:
        raise ValueError(f"holdout must be a share between 0 and 0.5, not {holdout}")
    if limit is not None and (not isinstance(limit, Integral) or limit < 1):
        raise ValueError(f"limit must be at least 1 image a class, not {limit}")


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
            raise ValueError(f"{folder} has {' and '.join(path.name for path in paths)}: keep one of them")
        if paths and paths[0] not in trees:
            raise ValueError(f"{paths[0]} holds no class folders: sort its images into them, or remove it")
    return {split: paths[0] for split, paths in found.items() if paths}


def hold_out(dataset: ImageDataset, splits: Sequence[str], share: float, seed: int) -> dict[str, ImageDataset]:
    """What stays in train, and the missing splits: the same share of every class for each, at least one image."""
    small = [name for name, n in zip(dataset.classes, dataset.counts, strict=True) if n <= len(splits)]
    if small:
        raise ValueError(
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
        raise ValueError(f"{twice} is reached twice from {folder}: remove the link that leads back or repeats it")
    empty = [name for name, n in zip(classes, np.bincount(labels, minlength=len(classes)), strict=True) if n == 0]
    if empty:
        raise ValueError(
            f"class folders without any image in {folder}: {', '.join(empty[:5])}; add images or remove them"
        )
    files = Listing([Path(path) for path in samples[:, 0]], labels, tuple(classes))
    return files if limit is None else files.take(at_most(limit, labels, seed))


def at_most(limit: int, labels: np.ndarray, seed: int) -> np.ndarray:
    """Indices of at most `limit` examples of each label, drawn with `seed`, in their order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.sort(np.concatenate([order[labels[order] == k][:limit] for k in np.unique(labels)]))


def read_files(files: Listing, where: Path, size: int, cache: Path, show_progress: bool) -> ImageDataset:
    """Files decoded in parallel at size x size pixels, or from the cache of the same content."""
    paths, labels, classes = files.paths, files.labels, list(files.classes)
    with ThreadPoolExecutor() as pool:
        digest = hashlib.sha256(repr((size, classes, labels.tolist())).encode())
        for file in pool.map(_digest, paths):
            digest.update(file)
        cached = cache / f"{digest.hexdigest()[:32]}.safetensors"
        images = _cached(cached)
        if images is None:
            with progress(len(paths), "image", f"reading {where}", show_progress) as bar:
                images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
                for i, image in enumerate(pool.map(lambda path: _decode(path, size), paths)):
                    images[i] = image
                    bar.update()
            try:
                cache.mkdir(parents=True, exist_ok=True)
                partial = cached.with_suffix(f".{os.getpid()}")
                save_file({"images": images}, partial)
                partial.replace(cached)
            except (OSError, SafetensorError) as error:
                logger.warning("cannot keep decoded images in %s (%s): they are decoded again next time", cache, error)
    return ImageDataset(images, torch.from_numpy(labels), tuple(classes))


def _cached(file: Path) -> torch.Tensor | None:
    try:
        return load_file(file)["images"] if file.exists() else None
    except (OSError, KeyError, SafetensorError) as error:
        logger.warning("%s is damaged (%s): its images are decoded again", file, error)
        return None


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"cannot read the image {path} ({error}): replace or remove it")


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
        raise ValueError(f"its pixels are {image.mode!r}, 32 bits of unknown range; save it with 8 bits")
    elif image.mode in ("P", "PA"):  # what Pillow asks for where a palette is transparent
        image = image.convert("RGBA")
    return image.convert("RGB")
