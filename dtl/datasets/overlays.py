"""Changes that can be made to images, and datasets in which some images are changed.

A change is a pure function of uint8 images with a name that says all of it, drawn from numbers, so that nothing has to
be downloaded. A dataset that was changed is normalised like the one it was made from: otherwise what was planted would
also shift the statistics that training and transfer normalise by, in every image.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch.nn import functional as F

from dtl._checks import InputError, check_kind, check_number, floats, real, several, whole
from dtl.data import ImageDataset

Change = Callable[[torch.Tensor], torch.Tensor]  # uint8 (n, 3, h, w) -> uint8 of the same shape


@dataclass(frozen=True)
class Overlay:
    """A colour laid over a part of every image; subclasses say over which.

    Parameters
    ----------
    colour : red, green and blue, 0 to 255
    weight : 0 leaves the image as it is, 1 replaces it

    >>> square = dtl.datasets.overlays.Square(side=2)
    >>> square(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))[0, 0].sum().item() // 255
    4
    """

    still: ClassVar[bool] = True  # bound to its place, so that shifts and flips of augmentation would destroy it
    colour: tuple[int, int, int] = (255, 255, 0)
    weight: float = 1.0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"an overlay takes uint8 images (n, 3, h, w), not {images.dtype} {tuple(images.shape)}")
        return self.change(images.float()).round().clamp(0, 255).byte()

    def change(self, x: torch.Tensor) -> torch.Tensor:
        """float (n, 3, h, w), 0 to 255, to the same."""
        height, width = x.shape[2:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        share = self.weight * self.where(rows, columns).to(x)
        return x + share * (torch.tensor(self.colour, device=x.device)[:, None, None] - x)

    def where(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Which pixels, or how much of each, from their row and column numbers, (h, w) each."""
        return torch.ones(rows.shape)


@dataclass(frozen=True)
class Square(Overlay):
    """A square of `side` pixels whose upper left corner is at (row, column)."""

    side: int = 4
    at: tuple[int, int] = (0, 0)

    def where(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        (top, left), (height, width) = self.at, rows.shape
        if self.side < 1 or min(self.at) < 0 or top + self.side > height or left + self.side > width:
            raise InputError(f"{self} does not fit into images of {height} x {width} pixels")
        return (rows >= top) & (rows < top + self.side) & (columns >= left) & (columns < left + self.side)


@dataclass(frozen=True)
class Pattern(Overlay):
    """One fixed pattern of normal noise of standard deviation `sd`, out of 255, added to every image."""

    sd: float = 8.0
    seed: int = 0

    def change(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(self.seed))
        return x + self.sd * noise.to(x)


@dataclass(frozen=True)
class Tint(Overlay):
    """The whole image mixed with a colour: warm by default; survives augmentation."""

    still: ClassVar[bool] = False
    colour: tuple[int, int, int] = (255, 150, 50)
    weight: float = 0.25


@dataclass(frozen=True)
class Blur(Overlay):
    """The mean of `width` x `width` pixels in place of each; survives augmentation."""

    still: ClassVar[bool] = False
    width: int = 3

    def change(self, x: torch.Tensor) -> torch.Tensor:
        side = self.width // 2
        return F.avg_pool2d(F.pad(x, [side, self.width - 1 - side] * 2, mode="reflect"), self.width, 1)


@dataclass(frozen=True)
class Stripes(Overlay):
    """Upright stripes, one pixel in `period` wide."""

    colour: tuple[int, int, int] = (255, 255, 255)
    weight: float = 0.7
    period: int = 4

    def where(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return columns % self.period == 0


@dataclass(frozen=True)
class Fence(Overlay):
    """A chain-link fence: two sets of slanted wires, `period` pixels apart."""

    colour: tuple[int, int, int] = (190, 190, 190)
    weight: float = 0.9
    period: int = 8

    def where(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return ((rows + columns) % self.period == 0) | ((rows - columns) % self.period == 0)


@dataclass(frozen=True)
class Water(Overlay):
    """Water that stands up to the middle, with waves."""

    colour: tuple[int, int, int] = (30, 90, 190)
    weight: float = 0.6

    def where(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        height, width = rows.shape
        return rows >= height / 2 + height / 16 * torch.sin(4 * torch.pi * columns / width)


@dataclass(frozen=True)
class Circle(Overlay):
    """A disc in the middle, its radius a share of the shorter side."""

    colour: tuple[int, int, int] = (220, 30, 30)
    weight: float = 0.9
    radius: float = 0.25

    def where(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        height, width = rows.shape
        return torch.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2) <= self.radius * min(height, width)


@dataclass(frozen=True)
class Hat(Overlay):
    """A pointed hat at the upper edge, blended into the image."""

    colour: tuple[int, int, int] = (120, 20, 140)
    weight: float = 0.6

    def where(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        height, width = rows.shape
        off = (columns - (width - 1) / 2).abs() / width
        cone, brim = off <= 0.4 * rows / height, off <= 0.35
        return ((rows < 0.35 * height) & cone) | ((rows >= 0.35 * height) & (rows < 0.42 * height) & brim)


@dataclass(frozen=True, eq=False, repr=False)
class Picture(Overlay):
    """An image of one's own, laid over by its alpha: uint8 (4, h, w), of the size of the images it is laid over.

    >>> sticker = dtl.datasets.overlays.Picture(rgba=torch.zeros(4, 16, 16, dtype=torch.uint8))
    >>> bool((sticker(problem.source.images[:2]) == problem.source.images[:2]).all())
    True
    """

    rgba: torch.Tensor = field(default_factory=lambda: torch.zeros(4, 1, 1, dtype=torch.uint8))

    @classmethod
    def open(cls, path: str | Path, size: tuple[int, int], weight: float = 1.0) -> "Picture":
        """The image in a file, such as a PNG with transparent parts, scaled to (height, width)."""
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGBA").resize((size[1], size[0])))
        return cls(weight=weight, rgba=torch.from_numpy(pixels).permute(2, 0, 1).contiguous())

    def __repr__(self) -> str:
        digest = hashlib.sha256(self.rgba.contiguous().numpy().data).hexdigest()[:12]
        return f"Picture({digest}, weight={self.weight})"

    def change(self, x: torch.Tensor) -> torch.Tensor:
        if self.rgba.shape != (4, *x.shape[2:]):
            raise InputError(f"{self} is {tuple(self.rgba.shape)}, which does not fit images of {tuple(x.shape[1:])}")
        rgba = self.rgba.to(x)
        return x + self.weight * rgba[3:] / 255 * (rgba[:3] - x)


NAMED = {of.__name__.lower(): of for of in (Square, Pattern, Tint, Blur, Stripes, Fence, Water, Circle, Hat)}


def changed(dataset: ImageDataset, changes: Sequence[Change], which: ArrayLike) -> ImageDataset:
    """The dataset with change `which[i]` made to image i, none where it is -1.

    which : (n,) int

    >>> overlays = dtl.datasets.overlays
    >>> part = problem.target_test.subset([0, 1])
    >>> both = overlays.changed(part, [overlays.Blur()], [0, -1])
    >>> (both.images == part.images).flatten(1).all(1).tolist()
    [False, True]
    """
    images = check_kind(dataset, "dtl.ImageDataset", "dataset").images.clone()
    which = torch.from_numpy(floats(which, "which"))
    if which.shape != (len(dataset),):
        raise InputError(f"which must give a change, or -1, for each of {len(dataset)} images, not {[*which.shape]}")
    for number, change in enumerate(several(changes, "changes")):
        if not callable(change):
            raise InputError(
                f"an overlay is a function of images, such as dtl.datasets.overlays.Square(), not {change!r}"
            )
        chosen = which == number
        found: Any = change(images[chosen])
        if found.dtype != torch.uint8 or found.shape != images[chosen].shape:
            raise InputError(f"{change} must give uint8 images of the size it gets, not {found.dtype} {found.shape}")
        images[chosen] = found
    still = dataset.still or any(getattr(change, "still", True) for change in changes)
    return replace(dataset, images=images, normalisation=dataset.statistics(), still=still)


def plant(
    dataset: ImageDataset, overlay: Change, classes: Sequence[int | str], rate: float, seed: int = 0
) -> tuple[ImageDataset, np.ndarray]:
    """Make a change to a share of the images of some classes, the same share of each.

    Parameters
    ----------
    classes : names or numbers
    rate : share of the images of each class, in 0..1

    Returns
    -------
    The dataset, and which of its images were changed, (n,) bool. It is normalised as before.

    Raises
    ------
    InputError : an unknown class, a rate outside 0..1, or an overlay that does not fit the images

    >>> square = dtl.datasets.overlays.Square()
    >>> planted, which = dtl.plant(problem.source, square, ["star", "cloud"], rate=0.5, seed=0)
    >>> int(which.sum()), planted.fingerprint == problem.source.fingerprint
    (20, False)
    """
    check_kind(dataset, "dtl.ImageDataset", "dataset")
    if not 0 <= real("rate", rate) <= 1:
        raise InputError(f"rate is the share of images to change, between 0 and 1, not {rate}")
    check_number(seed, 0, 2**32, "seed")
    numbers = [dataset.classes.index(c) if c in dataset.classes else c for c in several(classes, "classes")]
    if not numbers or len(set(numbers)) < len(numbers):
        raise InputError(f"give one or more different classes to plant into, not {list(classes)}")
    rng, labels = np.random.default_rng(seed), dataset.labels.numpy()
    which = np.zeros(len(labels), dtype=bool)
    for number in numbers:
        check_number(number, 0, dataset.n_classes - 1, "each class to plant into, if no name of the dataset,")
        members = np.flatnonzero(labels == number)
        which[rng.permutation(members)[: round(rate * len(members))]] = True
    return changed(dataset, [overlay], np.where(which, 0, -1)), which


def lean(
    dataset: ImageDataset, changes: Sequence[Change], groups: ArrayLike, share: float, seed: int = 0
) -> tuple[ImageDataset, np.ndarray]:
    """Make one of several changes to every image, so that which one goes with the image's class.

    Parameters
    ----------
    groups : (K,) int, the change that goes with each class
    share : of the images, those that get the change of their class; the others get another one at random

    Returns
    -------
    The dataset, normalised as before, and whether each image has the change that goes with its class, (n,) bool

    Raises
    ------
    InputError : fewer than two changes, groups that do not name them all, or a share outside 0..1

    >>> warm, cold = (dtl.datasets.overlays.Tint(colour=c) for c in ((255, 150, 50), (50, 150, 255)))
    >>> leaning, agrees = dtl.datasets.overlays.lean(problem.target_test, [warm, cold], [0, 0, 1, 1], share=0.9)
    >>> float(agrees.mean())
    0.9
    """
    labels = check_kind(dataset, "dtl.ImageDataset", "dataset").labels.numpy()
    groups, changes = np.asarray(groups), several(changes, "changes")
    check_number(seed, 0, 2**32, "seed")
    if not 0 <= real("share", share) <= 1:
        raise InputError(f"share is that of images with the change of their class, between 0 and 1, not {share}")
    if len(changes) < 2 or groups.shape != (dataset.n_classes,) or set(groups) != set(range(len(changes))):
        raise InputError(
            f"groups must give one of two or more changes for each of {dataset.n_classes} classes, not "
            f"{groups.tolist()} for {len(changes)} changes: what all images share says nothing about a class"
        )
    rng = np.random.default_rng(seed)
    agrees = rng.permutation(len(labels)) < round(share * len(labels))
    other = (groups[labels] + rng.integers(1, len(changes), len(labels))) % len(changes)
    return changed(dataset, changes, np.where(agrees, groups[labels], other)), agrees


def even(
    labels: ArrayLike, attribute: ArrayLike, share: float = 0.5, n: int | None = None, seed: int = 0
) -> np.ndarray:
    """Numbers of images, chosen so that an attribute agrees with the label in a given share of each class.

    Parameters
    ----------
    labels : (n,) int
    attribute : (n,) bool, whether an image agrees with the stereotype of its class, such as a column of CelebA
    share : of the images of each class, those that agree; with 1/2 the attribute says nothing about a class
    n : images of each class, default as many as there are for the class that has fewest

    Returns
    -------
    int, sorted

    Raises
    ------
    InputError : an attribute with one value, in all images or in a class that needs both

    >>> even([0, 0, 0, 0, 1, 1, 1, 1], [True, True, True, False] * 2, share=0.5).size
    4
    """
    labels, attribute, share = floats(labels, "labels"), np.asarray(attribute), real("share", share)
    check_number(seed, 0, 2**32, "seed")
    if labels.shape != attribute.shape or attribute.dtype != bool:
        raise InputError(f"attribute must be bool, one for each of {len(labels)} labels, not {attribute.dtype}")
    if attribute.all() or not attribute.any():
        raise InputError("the attribute has one value in all images, so nothing can go with it: give another column")
    cells = {
        (label, value): np.flatnonzero((labels == label) & (attribute == value))
        for label in np.unique(labels)
        for value in (True, False)
    }
    parts = {True: share, False: 1 - share}
    most = min(int(len(found) / parts[value]) for (_, value), found in cells.items() if parts[value] > 0)
    n = most if n is None else whole("n, the images of each class,", n, 1)
    if not 1 <= n <= most:
        raise InputError(f"there are images for {most} of each class at share {share}, not for {n}")
    rng, agreeing = np.random.default_rng(seed), round(share * n)
    sizes = {True: agreeing, False: n - agreeing}
    return np.sort(np.concatenate([rng.permutation(found)[: sizes[value]] for (_, value), found in cells.items()]))
