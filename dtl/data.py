"""Images with labels, transfer problems made of them, and where both come from."""

import hashlib
import importlib
import inspect
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import torch

from dtl._batches import Batches, Images, in_memory
from dtl._checks import InputError


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

    def batches(self, like: Images, device: torch.device, augment: int = 0) -> Batches:
        """What a training step sees of these images; augmented by shifts of up to `augment` pixels and flips."""
        return in_memory(self, like, device, augment)

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
            raise InputError(f"all images of a problem must have one size, but they have {sizes}")
        for part, dataset in self.parts.items():
            if dataset.n_classes < 2:
                raise InputError(f"{part} has {dataset.n_classes} class: influences and transfer need at least two")
            if len(dataset) == 0:
                raise InputError(f"{part} has no images")
            if part.startswith("target") and dataset.classes != self.target_train.classes:
                raise InputError(f"{part} has other classes than target_train: {dataset.classes}")
        for part in self.parts:
            empty = [c for c, n in zip(self.parts[part].classes, self.parts[part].counts, strict=True) if n == 0]
            if empty:
                raise InputError(f"{part} has classes without images: {', '.join(empty[:5])}; add images or drop them")

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
        _LOADERS[name] = remembered(function, lambda options: {"load": name, "options": options})
        return _LOADERS[name]

    return register


P = ParamSpec("P")


def remembered(
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
        from dtl.datasets.folders import from_folders

        return from_folders(**origin["from_folders"])
    return load(origin["load"], **origin["options"])


def load(name: str, root: str | Path | None = None, **options: object) -> TransferProblem:
    """A transfer problem by name.

    Parameters
    ----------
    name : "testbed" (procedural images with planted truth, option `seed`), "imagenet200-cifar10" (see
        `dtl.datasets.imagenet200`) or "imagenet-<target>" (see `dtl.datasets.targets`)
    root : folder of the data, for problems that are read from disk; default is $DTL_DATA
    options : passed to the problem's own loader

    >>> problem = dtl.load("testbed", seed=0)
    >>> problem.truth.role[:3]
    """
    for module in ("dtl.testbed", "dtl.datasets.imagenet200", "dtl.datasets.targets"):
        importlib.import_module(module)  # registers what it holds

    if name not in _LOADERS:
        raise InputError(
            f"unknown problem {name!r}: known are {', '.join(sorted(_LOADERS))}; for your own images use "
            "dtl.from_folders(source_dir, target_dir)"
        )
    given = options if root is None else {"root": Path(root), **options}
    unknown = set(given) - set(inspect.signature(_LOADERS[name]).parameters)
    if unknown:
        known = ", ".join(inspect.signature(_LOADERS[name]).parameters)
        raise InputError(f"problem {name!r} takes no {', '.join(sorted(unknown))}: its options are {known}")
    return _LOADERS[name](**given)
