"""Every figure of the book: functions that take results and an optional `ax`, and return the Axes they drew on.

Colours keep one meaning from page to page: blue helps, vermillion hurts, grey cannot be told from zero (or is left to
chance). They differ for every kind of colour vision, and those used for text are dark enough to read on white.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter
from scipy import stats
from scipy.cluster.hierarchy import leaves_list, linkage

from dtl._checks import InputError

if TYPE_CHECKING:
    import xarray as xr

    from dtl.data import ImageDataset
    from dtl.influence import Influence

log = logging.getLogger(__name__)

HELPS, HURTS, NEUTRAL = "#0067A5", "#C34700", "#6B7280"
INK, FAINT, MUTED = "#1F2933", "#E8EAED", "#B9BEC6"
CATEGORIES = ("#6A3D9A", "#00795C", "#8A6100", "#B02A78", INK)  # for lines that neither help nor hurt
WIDTH = 6.8  # inches; 653 CSS pixels as SVG, inside a page column of 680
Z95 = 1.96
PIXEL_ART = 24  # images up to this size are enlarged without smoothing
_DIVERGING = LinearSegmentedColormap.from_list("hurts-helps", [HURTS, "#F0B48F", "#FFFFFF", "#8FBFE0", HELPS])
_THEME = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",  # opaque, so that figures stay readable on a dark page
    "savefig.transparent": False,
    "figure.figsize": (WIDTH, 3.6),
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same figure on every machine
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "lines.linewidth": 2.0,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "svg.hashsalt": "dtl",  # stable ids: two builds give the same file
}


def style(formats: str = "svg") -> None:
    """Set the look of all figures, in the book and in notebooks. Call it once, in the import cell.

    Parameters
    ----------
    formats : what a notebook embeds: "svg" (default) or, for dense pictures, "retina" (PNG at twice the resolution).

    Examples
    --------
    >>> import dtl.plots
    >>> dtl.plots.style()
    """
    # An SVG keeps its size whatever the dpi, which then only sharpens the images inside it.
    dpi = 160 if formats == "svg" else 100
    sns.set_theme(style="ticks", palette=list(CATEGORIES), rc={**_THEME, "figure.dpi": dpi})
    if "inline" in mpl.get_backend():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats(formats, **({"metadata": {"Date": None}} if formats == "svg" else {}))


def strongest(influence: Influence, names: Sequence[str], target: int | None = None, k: int = 5) -> pd.DataFrame:
    """The k most helpful and the k most harmful source classes, from the most helpful to the most harmful.

    Parameters
    ----------
    influence : values and standard errors, (K, n).
    names : the K source class names.
    target : column to read; None averages the columns. The standard error of the average is then the average standard
        error: an upper bound, because all columns come from the same models and their errors are correlated.
    k : classes per side; a side has fewer when fewer classes have that sign.

    Returns
    -------
    Table with columns source (index of the class), name, value, half_width (of the 95% interval) and verdict: "helps",
    "hurts", or "unclear" where the interval covers 0.

    Raises
    ------
    ValueError : names or target do not fit the influence.

    Examples
    --------
    >>> dtl.plots.strongest(influence, problem.source.classes, k=3).name.tolist()
    ['apple', 'ball', 'cherry', 'sock', 'tent', 'urn']
    """
    n_sources, n_targets = influence.values.shape
    _check_names(names, n_sources, "source")
    if target is not None and not 0 <= target < n_targets:
        raise InputError(f"target is {target}, but the influence has {n_targets} columns: choose 0 to {n_targets - 1}.")
    if k < 1:
        raise InputError(f"k is {k}: ask for at least one class per side.")
    columns = slice(None) if target is None else slice(target, target + 1)
    value = influence.values[:, columns].mean(axis=1)
    half_width = Z95 * influence.stderr[:, columns].mean(axis=1)
    order = np.argsort(-value, kind="stable")
    helpful, harmful = order[value[order] > 0][:k], order[value[order] < 0][-k:]
    shown = np.concatenate([helpful, harmful])
    clear = np.abs(value) > half_width
    verdict = np.where(clear, np.where(value > 0, "helps", "hurts"), "unclear")
    return pd.DataFrame(
        {
            "source": shown,
            "name": [names[i] for i in shown],
            "value": value[shown],
            "half_width": half_width[shown],
            "verdict": verdict[shown],
        }
    )


def influence_bars(
    influence: Influence,
    names: Sequence[str],
    target: int | None = None,
    k: int = 5,
    dataset: ImageDataset | None = None,
    n_images: int = 4,
    title: str | None = None,
    label: str = "influence on the margin (with the class − without)",
    ax: Axes | None = None,
) -> Axes:
    """Bars with 95% intervals for the classes of `strongest`; with `dataset` (the source), images of each class too.

    The bar of a class whose interval covers 0 is grey. Images are the first `n_images` examples of the class.

    Examples
    --------
    >>> dtl.plots.influence_bars(influence, problem.source.classes, target=2, dataset=problem.source, title="star")
    """
    table = strongest(influence, names, target, k)
    helpful = (table.value > 0).to_numpy()
    y = np.arange(len(table)) + 0.6 * (~helpful if helpful.any() else 0)  # a gap between the two sides
    rows = min(2 * k, len(names))  # the same height for every target, also where one side has fewer classes
    ax = _axes(ax, height=1.1 + (0.28 if dataset is None else 0.36) * (rows + 0.6))
    colours = table.verdict.map({"helps": HELPS, "hurts": HURTS, "unclear": MUTED})
    ax.barh(y, table.value, height=0.7, color=colours, linewidth=0, zorder=2)
    ax.errorbar(table.value, y, xerr=table.half_width, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5, zorder=3)
    ax.axvline(0, color=INK, linewidth=0.8, zorder=3)
    ax.set_ylim(rows + 0.1, -0.6)
    ax.set_yticks(y, [_short(name) for name in table.name])
    ax.tick_params(axis="y", length=0)
    sns.despine(ax=ax, left=True)
    ax.grid(axis="x", color=FAINT, zorder=0)
    ax.set_axisbelow(True)
    if dataset is not None:
        _image_strips(ax, y, table.source, dataset, n_images)
    grey = "\ngrey: the 95% interval covers 0" if (table.verdict == "unclear").any() else ""
    ax.set_xlabel(label + grey)
    for text, x, side, colour in (("◂ hurts", 0, "left", HURTS), ("helps ▸", 1, "right", HELPS)):
        ax.text(x, 1.01, text, transform=ax.transAxes, color=colour, fontsize=9, ha=side, va="bottom")
    if title is not None:
        ax.set_title(title, pad=19)
    return ax


def influence_heatmap(
    influence: Influence,
    source_names: Sequence[str],
    target_names: Sequence[str],
    order: str = "mean",
    label: str = "influence on the margin",
    ax: Axes | None = None,
) -> Axes:
    """Source class (rows) x target class (columns); cells whose 95% interval covers 0 are grey.

    Parameters
    ----------
    influence : values and standard errors, (K, n), one column per target class.
    order : "mean" sorts the rows by their mean, the most helpful on top; "cluster" puts rows with similar influences
        next to each other (average linkage on Euclidean distance, optimal leaf order); "given" keeps the order.

    Examples
    --------
    >>> influence = study.influence(by="class")
    >>> dtl.plots.influence_heatmap(influence, problem.source.classes, problem.target_test.classes)
    """
    values = influence.values
    _check_names(source_names, values.shape[0], "source")
    _check_names(target_names, values.shape[1], "target")
    if order == "mean":
        rows = np.argsort(-values.mean(axis=1), kind="stable")
    elif order == "cluster":
        rows = np.asarray(leaves_list(linkage(values, method="average", optimal_ordering=True)))
    elif order == "given":
        rows = np.arange(len(values))
    else:
        raise InputError(f"order is {order!r}: choose 'mean', 'cluster' or 'given'.")
    unclear = np.abs(values) <= Z95 * influence.stderr
    height = min(1.6 + 0.24 * len(values), 14)
    ax = _axes(ax, width=min(WIDTH, 3.2 + 0.55 * values.shape[1]), height=height)
    largest = np.abs(values).max()
    ax.set_facecolor("#DDE0E4")
    sns.heatmap(
        values[rows], mask=unclear[rows], vmin=-largest, vmax=largest, cmap=_DIVERGING,
        xticklabels=[_short(name) for name in target_names],
        yticklabels=[_short(source_names[i]) for i in rows.tolist()],
        linewidths=0.6 if len(values) <= 60 else 0, linecolor="white",
        cbar_kws={"label": label, "shrink": 0.7, "aspect": 24}, ax=ax,
    )  # fmt: skip
    bar = ax.collections[0].colorbar
    if bar is not None:
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        bar.ax.set_title("helps", fontsize=9, fontweight="normal", color=HELPS, loc="left")
        bar.ax.set_xlabel("hurts", fontsize=9, color=HURTS, loc="left")
    ax.tick_params(length=0)
    if max(map(len, target_names)) > 5:
        plt.setp(ax.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    ax.set(xlabel="target class", ylabel="source class")
    if unclear.any():
        ax.set_title("grey: the 95% interval covers 0", fontsize=9, fontweight="normal", color=NEUTRAL)
    return ax


ORDERS = {
    "negative": ("most negative first", HURTS),
    "positive": ("most positive first", HELPS),
    "random": ("at random", NEUTRAL),
}


def removal_curves(
    curve: xr.Dataset, reference: bool = True, split: str = "test", chosen: int | None = None, ax: Axes | None = None
) -> Axes:
    """Target accuracy against the number of source classes removed: mean and its 95% interval (Student) over seeds.

    Parameters
    ----------
    curve : the result of `dtl.removal_curve`; a line takes the colour of the classes it removes first.
    reference : draw the accuracy of the full source (count 0) as a dashed line.
    split : "test" or "validation".
    chosen : number of classes chosen on validation, marked on the "negative" line.

    Examples
    --------
    >>> dtl.plots.removal_curves(curve, chosen=dtl.removal.select(curve).count)
    """
    if split not in curve:
        raise InputError(f"the curve has no split {split!r}: choose one of {', '.join(map(str, curve.data_vars))}.")
    counts = curve["count"].values.tolist()
    if reference and 0 not in counts:
        raise InputError("the curve has no count 0, the full source: add it or pass reference=False.")
    if chosen is not None and chosen not in counts:
        raise InputError(f"chosen is {chosen}, which is not among the counts {counts} of the curve.")
    n_seeds = curve.sizes["seed"]
    if n_seeds < 2:
        log.warning("the curve has one seed: it is drawn without intervals.")
    ax = _axes(ax)
    labels: list[tuple[float, str, str]] = []
    others = iter(CATEGORIES)
    for order in map(str, curve["order"].values):
        text, colour = ORDERS.get(order) or (order, next(others, INK))
        accuracy = curve[split].sel(order=order).transpose("count", "seed").values
        mean = accuracy.mean(axis=1)
        ax.plot(counts, mean, color=colour, marker="o", markersize=4, label=text, zorder=3)
        if n_seeds > 1:
            half_width = stats.t.ppf(0.975, n_seeds - 1) * accuracy.std(axis=1, ddof=1) / np.sqrt(n_seeds)
            ax.fill_between(counts, mean - half_width, mean + half_width, color=colour, alpha=0.18, linewidth=0)
        if order == "negative" and chosen is not None:
            at = mean[counts.index(chosen)]
            ax.plot([chosen], [at], "o", markersize=11, markerfacecolor="none", markeredgecolor=colour, zorder=4)
            offset = {"xytext": (0, 11), "textcoords": "offset points", "ha": "center"}
            ax.annotate("chosen on validation", (chosen, at), **offset, color=colour, fontsize=9)
        labels.append((mean[-1], text, colour))
    if reference:
        full = float(curve[split].sel(count=0).mean())
        ax.axhline(full, color=INK, linestyle=(0, (4, 3)), linewidth=1, zorder=2)
        labels.append((full, f"full source {full:.1%}", INK))
    decimals = 0 if abs(np.subtract(*ax.get_ylim())) > 0.06 else 1
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=decimals))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="source classes removed", ylabel=f"target {split} accuracy")
    _finish_lines(ax, labels)
    return ax


_FIXED = {"balanced": CATEGORIES[0], "paired": CATEGORIES[1], "random": CATEGORIES[2]}  # one colour in every figure


def reliability_curve(table: pd.DataFrame, threshold: float | None = 0.8, ax: Axes | None = None) -> Axes:
    """Reliability of influences against the number of models.

    Parameters
    ----------
    table : tidy, with columns models and reliability, and any of design, method, level. The first of these that varies
        becomes the colour, the second the dashes. Rows that repeat a point are averaged, with a 95% interval.
    threshold : reliability to aim at, drawn as a dashed line; None draws none.

    Examples
    --------
    >>> table = pd.DataFrame({"models": [64, 128], "reliability": [0.7, 0.82], "design": "balanced"})
    >>> dtl.plots.reliability_curve(table)
    """
    missing = {"models", "reliability"} - set(table.columns)
    if missing:
        raise InputError(f"the table has no column {', '.join(sorted(missing))}: it needs models and reliability.")
    varying = [name for name in ("design", "method", "level") if name in table and len(set(table[name])) > 1]
    if len(varying) > 2:
        raise InputError("design, method and level all vary: select one value of one of them and plot again.")
    hue, dashes = (*varying, None, None)[:2]
    ax = _axes(ax)
    ax.set_xscale("log")
    kinds = list(dict.fromkeys(table[hue])) if hue else []
    free = (colour for colour in CATEGORIES if colour not in [_FIXED.get(kind) for kind in kinds])
    colours = {kind: _FIXED.get(kind) or next(free, INK) for kind in kinds}
    sns.lineplot(
        table, x="models", y="reliability", hue=hue, style=dashes, palette=colours or None, color=CATEGORIES[0],
        errorbar=("se", Z95), marker="o", markeredgewidth=0, legend="full" if dashes else False, ax=ax,
    )  # fmt: skip
    models = np.unique(table["models"].to_numpy())
    ticks = models[:: -(-len(models) // 9)]
    ax.set_xticks(ticks, [str(m) for m in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="number of models", ylabel="reliability", ylim=(0, 1.02))
    if threshold is not None:
        ax.axhline(threshold, color=INK, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    labels = []
    for kind in [] if dashes else kinds:
        of_kind = table[hue].to_numpy() == kind
        at_end = of_kind & (table["models"].to_numpy() == table["models"].to_numpy()[of_kind].max())
        labels.append((float(table["reliability"].to_numpy()[at_end].mean()), str(kind), colours[kind]))
    _finish_lines(ax, labels)
    if dashes:
        sns.move_legend(ax, "center left", bbox_to_anchor=(1.01, 0.5), handlelength=3.5)
    return ax


def image_grid(
    dataset: ImageDataset,
    per_class: int = 8,
    classes: Sequence[str] | None = None,
    columns: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The first `per_class` images of each class (not picked by hand), under the name of the class.

    `columns` is the number of classes side by side: 2 by default, 1 for up to three classes.

    Examples
    --------
    >>> dtl.plots.image_grid(problem.source, per_class=6, classes=["apple", "ball"])
    """
    wanted = dataset.classes if classes is None else tuple(classes)
    unknown = [name for name in wanted if name not in dataset.classes]
    if unknown:
        raise InputError(f"the dataset has no class {unknown[0]!r}: choose among {', '.join(dataset.classes[:20])}.")
    groups = [(name, _first(dataset, dataset.classes.index(name), per_class)) for name in wanted]
    return _gallery(dataset, groups, columns or (1 if len(wanted) <= 3 else 2), ax)


def images(
    dataset: ImageDataset,
    index: Sequence[int],
    titles: Sequence[str] | None = None,
    columns: int = 8,
    ax: Axes | None = None,
) -> Axes:
    """Chosen examples, by number or by a mask, each under its title (its class name by default).

    Examples
    --------
    >>> dtl.plots.images(problem.target_test, [3, 14, 15])
    """
    index = np.arange(len(dataset))[np.asarray(index) if len(index) else slice(0)].tolist()  # numbers or a mask
    if not index or columns < 1:
        raise InputError(f"choose at least one example and one column, not {len(index)} and {columns}.")
    titles = [dataset.classes[int(dataset.labels[i])] for i in index] if titles is None else titles
    if len(titles) != len(index):
        raise InputError(f"there are {len(titles)} titles for {len(index)} images: give one for each.")
    return _gallery(dataset, [(title, [i]) for title, i in zip(titles, index, strict=True)], columns, ax)


def masks(masks: np.ndarray, names: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Which source class is in the training set of which model: a filled cell means that it is.

    Parameters
    ----------
    masks : bool, (m models, K classes).
    names : the K source class names.

    Examples
    --------
    >>> dtl.plots.masks(dtl.subset_masks(20, 40), problem.source.classes)
    """
    masks = np.asarray(masks)
    n_models, n_units = masks.shape
    names = [str(i) for i in range(n_units)] if names is None else names
    _check_names(names, n_units, "source")
    ax = _axes(ax, height=min(1.2 + 0.2 * n_units, 12))
    sns.heatmap(
        pd.DataFrame(masks.T.astype(float), index=[_short(name) for name in names]), cmap=ListedColormap([FAINT, INK]),
        vmin=0, vmax=1, cbar=False, linewidths=0.8 if n_models <= 100 else 0, linecolor="white", rasterized=True, ax=ax,
    )  # fmt: skip
    step = 10 if n_models > 20 else 5 if n_models > 10 else 1
    ax.set_xticks(np.arange(0, n_models, step) + 0.5, [str(j) for j in range(0, n_models, step)], rotation=0)
    ax.tick_params(length=0)
    ax.set(xlabel="model", ylabel="source class")
    handles = [Patch(color=INK, label="trained with the class"), Patch(color=FAINT, label="trained without")]
    ax.legend(handles=handles, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.4)
    return ax


def _axes(ax: Axes | None, height: float = 3.6, width: float = WIDTH) -> Axes:
    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


def _height(ax: Axes) -> float:
    """Height of the axes in inches."""
    return ax.bbox.height / ax.figure.dpi


def _check_names(names: Sequence[str], n: int, side: str) -> None:
    if len(names) != n:
        raise InputError(f"there are {len(names)} {side} names for {n} {side} classes: give one name for each.")


def _short(name: str, longest: int = 24) -> str:
    return name if len(name) <= longest else name[: longest - 1].rstrip(" ,") + "…"


def _first(dataset: ImageDataset, label: int, n: int) -> list[int]:
    return (dataset.labels == label).nonzero().flatten()[:n].tolist()


def _pictures(dataset: ImageDataset, index: Sequence[int]) -> np.ndarray:
    """Images as (n, h, w, 3) uint8."""
    return dataset.subset(list(index)).images.permute(0, 2, 3, 1).cpu().numpy()


def _strip(pictures: np.ndarray) -> np.ndarray:
    """n images side by side with a white gap, (h, w', 3); pixel art enlarged by whole pixels, to keep its edges."""
    size = max(pictures.shape[1:3])
    factor = -(-128 // size) if size <= PIXEL_ART else 1
    pictures = pictures.repeat(factor, axis=1).repeat(factor, axis=2)
    gap = np.full_like(pictures[0][:, : max(1, pictures.shape[2] // 12)], 255)
    return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)


def _gallery(dataset: ImageDataset, groups: list[tuple[str, list[int]]], columns: int, ax: Axes | None) -> Axes:
    """Groups of images, each under its title; one unit of the axes is one image."""
    columns = min(columns, len(groups))
    longest = max(len(index) for _, index in groups)
    span = longest + (0.5 if longest > 1 else 0.12)
    width = columns * span - (span - longest)
    inch = min(WIDTH / width, 1.4)  # of one image; text keeps its size whatever that of the images
    letters = max(8, int(span * inch * 12))
    titles = ["\n".join(textwrap.fill(_short(line, 60), letters) for line in title.splitlines()) for title, _ in groups]
    above = (0.06 + 0.165 * (1 + max(title.count("\n") for title in titles))) / inch
    pitch = 1 + above + 0.08 / inch
    height = -(-len(groups) // columns) * pitch
    ax = _axes(ax, width=width * inch, height=height * inch)
    # "none" keeps the pixels: sharp at every zoom of an SVG, nearest neighbour in a PNG.
    interpolation = "none" if max(dataset.images.shape[2:]) <= PIXEL_ART else "antialiased"
    for j, (title, (_, index)) in enumerate(zip(titles, groups, strict=True)):
        x, y = j % columns * span, j // columns * pitch + above
        ax.text(x + 0.02, y - 0.065 / inch, title, fontsize=9, va="baseline", linespacing=1.1)
        for i, picture in enumerate(_pictures(dataset, index)):
            extent = (x + i + 0.02, x + i + 0.98, y + 0.98, y + 0.02)
            ax.imshow(picture, extent=extent, interpolation=interpolation, aspect="auto")
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    ax.axis("off")
    return ax


def _image_strips(ax: Axes, y: np.ndarray, sources: Sequence[int], dataset: ImageDataset, n_images: int) -> None:
    """Images of each class between its name and its bar, as high as the row allows."""
    rows = np.ptp(ax.get_ylim())
    size = min(0.92 * _height(ax) / rows * 72, 36)  # points
    widest = 0.0
    for position, source in zip(y, sources, strict=True):
        strip = _strip(_pictures(dataset, _first(dataset, source, n_images)))
        zoom = size / strip.shape[0]
        widest = max(widest, zoom * strip.shape[1])
        picture = OffsetImage(strip, zoom=zoom, interpolation="antialiased")
        where = {"xycoords": ("axes fraction", "data"), "boxcoords": "offset points", "box_alignment": (1, 0.5)}
        ax.add_artist(
            AnnotationBbox(picture, (0, position), (-6, 0), **where, frameon=False, pad=0, annotation_clip=False)
        )
    ax.tick_params(axis="y", pad=widest + 12)


def _finish_lines(ax: Axes, labels: list[tuple[float, str, str]]) -> None:
    """Frame, grid, and the name of each line at its right end, moved apart where names would overlap."""
    sns.despine(ax=ax)
    ax.grid(axis="y", color=FAINT)
    ax.set_axisbelow(True)
    if not labels:
        return
    labels = sorted(labels)
    low, high = ax.get_ylim()
    line = (high - low) * 13 / (72 * _height(ax))  # of text, in data units
    ends = np.array([end for end, _, _ in labels])
    places = ends.copy()
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + line)
    places += (ends - places).mean()
    for place, (_, text, colour) in zip(places, labels, strict=True):
        where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "annotation_clip": False}
        ax.annotate(text, (1, place), (6, 0), **where, color=colour, va="center", fontsize=9.5)
