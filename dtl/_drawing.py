"""What all figures share: colours, fonts, text that comes from data, and names at the ends of lines."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import seaborn as sns
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dtl._checks import InputError, check_number

if TYPE_CHECKING:
    from dtl.data import ImageDataset, TransferProblem
    from dtl.datasets.thumbnails import Thumbnails
    from dtl.influence import Influence

    Pictures = ImageDataset | Thumbnails

Draws = TypeVar("Draws", bound=Callable[..., Any])

HELPS, HURTS, NEUTRAL = "#0067A5", "#C34700", "#6B7280"
INK, FAINT, MUTED = "#111827", "#E8EAED", "#B9BEC6"
CATEGORIES = ("#A710E7", "#084838", "#876040", "#701068", INK)  # for what neither helps nor hurts
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
WIDTH = 5.0  # inches; see plots.mplstyle
# For scripts that DejaVu Sans, which matplotlib brings along, does not have: as many of these as are installed.
FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Noto Sans KR", "Source Han Sans",
    "Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic",
    "WenQuanYi Zen Hei", "Noto Sans Devanagari", "Noto Sans Thai", "Nirmala UI", "Leelawadee UI", "Arial Unicode MS",
)  # fmt: skip


def font_family() -> list[str]:
    """DejaVu Sans, then those of `FONTS` that this machine has; each glyph comes from the first that has it."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in FONTS if name in installed)]


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


def sources_of(influence: Influence) -> tuple[str, ...]:
    """Names of the rows; numbers where the influence was estimated from arrays."""
    return influence.sources or tuple(map(str, range(influence.values.shape[0])))


def targets_of(influence: Influence) -> tuple[str, ...]:
    return influence.targets or tuple(map(str, range(influence.values.shape[1])))


def column_of(influence: Influence, target: int | str) -> int:
    """The column of a target given by number or by name.

    >>> column_of(influence, influence.targets[1])
    1
    """
    names = targets_of(influence)
    if not isinstance(target, str):
        check_number(target, 0, len(names) - 1, "target, a column of the influence,")
        return int(target)
    found = [i for i, name in enumerate(names) if name == target]
    if len(found) != 1:
        what = f"{len(found)} targets {target!r}, {found}: choose by number" if found else f"no target {target!r}"
        raise InputError(f"the influence has {what}; its targets: {', '.join(shown(names)[:10])}")
    return found[0]


def source_of(images: Pictures | TransferProblem) -> Pictures:
    """The images; for one version also of a problem, whose source they are."""
    if hasattr(images, "source"):
        warnings.warn("give the images, problem.source, in place of the problem", DeprecationWarning, stacklevel=3)
        return cast("TransferProblem", images).source
    return cast("Pictures", images)


def named_by(influence: Influence, images: Pictures | None) -> Influence:
    """The influence of the classes of the images; names where it has none, InputError where it has others."""
    if images is None:
        return influence
    if len(images.classes) != len(influence.values) or influence.sources not in ((), tuple(images.classes)):
        theirs, its = (", ".join(shown(names)[:3]) for names in (images.classes, sources_of(influence)))
        raise InputError(
            f"the images are of {theirs} ..., but the influence is of {its} ...: give images of its source"
        )
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
    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


def inches(ax: Axes) -> np.ndarray:
    """Width and height of the axes, once everything around them has its place."""
    figure = cast(Figure, ax.get_figure(root=True))
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.execute(figure)
    return np.array([ax.bbox.width, ax.bbox.height]) / figure.dpi


def finish_rows(ax: Axes) -> None:
    """Frame and grid of a figure whose rows are named."""
    ax.tick_params(axis="y", length=0)
    sns.despine(ax=ax, left=True)
    ax.grid(axis="x", color=FAINT, zorder=0)
    ax.set_axisbelow(True)


def finish_lines(ax: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Frame, grid, and the name of each line at its right end, moved apart where names would overlap.

    labels : height, text and colour
    """
    sns.despine(ax=ax)
    ax.grid(axis="y", color=FAINT)
    ax.set_axisbelow(True)
    if not labels:
        return
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
        ax.annotate(verbatim(text), (1, place), (6, 0), **where, color=colour, va="center")
