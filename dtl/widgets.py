"""Pickers: choose an item, see its figure. They work in a notebook and, without a kernel, in the built book.

A picker is a list or a slider whose index is linked in the browser to the selected child of a `Stack`. Every child is a
plain HTML figure drawn beforehand, so that nothing has to be computed when the reader chooses. A number after ± is a
standard error; 95% intervals are written "a to b".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, cast

import ipywidgets
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy.stats import false_discovery_control

from dtl import _html, plots
from dtl._checks import InputError, check_images, check_kind, check_number, choice, several
from dtl._drawing import Pictures, named_by, shown
from dtl.influence import Influence
from dtl.projection import project

if TYPE_CHECKING:
    from dtl.data import TransferProblem


def picker(
    names: Sequence[str],
    figures: Sequence[Figure | np.ndarray] | Callable[[int], Figure | np.ndarray],
    alts: Sequence[str],
    description: str,
    captions: Sequence[str] | None = None,
    slider: bool = False,
) -> ipywidgets.VBox:
    """A drop-down list of names, or a slider over them, and below it the figure of the chosen one.

    A list of more than thirty names has a box that finds a name by any part of it.

    Parameters
    ----------
    names : the items to choose from; the first is shown at the start, and alone where there is no JavaScript. Two items
        of one name are told apart by their position.
    figures : one figure for each name, or a function from the position of a name to its figure. They are closed once
        drawn; draw them all in one size, so that the page does not move when the reader chooses. Pixels, uint8
        (height, width, 3), do as well, and are shown at three times their size.
    alts : for each figure, a sentence that says what there is to see; InputError without one.
    description : label of the list.
    captions : HTML to put under each figure, such as a table of its numbers.

    >>> drawn = [dtl.plots.influence_bars(influence, target).figure for target in (0, 1)]
    >>> alts = ["Bar chart of influences on sky.", "Bar chart of influences on chess."]
    >>> dtl.widgets.picker(["sky", "chess"], drawn, alts, description="target").children[0].options
    (('sky', 0), ('chess', 1))
    """
    names = shown(several(names, "names"), 60)
    check_kind(description, "str", "description")
    captions = [""] * len(names) if captions is None else captions
    drawn = names if callable(figures) else figures
    for what, given in {"alts": alts, "captions": captions, "figures": drawn}.items():
        if len(several(given, what)) != len(names) or not names:
            raise InputError(f"there are {len(given)} {what} for {len(names)} names: give names, and one for each.")
    empty = [name for name, alt in zip(names, alts, strict=True) if not alt.strip()]
    if empty:
        raise InputError(f"the alt text of {empty[0]!r} is empty: say in a sentence what its figure shows.")
    draw = figures if callable(figures) else figures.__getitem__
    children = [_html.image(draw(i), alt) + captions[i] for i, alt in enumerate(alts)]
    control = (ipywidgets.SelectionSlider if slider else ipywidgets.Dropdown)(
        options=[*zip(names, range(len(names)), strict=True)],
        index=0,
        description=description,
        style={"description_width": "initial"},
        layout={"width": "auto", "max_width": "30rem", "min_width": "0"},  # never wider than a phone
    )
    first = ipywidgets.HTML(children[0])
    rest = [ipywidgets.HTML(child, layout=first.layout, style=first.style) for child in children[1:]]  # half the bytes
    stack = ipywidgets.Stack([first, *rest], selected_index=0)
    ipywidgets.jsdlink((control, "index"), (stack, "selected_index"))
    searched = [_search(names, control)] if len(names) > 30 and not slider else []
    return ipywidgets.VBox([*searched, control, stack])


def _search(names: Sequence[str], control: Any) -> ipywidgets.Combobox:
    """A box that finds a name in a list; the built book, which has no kernel, does the same in book/_static/book.js."""
    box = ipywidgets.Combobox(options=names, placeholder="part of a name", description="find", layout=control.layout)
    box.style.description_width = "initial"

    def find(typed: dict[str, str]) -> None:
        at = [name.casefold().find(typed["new"].casefold()) for name in names]  # -1 for no match
        if typed["new"] and max(at) >= 0:
            control.index = min(range(len(at)), key=lambda i: (at[i] < 0, at[i]))

    box.observe(find, "value")
    return box


def class_picker(
    influence: Influence, images: Pictures | TransferProblem | None = None, k: int = 5, n_images: int = 4
) -> ipywidgets.VBox:
    """Choose a target class: see the k source classes that help it most and the k that hurt it most.

    Parameters
    ----------
    influence : one column for each target class, as `study.influence(by="class")` gives; InputError for other columns.
    images : the source (or its problem), for `n_images` pictures of each class; None draws none.
    k : source classes per side.

    >>> picker = dtl.widgets.class_picker(influence, images=problem.source)
    """
    influence, source = _by_class(influence, images)
    targets = influence.names[1]
    tables = [plots.strongest(influence, column, k) for column in range(len(targets))]
    # One scale for all figures, so that target classes can be compared.
    ends = pd.concat(tables)[["value", "low", "high"]].to_numpy()
    low, high = np.min(ends, initial=0, where=np.isfinite(ends)), np.max(ends, initial=0, where=np.isfinite(ends))
    margin = 0.04 * (high - low) or 1.0
    heads = [
        f"Influence of source classes on {t} ± standard error ({influence.n_models} models, reliability {value:.2f})."
        for t, value in zip(targets, influence.reliability, strict=True)
    ]

    def figure(column: int) -> Figure:
        ax = plots.influence_bars(influence, column, k, source, n_images, title=targets[column])
        ax.set_xlim(low - margin, high + margin)
        return cast(Figure, ax.figure)

    alts = list(map(influence_alt, tables, targets))
    return picker(targets, figure, alts, "target class", list(map(_table, tables, heads)))


def source_picker(
    influence: Influence, images: Pictures | TransferProblem, k: int = 5, n_images: int = 4
) -> ipywidgets.VBox:
    """Choose a source class: see pictures of it, the k target classes that it helps most and the k that it hurts most.

    Parameters
    ----------
    influence : one column for each target class; InputError for other columns.
    images : the source (or its problem), for `n_images` pictures of each class; InputError if it has none of a class.

    >>> picker = dtl.widgets.source_picker(influence, images=problem)
    """
    influence, source = _by_class(influence, images)
    check_number(k, 1, 10**6, "k, the target classes per side,")
    check_number(n_images, 1, 100, "n_images")
    sources, targets = influence.names
    columns = [plots.strongest(influence, t, len(sources)).assign(name=name) for t, name in enumerate(targets)]
    every = pd.concat(columns).sort_values("value", ascending=False, kind="stable")
    strips, captions = [], []
    for c, name in enumerate(shown(sources, 60)):
        shots = np.asarray(source.images[np.flatnonzero(np.asarray(source.labels) == c)[:n_images]])
        if not len(shots):
            raise InputError(f"there is no picture of {name}: give images of all source classes")
        strips.append(np.concatenate([*shots], axis=2).transpose(1, 2, 0))
        of = cast(pd.DataFrame, every[every["source"] == c])
        ends = pd.concat([of.query("value > 0").head(k), of.query("value < 0").tail(k)])
        captions.append(_table(ends, f"Influence of {name} on target classes ± standard error."))
    return picker(sources, strips, [f"Pictures of {name}." for name in shown(sources, 60)], "source class", captions)


def _by_class(influence: Influence, images: Pictures | TransferProblem | None) -> tuple[Influence, Any]:
    """The influence on target classes, with the names of the source, and the source."""
    check_kind(influence, "dtl.Influence", "influence")
    if hasattr(images, "fingerprints"):
        influence.check(cast("TransferProblem", images))
    source: Any = getattr(images, "source", images)
    if influence.by == "image":
        raise InputError("a figure for each image is too much: estimate with study.influence(by='class')")
    return named_by(influence, source), source


def projection_picker(influence: Influence, problem: TransferProblem, k: int = 8) -> ipywidgets.VBox:
    """Choose a source class: see the k target examples that it helps most, and the k that it hurts most.

    Parameters
    ----------
    influence : one column for each example of a split, as `study.influence()` gives; InputError for others

    >>> picker = dtl.widgets.projection_picker(study.influence(), problem, k=4)
    """
    check_kind(influence, "dtl.Influence", "influence")
    influence.check(problem, by="image")
    check_number(k, 1, 10, "k, the examples per side,")
    sources, target = problem.source.classes, problem.parts[f"target_{influence.split or 'validation'}"]
    chosen, alts, captions = [], [], []
    for c, name in enumerate(shown(sources, 60)):
        index = np.concatenate([project(influence, c, k, most) for most in ("helped", "hurt")])
        numbers = [f"{value:+.1f}".replace("-", "−") for value in influence.values[c, index]]
        chosen.append((index.tolist(), numbers))
        kinds = (target.classes[int(label)] for label in np.asarray(target.labels)[index])
        seen = [f"{kind} {number}" for kind, number in zip(kinds, numbers, strict=True)]
        helped, hurt = ", ".join(seen[:k]), ", ".join(seen[k:])
        alts.append(f"Two rows of target pictures. Helped most by {name}: {helped}; hurt most: {hurt}.")
        found = (false_discovery_control(influence.p_values()[c]) < 0.05).sum()
        captions.append(_html.paragraph(
            f"Upper row: helped most by {name}; lower row: hurt most. Numbers are influences on the margin, with a "
            f"standard error of {np.median(influence.stderr[c]):.1f}. Of {len(target.labels)} pictures "
            f"{found} differ from zero at a false discovery rate of 5%."
        ))  # fmt: skip

    def figure(c: int) -> Figure:
        return cast(Figure, plots.images(target, *chosen[c], columns=k).figure)

    return picker(sources, figure, alts, "source class", captions)


def mistake_picker(influence: Influence, flips: xr.Dataset, problem: TransferProblem, k: int = 4) -> ipywidgets.VBox:
    """Choose a wrong prediction: see its picture, what retraining without a suspect says, and what helps and hurts it.

    Parameters
    ----------
    influence : one column for each example of the split that `flips` is of; InputError if it is of others.
    flips : from `flip_rate`; the suspect of an example is the arm whose class has the most negative influence on it.
    k : source classes per side.

    >>> per_picture = study.influence()
    >>> wrong = np.flatnonzero(study.outputs("correct").mean(axis=0) < 0.5)[:2].tolist()
    >>> flips = dtl.flip_rate(study, wrong, per_picture.values[:, wrong[0]].argmin(), seeds=2, progress=False)
    >>> picker = dtl.widgets.mistake_picker(per_picture, flips, problem)
    """
    check_kind(influence, "dtl.Influence", "influence")
    check_kind(flips, "xarray.Dataset", "flips")
    influence.check(problem, by="image")
    choice(flips.attrs["split"], [influence.split or flips.attrs["split"]], "split of the influence")
    dataset, sources = problem.parts[f"target_{flips.attrs['split']}"], problem.source.classes
    examples = [int(example) for example in flips.example.values]
    arms = [sources.index(name) for name in flips.arm.values[1:]]
    suspects = [sources[min(arms, key=lambda c: influence.values[c, example])] for example in examples]
    names, alts, captions = [], [], []
    for example, suspect in zip(examples, suspects, strict=True):
        of = flips.sel(example=example)
        taken = of.label.values[of.share.isel(arm=0).values.argmax()]
        seen = f"taken for {taken}" if taken != of.true else "most often right"
        names.append(f"{example}: {of.true.item()}, {seen}")
        alt = influence_alt(plots.strongest(influence, example, k), "it")
        alts.append(f"Target picture {example}, {of.true.item()}; bars of what is predicted. {alt}")
        captions.append(_shares(of, suspect))

    def figure(i: int) -> Figure:
        drawing, axes = plt.subplot_mosaic(
            [["picture", "flips"], ["bars", "bars"]],
            figsize=(plots.WIDTH, 3.2 + 0.56 * k), width_ratios=(1, 3), height_ratios=(1.6, 1 + 0.56 * k),
            layout="constrained",
        )  # fmt: skip
        plots.images(dataset, examples[i : i + 1], ax=axes["picture"])
        plots.flip_bars(flips, examples[i], suspects[i], ax=axes["flips"])
        plots.influence_bars(influence, examples[i], k, ax=axes["bars"])
        return drawing

    return picker(names, figure, alts, "picture", captions)


def flag_slider(
    ranking: pd.DataFrame, images: Pictures, hits: Sequence[bool] | np.ndarray, step: int = 8, k: int = 12
) -> ipywidgets.VBox:
    """Drag a threshold: see how many source examples are flagged, with precision and recall, and the last ones flagged.

    Parameters
    ----------
    ranking : source examples, the most suspicious first, in a column `source`, as `leaked` and `misleading` give.
    images : the source.
    hits : for each row of the ranking, whether it is what one looks for; InputError if none is.
    step : examples between two stops of the slider; it has at most 12 stops.
    k : images shown, those flagged last.

    >>> ranking = pd.DataFrame({"source": np.arange(40)})
    >>> slider = dtl.widgets.flag_slider(ranking, problem.source, hits=np.arange(40) < 6)
    """
    check_kind(ranking, "pandas.DataFrame", "ranking")
    check_images(images, "images")
    check_number(k, 1, 100, "k, the images shown,")
    hits = np.asarray(hits)
    if hits.dtype != bool or len(hits) != len(ranking) or not hits.any():
        raise InputError(f"hits must be one truth value for each of {len(ranking)} rows, some of them true.")
    check_number(step, 1, len(ranking), "step, in rows of the ranking,")
    stops = range(step, min(len(ranking), 12 * step) + 1, step)
    index = ranking["source"].to_numpy()
    last = [slice(max(0, stop - k), stop) for stop in stops]

    def figure(i: int) -> Figure:
        marks = np.where(hits[last[i]], "hit", "no hit").tolist()
        return cast(Figure, plots.images(images, index[last[i]].tolist(), marks, columns=6).figure)

    alts, captions = [], []
    for stop, those in zip(stops, last, strict=True):
        found, n = hits[:stop].sum(), len(hits[those])
        alts.append(f"The {n} source pictures flagged last of {stop}, {hits[those].sum()} of them hits.")
        numbers = f"precision {found / stop:.2f}, recall {found / hits.sum():.2f}"
        captions.append(_html.paragraph(f"{stop} flagged, {found} hits: {numbers}. Above: the {n} flagged last."))
    return picker(list(map(str, stops)), figure, alts, "flagged", captions, slider=True)


def influence_alt(table: pd.DataFrame, target: str) -> str:
    """The sentences that replace `plots.influence_bars` for who cannot see it.

    Parameters
    ----------
    table : the classes of the figure, from `plots.strongest`
    target : what they influence

    >>> text = dtl.widgets.influence_alt(dtl.plots.strongest(influence, "sky", k=1), "sky")
    >>> text.startswith("Bar chart, values ± standard errors: helpful for sky: ")
    True
    """
    check_kind(table, "pandas.DataFrame", "table")
    helpful, harmful = (", ".join(side) or "none" for side in _sides(table))
    text = f"Bar chart, values ± standard errors: helpful for {target}: {helpful}; harmful: {harmful}."
    unclear = table["name"][table["verdict"] == "unclear"].tolist()
    return text + (f" The 95% interval covers 0 for {', '.join(unclear)}." if unclear else "")


def _sides(table: pd.DataFrame, star: str = "") -> tuple[list[str], list[str]]:
    """Name and value ± standard error of the helpful and of the harmful classes, the strongest first.

    The decimals are those that the usual error calls for; a space that does not break keeps a number in one line.
    """
    usual = float(np.median(table["stderr"])) if len(table) else 0.0
    decimals = int(np.clip(-np.floor(np.log10(usual)), 2, 6)) if 0 < usual < np.inf else 2
    sides = [], []
    columns = [table[column].tolist() for column in ("name", "value", "stderr", "verdict")]
    for name, value, error, verdict in zip(*columns, strict=True):
        told = f"{error:.{decimals}f}" if np.isfinite(error) else "?"
        number = f"{value:+.{decimals}f} ± {told}".replace("-", "−").replace(" ", "\N{NO-BREAK SPACE}")
        sides[int(value < 0)].append(f"{name} {number}{star if verdict == 'unclear' else ''}")
    return sides[0], sides[1][::-1]


def _table(table: pd.DataFrame, caption: str) -> str:
    """The numbers of the figure as a table: the most helpful on the left, the most harmful on the right."""
    star = " * The 95% interval covers 0." if "unclear" in table["verdict"].tolist() else ""
    rows = list(zip_longest(*_sides(table, "*"), fillvalue=""))
    return _html.table(("most helpful", "most harmful"), rows, caption + star)


def _shares(of: xr.Dataset, suspect: str) -> str:
    """The share of each predicted label with the full source and without the suspect, as a table."""
    of, space, rows = of.isel(arm=[0, of.arm.values.tolist().index(suspect)]), "\N{NO-BREAK SPACE}", []
    for label in of.label.values[(of.share > 0).any("arm").values]:
        numbers = of.sel(label=label)[["share", "low", "high"]].to_array().values.T
        rows.append([label, *(f"{share:.0%} ({low:.0%}{space}to{space}{high:.0%})" for share, low, high in numbers)])
    caption = f"Share of {of.attrs['seeds']} retrained models, with 95% intervals. True label: {of.true.item()}."
    return _html.table(["predicted", "full source", f"without {suspect}"], rows, caption)
