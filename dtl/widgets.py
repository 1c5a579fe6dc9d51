"""Pickers: choose an item, see its figure. They work in a notebook and, without a kernel, in the built book.

A picker is a `Dropdown` whose index is linked in the browser to the selected child of a `Stack`. Every child is a plain
HTML figure drawn beforehand, so that nothing has to be computed when the reader chooses.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, cast

import ipywidgets
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy.stats import false_discovery_control

from dtl import plots
from dtl._checks import InputError
from dtl.projection import project

if TYPE_CHECKING:
    import xarray as xr

    from dtl.data import TransferProblem
    from dtl.influence import Influence


_DPI = 192  # two device pixels for each CSS pixel
_TEXT = "color: inherit; line-height: 1.5"  # the page or the notebook knows its own background, light or dark


def picker(
    names: Sequence[str],
    figures: Sequence[Figure] | Callable[[str], Figure],
    alts: Sequence[str],
    description: str,
    captions: Sequence[str] | None = None,
) -> ipywidgets.VBox:
    """A drop-down list of names and, below it, the figure of the chosen one.

    Parameters
    ----------
    names : the items to choose from; the first is shown at the start, and alone where there is no JavaScript.
    figures : one figure for each name, or a function from a name to its figure. They are closed once drawn; draw them
        all in one size, so that the page does not move when the reader chooses.
    alts : for each figure, a sentence that says what there is to see.
    description : label of the list.
    captions : HTML to put under each figure, such as a table of its numbers.

    Returns
    -------
    VBox with the `Dropdown` and the `Stack`. Where ipywidgets has no `Stack` (before version 8) all figures follow one
    another, each under its name.

    Raises
    ------
    ValueError : no names, or not one figure, alt text and caption for each name.

    Examples
    --------
    >>> alts = ["Line chart: accuracy rises to 0.9.", "Line chart: accuracy stays at 0.5."]
    >>> dtl.widgets.picker(["fixed", "full"], [figure_a, figure_b], alts, description="transfer")
    """
    names = list(names)
    if not names:
        raise InputError("names is empty: a picker needs at least one item.")
    counts = {"alts": len(alts), "captions": len(names) if captions is None else len(captions)}
    if not callable(figures):
        counts["figures"] = len(figures)
    for what, count in counts.items():
        if count != len(names):
            raise InputError(f"there are {count} {what} for {len(names)} names: give one for each.")
    empty = [name for name, alt in zip(names, alts, strict=True) if not alt.strip()]
    if empty:
        raise InputError(f"the alt text of {empty[0]!r} is empty: say in a sentence what its figure shows.")
    children = []
    for i, (name, alt) in enumerate(zip(names, alts, strict=True)):
        figure = figures(name) if callable(figures) else figures[i]
        children.append(_image(figure, alt) + (captions[i] if captions is not None else ""))
    choice = ipywidgets.Dropdown(
        options=[(name, i) for i, name in enumerate(names)],  # pairs, so that two items may share a name
        index=0,
        description=description,
        style={"description_width": "initial"},
    )
    stack = ipywidgets.Stack([ipywidgets.HTML(child) for child in children], selected_index=0)
    ipywidgets.jsdlink((choice, "index"), (stack, "selected_index"))
    return ipywidgets.VBox([choice, stack])


def class_picker(
    influence: Influence,
    problem: TransferProblem | Sequence[Sequence[str]],
    k: int = 5,
    n_images: int = 4,
    description: str = "target class",
) -> ipywidgets.VBox:
    """Choose a target class: see the k source classes that help it most and the k that hurt it most.

    Parameters
    ----------
    influence : one column for each target class, as `study.influence(by="class")` gives.
    problem : source images and class names; or only names of source and of target classes, for figures without images.
    k : source classes per side.
    n_images : images shown of each source class.

    Raises
    ------
    ValueError : the influence is not source classes x target classes of the problem.

    Examples
    --------
    >>> dtl.widgets.class_picker(study.influence(by="class"), problem)
    """
    if isinstance(problem, Sequence):
        dataset, (sources, targets) = None, (tuple(map(str, names)) for names in problem)
    else:
        dataset, sources, targets = problem.source, problem.source.classes, problem.target_train.classes
    if influence.values.shape != (len(sources), len(targets)):
        raise InputError(
            f"the influence has shape {influence.values.shape}, but there are {len(sources)} source and {len(targets)} "
            "target classes: estimate it with study.influence(by='class')."
        )
    tables = [plots.strongest(influence, sources, column, k) for column in range(len(targets))]
    # One scale for all figures, so that target classes can be compared.
    ends = np.concatenate([table["value"] + side * table["half_width"] for table in tables for side in (-1, 1)])
    low, high = min(ends.min(), 0), max(ends.max(), 0)
    margin = 0.04 * (high - low)
    notes = [f"{influence.n_models} models, reliability {value:.2f}" for value in influence.reliability]

    def figure(target: str) -> Figure:
        column = targets.index(target)
        ax = plots.influence_bars(influence, sources, column, k, dataset, n_images, title=target)
        ax.set_xlim(low - margin, high + margin)
        return cast(Figure, ax.figure)

    alts = [influence_alt(table, target) for table, target in zip(tables, targets, strict=True)]
    captions = [_table(*item) for item in zip(tables, targets, notes, strict=True)]
    return picker(targets, figure, alts, description, captions)


def projection_picker(
    influence: Influence,
    problem: TransferProblem,
    k: int = 8,
    description: str = "source class",
) -> ipywidgets.VBox:
    """Choose a source class: see the k target validation examples that it helps most, and the k that it hurts most.

    Parameters
    ----------
    influence : one column for each validation example, as `study.influence()` gives.
    problem : validation images and class names.
    k : examples per side.

    Raises
    ------
    ValueError : the influence is not source classes x validation examples of the problem.

    Examples
    --------
    >>> dtl.widgets.projection_picker(study.influence(), problem)
    """
    sources, target = problem.source.classes, problem.target_validation
    if influence.values.shape != (len(sources), len(target)):
        raise InputError(
            f"the influence has shape {influence.values.shape}, but the problem has {len(sources)} source classes and "
            f"{len(target)} validation examples: estimate it with study.influence()."
        )

    def shown(c: int) -> np.ndarray:
        return np.concatenate([project(influence, c, k, most) for most in ("helped", "hurt")])

    def numbers(c: int) -> list[str]:
        return [f"{value:+.1f}".replace("-", "−") for value in influence.values[c, shown(c)]]

    def figure(name: str) -> Figure:
        c = sources.index(name)
        return cast(Figure, plots.images(target, shown(c).tolist(), numbers(c), columns=k).figure)

    alts, captions = [], []
    for c, name in enumerate(sources):
        kinds = [target.classes[int(label)] for label in target.labels[shown(c)]]
        pairs = [f"{kind} {number}" for kind, number in zip(kinds, numbers(c), strict=True)]
        alts.append(
            f"Two rows of target pictures. Helped most by {name}: {', '.join(pairs[:k])}; hurt most: "
            f"{', '.join(pairs[k:])}."
        )
        found = false_discovery_control(influence.p_values()[c]) < 0.05
        captions.append(
            f'<p style="font-size: 0.9em; margin: 0.3em 0; {_TEXT}">Upper row: helped most by {html.escape(name)}; '
            f"lower row: hurt most. Numbers are influences on the margin, ± "
            f"{1.96 * np.median(influence.stderr[c]):.1f} at 95%. Of {len(target)} validation pictures "
            f"{found.sum()} differ from zero at a false discovery rate of 5%.</p>"
        )
    return picker(sources, figure, alts, description, captions)


def mistake_picker(
    influence: Influence,
    flips: xr.Dataset,
    problem: TransferProblem,
    k: int = 4,
    description: str = "picture",
) -> ipywidgets.VBox:
    """Choose a wrong prediction: see its picture, what helps and hurts it, and what retraining without a suspect says.

    Parameters
    ----------
    influence : one column for each example of the split that `flips` is of.
    flips : from `flip_rate`; the first arm is the full source, and the suspect of an example is the arm whose class has
        the most negative influence on it.
    problem : images and class names.
    k : source classes per side.

    Raises
    ------
    ValueError : the influence is not source classes x examples of the split.

    Examples
    --------
    >>> dtl.widgets.mistake_picker(study.influence(), flips, problem)
    """
    sources, dataset = problem.source.classes, problem.parts[f"target_{flips.attrs['split']}"]
    if influence.values.shape != (len(sources), len(dataset)):
        raise InputError(
            f"the influence has shape {influence.values.shape}, but the source has {len(sources)} classes and the "
            f"{flips.attrs['split']} split {len(dataset)} examples: estimate it with study.influence(split=...)."
        )
    arms = [sources.index(name) for name in flips.arm.values[1:]]
    names, alts, captions = [], [], []
    for example in flips.example.values:
        of = flips.sel(example=example)
        suspect = sources[min(arms, key=lambda c: influence.values[c, example])]
        taken = of.label.values[of.share.sel(arm="full").values.argmax()]
        seen = f"taken for {taken}" if taken != of.true else "most often right"
        names.append(f"{example}: {of.true.item()}, {seen}")
        table = plots.strongest(influence, sources, int(example), k)
        alts.append(f"Target picture {example}, {of.true.item()}. {influence_alt(table, 'it')}")
        captions.append(_shares(of, suspect))

    def figure(name: str) -> Figure:
        example = int(flips.example.values[names.index(name)])
        drawing, (left, right) = plt.subplots(1, 2, figsize=(7, 3.6), width_ratios=(1, 3.2), layout="constrained")
        plots.images(dataset, [example], ax=left)
        plots.influence_bars(influence, sources, example, k, ax=right)
        return drawing

    return picker(names, figure, alts, description, captions)


def flag_slider(
    ranking: pd.DataFrame,
    problem: TransferProblem,
    hits: Sequence[bool] | np.ndarray,
    step: int = 8,
    k: int = 16,
    description: str = "flagged",
) -> ipywidgets.VBox:
    """Drag a threshold: see how many source examples are flagged, with precision and recall, and the last ones flagged.

    Parameters
    ----------
    ranking : source examples, the most suspicious first, in a column `source`, as `leaked` and `misleading` give.
    problem : source images and class names.
    hits : for each row of the ranking, whether it is what one looks for.
    step : examples between two stops of the slider; it has at most 12 stops.
    k : images shown, those flagged last.

    Raises
    ------
    ValueError : not one hit for each row, no hit at all, or a step that is not in 1..rows.

    Examples
    --------
    >>> dtl.widgets.flag_slider(ranking, problem, hits=problem.truth.example_role[ranking.source] == "leaked")
    """
    hits = np.asarray(hits)
    if hits.dtype != bool or len(hits) != len(ranking) or not hits.any():
        raise InputError(f"hits must be one truth value for each of {len(ranking)} rows, some of them true.")
    if not 1 <= step <= len(ranking):
        raise InputError(f"step must lie in 1..{len(ranking)}, the rows of the ranking, not {step}.")
    children, counts = [], range(step, min(len(ranking), 12 * step) + 1, step)
    for flagged in counts:
        found = int(hits[:flagged].sum())
        last = ranking["source"].to_numpy()[max(0, flagged - k) : flagged].tolist()
        marks = ["hit" if hit else "no hit" for hit in hits[max(0, flagged - k) : flagged]]
        figure = cast(Figure, plots.images(problem.source, last, marks, columns=8).figure)
        numbers = f"precision {found / flagged:.2f}, recall {found / hits.sum():.2f}"
        alt = f"The {len(last)} source pictures flagged last of {flagged}, {marks.count('hit')} of them hits."
        children.append(
            f'<p style="font-size: 0.9em; margin: 0.3em 0; {_TEXT}">{flagged} flagged, {found} hits: {numbers}. '
            f"Flagged last:</p>{_image(figure, alt)}"
        )
    slider = ipywidgets.SelectionSlider(
        options=[str(count) for count in counts], description=description, style={"description_width": "initial"}
    )
    stack = ipywidgets.Stack([ipywidgets.HTML(child) for child in children], selected_index=0)
    ipywidgets.jsdlink((slider, "index"), (stack, "selected_index"))
    return ipywidgets.VBox([slider, stack])


def _shares(of: xr.Dataset, suspect: str) -> str:
    """The share of each predicted label with the full source and without the suspect, as a table."""
    labels = of.label.values.tolist()
    rows = [("full source", of.sel(arm="full")), (f"without {suspect}", of.sel(arm=suspect))]
    cells = [
        [what, *(f"{share:.0%} ({low:.0%} to {high:.0%})" for share, low, high in
                 zip(arm.share.values, arm.low.values, arm.high.values, strict=True))]
        for what, arm in rows
    ]  # fmt: skip
    return _html_table(["predicted", *labels], cells, f"Share of {of.attrs['seeds']} retrained models, 95% intervals.")


def influence_alt(table: pd.DataFrame, target: str) -> str:
    """The sentences that replace `plots.influence_bars` for who cannot see it.

    Parameters
    ----------
    table : the classes of the figure, from `plots.strongest`.
    target : what they influence.

    Examples
    --------
    >>> dtl.widgets.influence_alt(dtl.plots.strongest(influence, names, target=0, k=1), "star")
    'Bar chart with 95% intervals: helpful for star: apple +0.41 ± 0.08; harmful: sock −0.30 ± 0.07.'
    """
    numbers = _numbers(table)
    sides = {}
    for side, chosen in (("helpful", table["value"] > 0), ("harmful", table["value"] < 0)):
        items = [f"{name} {number}" for name, number, keep in zip(table["name"], numbers, chosen, strict=True) if keep]
        # the strongest first on both sides
        sides[side] = ", ".join(items if side == "helpful" else items[::-1]) or "none"
    text = f"Bar chart with 95% intervals: helpful for {target}: {sides['helpful']}; harmful: {sides['harmful']}."
    unclear = table["name"][table["verdict"] == "unclear"].tolist()
    return text + (f" The interval covers 0 for {', '.join(unclear)}." if unclear else "")


def _numbers(table: pd.DataFrame) -> list[str]:
    """Value ± half width of each class, with the decimals that the usual half width calls for."""
    usual = float(np.median(table["half_width"])) if len(table) else 0.0
    decimals = int(np.clip(-np.floor(np.log10(usual)), 2, 6)) if usual > 0 else 2
    pairs = zip(table["value"], table["half_width"], strict=True)
    return [f"{value:+.{decimals}f} ± {half:.{decimals}f}".replace("-", "−") for value, half in pairs]


def _table(table: pd.DataFrame, target: str, note: str) -> str:
    """The numbers of the figure as a table: the most helpful on the left, the most harmful on the right."""
    stars = np.where(table["verdict"] == "unclear", "*", "")
    numbers = [number + star for number, star in zip(_numbers(table), stars, strict=True)]
    rows = list(zip(table["name"], numbers, table["value"] > 0, strict=True))
    helpful = [(name, number) for name, number, helps in rows if helps]
    harmful = [(name, number) for name, number, helps in rows if not helps][::-1]
    rows_of = zip_longest(helpful, harmful, fillvalue=("", ""))
    heads = ("most helpful", "influence", "most harmful", "influence")
    star = " * the interval covers 0." if "unclear" in set(table["verdict"]) else ""
    caption = f"Influence of source classes on {target}, with 95% intervals ({note}).{star}"
    return _html_table(heads, [(*left, *right) for left, right in rows_of], caption)


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    cell = 'style="padding: 0 1.2em 0 0; text-align: left; border: 0"'
    head = "".join(f'<th scope="col" {cell}>{html.escape(text)}</th>' for text in heads)
    lines = ("".join(f"<td {cell}>{html.escape(text)}</td>" for text in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<table style="border-collapse: collapse; font-size: 0.9em; margin: 0.3em 0; {_TEXT}">'
        f'<caption style="caption-side: top; text-align: left; {_TEXT}">{html.escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _image(figure: Figure, alt: str) -> str:
    """The figure as an `<img>` with its data inside; the figure is closed, or the notebook would show it once more."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", dpi=_DPI, facecolor="white", pil_kwargs={"quality": 80, "method": 6})
    plt.close(figure)
    width, height = (figure.get_size_inches() * 96).round().astype(int)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img alt="{html.escape(alt)}" width="{width}" height="{height}" style="max-width: 100%; height: auto" '
        f'src="data:image/webp;base64,{data}">'
    )
