"""The one way to train again and compare: on chosen subsets, another problem, other settings, or a number of steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from dtl._checks import InputError, check_kind, check_number
from dtl.data import TransferProblem
from dtl.engine.store import SPLITS, local_folder
from dtl.study import Study
from dtl.training import Recipe, schedule

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to train again: what differs from the study that the arms of `retrain` are of.

    Parameters
    ----------
    problem : another source or target, judged on as many evaluation images; default the study's
    masks : bool (units,), or (seeds, units) with a subset for each seed; default the whole source
    steps : optimiser steps of source training, a number or "full", those of the whole source; default what the recipe
        gives a subset of this size
    recipe : other settings; default the study's

    >>> dtl.Arm(masks=np.arange(24) > 3, steps="full").steps
    'full'
    """

    problem: TransferProblem | None = None
    masks: np.ndarray | None = None
    steps: int | str | None = None
    recipe: Recipe | None = None


def retrain(
    study: Study,
    arms: Mapping[str, "Arm | TransferProblem | np.ndarray"],
    seeds: int = 10,
    *,
    transfer: str | Sequence[str] | None = None,
    store: str | Path | None = None,
    weights: str | Path | None = None,
    seed: int | None = None,
    device: str = "auto",
    client: "Client | None" = None,
    progress: bool = True,
) -> xr.Dataset:
    """Train again in several ways, several times each, and judge all of them on the same images.

    Parameters
    ----------
    study : gives problem, recipe, unit and transfer; its models are not used
    arms : name -> a subset bool (units,), one for each seed (seeds, units), a problem (all of its source), or `Arm`
    seeds : retrainings of each arm
    transfer : a regime, or several side by side; default the study's first
    store : folder that keeps the outputs, so that a killed call resumes
    weights : folder of source weights, so that arms that differ in target or transfer train once; default the study's
    seed : of the retrainings; by default one more than the study's, whose models must not judge in their own cause
    device, client, progress : as in `Study.run`

    Returns
    -------
    Dataset (arm, seed, target), with `transfer` first if several were given: margin, probability, correct, prediction
    (and logits, for a problem with views), read when used; coordinates arm, seed, split and label (target). Arms of one
    problem and recipe have models of their own; the n-th arm of another problem starts from the same initial weights
    and orders, seed by seed, as the n-th of the first. InputError for an arm that does not fit, before any training

    >>> without = np.arange(problem.source.n_classes) != 8
    >>> again = dtl.retrain(study, {"full": problem, "without": without}, seeds=2, progress=False)
    >>> again.correct.where(again.split == "test").mean("target").dims
    ('arm', 'seed')
    """
    check_number(seeds, 2, 10**6, "seeds, two or more for a standard error,")
    check_kind(study, "dtl.Study", "study")
    if not isinstance(arms, Mapping) or not arms:
        raise InputError("give at least one arm: a name with a subset, a problem, or an Arm")
    regimes = study.transfer[:1] if transfer is None else transfer
    groups: dict[tuple[TransferProblem, Recipe], dict[str, np.ndarray]] = {}
    for name, given in arms.items():
        arm = Arm(problem=given) if isinstance(given, TransferProblem) else given
        arm = arm if isinstance(arm, Arm) else Arm(masks=arm)
        problem, recipe = arm.problem or study.problem, arm.recipe or study.recipe
        _check_judges(name, problem, study.problem)
        if arm.steps is not None:
            steps = schedule(len(problem.source), recipe)[0] if arm.steps == "full" else arm.steps
            recipe = replace(recipe, steps=steps)
        n_units = study.n_units
        if not study.groups:
            n_units = problem.source.n_classes if study.unit == "class" else len(problem.source)
        masks = np.ones(n_units, dtype=bool) if arm.masks is None else np.asarray(arm.masks)
        if masks.dtype != bool or masks.shape not in ((n_units,), (seeds, n_units)):
            shapes = f"({n_units},) or ({seeds}, {n_units})"
            raise InputError(f"arm {name!r} needs a subset, bool {shapes}, not {masks.dtype} {masks.shape}")
        groups.setdefault((problem, recipe), {})[name] = np.broadcast_to(masks, (seeds, n_units))
    seed, again, weights = study.seed + 1 if seed is None else seed, [], weights or study.weights
    for number, ((problem, recipe), members) in enumerate(groups.items()):
        folder = store if store is None or len(groups) == 1 else local_folder(store) / str(number)
        masks = np.concatenate(list(members.values()))
        again.append(
            Study(problem, recipe, masks, regimes, folder, seed, unit=study.groups or study.unit, weights=weights)
        )
    found = []
    for part, members in zip(again, groups.values(), strict=True):
        results = part.run(device=device, client=client, progress=progress).results
        said = results.drop_dims("source").drop_vars(["model", "seed"])
        said = said.coarsen(model=seeds).construct(model=("arm", "seed"))
        found.append(said.assign_coords(arm=list(members), seed=np.arange(seeds)))
    judged = xr.concat(found, "arm").sel(arm=list(arms)) if len(found) > 1 else found[0]
    judged = judged.drop_attrs(deep=False).assign_attrs(problem=study.problem.name, seeds=seeds, unit=study.unit)
    return judged if not (transfer is None or isinstance(transfer, str)) else judged.isel(transfer=0)


def _check_judges(arm: str, problem: TransferProblem, ours: TransferProblem) -> None:
    """InputError unless the models of an arm are judged on images of the same labels as those of the study."""
    if problem.judges.keys() != ours.judges.keys():
        raise InputError(f"arm {arm!r} has the views {list(problem.views)} and the study {list(ours.views)}")
    for split in SPLITS:
        theirs, judge = problem.judges[split], ours.judges[split]
        if theirs.classes != judge.classes or not torch.equal(theirs.labels, judge.labels):
            raise InputError(f"arm {arm!r} has {split} images of other labels than the study: judge all on the same")
