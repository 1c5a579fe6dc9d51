"""Bias transfer: what a source hides in a model, which of its classes bring it, and what takes it out.

After Salman et al. 2022. Every measure is a number for each model, so that it has a spread, can be paired by seed, and
can be attributed to source classes as any output can: `estimate_influence(study.masks, shift(...)[:, None])`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike
from scipy.special import softmax
from scipy.stats import t as student

from dtl._checks import InputError, check_number, choice
from dtl._retrain import Arm, retrain
from dtl.data import TransferProblem
from dtl.datasets.overlays import Change, changed, even, lean, plant
from dtl.study import Study
from dtl.training import schedule

__all__ = ["bias_transfer", "carriers", "compare", "cost", "even", "gap", "lean", "plant", "repairs", "shift"]
__all__ += ["worst_group"]

MEASURES = ("drop", "changed", "toward", "probability", "logit")
Measure = Callable[[xr.Dataset], xr.DataArray]  # results (..., target) -> a number for each model


def shift(
    results: xr.Dataset, view: str, measure: str = "changed", toward: str | None = None, split: str = "test"
) -> xr.DataArray:
    """How far a view moves each model.

    Parameters
    ----------
    results : of a study of a problem with views, `study.results`, or of `dtl.retrain`
    measure : "drop" (of accuracy), "changed" (share of predictions that are others), and of images of other classes
        "toward" (extra share that is called the class `toward`: the pull), "probability" and "logit" (mean rise of its
        probability and of its logit)
    toward : a target class

    Returns
    -------
    The dimensions of the results but target

    Raises
    ------
    InputError : an unknown view, measure or split, or a measure of a class without a class

    >>> viewed = dtl.Study(problem.with_views({"blur": dtl.datasets.overlays.Blur()}), dtl.Recipe(epochs=1))
    >>> dtl.bias.shift(viewed.run(4, progress=False).results, "blur", "toward", "sky").dims
    ('transfer', 'model')
    """
    choice(measure, MEASURES, "measure")
    there = dict.fromkeys(results["split"].values.tolist())
    choice(f"{split}/{view}", [name for name in there if "/" in name], "split and view")
    plain, seen = (
        results.isel(target=results["split"].values == name).drop_vars("split") for name in (split, f"{split}/{view}")
    )
    if measure == "drop":
        return (plain.correct.mean("target") - seen.correct.mean("target")).compute()
    if measure == "changed":
        return (plain.prediction != seen.prediction).mean("target").compute()
    classes = results["class"].values.tolist()
    if toward is None:
        raise InputError(f"measure {measure!r} is of a class: give toward=, one of {', '.join(classes)}")
    choice(toward, classes, "target class")
    number = classes.index(toward)
    others = plain["label"].values != number
    plain, seen = plain.isel(target=others), seen.isel(target=others)
    if measure == "toward":
        return ((seen.prediction == number).mean("target") - (plain.prediction == number).mean("target")).compute()
    before, after = plain.logits.load(), seen.logits.load()
    if measure == "probability":
        axis = before.get_axis_num("class")
        before, after = (x.copy(data=softmax(x.values, axis=axis)) for x in (before, after))
    return (after - before).sel({"class": toward}, drop=True).mean("target")


def gap(outputs: xr.DataArray, agrees: ArrayLike) -> xr.DataArray:
    """Mean output where an attribute agrees with the label, minus where it conflicts, for each model.

    Parameters
    ----------
    outputs : (..., target), such as `probability` or `correct` of one split
    agrees : (n,) bool, such as `truth.cue_agrees["test"]`, or a column of one's own

    Raises
    ------
    InputError : an attribute of another length, or with one value

    >>> test = study.results.correct.isel(target=study.results.split.values == "test")
    >>> dtl.bias.gap(test, problem.truth.cue_agrees["test"]).dims
    ('transfer', 'model')
    """
    groups = _groups(outputs, np.asarray(agrees, dtype=bool))
    return (groups[True] - groups[False]).compute()


def worst_group(outputs: xr.DataArray, groups: ArrayLike) -> xr.DataArray:
    """Mean output of the group for which it is lowest, for each model.

    groups : (n,), any values, such as label and attribute in one number
    """
    return xr.concat(list(_groups(outputs, np.asarray(groups)).values()), "group").min("group").compute()


def _groups(outputs: xr.DataArray, groups: np.ndarray) -> dict[Any, xr.DataArray]:
    values = np.unique(groups)
    if groups.shape != (outputs.sizes["target"],) or len(values) < 2:
        raise InputError(
            f"an attribute needs one value for each of {outputs.sizes['target']} images, and two or more different "
            f"ones, not {groups.shape} with {len(values)}"
        )
    return {value.item(): outputs.isel(target=groups == value).mean("target") for value in values}


def compare(values: xr.DataArray, other: xr.DataArray | float = 0.0, dim: str = "seed") -> xr.Dataset:
    """Mean `difference` of two measures, paired by seed, with `stderr` and a 95% interval, `low` to `high` (Student).

    >>> import xarray as xr
    >>> few = xr.DataArray([0.1, 0.2, 0.3], dims="seed")
    >>> dtl.bias.compare(few, few - 0.1).difference.round(3).item()
    0.1
    """
    difference = values - other
    n = difference.sizes[dim]
    if n < 2:
        raise InputError("an interval needs two or more seeds")
    mean, stderr = difference.mean(dim), difference.std(dim, ddof=1) / n**0.5
    half = student.isf(0.025, n - 1) * stderr
    return xr.Dataset({"difference": mean, "stderr": stderr, "low": mean - half, "high": mean + half})


def bias_transfer(
    study: Study,
    arms: Mapping[str, Arm | TransferProblem | np.ndarray],
    measure: Measure,
    seeds: int = 10,
    *,
    transfer: str | Sequence[str] | None = None,
    split: str = "test",
    **options: Any,
) -> xr.Dataset:
    """Train again in several ways and compare a bias, and what it costs in accuracy, with the first of them.

    A planted source beside a clean one, a source without the classes under suspicion beside one without others (the
    control), or repairs beside the model as it is: the arms say which.

    Parameters
    ----------
    arms, seeds, transfer, options : as in `dtl.retrain`
    measure : of the results of `dtl.retrain`, a number for each arm and seed (and transfer)
    split : on which accuracy is measured

    Returns
    -------
    Dataset: `bias` and `accuracy` (arm, seed), and for both `<name>_mean`, `<name>_stderr`, `<name>_low`, `<name>_high`
    (arm), and the same of the difference to the first arm, paired by seed, `<name>_change_mean` and so on; with
    `transfer` first if several were given

    >>> arms = {"full": problem, "without": np.arange(problem.source.n_classes) > 3}
    >>> agrees = problem.truth.cue_agrees["test"]
    >>> def measure(results):
    ...     return dtl.bias.gap(results.probability.isel(target=results.split.values == "test"), agrees)
    >>> found = dtl.bias_transfer(study, arms, measure, seeds=2, progress=False)
    >>> float(found.bias_change_mean.sel(arm="full"))
    0.0
    """
    again = retrain(study, arms, seeds, transfer=transfer, **options)
    judged = again.correct.isel(target=again["split"].values == split).transpose(..., "target").compute()
    each = study.problem.accuracy(judged.values.reshape(-1, judged.sizes["target"]), judged["label"].values)
    accuracy = judged.isel(target=0, drop=True).astype(float).copy(data=each.reshape(judged.shape[:-1]))
    found = xr.Dataset({"bias": measure(again).astype(float), "accuracy": accuracy})
    for name in ("bias", "accuracy"):
        values = found[name]
        parts = {name: compare(values), f"{name}_change": compare(values, values.isel(arm=0, drop=True))}
        for part, of in parts.items():
            found = found.assign({f"{part}_{str(key).replace('difference', 'mean')}": v for key, v in of.items()})
    return found.assign_attrs(again.attrs)


def carriers(masks: ArrayLike, outcome: ArrayLike, most: int = 4, among: Sequence[int] | None = None) -> pd.DataFrame:
    """Sets of source classes of which one is enough, an OR and not a sum: the best of each size, by exhaustive search.

    Influences are sums: where any of several classes brings a bias, each alone has little. A set is judged by how much
    of the outcome's variance is left when models that saw any of it are told from those that saw none.

    Parameters
    ----------
    masks : (m, K) bool
    outcome : (m,), such as `shift` of each model
    most : largest size to try
    among : classes to search among; default all, which takes K^most / most! steps

    Returns
    -------
    DataFrame, a row for each size: `classes`, `unexplained` (share of the variance), `effect` (with any of them minus
    without), `without` (models that saw none of them), `score` (extended BIC of Chen and Chen 2008), the smaller the
    better, which pays for the number of sets tried

    Raises
    ------
    InputError : arrays that do not fit, or fewer than two models that lack any set of the size: use smaller subsets

    >>> masks = dtl.subset_masks(12, 60, design="random", fraction=1 / 3, seed=0)
    >>> outcome = masks[:, [2, 5]].any(1) + 0.1 * np.random.default_rng(0).normal(size=60)
    >>> dtl.bias.carriers(masks, outcome).set_index("score").sort_index().classes.iloc[0]
    (2, 5)
    """
    masks, outcome = np.asarray(masks, dtype=bool), np.asarray(outcome, dtype=float)
    if masks.ndim != 2 or outcome.shape != masks.shape[:1] or not np.isfinite(outcome).all() or not np.ptp(outcome):
        raise InputError(f"give a finite outcome that varies, one for each of {len(masks)} models, not {outcome.shape}")
    check_number(most, 1, masks.shape[1], "most, the largest number of classes in a set,")
    pool, m = list(range(masks.shape[1]) if among is None else among), len(masks)
    total, rows = ((outcome - outcome.mean()) ** 2).sum(), []
    for size in range(1, min(most, len(pool)) + 1):
        sets = np.array(list(combinations(pool, size)))
        found = []
        for part in np.array_split(sets, max(1, len(sets) * m // 2**22)):
            absent = ~masks[:, part].any(2)  # (m, sets)
            n = absent.sum(0)
            with np.errstate(divide="ignore", invalid="ignore"):
                effect = (outcome.sum() - outcome @ absent) / (m - n) - (outcome @ absent) / n
            found.append((np.where((n > 1) & (n < m - 1), effect**2 * n * (m - n) / m, -1), effect, n))
        between, effect, n = map(np.concatenate, zip(*found, strict=True))
        best = int(between.argmax())
        if between[best] < 0:
            break
        left = max(1 - between[best] / total, np.finfo(float).eps)
        score = m * np.log(left) + 2 * np.log(comb(len(pool), size)) + np.log(m)
        names = tuple(sets[best].tolist())
        rows.append({"classes": names, "unexplained": left, "effect": effect[best], "without": n[best], "score": score})
    if not rows:
        raise InputError(
            f"of {m} models fewer than two lack any one class: train models on smaller subsets, such as fraction=1/4"
        )
    return pd.DataFrame(rows)


def repairs(
    study: Study,
    overlay: Change,
    without: Sequence[int] = (),
    control: Sequence[int] = (),
    agrees: ArrayLike | None = None,
    share: float = 0.1,
    seed: int = 0,
) -> dict[str, Arm]:
    """Arms for `bias_transfer`: the model as it is, and everything that may take a bias out of it.

    Parameters
    ----------
    overlay : the change that moves the model
    without, control : source classes to leave out, and as many others
    agrees : (n,) bool, an attribute of the target's training images, for a target in which it is balanced
    share : of the target's training images that get the change, whatever their class

    >>> arms = dtl.bias.repairs(study, dtl.datasets.overlays.Square(), without=[0, 1])
    >>> list(arms)[:2]
    ['as it is', 'longer fine-tuning']
    """
    problem, recipe, target = study.problem, study.recipe, study.problem.target_train
    rng, n = np.random.default_rng(seed), len(study.problem.target_train)

    def on(images: Any) -> Arm:
        return Arm(problem=replace(problem, target_train=images))

    order = rng.permutation(n)
    by_class = [order[target.labels.numpy()[order] == k] for k in range(target.n_classes)]
    half = np.sort(np.concatenate([rows[: -(-len(rows) // 2)] for rows in by_class]))
    handful = np.concatenate([rows[:10] for rows in by_class])
    every_second = np.concatenate([np.arange(len(rows[:10])) % 2 - 1 for rows in by_class])
    arms = {
        "as it is": Arm(),
        "longer fine-tuning": Arm(recipe=replace(recipe, finetune_epochs=4 * recipe.finetune_epochs)),
        "weight decay": Arm(recipe=replace(recipe, finetune_weight_decay=2e-2)),
        "half of the target": on(target.subset(half)),
        f"change in {share:.0%} of the target": on(plant(target, overlay, target.classes, share, seed)[0]),
        "balanced handful": on(changed(target.subset(handful), [overlay], every_second)),
    }
    if agrees is not None:
        arms["balanced target"] = on(target.subset(even(target.labels.numpy(), np.asarray(agrees), seed=seed)))
    for name, classes in (("without the carriers", without), ("without others (control)", control)):
        if len(classes):
            arms[name] = Arm(masks=~np.isin(np.arange(problem.source.n_classes), list(classes)))
    return arms


def cost(study: Study, arm: Arm) -> dict[str, float]:
    """What a repair takes: source trainings, target images to change or to find, and steps on the target.

    Steps are those of full-network transfer, as a multiple of the study's.

    >>> dtl.bias.cost(study, dtl.Arm(masks=np.arange(24) > 1))
    {'source trainings': 1, 'images to change': 0, 'target images': 40, 'steps': 1.0}
    """
    problem, recipe = arm.problem or study.problem, arm.recipe or study.recipe
    ours, theirs = study.problem.target_train, problem.target_train
    before = {image.numpy().tobytes() for image in ours.images}
    new = sum(image.numpy().tobytes() not in before for image in theirs.images)
    steps = [
        of.finetune_epochs * schedule(len(part), replace(of, epochs=1, steps=None))[0]
        for of, part in ((recipe, theirs), (study.recipe, ours))
    ]
    again = arm.masks is not None or arm.steps is not None or problem.source is not study.problem.source
    numbers = {"source trainings": int(again), "images to change": new, "target images": len(theirs)}
    return numbers | {"steps": steps[0] / steps[1]}
