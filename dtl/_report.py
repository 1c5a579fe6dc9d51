"""What a study found, as one HTML page that needs nothing else, and its tables as CSV files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from jinja2 import Environment, PackageLoader
from scipy.stats import false_discovery_control

from dtl import plots
from dtl._checks import InputError, check_kind, check_number
from dtl._html import image
from dtl.engine.files import check_file
from dtl.influence import Influence, models_needed
from dtl.results import Results
from dtl.results import open as open_results
from dtl.study import Study

if TYPE_CHECKING:
    from dtl._advise import Advice
    from dtl._audit import Audit

FDR, WANTED = 0.05, 0.8  # false discoveries among what is called established; reliability to plan for


def report(
    results: Study | Results | xr.Dataset | str | Path,
    out: str | Path,
    advice: Advice | None = None,
    scores: pd.DataFrame | None = None,
    audit: Audit | None = None,
    top: int = 10,
    **options: Any,
) -> Path:
    """Write what a study found to one self-contained page, and every number of it to CSV files beside it.

    Besides ``NAME.html`` there are ``NAME-facts.csv`` (what the sentences say), ``NAME-whole.csv`` and
    ``NAME-classes.csv`` (influences on the whole target and on its classes, with errors, intervals and a verdict), and
    with scores or an audit ``NAME-scores.csv``, ``NAME-cells.csv``, ``NAME-sources.csv`` and ``NAME-repairs.csv``.

    Parameters
    ----------
    results : a study, whose source images are then shown, its `results`, or anything that `dtl.results.open` takes
    out : NAME.html
    advice : of `dtl.advise`, to stand first; without it the page says how to get one
    scores : table of `dtl.scores.benchmark`, or the file of `python -m dtl scores` as pandas reads it, for a section
    audit : of `dtl.audit`, for a section on what changes of the images do
    top : classes in the tables of the page, of those that help and of those that hurt; the files have all
    options : of `Results.influence`, such as ``output="correct"``

    Raises
    ------
    InputError : another ending, no finished model, or too few for an influence

    >>> dtl.report(study, "report.html").name
    'report.html'
    """
    check_file(out, ".html")
    out = Path(out).expanduser()
    check_number(top, 1, 1000, "top, the classes on each side,")
    check_kind(advice, "dtl.Advice", "advice", optional=True)
    check_kind(scores, "pandas.DataFrame", "scores", optional=True)
    check_kind(audit, "dtl.Audit", "audit", optional=True)
    study = results if isinstance(results, Study) else None
    found = results.results if isinstance(results, Study) else results
    found = Results(found) if isinstance(found, xr.Dataset) else found
    found = found if isinstance(found, Results) else open_results(found)
    whole, classes = found.influence(by="all", **options), found.influence(by="class", **options)
    nothing = "Nothing was retrained, so nothing is advised: dtl.advise(study), or --seeds 20 here, tries removals."
    said = {"Decision": [str(advice or nothing)]} | ({"Bias": [audit.looked, audit.verdict]} if audit else {})
    said |= {"Established": _established(whole, classes), "How sure this is": _sureness(found, whole, classes, options)}
    said["Certificate"] = _origin(found, whole)
    facts = pd.Series(said, name="fact").rename_axis("topic").explode().reset_index()
    tables = {"whole": _judged(whole), "classes": _judged(classes), "facts": facts}
    tables |= {} if scores is None else {"scores": scores}
    tables |= {} if audit is None else {"cells": audit.cells, "sources": audit.sources}
    tables |= {} if audit is None or audit.repairs is None else {"repairs": audit.repairs}
    template = Environment(loader=PackageLoader("dtl", "."), autoescape=True).get_template("report.html.j2")
    page = template.render(
        title=f"{whole.problem or 'A study'}: which source classes help, which hurt",
        facts=said,
        figures=_figures(whole, classes, study, top),
        strongest={name: _strongest(tables[name], top) for name in ("whole", "classes")},
        scores=None if scores is None else _compared(scores),
        audit=audit.tables if audit else {},
        tables={name: _beside(out, name).name for name in tables},
    )
    for name, table in tables.items():
        table.to_csv(_beside(out, name), index=False)
    out.write_text(page, "utf8")
    return out


def _beside(out: Path, name: str) -> Path:
    return out.with_name(f"{out.stem}-{name}.csv")


def _established(whole: Influence, classes: Influence) -> list[str]:
    """Counts of what is not chance, at a false discovery rate."""
    found = []
    for influence, what in ((whole, "source classes, on the whole target"), (classes, "pairs of source and target")):
        sure = _sure(influence)
        helps, hurts = int((sure & (influence.values > 0)).sum()), int((sure & (influence.values < 0)).sum())
        found.append(
            f"Of {sure.size} {what}, {helps} help and {hurts} hurt beyond chance, at a false discovery rate of "
            f"{FDR:.0%}; of the other {sure.size - helps - hurts} nothing is established."
        )
    return [*found, "Helping and hurting are meant against the average of the other source classes."]


def _sure(influence: Influence) -> np.ndarray:
    """Which influences are established at the false discovery rate, (K, n)."""
    p = influence.p_values()
    return (false_discovery_control(p.ravel()) < FDR).reshape(p.shape)


def _sureness(found: Results, whole: Influence, classes: Influence, options: dict[str, Any]) -> list[str]:
    """Reliabilities, what the errors cover, and what more models would buy."""
    specific = found.influence(by="class", part="specific", **options)
    parts = {"the whole target": whole, "target classes": classes, "what each has beyond the whole": specific}
    said = [f"Reliability for {name}: {of.reliability.mean():.2f}." for name, of in parts.items()]
    said += [f"For {name}: {of.advice}" for name, of in list(parts.items())[:2]]
    for name, of in parts.items():
        try:
            said.append(f"A reliability of {WANTED} for {name} takes {models_needed(of, WANTED)} models in all.")
        except InputError as error:
            said.append(f"A reliability of {WANTED} for {name}: {str(error).rstrip('.')}.")
    return said


def _origin(found: Results, whole: Influence) -> list[str]:
    """What was trained, on what, with which versions."""
    what = f"{whole.method} of the {whole.output} on {whole.split} images, {whole.transfer}"
    facts, said = found.data.attrs, [f"{whole.n_models} models; {what}"]
    settings = dict(facts.get("settings", {}))
    data = settings.pop("data", {})
    for name, value in settings.items():
        value = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        said.append(f"{name}: {value}")
    for run in facts.get("runs", []):
        said.append("run: " + ", ".join(f"{name} {value}" for name, value in run.items()))
    return said + [f"{name}: sha256 {digest}" for name, digest in data.items()]


def _compared(scores: pd.DataFrame) -> dict[str, Any]:
    """What the page says of scores: the models judged, and a row for each predictor."""
    names = ["r", "low", "high", "behind", "behind_low", "behind_high"]
    if not {*names, "predictor", "kind"} <= {*scores}:
        raise InputError(f"scores must be the table that the command scores writes, with {', '.join(names)}")
    numbers = scores[names].map("{:+.2f}".format)
    rows = pd.concat([scores["predictor"], numbers.replace("+nan", ""), scores["kind"]], axis=1)
    return scores.iloc[0].to_dict() | {"rows": rows.to_numpy().tolist()}


def _judged(influence: Influence) -> pd.DataFrame:
    """The influences as a table with intervals and a verdict, by target."""
    table = influence.to_frame()
    low, high = (end.T.ravel() for end in influence.interval())
    sign = np.where(table["influence"] > 0, "helps", "hurts")
    return table.assign(low=low, high=high, verdict=np.where(_sure(influence).T.ravel(), sign, "not established"))


def _strongest(table: pd.DataFrame, top: int) -> dict[str, list[list[str]]]:
    """For each target the rows that the page shows, from the most helpful to the most harmful."""
    shown = {}
    for target, rows in table.groupby("target", sort=False):
        ranked = rows.sort_values("influence", ascending=False)
        few = ranked if len(ranked) <= 2 * top else pd.concat([ranked.head(top), ranked.tail(top)])
        numbers = few[["influence", "stderr", "low", "high"]].map("{:+.3f}".format)
        numbers["stderr"] = few["stderr"].map("{:.3f}".format)
        shown[str(target)] = pd.concat([few["source"], numbers, few["verdict"]], axis=1).to_numpy().tolist()
    return shown


def _figures(whole: Influence, classes: Influence, study: Study | None, top: int) -> dict[str, str]:
    images = study.problem.source if study and whole.unit == "class" else None
    order = np.argsort(whole.values[:, 0])
    most, least = (", ".join(whole.sources[c] for c in few) for few in (order[::-1][:3], order[:3]))
    bars: Any = plots.influence_bars(whole, k=top, images=images).get_figure(root=True)
    cells: Any = plots.influence_heatmap(classes).get_figure(root=True)
    return {
        "whole": image(bars, f"Bars with intervals of 95%. Most positive: {most}. Most negative: {least}."),
        "classes": image(cells, "Heat map of source classes by target classes; the table below lists the strongest."),
    }
