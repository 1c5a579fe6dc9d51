"""FFCV files (`.beton`): images that do not fit memory, read where in-memory images are.

FFCV writes the files and its C library decodes them. Crops and flips are drawn here, from a model's own seed, so that a
run can be repeated; FFCV's `Loader` draws them without one, and compiles itself anew for every subset and resolution.
FFCV is the extra `ffcv`, imported when a file is written or opened.
"""

import hashlib
import importlib
import io
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cache, cached_property
from multiprocessing import SimpleQueue
from pathlib import Path
from types import ModuleType
from typing import Any

import joblib
import numpy as np
import torch
from PIL import Image

from dtl._batches import Batches, Images, Steps
from dtl._checks import InputError, load_json, shown, some
from dtl.data import ImageDataset
from dtl.datasets.folders import list_tree, open_rgb, to_rgb
from dtl.engine.progress import hidden

logger = logging.getLogger(__name__)

JPEG = 0  # how FFCV marks an image that is kept as JPEG; others are kept as pixels
PAGE = 1 << 23  # bytes; an image must fit into one page of the file
RESERVE = 1 << 28  # bytes of the disk that a writer leaves free
STATISTICS = 10_000  # images from which the mean and deviation of the channels are computed
SCALE, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10  # of random resized crops (Szegedy et al. 2015)


def grown(share: float, low: int, high: int) -> int:
    """Pixels a side of training images after a share of the training, as in the papers.

    `low` up to epoch 11 of 16 and `high` from epoch 13, in between by multiples of 32: settings released with Jain et
    al. 2022, whose learning rate is `Recipe(warmup=2 / 16)`.

    >>> [dtl.datasets.ffcv.grown(share, 96, 192) for share in (0, 0.7, 0.75, 0.9)]
    [96, 96, 128, 192]
    """
    size = float(np.interp(int(16 * share), (11, 13), (low, high)))
    return int(size) if size in (low, high) else min(max(32 * round(size / 32), low), high)


def random_boxes(height: np.ndarray, width: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random resized crop of each image: (n, 4) int, top, left, height and width.

    Area 8% to 100% of the image, aspect ratio 3/4 to 4/3; after ten tries that do not fit, the largest centred crop
    whose ratio does (Szegedy et al. 2015).
    """
    u = rng.random((4, TRIES + 1, len(height)))
    area = height * width * (SCALE[0] + u[0] * (SCALE[1] - SCALE[0]))
    ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** u[1]
    h, w = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    h[-1], w[-1] = np.minimum(height, np.rint(width / RATIO[0])), np.minimum(width, np.rint(height * RATIO[1]))
    u[2:, -1] = 0.5
    fits = (h >= 1) & (w >= 1) & (h <= height) & (w <= width)
    fits[-1] = True
    first = fits.argmax(0), np.arange(len(height))
    h, w = h[first], w[first]
    return np.stack([u[2][first] * (height - h + 1), u[3][first] * (width - w + 1), h, w], 1).astype(np.int64)


def write(
    data: ImageDataset | str | Path | Any,
    path: str | Path,
    *,
    quality: int | None = None,
    max_side: int | None = None,
    workers: int | None = None,
    show_progress: bool = True,
) -> Path:
    """Write images and labels to a `.beton`, and their class names to a `.json` beside it.

    Parameters
    ----------
    data : an `ImageDataset`, the folder of an ImageFolder tree, or a torchvision dataset of (image, label) with classes
    quality : keep images as JPEG of this quality, 1 to 100 (90 is usual); default is lossless: their pixels as they are
    max_side : shrink images whose longer side has more pixels
    workers : processes that read and encode; default one a core

    Raises
    ------
    ImportError : FFCV is not installed
    ValueError : an image cannot be read, or is larger than 8 MB of pixels and no `max_side` was given, or the disk is
        full; nothing is left behind then

    >>> path = dtl.datasets.ffcv.write(problem.source, "source.beton", show_progress=False)      # doctest: +SKIP
    """
    path = Path(path)
    if quality is not None and not 1 <= quality <= 100:
        raise InputError(f"quality must be 1 to 100, or None for lossless, not {quality}")
    if max_side is not None and max_side < 1:
        raise InputError(f"max_side must be at least 1 pixel, not {max_side}")
    writer, fields = ffcv("writer"), ffcv("fields")
    given, classes = _samples(data)
    if len(given) == 0:
        raise InputError("there are no images to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    image = fields.RGBImageField("raw" if quality is None else "jpg", max_side, jpeg_quality=quality or 90)
    plain = torch.zeros(len(given), dtype=torch.bool).share_memory_()
    samples = _Samples(given, max_side, path.parent, SimpleQueue(), plain)
    try:
        with redirect_stderr(io.StringIO() if hidden(show_progress) else sys.stderr):  # where FFCV draws its bar
            writer.DatasetWriter(
                str(unfinished), {"image": image, "label": fields.IntField()}, PAGE, workers or joblib.cpu_count()
            ).from_indexed_dataset(samples)
        if not samples.failed.empty():
            raise InputError(samples.failed.get())
        if numbers := plain.nonzero()[:, 0].tolist():
            names = some([shown(given[i][0]) if isinstance(data, str | Path) else i for i in numbers])
            logger.warning("%s: %d images show nothing but one colour: %s", shown(path), len(numbers), names)
        path.with_suffix(".json").write_text(json.dumps({"classes": classes}, ensure_ascii=False), encoding="utf8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _samples(data: Any) -> tuple[Any, tuple[str, ...]]:
    """The samples, (image or file, label) each, and the class names."""
    if isinstance(data, ImageDataset):
        pixels = data.images.permute(0, 2, 3, 1).numpy()
        return [*zip(pixels, data.labels.tolist(), strict=True)], data.classes
    if isinstance(data, str | Path):
        files = list_tree(Path(data))
        return [*zip(files.paths, files.labels, strict=True)], files.classes
    classes = getattr(data, "classes", None) or getattr(data, "categories", None)
    if classes is None:
        raise TypeError(f"cannot write {type(data).__name__}: give an ImageDataset, a folder or a dataset with classes")
    return data, tuple(str(name) for name in classes)


@dataclass
class _Samples:
    """What FFCV's writer reads. It would wait forever for a worker that failed, so errors are passed on in a queue."""

    given: Any
    max_side: int | None
    folder: Path
    failed: Any
    plain: torch.Tensor  # which images show nothing

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        try:
            if self.failed.empty():
                return self._checked(i)
        except Exception as error:
            self.failed.put(str(error))
        return np.zeros((1, 1, 3), dtype=np.uint8), 0

    def _checked(self, i: int) -> tuple[np.ndarray, int]:
        if shutil.disk_usage(self.folder).free < RESERVE:
            raise OSError(f"the disk of {self.folder} is full: free space, or give quality or max_side")
        image, label = self.given[int(i)]
        if isinstance(image, Path | Image.Image):
            name, image = image, open_rgb(image) if isinstance(image, Path) else to_rgb(image)
            if image.info.get("bits", 16) < 16:  # what is white in all of them is not known here
                raise InputError(f"image {i}, {name}, uses {image.info['bits']} of 16 bits: save such images with 8")
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise InputError(f"image {i} is {pixels.dtype} {pixels.shape}, no picture: write data without transforms")
        height, width, _ = pixels.shape
        shrink = min(1, (self.max_side or np.inf) / max(height, width))
        if pixels.nbytes * shrink**2 > PAGE:
            raise InputError(f"image {i} has {height} x {width} pixels, too many for a .beton: give max_side")
        self.plain[i] = bool((pixels == pixels[0, 0]).all())
        return pixels, int(label)


class Beton(ImageDataset):
    """Images in a `.beton`, decoded when they are asked for; stands wherever an `ImageDataset` does.

    Parameters
    ----------
    path : the file
    resolution : pixels a side at which images are read, 224 in the papers; default as they are stored, which needs
        images of one size
    crop : share of the shorter side that the centre crop keeps before it is resized
    indices : the images of a subset, in its order; default all
    growing : pixels a side of training images at the beginning and at the end (`grown`), (160, 192) in the papers;
        default `resolution` throughout
    classes : class names, for a file without a `.json` beside it

    Training with augmentation draws random resized crops and flips; everything else sees the centre crop.

    >>> source = dtl.datasets.ffcv.Beton("imagenet.beton", resolution=224, growing=(160, 192))  # doctest: +SKIP
    >>> cats = source.subset(np.isin(source.labels, range(281, 288)))                             # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | Path,
        resolution: int | None = None,
        crop: float = 224 / 256,
        indices: np.ndarray | Sequence[int] | None = None,
        growing: tuple[int, int] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        if not 0 < crop <= 1:
            raise InputError(f"crop is a share of the shorter side, above 0 and at most 1, not {crop}")
        if resolution is not None and resolution < 1:
            raise InputError(f"resolution must be at least 1 pixel, not {resolution}")
        if growing is not None and not 0 < growing[0] <= growing[1]:
            raise InputError(f"growing is two sizes in pixels, the smaller one first, not {growing}")
        self.path, self.resolution, self.crop, self.growing = Path(path).absolute(), resolution, crop, growing
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} does not exist: write it with dtl.datasets.ffcv.write(data, path)")
        names = self.path.with_suffix(".json")
        if classes is None and not names.is_file():
            raise FileNotFoundError(f"{names} with the class names is missing: bring it, or give classes=[...]")
        classes = tuple(load_json(names, "classes")["classes"] if classes is None else classes)
        total = len(self._file.label)
        self.indices = np.arange(total) if indices is None else np.asarray(indices, dtype=np.int64)
        if self.indices.size and not (0 <= self.indices.min() and self.indices.max() < total):
            raise InputError(f"indices must be 0..{total - 1}, the images of {self.path}")
        labels = torch.from_numpy(self._file.label[self.indices])
        if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < len(classes)):
            raise InputError(f"{self.path} has labels up to {int(labels.max())} but there are {len(classes)} classes")
        object.__setattr__(self, "labels", labels)  # a field of the frozen ImageDataset
        object.__setattr__(self, "classes", classes)
        if resolution is None and len(sizes := np.unique(self._file.sides[self.indices], axis=0)) > 1:
            raise InputError(f"the images of {self.path} have {len(sizes)} sizes: give the resolution to read them at")

    def __reduce__(self) -> tuple[type["Beton"], tuple[Any, ...]]:
        """By name: a worker opens the file itself."""
        return Beton, (self.path, self.resolution, self.crop, self.indices, self.growing, self.classes)

    @cached_property
    def _file(self) -> "_File":
        return _File(self.path)

    @property
    def size(self) -> tuple[int, int]:
        if self.resolution is not None:
            return self.resolution, self.resolution
        height, width = self._file.sides[self.indices[0] if len(self) else 0]
        return int(height), int(width)

    @property
    def images(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All images, uint8 (n, 3, height, width), decoded now: take a subset of a large file first."""
        return self.read(np.arange(len(self)))

    def subset(self, index: np.ndarray | torch.Tensor | Sequence[int]) -> "Beton":
        return Beton(self.path, self.resolution, self.crop, self.indices[np.asarray(index)], self.growing, self.classes)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of encoded images, labels, class names and how they are read; the whole file is read once."""
        how = (self.resolution, self.crop, self.growing, self.classes)
        digest = hashlib.sha256(repr(how).encode())
        for i in self.indices.tolist():
            digest.update(self._file.sides[i].tobytes())
            digest.update(self._file.encoded(i).data)
        digest.update(self.labels.numpy().data)
        return digest.hexdigest()

    @cached_property
    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of at most 10,000 images spread over the file."""
        spread = np.unique(np.linspace(0, len(self) - 1, min(len(self), STATISTICS)).astype(np.int64))
        count, total, squares = 0, torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
        for index in np.array_split(spread, -(-len(spread) // 256)):
            pixels = self.read(index).long()
            count += pixels[:, 0].numel()
            total, squares = total + pixels.sum((0, 2, 3)), squares + (pixels * pixels).sum((0, 2, 3))
        mean = total.double() / count
        variance = (squares.double() - count * mean**2) / max(count - 1, 1)
        return (mean / 255).float(), (variance.clamp(min=0).sqrt() / 255).float().clamp(min=1e-3)

    def batches(self, like: Images, device: torch.device, augment: int = 0) -> "BetonBatches":
        """What a training step sees of these images; augmented by random resized crops and flips."""
        return BetonBatches(self, like, device, augment > 0)

    def boxes(self, index: np.ndarray) -> np.ndarray:
        """The centre crop of each image, (n, 4) int: top, left, height and width."""
        sides = self._file.sides[self.indices[index]]
        square = np.maximum(self.crop * sides.min(1, keepdims=True), 1).astype(np.int64).repeat(2, 1)
        kept = sides if self.resolution is None else square
        return np.concatenate([(sides - kept) // 2, kept], 1)

    def draw(self, index: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A random resized crop (n, 4) and a flip (n,) bool for each image, from `rng` alone."""
        height, width = self._file.sides[self.indices[index]].T
        return random_boxes(height, width, rng), rng.random(len(index)) < 0.5

    def read(
        self,
        index: np.ndarray | Sequence[int],
        boxes: np.ndarray | None = None,
        flips: np.ndarray | None = None,
        resolution: int | None = None,
    ) -> torch.Tensor:
        """Images as uint8 (n, 3, height, width), decoded in parallel.

        Parameters
        ----------
        boxes : (n, 4) what to cut out; default is the centre crop
        flips : (n,) bool, which ones to mirror left-right; default none
        resolution : pixels a side to resize to; default as the data set says
        """
        index = np.asarray(index)
        stored = self.indices[index]
        boxes = self.boxes(index) if boxes is None else boxes
        height, width = (resolution, resolution) if resolution else self.size
        found = np.empty((len(index), height, width, 3), dtype=np.uint8)

        def decode(part: np.ndarray) -> None:
            for i in part:
                self._file.decode(int(stored[i]), boxes[i], found[i])
                if flips is not None and flips[i]:
                    found[i] = found[i, :, ::-1].copy()

        workers = joblib.cpu_count()
        parts = np.array_split(np.arange(len(index)), workers)
        jobs = [_pool(workers, os.getpid()).submit(decode, part) for part in parts]
        wait(jobs)  # all of them: none may still read the file when one has failed
        for job in jobs:
            job.result()
        return torch.from_numpy(found).permute(0, 3, 1, 2)


class BetonBatches(Batches):
    """Batches of a `.beton`, decoded while the step before them runs, at the size that training has reached."""

    def __init__(self, dataset: Beton, like: Images, device: torch.device, augment: bool) -> None:
        super().__init__(dataset, like, device)
        self.dataset, self.augment = dataset, augment

    def draw(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A crop (top, left, height, width) and a flip of each image, int32 (steps, batch, 5)."""
        if not self.augment:
            return np.empty((*order.shape, 0), dtype=np.int32)
        drawn = (self.dataset.draw(index, rng) for index in order)
        return np.stack([np.column_stack(crops_and_flips) for crops_and_flips in drawn]).astype(np.int32)

    def load(self, order: Steps, draws: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        growing = self.dataset.growing if draws is not None and self.augment else None
        sizes = [growing and grown(step / len(order), *growing) for step in range(len(order))]
        steps = zip(order, [None] * len(order) if draws is None else draws, sizes, strict=True)
        with ThreadPoolExecutor(1) as ahead:
            following = ahead.submit(self._decode, *next(steps))
            for step in steps:
                x, following = following.result(), ahead.submit(self._decode, *step)
                yield x.to(self.labels.device)
            yield following.result().to(self.labels.device)

    def images(self, index: torch.Tensor, loaded: torch.Tensor) -> torch.Tensor:
        return self.normalised(loaded)

    def _decode(self, index: torch.Tensor, draws: torch.Tensor | None, resolution: int | None) -> torch.Tensor:
        """uint8 (batch, models, 3, height, width) of images (models, batch)"""
        rows, boxes, flips = index.T.numpy(), None, None
        if draws is not None and self.augment:
            drawn = draws.transpose(0, 1).flatten(0, 1).numpy()
            boxes, flips = drawn[:, :4], drawn[:, 4].astype(bool)
        return self.dataset.read(rows.flatten(), boxes, flips, resolution).unflatten(0, rows.shape)


class _File:
    """What a `.beton` holds, in the order in which it was written."""

    def __init__(self, path: Path) -> None:
        try:
            reader = ffcv("reader").Reader(str(path))
            image, label = (reader.metadata[reader.metadata.dtype.names[reader.field_names.index(name)]]
                            for name in ("image", "label"))  # fmt: skip
            table = np.sort(reader.alloc_table, order="ptr")
            self.start = image["data_ptr"]
            self.end = self.start + table["size"][np.searchsorted(table["ptr"], self.start)]
        except (AssertionError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path} is no complete .beton of images with labels ({error}): write it again") from error
        self.path = path
        self.data = np.asarray(np.memmap(path, np.uint8, mode="r"))
        self.sides = np.stack([image["height"], image["width"]], 1).astype(np.int64)  # (n, 2)
        self.label, self.jpeg = label.astype(np.int64), image["mode"] == JPEG
        self.library = ffcv("libffcv")

    def encoded(self, i: int) -> np.ndarray:
        return self.data[self.start[i] : self.end[i]]

    def decode(self, i: int, box: np.ndarray, found: np.ndarray) -> None:
        """Image i, cut to the box (top, left, height, width) and resized, into `found` (height, width, 3)."""
        (height, width), data = self.sides[i].tolist(), self.encoded(i)
        if self.jpeg[i]:
            image = np.empty((height, width, 3), dtype=np.uint8)
            if self.library.imdecode(data, image, height, width, height, width, 0, 0, 1, 1, False, False) != 0:
                raise InputError(f"cannot decode image {i} of {self.path}: write the file again")
        else:
            image = data.reshape(height, width, 3)
        top, left, h, w = box.tolist()
        if (h, w) == found.shape[:2]:
            found[:] = image[top : top + h, left : left + w]
        else:
            self.library.resize_crop(image, top, top + h, left, left + w, found)


@cache
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """The threads of a process; a forked one has none of its parent's."""
    return ThreadPoolExecutor(workers)


def ffcv(module: str) -> ModuleType:
    """A module of FFCV; ImportError that says how to install it where it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it imports distutils
            return importlib.import_module(f"ffcv.{module}")
    except ImportError as error:
        raise ImportError(
            f"FFCV cannot be imported ({error}): install a C++ compiler, pkg-config, OpenCV and libjpeg-turbo (Debian: "
            "g++ pkg-config libopencv-dev libturbojpeg0-dev; conda: environment.yml), then pip install 'dtl[ffcv]'"
        ) from error
