"""Which changes of its images move a transferred model more than one trained from scratch, whence, and what to do."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import false_discovery_control
from scipy.stats import t as student

from dtl._checks import InputError, check_between, check_kind, choice
from dtl._retrain import retrain
from dtl.bias import bias_transfer, compare, cost, repairs, shift
from dtl.influence import estimate_influence
from dtl.study import Study


@dataclass(frozen=True)
class Audit:
    """What `audit` found; printed, it is a section of a report.

    Attributes
    ----------
    cells : view, measure and target class, what the transferred models and those from scratch do, the difference with
        its standard error, and q, the false discovery rate of "transferred models are moved, and more than those from
        scratch", of two t-tests over seeds the one that is less sure
    sources : for each view that was found, source classes whose influence on it is established
    repairs : what each repair leaves of the strongest finding, and what it costs; None where nothing was found
    """

    problem: str
    regime: str
    seeds: int
    level: float
    cells: pd.DataFrame
    sources: pd.DataFrame
    repairs: pd.DataFrame | None

    @property
    def found(self) -> pd.DataFrame:
        """The cells in which transfer moves the model more than training from scratch does, the strongest first."""
        cells = self.cells.loc[self.cells.q < self.level]
        return cells.sort_values("difference", ascending=False, ignore_index=True)

    @property
    def looked(self) -> str:
        return f"{len(self.cells)} cells were looked at, {self.seeds} models each, false discovery rate {self.level}."

    @property
    def verdict(self) -> str:
        """What to do about the strongest finding."""
        if self.repairs is None:
            return "In none does the transferred model move more than one trained from scratch."
        good = self.repairs[self.repairs.enough].repair.tolist()
        unknown = "" if len(self.sources) else "Whence it comes is not known: train more models, on smaller subsets. "
        half = "half of what exceeds a model from scratch"
        if not good:
            return f"{unknown}None takes away {half}: do not deploy where this change can happen."
        return f"{unknown}The cheapest that takes away at least {half}: {good[0]}."

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """What was found as text, by caption, without tables that are empty."""
        captions = (
            "Changes that move your model more than one trained from scratch",
            "Source classes that bring it (influence on the share of predictions that change)",
            "What repairs leave of the strongest, the cheapest first",
        )
        found = zip(captions, (self.found, self.sources, self.repairs), strict=True)
        full = {caption: table for caption, table in found if table is not None and len(table)}
        return {k: of.map(lambda v: f"{v:.3f}" if isinstance(v, float) else str(v)) for k, of in full.items()}

    def __str__(self) -> str:
        said = [f"## Bias that came with the source: {self.problem}, {self.regime} transfer\n", self.looked]
        for caption, table in self.tables.items():
            rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
            said += [f"\n{caption}:\n", *(f"| {' | '.join(row)} |" for row in rows)]
        return "\n".join([*said, f"\n{self.verdict}\n"])


def audit(study: Study, seeds: int = 8, *, transfer: str | None = None, level: float = 0.05, **options: Any) -> Audit:
    """Compare a transferred model with one from scratch on every view of the problem, then look for source and repair.

    Parameters
    ----------
    study : of a problem with views, run: its models, on subsets, say which source classes bring what is found
    seeds : models of the whole source, and from scratch, on which the comparison stands; errors count them, and the
        models of the study, for these images
    transfer : regime; default the study's first
    level : false discovery rate
    options : as in `dtl.retrain`

    Raises
    ------
    InputError : a problem without views, or a study that has not run

    >>> viewed = problem.with_views({"square": dtl.datasets.overlays.Square()})
    >>> study = dtl.Study(viewed, dtl.Recipe(epochs=1)).run(4, progress=False)
    >>> dtl.audit(study, seeds=2, progress=False).cells.shape
    (6, 8)
    """
    if not check_kind(study, "dtl.Study", "study").problem.views:
        raise InputError("an audit needs views, the changes to look at: give a study of problem.with_views({...})")
    check_between(level, "level")
    regime = study.transfer[0] if transfer is None else transfer
    choice(regime, study.transfer, "transfer")
    results = study.results.sel(transfer=regime)
    both = retrain(study, {"model": study.problem}, seeds, transfer=(regime, "scratch"), **options).isel(arm=0)
    rows, own = [], []
    for view in study.problem.views:
        for measure, toward in [("drop", None), ("changed", None)] + [("toward", c) for c in results["class"].values]:
            ours, scratch = (shift(both, view, measure, toward).sel(transfer=of) for of in (regime, "scratch"))
            pair = compare(ours, scratch)
            row = {"view": view, "measure": measure, "class": toward or ""}
            row |= {"transferred": float(ours.mean()), "scratch": float(scratch.mean())}
            rows.append(row | {"difference": float(pair.difference), "stderr": float(pair.stderr)})
            own.append(float(compare(ours).stderr))
    cells = pd.DataFrame(rows)
    errors = cells.stderr.where(cells.stderr > 0, np.inf)  # predictions that never change say nothing of luck
    # both are needed: a model that is moved less than one from scratch need not be moved at all
    p = student.sf(cells.difference / errors, seeds - 1)
    moved = student.sf(cells.transferred / np.maximum(own, np.finfo(float).tiny), seeds - 1)
    cells["q"] = false_discovery_control(np.maximum(p, moved))
    looked = Audit(study.problem.name, regime, seeds, level, cells, pd.DataFrame(), None)
    if (found := looked.found).empty:
        return looked
    sources = pd.concat([_bringers(study, results, view, level) for view in found["view"].unique()], ignore_index=True)
    brought = sources["source"][sources["view"] == found["view"][0]]
    without = np.flatnonzero(np.isin(results["source"].values, brought)).tolist()
    fixes = _repairs(study, found.iloc[0], without, seeds, transfer=regime, **options)
    return replace(looked, sources=sources, repairs=fixes)


def _bringers(study: Study, results: xr.Dataset, view: str, level: float) -> pd.DataFrame:
    """Source classes with an established influence on the share of predictions that a view changes."""
    moved = shift(results, view, "changed", split="validation").values
    influence = estimate_influence(study.masks, moved[:, None])
    found = pd.DataFrame({"view": view, "source": results["source"].values, "influence": influence.values[:, 0]})
    found = found.assign(stderr=influence.stderr[:, 0], q=false_discovery_control(influence.p_values("greater")[:, 0]))
    return found.loc[found.q < level].sort_values("influence", ascending=False)


def _repairs(study: Study, cell: Any, without: list[int], seeds: int, **options: Any) -> pd.DataFrame:
    """What every repair leaves of one cell, the cheapest first: sources trained, then images changed, then steps."""
    arms = repairs(study, study.problem.views[cell["view"]], without)
    measure = partial(shift, view=cell["view"], measure=cell["measure"], toward=cell["class"] or None)
    after = bias_transfer(study, arms, measure, seeds, **options).sel(arm=list(arms))
    excess = after.bias_mean - cell["scratch"]
    table = pd.DataFrame([{"repair": name} | cost(study, arm) for name, arm in arms.items()])
    for column, of in {"leaves": "bias_mean", "stderr": "bias_stderr", "accuracy": "accuracy_mean"}.items():
        table[column] = after[of].values
    table["enough"] = ((after.bias_change_high < 0) & (excess <= excess.sel(arm="as it is") / 2)).values
    return table.sort_values(["source trainings", "images to change", "steps"], kind="stable", ignore_index=True)
