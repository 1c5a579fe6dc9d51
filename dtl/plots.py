"""Every figure of the book: functions that take results and an optional `ax`, and return the Axes they drew on.

Colours keep one meaning from page to page: blue helps, vermillion hurts, grey cannot be told from zero (or is left to
chance). Any two that meet in a figure differ for every kind of colour vision, and lines differ in their markers too.
Bars across a mean are 95% intervals; a number after ± is a standard error. Class names come with the influence.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter
from scipy import stats

from dtl import _drawing as draw
from dtl._checks import InputError, check_kind, check_number, choice, floats, real, several
from dtl._drawing import CATEGORIES, FAINT, HELPS, HURTS, INK, MUTED, NEUTRAL, WIDTH, Pictures, shown, verbatim
from dtl._pictures import image_grid, images, pairs, strips
from dtl.influence import Influence

log = logging.getLogger(__name__)

__all__ = [
    "CATEGORIES", "FAINT", "HELPS", "HURTS", "INK", "MUTED", "NEUTRAL", "ORDERS", "WIDTH", "flip_bars", "image_grid",
    "images", "influence_bars", "influence_heatmap", "masks", "pairs", "reliability_curve", "removal_curves",
    "strongest", "style",
]  # fmt: skip

ORDERS = {
    "negative": ("most negative first", HURTS),
    "positive": ("most positive first", HELPS),
    "random": ("at random", NEUTRAL),
}
# For scripts that DejaVu Sans, which matplotlib brings along, does not have: those of Linux, macOS and Windows.
_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Noto Sans KR", "Source Han Sans",
    "Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic",
    "WenQuanYi Zen Hei", "Noto Sans Devanagari", "Noto Sans Thai", "Nirmala UI", "Leelawadee UI", "Arial Unicode MS",
)  # fmt: skip
_DIVERGING = LinearSegmentedColormap.from_list("hurts-helps", [HURTS, "#F0B48F", "#FFFFFF", "#8FBFE0", HELPS])
_DASHED = {"color": INK, "linestyle": (0, (4, 3)), "linewidth": 1}
_GREY = "grey: the 95% interval covers 0"
_ABOVE = {"loc": "lower left", "bbox_to_anchor": (0, 1)}  # where legends stand


def style() -> None:
    """Set the look of all figures, SVG in notebooks. Call it once, in the import cell.

    >>> import dtl.plots
    >>> dtl.plots.style()
    """
    look: dict[str, Any] = {**mpl.rc_params_from_file(Path(__file__).with_suffix(".mplstyle"), False, False)}
    installed = {font.name for font in font_manager.fontManager.ttflist}
    look["font.family"] = ["DejaVu Sans", *(name for name in _FONTS if name in installed)]
    sns.set_theme(style="ticks", palette=list(CATEGORIES), rc=look)
    if "inline" in mpl.get_backend():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg", metadata={"Date": None})


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

    >>> dtl.plots.strongest(influence, "sky", k=3).columns.tolist()
    ['source', 'name', 'value', 'stderr', 'low', 'high', 'verdict']
    """
    check_kind(influence, "dtl.Influence", "influence")
    check_number(k, 1, 10**6, "k, the classes per side,")
    columns = slice(None) if target is None else [_column(influence, target)]
    low, high = influence.interval()
    arrays = influence.values, influence.stderr, (high - low) / 2
    value, stderr, half_width = (array[:, columns].mean(axis=1) for array in arrays)
    order = np.argsort(-value, kind="stable")
    rows = np.concatenate([order[value[order] > 0][:k], order[value[order] < 0][-k:]])
    verdict = np.where(np.abs(value) > half_width, np.where(value > 0, "helps", "hurts"), "unclear")
    found = {"name": shown(influence.names[0], 200), "value": value, "stderr": stderr}
    found |= {"low": value - half_width, "high": value + half_width, "verdict": verdict}
    return pd.DataFrame(found).iloc[rows].rename_axis("source").reset_index()


def _column(influence: Influence, target: int | str) -> int:
    names = influence.names[1]
    if not isinstance(target, str):
        check_number(target, 0, len(names) - 1, "target, a column of the influence,")
        return int(target)
    found = [i for i, name in enumerate(names) if name == target]
    if len(found) != 1:
        what = f"{len(found)} targets {target!r}, {found}: choose by number" if found else f"no target {target!r}"
        raise InputError(f"the influence has {what}; its targets: {', '.join(shown(names)[:10])}")
    return found[0]


def _on(influence: Influence) -> str:
    return f"influence on the {'share right' if influence.output == 'correct' else influence.output or 'output'}"


@draw.names_given
def influence_bars(
    influence: Influence,
    target: int | str | None = None,
    k: int = 5,
    images: Pictures | None = None,
    n_images: int = 4,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Bars with 95% intervals for the classes of `strongest`; with `images` (the source), pictures of each class too.

    The bar of a class whose interval covers 0 is grey. Pictures are the first `n_images` examples of the class.

    >>> ax = dtl.plots.influence_bars(influence, "sky", images=problem.source, title="sky")
    """
    influence = draw.named_by(influence, images)
    check_number(n_images, 1, 100, "n_images, the pictures of a class,")
    table, names = strongest(influence, target, k), shown(influence.names[0])
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
    draw.finish(ax, rows=True)
    label = f"{_on(influence)}\n(with the class − without)"
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
def influence_heatmap(influence: Influence, ax: Axes | None = None) -> Axes:
    """Source (rows, the most helpful on top) x target classes; cells whose 95% interval covers 0 are grey.

    >>> ax = dtl.plots.influence_heatmap(influence)
    """
    values = check_kind(influence, "dtl.Influence", "influence").values
    ones_own = influence.part == "specific"  # whose mean over targets is zero: by the target that a class helps most
    rows = np.lexsort((-values.max(axis=1), values.argmax(axis=1)) if ones_own else (-values.mean(axis=1),))
    low, high = influence.interval()
    unclear = ((low <= 0) & (high >= 0))[rows]
    sources, targets = ([verbatim(name) for name in shown(names)] for names in influence.names)
    table = pd.DataFrame(values, sources, targets).iloc[rows]
    ax = draw.new_axes(ax, width=min(WIDTH, 3.2 + 0.55 * len(targets)), height=min(1.6 + 0.24 * len(rows), 14))
    largest = np.abs(values).max()
    ax.set_facecolor("#DDE0E4")
    sns.heatmap(
        table, mask=unclear, vmin=-largest, vmax=largest, cmap=_DIVERGING, xticklabels=True,
        linewidths=0.6 if len(rows) <= 60 else 0, linecolor="white",
        cbar_kws={"label": _on(influence), "shrink": 0.7, "aspect": 24}, ax=ax,
    )  # fmt: skip
    bar = ax.collections[0].colorbar
    if bar is not None:
        bar.ax.set_title("helps", fontsize=10, fontweight="normal", color=HELPS, loc="left")
        bar.ax.set_xlabel("hurts", color=HURTS, loc="left")
    ax.tick_params(length=0, rotation=0)
    if max(map(len, targets)) > 5:
        plt.setp(ax.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    ax.set(xlabel="target class", ylabel="source class")
    if unclear.any():
        ax.set_title(_GREY, fontsize=10, fontweight="normal", color=NEUTRAL)
    return ax


def _colours(kinds: Iterable[str], fixed: Mapping[str, str]) -> dict[str, str]:
    """The fixed colour of each kind, and for the others what is left of `CATEGORIES`."""
    kinds = list(kinds)
    free = (colour for colour in CATEGORIES if colour not in [fixed.get(kind) for kind in kinds])
    return {kind: fixed.get(kind) or next(free, INK) for kind in kinds}


def removal_curves(curve: xr.Dataset, split: str = "test", chosen: int | None = None, ax: Axes | None = None) -> Axes:
    """Target accuracy against the number of source classes removed: mean and its 95% interval (Student) over seeds.

    Parameters
    ----------
    curve : the result of `dtl.removal_curve`; a line takes the colour of the classes it removes first. The accuracy of
        the full source, count 0, is a dashed line.
    split : "test" or "validation".
    chosen : number of classes chosen on validation, marked on the "negative" line.

    >>> accuracy = 0.7 + 0.01 * np.random.default_rng(0).normal(size=(2, 3, 5))
    >>> coords = {"order": ["negative", "random"], "count": [0, 2, 4], "seed": np.arange(5)}
    >>> curve = xr.Dataset({"test": (("order", "count", "seed"), accuracy)}, coords)
    >>> ax = dtl.plots.removal_curves(curve, chosen=2)
    """
    check_kind(curve, "xarray.Dataset", "curve")
    choice(split, map(str, curve.data_vars), "split")
    choice(0 if chosen is None else chosen, curve["count"].values.tolist(), "count")
    if curve.sizes["seed"] < 2:
        log.warning("the curve has one seed: it is drawn without intervals.")
    ax = draw.new_axes(ax)
    colours = _colours(map(str, curve["order"].values), {order: colour for order, (_, colour) in ORDERS.items()})
    sns.lineplot(
        curve[split].to_dataframe("accuracy").reset_index(), x="count", y="accuracy", hue="order", style="order",
        palette=colours, dashes=False, markers=True, markersize=7, markeredgewidth=0, legend=False, ax=ax,
        errorbar=_student if curve.sizes["seed"] > 1 else None,
    )  # fmt: skip
    means = curve[split].mean("seed")
    full = float(means.sel(count=0).mean())
    ax.axhline(full, **_DASHED, zorder=2)
    if chosen is not None and "negative" in colours:
        at = float(means.sel(order="negative", count=chosen))
        ax.plot([chosen], [at], "o", markersize=11, markerfacecolor="none", markeredgecolor=HURTS, zorder=4)
        halo = [withStroke(linewidth=3, foreground="white")]
        offset = {"xytext": (0, 11), "textcoords": "offset points", "ha": "center"}
        ax.annotate("chosen on validation", (chosen, at), **offset, color=HURTS, path_effects=halo, zorder=5)
    decimals = 0 if abs(np.subtract(*ax.get_ylim())) > 0.06 else 1
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=decimals))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="source classes removed", ylabel=f"target {split} accuracy")
    draw.finish(ax)
    labels = [(full, f"full source {full:.1%}", INK)]
    for order, colour in colours.items():
        text = ORDERS[order][0] if order in ORDERS else verbatim(order)
        labels.append((float(means.sel(order=order)[-1]), text, colour))
    draw.name_lines(ax, labels)
    return ax


def _student(values: Iterable[float]) -> tuple[float, float]:
    """The 95% interval of a mean."""
    sample = np.array(list(values))
    half_width = float(stats.t.ppf(0.975, len(sample) - 1) * stats.sem(sample))
    return sample.mean() - half_width, sample.mean() + half_width


def reliability_curve(table: pd.DataFrame, threshold: float = 0.8, ax: Axes | None = None) -> Axes:
    """Reliability of influences against the number of models.

    Parameters
    ----------
    table : tidy, with columns models and reliability, and any of design, method, level. The first of these that varies
        becomes the colour and the marker, the second the dashes. Rows that repeat a point are averaged, with a 95%
        interval.
    threshold : reliability to aim at, drawn as a dashed line.

    >>> table = pd.DataFrame({"models": [64, 128], "reliability": [0.7, 0.82], "design": "balanced"})
    >>> ax = dtl.plots.reliability_curve(table)
    """
    check_kind(table, "pandas.DataFrame", "table")
    threshold = real("threshold", threshold)
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
    fixed = {"balanced": CATEGORIES[0], "paired": CATEGORIES[1], "random": CATEGORIES[2]}  # one colour in every figure
    colours = _colours(table[hue].unique(), fixed) if hue else {}
    sns.lineplot(
        table, x="models", y="reliability", hue=hue, style=dashes, palette=colours or None, color=CATEGORIES[0],
        errorbar=("se", 1.96), marker="o", markeredgewidth=0, legend="full" if dashes else False, ax=ax,
    )  # fmt: skip
    models = np.unique(table["models"].to_numpy())
    ticks = models[:: -(-len(models) // 7)]
    ax.set_xticks(ticks, [str(m) for m in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="number of models", ylabel="reliability", ylim=(0, 1.02))
    ax.axhline(threshold, **_DASHED, zorder=1)
    draw.finish(ax)
    if dashes:
        sns.move_legend(ax, **_ABOVE, ncols=2, handlelength=3)
    elif hue:
        ends: Any = table.pivot_table("reliability", "models", hue, observed=True).ffill().iloc[-1]
        draw.name_lines(ax, [(float(ends[kind]), kind, colour) for kind, colour in colours.items()])
    return ax


def flip_bars(flips: xr.Dataset, example: int, without: str | None = None, ax: Axes | None = None) -> Axes:
    """What retrained models predict for one picture, with the full source and without one class; 95% intervals.

    Parameters
    ----------
    flips : from `dtl.flip_rate`.
    example : the picture, one of those in `flips`.
    without : the class left out; the default is the first that was.

    >>> share = xr.DataArray([[[0.2, 0.8], [0.7, 0.3]]], dims=("example", "arm", "label"))
    >>> coords = {"example": [17], "arm": ["full", "dots"], "label": ["sky", "chess"], "true": ("example", ["sky"])}
    >>> flips = xr.Dataset({"share": share, "low": share / 2, "high": (share + 1) / 2}, coords, {"seeds": 20})
    >>> ax = dtl.plots.flip_bars(flips, 17)
    """
    if "arm" not in check_kind(flips, "xarray.Dataset", "flips").dims:
        raise InputError("flips must be what dtl.flip_rate returns")
    full, *left_out = flips.arm.values.tolist()
    without = left_out[0] if without is None else without
    choice(example, flips.example.values.tolist(), "example")
    choice(without, left_out, "class left out")
    of = flips.sel(example=example, arm=[full, without])
    of = of.sel(label=(of.share.max("arm") > 0) | (of.label == of.true))
    ax = draw.new_axes(ax, height=1.15 + 0.38 * of.sizes["label"])
    kinds = {full: "full source", without: f"without {without}"}
    for (arm, text), shift, colour in zip(kinds.items(), (-0.2, 0.2), CATEGORIES, strict=False):
        share, low, high = (of[name].sel(arm=arm).values for name in ("share", "low", "high"))
        ax.barh(
            np.arange(len(share)) + shift, share, 0.36, xerr=[share - low, high - share], color=colour, alpha=0.85,
            linewidth=0, label=verbatim(text), error_kw={"ecolor": INK, "elinewidth": 1.2, "capsize": 2.5},
        )  # fmt: skip
    names = [f"{label} (true)" if label == of.true else str(label) for label in of.label.values]
    ax.set_yticks(range(len(names)), [verbatim(name) for name in shown(names)])
    ax.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, 1), xlabel=f"share of {flips.attrs['seeds']} retrained models")
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    draw.finish(ax, rows=True)
    beside = 2 * (0.5 + 0.08 * max(map(len, kinds.values()))) < draw.inches(ax)[0]
    ax.legend(**_ABOVE, ncols=1 + beside, borderaxespad=0.2, handletextpad=0.4)
    return ax


def masks(masks: np.ndarray, names: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Which source class is in the training set of which model: a filled cell means that it is.

    Parameters
    ----------
    masks : bool, (m models, K classes).
    names : the K source class names.

    >>> ax = dtl.plots.masks(dtl.subset_masks(24, 40), problem.source.classes)
    """
    masks = floats(masks, "masks", 2)
    n_models, n_units = masks.shape
    labels = [verbatim(name) for name in shown(range(n_units) if names is None else several(names, "names"))]
    if len(labels) != n_units:
        raise InputError(f"there are {len(labels)} names for {n_units} source classes: give one for each.")
    ax = draw.new_axes(ax, height=min(1.2 + 0.2 * n_units, 12))
    step = 10 if n_models > 20 else 5 if n_models > 10 else 1
    sns.heatmap(
        masks.T, cmap=ListedColormap([FAINT, INK]), xticklabels=step, yticklabels=labels,
        vmin=0, vmax=1, cbar=False, linewidths=0.8 if n_models <= 100 else 0, linecolor="white", rasterized=True, ax=ax,
    )  # fmt: skip
    ax.tick_params(length=0, rotation=0)
    ax.set(xlabel="model", ylabel="source class")
    handles = [Patch(color=INK, label="trained with the class"), Patch(color=FAINT, label="trained without")]
    ax.legend(handles=handles, **_ABOVE, ncols=2, columnspacing=1, handlelength=1)
    return ax
