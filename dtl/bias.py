"""Bias transfer: what a source hides in a model, which of its classes bring it, and what takes it out.

After Salman et al. 2022. Every measure is a number for each model, so that it has a spread, can be paired by seed, and
can be attributed to source classes as any output can: `estimate_influence(study.masks, shift(...)[:, None])`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from math import comb
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike
from scipy.special import softmax
from scipy.stats import t as student

from dtl._checks import InputError, check_between, check_kind, check_number, choice, floats, several
from dtl._retrain import Arm, retrain
from dtl.data import TransferProblem
from dtl.datasets.overlays import Change, changed, even, lean, plant
from dtl.study import Study
from dtl.training import Recipe, schedule

__all__ = [
    "bias_transfer", "carriers", "compare", "cost", "even", "gap", "lean", "plant", "repairs", "shift", "worst_group",
]  # fmt: skip

MEASURES = ("drop", "changed", "toward", "probability", "logit")


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
    check_kind(results, "xarray.Dataset", "results")
    choice(measure, MEASURES, "measure")
    splits = results["split"].values
    choice(f"{split}/{view}", [name for name in dict.fromkeys(splits.tolist()) if "/" in name], "split and view")
    plain, seen = (results.isel(target=splits == name).drop_vars("split") for name in (split, f"{split}/{view}"))
    if measure == "drop":
        return (plain.correct.mean("target") - seen.correct.mean("target")).compute()
    if measure == "changed":
        return (plain.prediction != seen.prediction).mean("target").compute()
    classes = results["class"].values.tolist()
    choice(toward, classes, "target class toward =")
    number = classes.index(toward)
    others = plain["label"].values != number
    before, after = (_says(of.isel(target=others), measure, number) for of in (plain, seen))
    return (after - before).mean("target").compute()


def _says(results: xr.Dataset, measure: str, number: int) -> xr.DataArray:
    """How much each model says of each image that it is of class `number`."""
    if measure == "toward":
        return (results.prediction == number).astype(float)
    logits = results.logits.load()
    if measure == "probability":
        logits = logits.copy(data=softmax(logits.values, axis=logits.get_axis_num("class")))
    return logits.isel({"class": number}, drop=True)


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
    means = _by_group(outputs, np.asarray(agrees, dtype=bool))
    return (means.sel(group=True, drop=True) - means.sel(group=False, drop=True)).compute()


def worst_group(outputs: xr.DataArray, groups: ArrayLike) -> xr.DataArray:
    """Mean output of the group for which it is lowest, for each model.

    groups : (n,), any values, such as label and attribute in one number
    """
    return _by_group(outputs, np.asarray(groups)).min("group").compute()


def _by_group(outputs: xr.DataArray, groups: np.ndarray) -> xr.DataArray:
    check_kind(outputs, "xarray.DataArray", "outputs")
    n, values = outputs.sizes["target"], np.unique(groups)
    if groups.shape != (n,) or len(values) < 2:
        raise InputError(
            f"an attribute needs one value for each of {n} images, and two or more different ones, not {groups.shape} "
            f"with {len(values)}"
        )
    return outputs.groupby(xr.DataArray(groups, dims="target", name="group")).mean("target")


def compare(values: xr.DataArray, other: xr.DataArray | float = 0.0) -> xr.Dataset:
    """Mean `difference` of two measures, paired by seed, with `stderr` and a 95% interval, `low` to `high` (Student).

    The errors count seeds, for these images: with few images, or groups of few, others may differ by more.

    >>> few = xr.DataArray([0.1, 0.2, 0.3], dims="seed")
    >>> dtl.bias.compare(few, few - 0.1).difference.round(3).item()
    0.1
    """
    check_kind(values, "xarray.DataArray", "values")
    if not isinstance(other, Real):
        check_kind(other, "xarray.DataArray", "other, a number or")
    difference = values - other
    n = difference.sizes["seed"]
    if n < 2:
        raise InputError("an interval needs two or more seeds")
    mean, stderr = difference.mean("seed"), difference.std("seed", ddof=1) / n**0.5
    half = student.isf(0.025, n - 1) * stderr
    return xr.Dataset({"difference": mean, "stderr": stderr, "low": mean - half, "high": mean + half})


def bias_transfer(
    study: Study,
    arms: Mapping[str, Arm | TransferProblem | np.ndarray],
    measure: Callable[[xr.Dataset], xr.DataArray],
    seeds: int = 10,
    **options: Any,
) -> xr.Dataset:
    """Train again in several ways and compare a bias, and what it costs in test accuracy, with the first of them.

    Parameters
    ----------
    measure : of the results of `dtl.retrain`, a number for each arm and seed (and transfer)
    arms, seeds, options : as in `dtl.retrain`

    Returns
    -------
    Dataset: `bias` and `accuracy` (arm, seed), and for both `<name>_mean`, `<name>_stderr`, `<name>_low`, `<name>_high`
    (arm), and the same of the difference to the first arm, paired by seed, `<name>_change_mean` and so on; with
    `transfer` first if several were given. All errors count seeds, for these images, as in `compare`; pairing removes
    luck only between arms of different problems, since others have models of their own (`dtl.retrain`)

    >>> arms = {"full": problem, "without": np.arange(problem.source.n_classes) > 3}
    >>> def measure(results):
    ...     return results.probability.isel(target=results.split.values == "test").mean("target")
    >>> found = dtl.bias_transfer(study, arms, measure, seeds=2, progress=False)
    >>> float(found.bias_change_mean.sel(arm="full"))
    0.0
    """
    if not callable(measure):
        raise InputError(f"measure must be a function of results, such as a call of dtl.bias.shift, not {measure!r}")
    again = retrain(study, arms, seeds, **options)
    judged = again.correct.isel(target=again["split"].values == "test").transpose(..., "target").compute()
    each = study.problem.accuracy(judged.values.reshape(-1, judged.sizes["target"]), judged["label"].values)
    accuracy = judged.isel(target=0, drop=True).astype(float).copy(data=each.reshape(judged.shape[:-1]))
    bias = check_kind(measure(again), "xarray.DataArray", "what measure makes of results, one number an arm and seed,")
    found = xr.Dataset({"bias": bias.astype(float), "accuracy": accuracy}, attrs=again.attrs)
    for name in ("bias", "accuracy"):
        for part, other in ((name, 0.0), (f"{name}_change", found[name].isel(arm=0, drop=True))):
            numbers = compare(found[name], other).rename(difference="mean")
            found = found.assign({f"{part}_{key}": value for key, value in numbers.items()})
    return found


def carriers(masks: ArrayLike, outcome: ArrayLike, most: int = 4) -> pd.DataFrame:
    """Sets of source classes of which one is enough, an OR and not a sum: the best of each size, by exhaustive search.

    A set is judged by how much of the outcome's variance is left when models that saw any of it are told from those
    that saw none.

    Parameters
    ----------
    masks : (m, K) bool
    outcome : (m,), such as `shift` of each model
    most : largest size to try; there are K^most / most! sets or so

    Returns
    -------
    DataFrame, a row for each size: `classes`, `unexplained` (share of the variance), `effect` (with any of them minus
    without), `without` (models that saw none of them), `score` (extended BIC of Chen and Chen 2008), the smaller the
    better, which pays for the number of sets tried

    Raises
    ------
    InputError : arrays that do not fit, or fewer than two models that lack any one class: use smaller subsets

    >>> masks = dtl.subset_masks(12, 60, design="random", fraction=1 / 3, seed=0)
    >>> outcome = masks[:, [2, 5]].any(1) + 0.1 * np.random.default_rng(0).normal(size=60)
    >>> dtl.bias.carriers(masks, outcome).set_index("score").sort_index().classes.iloc[0]
    (2, 5)
    """
    masks, outcome = floats(masks, "masks").astype(bool), floats(outcome, "outcome")
    if masks.ndim != 2 or outcome.shape != masks.shape[:1] or not np.isfinite(outcome).all() or not np.ptp(outcome):
        raise InputError(f"give a finite outcome that varies, one for each of {len(masks)} models, not {outcome.shape}")
    (m, n_classes), far, rows = masks.shape, outcome - outcome.mean(), []
    check_number(most, 1, n_classes, "most, the largest number of classes in a set,")
    for size in range(1, most + 1):
        explained = {}
        for classes in combinations(range(n_classes), size):
            saw = masks[:, classes].any(1)
            n = np.count_nonzero(saw)
            if 1 < n < m - 1:
                explained[classes] = (far @ saw) ** 2 * m / (n * (m - n)) / (far @ far)
        if not explained:
            break
        best = max(explained, key=explained.__getitem__)
        saw, left = masks[:, best].any(1), max(1 - explained[best], np.finfo(float).eps)
        score = m * np.log(left) + 2 * np.log(comb(n_classes, size)) + np.log(m)
        effect = outcome[saw].mean() - outcome[~saw].mean()
        rows.append({"classes": best, "unexplained": left, "effect": effect, "without": (~saw).sum(), "score": score})
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
    without, control : numbers of source classes (groups, images) to leave out, and as many others
    agrees : (n,) bool, an attribute of the target's training images, for a target in which it is balanced
    share : of the target's training images that get the change, whatever their class

    >>> arms = dtl.bias.repairs(study, dtl.datasets.overlays.Square(), without=[0, 1])
    >>> list(arms)[:2]
    ['as it is', 'longer fine-tuning']
    """
    check_kind(study, "dtl.Study", "study")
    check_number(seed, 0, 2**32, "seed")
    check_between(share, "share")
    recipe, target = study.recipe, study.problem.target_train
    order = np.random.default_rng(seed).permutation(len(target))
    by_class = [order[target.labels.numpy()[order] == k] for k in range(target.n_classes)]
    half = np.sort(np.concatenate([rows[: -(-len(rows) // 2)] for rows in by_class]))
    handful = [rows[:10] for rows in by_class]
    every_second = np.concatenate([np.arange(len(rows)) % 2 - 1 for rows in handful])
    targets = {
        "half of the target": target.subset(half),
        f"change in {share:.0%} of the target": plant(target, overlay, target.classes, share, seed)[0],
        "balanced handful": changed(target.subset(np.concatenate(handful)), [overlay], every_second),
    }
    if agrees is not None:
        targets["balanced target"] = target.subset(even(target.labels.numpy(), np.asarray(agrees), seed=seed))
    arms = {
        "as it is": Arm(),
        "longer fine-tuning": Arm(recipe=replace(recipe, finetune_epochs=4 * recipe.finetune_epochs)),
        "weight decay": Arm(recipe=replace(recipe, finetune_weight_decay=2e-2)),
    }
    arms |= {name: Arm(problem=replace(study.problem, target_train=images)) for name, images in targets.items()}
    for name, classes in (("without the carriers", without), ("without others (control)", control)):
        for number in several(classes, f"classes of the arm {name!r}"):
            check_number(number, 0, study.n_units - 1, f"each class of the arm {name!r}")
        if len(classes):
            arms[name] = Arm(masks=~np.isin(np.arange(study.n_units), list(classes)))
    return arms


def cost(study: Study, arm: Arm) -> dict[str, float]:
    """What a repair takes: source trainings, target images to change or to find, and steps on the target.

    Steps are those of full-network transfer, as a multiple of the study's.

    >>> dtl.bias.cost(study, dtl.Arm(masks=np.arange(24) > 1))
    {'source trainings': 1, 'images to change': 0, 'target images': 40, 'steps': 1.0}
    """
    check_kind(study, "dtl.Study", "study")
    check_kind(arm, "dtl.Arm", "arm")
    problem, recipe = arm.problem or study.problem, arm.recipe or study.recipe
    again = arm.masks is not None or arm.steps is not None or problem.source is not study.problem.source
    ours = {image.numpy().tobytes() for image in study.problem.target_train.images}
    new = sum(image.numpy().tobytes() not in ours for image in problem.target_train.images)
    numbers = {"source trainings": int(again), "images to change": new, "target images": len(problem.target_train)}
    return numbers | {"steps": _steps(problem, recipe) / _steps(study.problem, study.recipe)}


def _steps(problem: TransferProblem, recipe: Recipe) -> int:
    return recipe.finetune_epochs * schedule(len(problem.target_train), replace(recipe, epochs=1, steps=None))[0]
