"""Every figure of the book: functions that take results and an optional `ax`, and return the Axes they drew on.

Colours keep one meaning from page to page: blue helps, vermillion hurts, grey cannot be told from zero (or is left to
chance). Any two that meet in a figure differ for every kind of colour vision, and lines differ in their markers too.
Bars across a mean are 95% intervals; a number after ± is a standard error. Class names come with the influence.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter
from scipy import stats
from scipy.cluster.hierarchy import leaves_list, linkage

from dtl import _drawing as draw
from dtl._checks import InputError, check_number, choice
from dtl._drawing import CATEGORIES, FAINT, HELPS, HURTS, INK, MUTED, NEUTRAL, WIDTH, shown, verbatim
from dtl._pictures import image_grid, images, pairs, strips

if TYPE_CHECKING:
    import xarray as xr

    from dtl._drawing import Pictures
    from dtl.influence import Influence

log = logging.getLogger(__name__)

_DIVERGING = LinearSegmentedColormap.from_list("hurts-helps", [HURTS, "#F0B48F", "#FFFFFF", "#8FBFE0", HELPS])
_DASHED = {"color": INK, "linestyle": (0, (4, 3)), "linewidth": 1}
_HALO = [withStroke(linewidth=3, foreground="white")]
_GREY = "grey: the 95% interval covers 0"
__all__ = [
    "CATEGORIES", "FAINT", "HELPS", "HURTS", "INK", "MUTED", "NEUTRAL", "ORDERS", "WIDTH", "compare", "flip_bars",
    "image_grid", "images", "influence_bars", "influence_heatmap", "masks", "pairs", "reliability_curve",
    "removal_curves", "strongest", "style",
]  # fmt: skip


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
    look: dict[str, Any] = {**mpl.rc_params_from_file(Path(__file__).with_suffix(".mplstyle"), False, False)}
    # An SVG keeps its size whatever the dpi, which then only sharpens the images inside it.
    look |= {"figure.dpi": 160 if formats == "svg" else 100, "font.family": draw.font_family()}
    sns.set_theme(style="ticks", palette=list(CATEGORIES), rc=look)
    if "inline" in mpl.get_backend():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats(formats, **({"metadata": {"Date": None}} if formats == "svg" else {}))


@draw.names_given
def strongest(influence: Influence, target: int | str | None = None, k: int = 5) -> pd.DataFrame:
    """The k most helpful and the k most harmful source classes, from the most helpful to the most harmful.

    Parameters
    ----------
    influence : values and standard errors, (K, n).
    target : column to read, by number or by name; None averages the columns. The standard error of the average is then
        the average standard error: an upper bound, because all columns come from the same models.
    k : classes per side; a side has fewer when fewer classes have that sign.

    Returns
    -------
    Table with columns source (index of the class), name (two classes of one name keep apart by their index), value,
    stderr, low and high (of the 95% interval) and verdict: "helps", "hurts", or "unclear" where the interval covers 0.

    Raises
    ------
    InputError : the influence has no such target, or two of that name.

    Examples
    --------
    >>> dtl.plots.strongest(influence, "sky", k=3).columns.tolist()
    ['source', 'name', 'value', 'stderr', 'low', 'high', 'verdict']
    """
    check_number(k, 1, 10**6, "k, the classes per side,")
    columns = slice(None) if target is None else [draw.column_of(influence, target)]
    arrays = influence.values, influence.stderr, _half_width(influence)
    value, stderr, half_width = (array[:, columns].mean(axis=1) for array in arrays)
    order = np.argsort(-value, kind="stable")
    rows = np.concatenate([order[value[order] > 0][:k], order[value[order] < 0][-k:]])
    verdict = np.where(np.abs(value) > half_width, np.where(value > 0, "helps", "hurts"), "unclear")
    found = {"name": shown(draw.sources_of(influence), 200), "value": value, "stderr": stderr}
    found |= {"low": value - half_width, "high": value + half_width, "verdict": verdict}
    return pd.DataFrame(found).iloc[rows].rename_axis("source").reset_index()


def _half_width(influence: Influence) -> np.ndarray:
    """Of the 95% interval of each influence (Student), (K, n)."""
    return stats.t.ppf(0.975, influence.dof) * influence.stderr


@draw.names_given
def influence_bars(
    influence: Influence,
    target: int | str | None = None,
    k: int = 5,
    images: Pictures | None = None,
    n_images: int = 4,
    title: str | None = None,
    label: str = "influence on the margin\n(with the class − without)",
    ax: Axes | None = None,
) -> Axes:
    """Bars with 95% intervals for the classes of `strongest`; with `images` (the source), pictures of each class too.

    The bar of a class whose interval covers 0 is grey. Pictures are the first `n_images` examples of the class.

    Examples
    --------
    >>> ax = dtl.plots.influence_bars(influence, "sky", images=problem.source, title="sky")
    """
    influence = draw.named_by(influence, images)
    table, names = strongest(influence, target, k), shown(draw.sources_of(influence))
    helpful = (table.value > 0).to_numpy()
    y = np.arange(len(table)) + 0.6 * (~helpful if helpful.any() else 0)  # a gap between the two sides
    rows = min(2 * k, len(names))  # the same height for every target, also where one side has fewer classes
    ax = draw.new_axes(ax, height=1.4 + (0.28 if images is None else 0.36) * (rows + 0.6))
    colours = table.verdict.map({"helps": HELPS, "hurts": HURTS, "unclear": MUTED})
    ax.barh(y, table.value, height=0.7, color=colours, linewidth=0, zorder=2)
    told = np.isfinite(table.high).to_numpy()  # too few models give no interval
    half_width = (table.high - table.value)[told]
    ax.errorbar(table.value[told], y[told], xerr=half_width, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5)
    ax.axvline(0, color=INK, linewidth=0.8, zorder=3)
    ax.set_ylim(rows + 0.1, -0.6)
    ax.set_yticks(y, [verbatim(names[i]) for i in table.source])
    draw.finish_rows(ax)
    grey = f"\n{_GREY if told.all() else 'too few models for 95% intervals'}"
    ax.set_xlabel(label + (grey if (table.verdict == "unclear").any() else ""))
    for text, x, side, colour in (("◂ hurts", 0, "left", HURTS), ("helps ▸", 1, "right", HELPS)):
        ax.text(x, 1.01, text, transform=ax.transAxes, color=colour, ha=side, va="bottom")
    if title is not None:
        ax.set_title(verbatim(title), pad=20)
    if images is not None:
        strips(ax, y, table.source, images, n_images)
    return ax


@draw.names_given
def influence_heatmap(
    influence: Influence, order: str = "mean", label: str = "influence on the margin", ax: Axes | None = None
) -> Axes:
    """Source class (rows) x target class (columns); cells whose 95% interval covers 0 are grey.

    Parameters
    ----------
    influence : values and standard errors, (K, n), one column per target class.
    order : "mean" sorts the rows by their mean, the most helpful on top; "cluster" puts rows with similar influences
        next to each other (average linkage on Euclidean distance, optimal leaf order); "given" keeps the order.

    Examples
    --------
    >>> ax = dtl.plots.influence_heatmap(influence, order="cluster")
    """
    choice(order, ("mean", "cluster", "given"), "order")
    values, targets = influence.values, shown(draw.targets_of(influence))
    rows = {
        "mean": lambda: np.argsort(-values.mean(axis=1), kind="stable"),
        "cluster": lambda: np.asarray(leaves_list(linkage(values, method="average", optimal_ordering=True))),
        "given": lambda: np.arange(len(values)),
    }[order]()
    unclear = ~(np.abs(values) > _half_width(influence))
    ax = draw.new_axes(ax, width=min(WIDTH, 3.2 + 0.55 * len(targets)), height=min(1.6 + 0.24 * len(values), 14))
    step = -(-len(values) // int(12 / 0.17))  # of the rows named, where there are more than the height has lines
    names = np.array([verbatim(name) for name in shown(draw.sources_of(influence))])[rows]
    largest = np.abs(values).max()
    ax.set_facecolor("#DDE0E4")
    sns.heatmap(
        values[rows], mask=unclear[rows], vmin=-largest, vmax=largest, cmap=_DIVERGING,
        xticklabels=[verbatim(name) for name in targets], yticklabels=False,
        linewidths=0.6 if len(values) <= 60 else 0, linecolor="white",
        cbar_kws={"label": label, "shrink": 0.7, "aspect": 24}, ax=ax,
    )  # fmt: skip
    ax.set_yticks(np.arange(len(rows))[::step] + 0.5, names[::step])
    bar = ax.collections[0].colorbar
    if bar is not None:
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        bar.ax.set_title("helps", fontsize=10, fontweight="normal", color=HELPS, loc="left")
        bar.ax.set_xlabel("hurts", color=HURTS, loc="left")
    ax.tick_params(length=0)
    if max(map(len, targets)) > 5:
        plt.setp(ax.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    ax.set(xlabel="target class", ylabel="source class")
    if unclear.any():
        ax.set_title(_GREY, fontsize=10, fontweight="normal", color=NEUTRAL)
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
    >>> accuracy = 0.7 + 0.01 * np.random.default_rng(0).normal(size=(2, 3, 5))
    >>> coords = {"order": ["negative", "random"], "count": [0, 2, 4], "seed": np.arange(5)}
    >>> import xarray as xr
    >>> curve = xr.Dataset({"test": (("order", "count", "seed"), accuracy)}, coords)
    >>> ax = dtl.plots.removal_curves(curve, chosen=2)
    """
    choice(split, map(str, curve.data_vars), "split")
    counts = curve["count"].values.tolist()
    if reference and 0 not in counts:
        raise InputError("the curve has no count 0, the full source: add it or pass reference=False.")
    if chosen is not None:
        choice(chosen, counts, "count")
    n_seeds = curve.sizes["seed"]
    if n_seeds < 2:
        log.warning("the curve has one seed: it is drawn without intervals.")
    ax = draw.new_axes(ax)
    labels: list[tuple[float, str, str]] = []
    others = iter(CATEGORIES)
    for order, marker in zip(map(str, curve["order"].values), draw.MARKERS * 9, strict=False):
        text, colour = ORDERS.get(order) or (order, next(others, INK))
        accuracy = curve[split].sel(order=order).transpose("count", "seed").values
        mean = accuracy.mean(axis=1)
        ax.plot(counts, mean, color=colour, marker=marker, markersize=5, label=verbatim(text), zorder=3)
        if n_seeds > 1:
            half_width = stats.t.ppf(0.975, n_seeds - 1) * accuracy.std(axis=1, ddof=1) / np.sqrt(n_seeds)
            ax.fill_between(counts, mean - half_width, mean + half_width, color=colour, alpha=0.18, linewidth=0)
        if order == "negative" and chosen is not None:
            at = mean[counts.index(chosen)]
            ax.plot([chosen], [at], "o", markersize=11, markerfacecolor="none", markeredgecolor=colour, zorder=4)
            offset = {"xytext": (0, 11), "textcoords": "offset points", "ha": "center"}
            ax.annotate("chosen on validation", (chosen, at), **offset, color=colour, path_effects=_HALO, zorder=5)
        labels.append((mean[-1], text, colour))
    if reference:
        full = float(curve[split].sel(count=0).mean())
        ax.axhline(full, **_DASHED, zorder=2)
        labels.append((full, f"full source {full:.1%}", INK))
    decimals = 0 if abs(np.subtract(*ax.get_ylim())) > 0.06 else 1
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=decimals))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="source classes removed", ylabel=f"target {split} accuracy")
    draw.finish_lines(ax, labels)
    return ax


_FIXED = {"balanced": CATEGORIES[0], "paired": CATEGORIES[1], "random": CATEGORIES[2]}  # one colour in every figure


def reliability_curve(table: pd.DataFrame, threshold: float | None = 0.8, ax: Axes | None = None) -> Axes:
    """Reliability of influences against the number of models.

    Parameters
    ----------
    table : tidy, with columns models and reliability, and any of design, method, level. The first of these that varies
        becomes the colour and the marker, the second the dashes. Rows that repeat a point are averaged, with a 95%
        interval.
    threshold : reliability to aim at, drawn as a dashed line; None draws none.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"models": [64, 128], "reliability": [0.7, 0.82], "design": "balanced"})
    >>> ax = dtl.plots.reliability_curve(table)
    """
    missing = {"models", "reliability"} - set(table.columns)
    if missing:
        raise InputError(f"the table has no column {', '.join(sorted(missing))}: it needs models and reliability.")
    varying = [name for name in ("design", "method", "level") if name in table and len(set(table[name])) > 1]
    if len(varying) > 2:
        raise InputError("design, method and level all vary: select one value of one of them and plot again.")
    hue, dashes = (*varying, None, None)[:2]
    ax = draw.new_axes(ax)
    ax.set_xscale("log")
    table = table.assign(**{name: table[name].map(verbatim) for name in varying})
    kinds = list(dict.fromkeys(table[hue])) if hue else []
    free = (colour for colour in CATEGORIES if colour not in [_FIXED.get(kind) for kind in kinds])
    colours = {kind: _FIXED.get(kind) or next(free, INK) for kind in kinds}
    sns.lineplot(
        table, x="models", y="reliability", hue=hue, style=dashes, palette=colours or None, color=CATEGORIES[0],
        errorbar=("se", 1.96), marker="o", markeredgewidth=0, legend="full" if dashes else False, ax=ax,
    )  # fmt: skip
    models = np.unique(table["models"].to_numpy())
    ticks = models[:: -(-len(models) // 7)]
    ax.set_xticks(ticks, [str(m) for m in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="number of models", ylabel="reliability", ylim=(0, 1.02))
    if threshold is not None:
        ax.axhline(threshold, **_DASHED, zorder=1)
    labels = []
    for kind in [] if dashes else kinds:
        of_kind = table[table[hue] == kind]
        end = of_kind.loc[of_kind["models"] == of_kind["models"].max(), "reliability"].to_numpy().mean()
        labels.append((float(end), kind, colours[kind]))
    draw.finish_lines(ax, labels)
    if dashes:
        sns.move_legend(ax, "lower left", bbox_to_anchor=(0, 1), ncols=2, handlelength=3)
    return ax


def compare(
    table: pd.DataFrame | xr.Dataset,
    rows: str,
    groups: str | None = None,
    reference: float | None = 0.0,
    label: str = "",
    bars: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Named values with their intervals: a row for each name, and in each row a mark for each group.

    Parameters
    ----------
    table : tidy, with columns value, low and high (NaN: no interval), or a Dataset of these variables.
    rows, groups : columns (or dimensions) that name the rows and what is compared within them, in order of appearance.
    reference : where nothing happens, drawn as a line; None draws none.
    label : of the horizontal axis.
    bars : bars instead of marks, for values that count from zero.

    Raises
    ------
    InputError : a column is missing, two values have one place, or there are more than five groups.

    Examples
    --------
    >>> import pandas as pd
    >>> drops = pd.DataFrame({"regime": ["fixed", "full"], "value": [0.2, 0.1], "low": [0.1, 0.0], "high": [0.3, 0.2]})
    >>> ax = dtl.plots.compare(drops, rows="regime", label="drop of accuracy")
    """
    tidy = table if isinstance(table, pd.DataFrame) else table.to_dataframe().reset_index()
    missing = {rows, groups or rows, "value", "low", "high"} - set(tidy.columns)
    if missing:
        raise InputError(f"the table has no column {', '.join(sorted(missing))}: it needs value, low, high and names.")
    names = tidy[rows].unique().tolist()
    kinds = tidy[groups].unique().tolist() if groups else [""]
    if len(kinds) > len(CATEGORIES) or tidy.duplicated([rows, groups or rows]).any():
        raise InputError(f"give one value for each row and group, of at most {len(CATEGORIES)} groups.")
    pitch = 0.8 / len(kinds)
    ax = draw.new_axes(ax, height=0.9 + len(names) * max(0.28, 0.19 * len(kinds)) + 0.25 * (len(kinds) > 1))
    for i, (kind, colour, marker) in enumerate(zip(kinds, CATEGORIES, draw.MARKERS, strict=False)):
        of = tidy.loc[tidy[groups] == kind] if groups else tidy
        value, low, high = (of[name].to_numpy(dtype=float) for name in ("value", "low", "high"))
        y = np.array([names.index(name) for name in of[rows]]) + (i - (len(kinds) - 1) / 2) * pitch
        if bars:
            ax.barh(y, value, 0.9 * pitch, color=colour, linewidth=0, label=verbatim(kind), alpha=0.85)
        else:
            ax.plot(value, y, marker, color=colour, markersize=6, label=verbatim(kind), zorder=3)
        ends = np.nan_to_num([value - low, high - value], posinf=0)
        ax.errorbar(value, y, xerr=ends, fmt="none", ecolor=INK if bars else colour, elinewidth=1.2, capsize=2.5)
    if reference is not None:
        ax.axvline(reference, color=INK, linewidth=0.8, zorder=2)
    ax.set_yticks(range(len(names)), [verbatim(name) for name in shown(names)])
    ax.set(ylim=(len(names) - 0.4, -0.6), xlabel=label)
    draw.finish_rows(ax)
    if groups:
        beside = 2 * (0.5 + 0.08 * max(len(str(kind)) for kind in kinds)) < draw.inches(ax)[0]
        ax.legend(ncols=1 + beside, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, handletextpad=0.4)
    return ax


def flip_bars(flips: xr.Dataset, example: int, without: str | None = None, ax: Axes | None = None) -> Axes:
    """What retrained models predict for one picture, with the full source and without one class; 95% intervals.

    Parameters
    ----------
    flips : from `dtl.flip_rate`.
    example : the picture, one of those in `flips`.
    without : the class left out; the default is the first that was.

    Examples
    --------
    >>> import xarray as xr
    >>> share = xr.DataArray([[[0.2, 0.8], [0.7, 0.3]]], dims=("example", "arm", "label"))
    >>> coords = {"example": [17], "arm": ["full", "dots"], "label": ["sky", "chess"], "true": ("example", ["sky"])}
    >>> flips = xr.Dataset({"share": share, "low": share / 2, "high": (share + 1) / 2}, coords, {"seeds": 20})
    >>> ax = dtl.plots.flip_bars(flips, 17)
    """
    full, *left_out = flips.arm.values.tolist()
    without = left_out[0] if without is None else without
    choice(example, flips.example.values.tolist(), "example")
    choice(without, left_out, "class left out")
    of = flips.sel(example=example, arm=[full, without])[["share", "low", "high"]].rename(share="value")
    of = of.sel(label=(of.value.max("arm") > 0) | (of.label == of.true)).transpose("label", "arm")
    names = [f"{label} (true)" if label == of.true else str(label) for label in of.label.values]
    of = of.assign_coords(label=names, arm=["full source", f"without {without}"])
    ax = compare(of, "label", "arm", None, f"share of {flips.attrs['seeds']} retrained models", True, ax)
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return ax


def masks(masks: np.ndarray, names: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Which source class is in the training set of which model: a filled cell means that it is.

    Parameters
    ----------
    masks : bool, (m models, K classes).
    names : the K source class names.

    Examples
    --------
    >>> ax = dtl.plots.masks(dtl.subset_masks(24, 40), problem.source.classes)
    """
    masks = np.asarray(masks)
    n_models, n_units = masks.shape
    labels = [verbatim(name) for name in shown(range(n_units) if names is None else names)]
    if len(labels) != n_units:
        raise InputError(f"there are {len(labels)} names for {n_units} source classes: give one for each.")
    ax = draw.new_axes(ax, height=min(1.2 + 0.2 * n_units, 12))
    sns.heatmap(
        masks.T.astype(float), cmap=ListedColormap([FAINT, INK]), yticklabels=labels,
        vmin=0, vmax=1, cbar=False, linewidths=0.8 if n_models <= 100 else 0, linecolor="white", rasterized=True, ax=ax,
    )  # fmt: skip
    step = 10 if n_models > 20 else 5 if n_models > 10 else 1
    ax.set_xticks(np.arange(0, n_models, step) + 0.5, [str(j) for j in range(0, n_models, step)], rotation=0)
    ax.tick_params(length=0)
    ax.set(xlabel="model", ylabel="source class")
    handles = [Patch(color=INK, label="trained with the class"), Patch(color=FAINT, label="trained without")]
    ax.legend(handles=handles, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), columnspacing=1, handlelength=1)
    return ax
