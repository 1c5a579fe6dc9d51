"""Images with labels, and transfer problems made of them."""

import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from dtl._batches import Batches, Images, InMemory, resident
from dtl._checks import InputError, check_kind, check_mapping, class_names, floats, several, shown, some

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class ImageDataset:
    """Images of one size with one label each, held in memory.

    Parameters
    ----------
    images : torch.Tensor, uint8, (n, 3, height, width)
    labels : torch.Tensor, int64, (n,), values in 0..K-1
    classes : tuple of str, length K, all different
    paths : files that the images came from, one each, or None
    normalisation : mean and standard deviation of each channel, (3,) each, that training normalises by; default is that
        of these images. Images that were changed keep those of the images they were made from
    still : whether shifts and flips would destroy what was planted, so that recipes that augment are refused

    Arrays become tensors, and names of any kind strings.

    >>> dtl.load("testbed").source
    ImageDataset(1440 images of 16 x 16 pixels, classes star, cloud, rook, knight, ... (24 in all))
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    paths: tuple[str, ...] | None = None
    normalisation: tuple[torch.Tensor, torch.Tensor] | None = None
    still: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", _tensor(self.images, "images"))
        object.__setattr__(self, "labels", _tensor(self.labels, "labels"))
        object.__setattr__(self, "classes", class_names(self.classes))
        object.__setattr__(self, "paths", None if self.paths is None else several(self.paths, "paths"))
        shape = tuple(self.images.shape)
        if self.images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or 0 in shape[2:]:
            raise InputError(f"images must be uint8 of shape (n, 3, height, width), not {self.images.dtype} {shape}")
        if self.labels.dtype != torch.int64 or tuple(self.labels.shape) != shape[:1]:
            raise InputError(
                f"labels must be int64, one for each of the {shape[0]} images, not {self.labels.dtype} "
                f"{tuple(self.labels.shape)}"
            )
        outside = (self.labels < 0) | (self.labels >= len(self.classes))
        if outside.any():
            where = int(outside.nonzero()[0])
            raise InputError(
                f"label {int(self.labels[where])} of image {where} is out of range: there are "
                f"{len(self.classes)} classes, so labels are 0..{len(self.classes) - 1}"
            )
        if self.normalisation is not None and np.shape(self.normalisation) != (2, 3):
            raise InputError(f"normalisation must be mean and deviation of three channels, not {self.normalisation!r}")
        if self.paths is not None and len(self.paths) != len(self.labels):
            raise InputError(f"paths must be one for each of the {len(self.labels)} images, not {len(self.paths)}")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        height, width = self.size
        return f"ImageDataset({len(self)} images of {height} x {width} pixels, classes {some(self.classes, 4)})"

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
        return self.normalisation or self._statistics

    @cached_property
    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = self.images.float() / 255
        return pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp(min=1e-3)

    def subset(self, index: np.ndarray | torch.Tensor | Sequence[int]) -> "ImageDataset":
        """The images at `index` (integers or a boolean mask), with the same classes."""
        index = torch.as_tensor(np.asarray(index, dtype=None if len(index) else np.int64))
        paths = None if self.paths is None else tuple(np.array(self.paths, dtype=object)[index.numpy()])
        return replace(self, images=self.images[index], labels=self.labels[index], paths=paths)

    def batches(self, like: Images, device: torch.device, augment: int = 0) -> Batches:
        """What a training step sees of these images; augmented by shifts of up to `augment` pixels and flips."""
        return (InMemory if device.type == "cpu" else resident)(self, like, device, augment)

    @cached_property
    def counts(self) -> np.ndarray:
        """Images of each class, (K,)."""
        return np.bincount(self.labels.numpy(), minlength=self.n_classes)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of pixels, labels, class names, and of a normalisation that is not their own."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        for numbers in self.normalisation or ():
            digest.update(numbers.contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def contradicted(self) -> np.ndarray:
        """Whether the same pixels are here under another label, too, (n,) bool.

        >>> dtl.load("testbed").target_train.contradicted.any()
        np.False_
        """
        _, picture = np.unique(self.digests, return_inverse=True)
        pairs = np.unique(picture * self.n_classes + self.labels.numpy())
        return np.bincount(pairs // self.n_classes)[picture] > 1

    @cached_property
    def digests(self) -> np.ndarray:
        """A digest of the pixels of each image, (n,) int64: equal where images are."""
        rows = self.images.contiguous().numpy()
        return np.frombuffer(b"".join(blake2b(row.data, digest_size=8).digest() for row in rows), dtype=np.int64)


def _tensor(values: Any, what: str) -> torch.Tensor:
    """Values as a tensor; whole numbers of any kind as int64, unless they are uint8."""
    if isinstance(values, np.ma.MaskedArray):
        raise InputError(f"{what} must not be masked: fill or leave out what is missing")
    try:
        tensor = values if isinstance(values, torch.Tensor) else torch.tensor(np.asarray(values))
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} must be an array of numbers ({error})") from None
    return tensor.long() if tensor.dtype in (torch.int8, torch.int16, torch.int32) else tensor


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


@dataclass(frozen=True, eq=False, repr=False)
class TransferProblem:
    """A source to pre-train on and a target, in three splits, to transfer to.

    Influences are estimated on `target_validation`; gains are reported on `target_test`. `origin` is the call of `load`
    that made the problem, as plain data; None for a problem made by hand. A problem with an origin is pickled as that
    call and the fingerprints of what it gave, any other one as its tensors. Images that are in two parts are logged.

    Parameters
    ----------
    per_class_accuracy : whether accuracy is the mean over classes and not the share of examples
    views : name -> change of images, uint8 (n, 3, h, w) to the same; see `with_views`

    >>> dtl.load("testbed")
    testbed-0: 1440 source images of 16 x 16 pixels, classes star, cloud, rook, knight, ... (24 in all)
    120 + 400 + 800 target images (train, validation, test), classes sky, chess, cards, travel
    """

    name: str
    source: ImageDataset
    target_train: ImageDataset
    target_validation: ImageDataset
    target_test: ImageDataset
    truth: Truth | None = None
    per_class_accuracy: bool = False
    views: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = field(default_factory=dict)
    origin: dict[str, Any] | None = field(default=None, init=False)  # so `dataclasses.replace` forgets it

    def __post_init__(self) -> None:
        check_kind(self.name, "str", "name")
        check_kind(self.truth, "dtl.data.Truth", "truth", optional=True)
        check_mapping(self.views, "views")
        sizes = {part: check_kind(dataset, "dtl.ImageDataset", part).size for part, dataset in self.parts.items()}
        if len(set(sizes.values())) > 1:
            raise InputError(f"all images of a problem must have one size, but they have {sizes}")
        for part, dataset in self.parts.items():
            if dataset.n_classes < 2:
                raise InputError(f"{part} has {dataset.n_classes} class: influences and transfer need at least two")
            if len(dataset) == 0:
                raise InputError(f"{part} has no images")
            if part.startswith("target") and dataset.classes != self.target_train.classes:
                here, there = dict.fromkeys(dataset.classes), dict.fromkeys(self.target_train.classes)
                lacks, more = [c for c in there if c not in here], [c for c in here if c not in there]
                how = [f"lacks {some(lacks)}" if lacks else "", f"also has {some(more)}" if more else ""]
                how = " and ".join(filter(None, how)) or "has them in another order"
                raise InputError(f"all splits of the target must have the classes of target_train, but {part} {how}")
            empty = [c for c, n in zip(dataset.classes, dataset.counts, strict=True) if n == 0]
            if empty:
                raise InputError(f"{part} has classes without images: {some(empty)}; add images or drop them")
        for part in self._held:
            dataset = self.parts[part]
            torn = np.flatnonzero(dataset.contradicted).tolist()
            if torn:
                where = some([shown(dataset.paths[i]) for i in torn] if dataset.paths else torn)
                logger.warning("%s: %d images of %s are in it under two labels: %s", self.name, len(torn), part, where)
        for (one, other), n in self.copies.items():
            whole = len(self.parts[other])
            logger.warning("%s: %d of %d images of %s are also in %s", self.name, n, whole, other, one)

    def __repr__(self) -> str:
        (height, width), (n, *targets) = self.source.size, map(len, self.parts.values())
        return (
            f"{self.name}: {n} source images of {height} x {width} pixels, classes "
            f"{some(self.source.classes, 4)}\n{' + '.join(map(str, targets))} target images (train, validation, test), "
            f"classes {some(self.target_train.classes, 4)}"
        )

    def __reduce__(self) -> tuple[Callable[..., "TransferProblem"], tuple[Any, ...]]:
        return TransferProblem, (self.name, *self.parts.values(), self.truth, self.per_class_accuracy, dict(self.views))

    @property
    def parts(self) -> dict[str, ImageDataset]:
        """The four datasets by name."""
        names = ("source", "target_train", "target_validation", "target_test")
        return {name: getattr(self, name) for name in names}

    def with_views(self, views: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]) -> "TransferProblem":
        """The same problem, whose models are also judged on changed versions of the evaluation images.

        No view is ever trained on, and none changes what a study measures without it.

        Parameters
        ----------
        views : name -> change, such as one of `dtl.datasets.overlays`; in results the name stands behind the split, as
            "test/square", and "test/plain" for the images as they are

        Raises
        ------
        InputError : a name that cannot be kept, or a change that does not give images of the size it gets, or not the
            same ones each time

        >>> problem.with_views({"square": dtl.datasets.overlays.Square()}).views
        {'square': Square(colour=(255, 255, 0), weight=1.0, side=4, at=(0, 0))}
        """
        if not isinstance(views, Mapping) or not all(map(callable, views.values())):
            raise InputError(f"views must be a mapping of names to functions of images, not {views!r}")
        for name, change in views.items():
            if not isinstance(name, str) or not re.fullmatch(r"\w[\w .+-]*", name) or name == PLAIN:
                raise InputError(f"a view needs a name, not {PLAIN!r}, of letters, digits, space and . + -: {name!r}")
            few = self.target_test.images[:4]
            found, again = change(few.clone()), change(few.clone())
            same = isinstance(found, torch.Tensor) and (found.dtype, found.shape) == (few.dtype, few.shape)
            if not same or not torch.equal(found, again):
                raise InputError(f"view {name!r} must give the same uint8 images {tuple(few.shape)} whenever asked")
        problem = replace(self, views={**self.views, **views})
        object.__setattr__(problem, "origin", self.origin)
        return problem

    @cached_property
    def judges(self) -> dict[str, ImageDataset]:
        """What models are judged on: validation, test, and both in each view, as "test/square"; never trained on."""
        splits = {"validation": self.target_validation, "test": self.target_test}
        changed = {
            f"{split}/{name}": replace(dataset, images=change(dataset.images))
            for name, change in self.views.items()
            for split, dataset in splits.items()
        }
        return splits | changed

    @property
    def fingerprints(self) -> dict[str, str]:
        return {part: dataset.fingerprint for part, dataset in self.parts.items()}

    @property
    def _held(self) -> list[str]:
        """The parts that are in memory; those of FFCV files are not."""
        return [part for part, dataset in self.parts.items() if "images" in vars(dataset)]

    @property
    def copies(self) -> dict[tuple[str, str], int]:
        """How many images of a part are, pixel for pixel, in one before it, for each two that share any.

        Parts that are not in memory, such as those of FFCV files, are left out.

        >>> dtl.load("testbed").copies
        {}
        """
        found = {
            pair: int(np.isin(self.parts[pair[1]].digests, self.parts[pair[0]].digests).sum())
            for pair in combinations(self._held, 2)
        }
        return {pair: n for pair, n in found.items() if n}

    def accuracy(self, correct: ArrayLike, labels: ArrayLike) -> np.ndarray:
        """Accuracy of each model as it is reported for this problem, (models,), in 0..1.

        Parameters
        ----------
        correct : (models, n) bool, whether a model is right on an example
        labels : (n,) int, classes of the examples; those of which there are none do not count

        >>> dtl.load("testbed").accuracy([[True, True, False]], [0, 0, 1])
        array([0.66666667])
        """
        correct, labels = floats(correct, "correct", 2), floats(labels, "labels", 1)
        if correct.shape[1:] != labels.shape:
            raise InputError(f"give one label for each of {correct.shape[1]} examples, not {len(labels)}")
        _, groups, counts = np.unique(labels, return_inverse=True, return_counts=True)
        weights = 1 / counts[groups] if self.per_class_accuracy else None
        return np.average(correct, axis=1, weights=weights)


PLAIN = "plain"  # the view that changes nothing
