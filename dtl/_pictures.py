"""Pictures of data sets: galleries, and the strips beside the bar of a class."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from dtl._checks import InputError, check_images, check_kind, choice, several, whole
from dtl._drawing import WIDTH, Pictures, inches, new_axes, shown, verbatim

PIXEL_ART = 24  # images up to this size are enlarged without smoothing
_LETTER = 0.08  # inches, of text of 10 points


def image_grid(
    dataset: Pictures,
    per_class: int = 6,
    classes: Sequence[str] | None = None,
    columns: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The first `per_class` images of each class (not picked by hand), under the name of the class.

    `columns` is the number of classes side by side: 2 by default, 1 for up to three classes.

    >>> ax = dtl.plots.image_grid(problem.source, per_class=6, classes=problem.source.classes[:2])
    """
    check_images(dataset, "dataset")
    chosen = dataset.classes if classes is None else several(classes, "classes")
    for name in chosen:
        choice(name, dataset.classes, "class")
    order = [dataset.classes.index(name) for name in chosen]
    names, n = shown(dataset.classes, 50), whole("per_class", per_class, 1)
    few = [first_of(dataset, c, n) for c in order]
    return _gallery([names[c] for c in order], few, columns or (1 if len(few) <= 3 else 2), ax)


def images(
    dataset: Pictures,
    index: Sequence[int],
    titles: Sequence[str] | None = None,
    columns: int = 8,
    ax: Axes | None = None,
) -> Axes:
    """Chosen examples, by number or by a mask, each under its title (its class name by default).

    There are at most `columns` side by side, fewer where the words of the titles need the room.

    >>> ax = dtl.plots.images(problem.target_test, [3, 14, 15])
    """
    some = list(several(index, "index"))  # numbers or a mask
    index = np.arange(len(check_images(dataset, "dataset").labels))[some].tolist()
    titles = [dataset.classes[int(dataset.labels[i])] for i in index] if titles is None else titles
    return _gallery(titles, [pictures(dataset, [i]) for i in index], columns, ax)


def pairs(
    left: Pictures,
    right: Pictures,
    index: Sequence[tuple[int, int]],
    titles: Sequence[str] | None = None,
    columns: int = 3,
    ax: Axes | None = None,
) -> Axes:
    """Pairs of examples side by side, such as a leaked source picture and the target picture that it is a copy of.

    Parameters
    ----------
    left, right : data sets of the first and of the second picture of each pair.
    index : pairs of numbers, one in each data set.
    titles : of the pairs; by default the class names of both pictures.
    columns : pairs side by side, at most.

    >>> ax = dtl.plots.pairs(problem.source, problem.target_test, [(0, 3), (5, 14)])
    """
    check_images(left, "left")
    check_images(right, "right")
    index = [several(pair, "index") for pair in several(index, "index")]
    if titles is None:
        titles = [f"{left.classes[int(left.labels[i])]} / {right.classes[int(right.labels[j])]}" for i, j in index]
    few = [np.concatenate([pictures(left, [i]), pictures(right, [j])]) for i, j in index]
    return _gallery(titles, few, columns, ax)


def _gallery(titles: Sequence[str], groups: Sequence[np.ndarray], columns: int, ax: Axes | None) -> Axes:
    """Groups of (h, w, 3) pictures, each under its title; one unit of the axes is one picture."""
    if not groups:
        raise InputError("choose at least one picture")
    titles, columns = several(titles, "titles"), whole("columns", columns, 1)
    if len(titles) != len(groups):
        raise InputError(f"there are {len(titles)} titles for {len(groups)} pictures: give one for each.")
    longest = max(map(len, groups))
    gap = 0.5 if longest > 1 else 0.12
    room = WIDTH if ax is None else inches(check_kind(ax, "matplotlib.axes.Axes", "ax"))[0]
    word = max((len(word) for title in titles for word in str(title).split()), default=1)
    columns = max(1, min(columns, len(groups), int(room / (_LETTER * (min(word, 15) + 1)))))
    width = columns * (longest + gap) - gap
    inch = min(room / width, 1.4)  # of one picture; text keeps its size whatever that of the pictures
    letters = max(8, int((longest + gap) * inch / _LETTER) - 1)
    lines = [[textwrap.fill(shown([line], 60)[0], letters) for line in str(title).split("\n")] for title in titles]
    texts = [verbatim("\n".join(wrapped)) for wrapped in lines]
    above = (0.06 + 0.18 * (1 + max(text.count("\n") for text in texts))) / inch
    pitch = 1 + above + 0.08 / inch
    height = -(-len(groups) // columns) * pitch
    ax = new_axes(ax, width=width * inch, height=height * inch)
    for j, (text, group) in enumerate(zip(texts, groups, strict=True)):
        x, y = j % columns * (longest + gap), j // columns * pitch + above
        ax.text(x + 0.02, y - 0.065 / inch, text, va="baseline", linespacing=1.1)
        for i, picture in enumerate(group):
            # "none" keeps the pixels: sharp at every zoom of an SVG, nearest neighbour in a PNG.
            kind = "none" if max(picture.shape[:2]) <= PIXEL_ART else "antialiased"
            extent = (x + i + 0.02, x + i + 0.98, y + 0.98, y + 0.02)
            ax.imshow(picture, extent=extent, interpolation=kind, aspect="auto")
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    ax.axis("off")
    return ax


def pictures(dataset: Pictures, index: Sequence[int]) -> np.ndarray:
    """Images as (n, h, w, 3) uint8."""
    return np.asarray(dataset.subset(list(index)).images).transpose(0, 2, 3, 1)


def first_of(dataset: Pictures, label: int, n: int) -> np.ndarray:
    return pictures(dataset, np.flatnonzero(np.asarray(dataset.labels) == label)[:n].tolist())


def strip(few: np.ndarray) -> np.ndarray:
    """n pictures side by side with a white gap, (h, w', 3); pixel art enlarged by whole pixels, to keep its edges."""
    size = max(few.shape[1:3])
    factor = -(-128 // size) if size <= PIXEL_ART else 1
    few = few.repeat(factor, axis=1).repeat(factor, axis=2)
    gap = max(1, few.shape[2] // 12)
    padded = np.pad(few, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate(padded, axis=1)[:, :-gap]


def strips(ax: Axes, y: np.ndarray, classes: Sequence[int], dataset: Pictures, n: int) -> None:
    """The first n pictures of each class between its name and its bar, as high as the row allows."""
    size = min(0.92 * inches(ax)[1] / np.ptp(ax.get_ylim()) * 72, 36)  # points
    where = {"xycoords": ("axes fraction", "data"), "boxcoords": "offset points", "box_alignment": (1, 0.5)}
    widest = 0.0
    for position, label in zip(y, classes, strict=True):
        image = strip(first_of(dataset, label, n))
        zoom = size / image.shape[0]
        widest = max(widest, zoom * image.shape[1])
        box = OffsetImage(image, zoom=zoom, interpolation="antialiased")
        ax.add_artist(AnnotationBbox(box, (0, position), (-6, 0), **where, frameon=False, pad=0, annotation_clip=False))
    ax.tick_params(axis="y", pad=widest + 12)
