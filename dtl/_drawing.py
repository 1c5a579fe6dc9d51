"""What all figures share: colours, text that comes from data, sizes, and names at the ends of lines."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dtl._checks import InputError, check_images, check_kind
from dtl.influence import Influence

if TYPE_CHECKING:
    from dtl.data import ImageDataset
    from dtl.datasets.thumbnails import Thumbnails

Pictures: TypeAlias = "ImageDataset | Thumbnails"
Draws = TypeVar("Draws", bound=Callable[..., Any])

HELPS, HURTS, NEUTRAL = "#0067A5", "#C34700", "#6B7280"
INK, FAINT, MUTED = "#111827", "#E8EAED", "#B9BEC6"
CATEGORIES = ("#A710E7", "#084838", "#876040", "#701068", INK)  # for what neither helps nor hurts
WIDTH = 5.0  # inches; see plots.mplstyle


def verbatim(text: object) -> str:
    """Text from data, so that matplotlib draws it letter by letter: a dollar sign starts no mathematics.

    >>> print(verbatim("US$ vs C$"))
    US\\$ vs C\\$
    """
    return str(text).replace("$", r"\$")


def shown(names: Sequence[object], longest: int = 24) -> list[str]:
    """Names as lists show them: on one line, cut where they are long, and with their number where two look alike.

    >>> shown(["crane", "sports car, convertible, roadster", "crane"])
    ['crane (0)', 'sports car, convertible…', 'crane (2)']
    """
    short = []
    for name in (" ".join(str(name).split()) for name in names):
        short.append(name if len(name) <= longest else name[: longest - 1].rstrip(" ,") + "…")
    times = Counter(short)
    return [name if times[name] == 1 else f"{name} ({i})" for i, name in enumerate(short)]


def named_by(influence: Influence, images: Pictures | None) -> Influence:
    """The influence of the classes of the images; names where it has none, InputError where it has others."""
    check_kind(influence, "dtl.Influence", "influence")
    if images is None:
        return influence
    check_images(images, "images")
    if len(images.classes) != len(influence.values) or influence.sources not in ((), tuple(images.classes)):
        theirs, its = (", ".join(shown(names)[:3]) for names in (images.classes, influence.names[0]))
        if influence.unit in ("group", "example"):
            raise InputError(f"units are {influence.unit}s, for which there is no picture of a class: leave images out")
        raise InputError(f"the images are of {theirs} ..., the influence is of {its} ...: give images of its source")
    return replace(influence, sources=tuple(images.classes))


def names_given(function: Draws) -> Draws:
    """Take, for one version, names of sources and targets after the influence, and images as `dataset`."""

    @wraps(function)
    def call(influence: Influence, *rest: Any, **options: Any) -> Any:
        given = list(takewhile(lambda value: isinstance(value, list | tuple | np.ndarray), rest))
        if given or "dataset" in options:
            what = "the influence knows its names, and the data set is images=: give no names"
            warnings.warn(f"{function.__name__}: {what}", DeprecationWarning, stacklevel=2)
            influence = replace(influence, **dict(zip(("sources", "targets"), map(tuple, given), strict=False)))
            options = {"images" if name == "dataset" else name: value for name, value in options.items()}
        return function(influence, *rest[len(given) :], **options)

    return cast(Draws, call)


def new_axes(ax: Axes | None, height: float = 3.2, width: float = WIDTH) -> Axes:
    check_kind(ax, "matplotlib.axes.Axes", "ax", optional=True)
    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


def inches(ax: Axes) -> np.ndarray:
    """Width and height of the axes, once everything around them has its place."""
    figure = cast(Figure, ax.get_figure(root=True))
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.execute(figure)
    return np.array([ax.bbox.width, ax.bbox.height]) / figure.dpi


def finish(ax: Axes, rows: bool = False) -> None:
    """Frame and grid of a figure of values; the rows of a figure may be named instead of numbered."""
    sns.despine(ax=ax, left=rows)
    ax.grid(axis="x" if rows else "y", color=FAINT, zorder=0)
    ax.set_axisbelow(True)
    if rows:
        ax.tick_params(axis="y", length=0)


def name_lines(ax: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """The name of each line at its right end, moved apart where names would overlap.

    labels : height, text and colour
    """
    labels = sorted(labels)
    low, high = ax.get_ylim()
    line = (high - low) * 13.5 / (72 * inches(ax)[1])  # of text, in data units
    ends = np.array([end for end, _, _ in labels])
    places = ends.copy()
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + line)
    places += (ends - places).mean()
    where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "annotation_clip": False}
    for place, (_, text, colour) in zip(places, labels, strict=True):
        ax.annotate(text, (1, place), (6, 0), **where, color=colour, va="center")
