"""How well an attribution, ours or anybody's, predicts the outputs of models that it was not made from."""

import logging
import math
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.stats import pearsonr, rankdata
from scipy.stats import t as student

from dtl._checks import InputError, check_between, check_kind, choice, floats, listed
from dtl._estimators import checked, plain
from dtl.design import DESIGNS, checked_design, subset_masks
from dtl.influence import Influence, estimate_influence, group_means
from dtl.results import Results

logger = logging.getLogger(__name__)


def linear_datamodeling_score(influence: Influence, masks: ArrayLike, outputs: ArrayLike) -> tuple[float, float]:
    """How well the influences predict held-out models: linear datamodeling score (Park et al. 2023) and its ceiling.

    The score is the Spearman correlation, over held-out subsets, between a target's outputs and the sum of the
    influences of the classes in the subset, averaged over targets. Training noise and interactions cap it: exact
    influences would reach the ceiling ``(6/pi) asin(sqrt(R2)/2)``, R2 being the additive share of the outputs'
    variance. R2 comes from the covariance between outputs and predictions: the held-out models are new, so neither
    their noise nor the errors of the influences bias it (ridge: divided by the reliability, to undo the shrinkage).
    Subsets are taken to be of one size.

    Parameters
    ----------
    masks, outputs : (m, K) and (m, n), of models that the influences were *not* estimated from. Targets whose outputs
        or predictions do not vary are left out of the averages, with a log message

    Raises
    ------
    InputError : no target varies, or shapes disagree

    Examples
    --------
    >>> masks, effects = dtl.subset_masks(20, 60, "random"), np.linspace(-1, 1, 20)[:, None]
    >>> y = masks @ effects + np.random.default_rng(0).normal(size=(60, 1))
    >>> score, ceiling = linear_datamodeling_score(estimate_influence(masks[:40], y[:40], "ols"), masks[40:], y[40:])
    >>> 0 < score <= 1, 0 < ceiling <= 1
    (True, True)
    """
    included, y = checked(plain(masks, "masks"), plain(outputs, "outputs"), held_out=True)
    n_classes, n_targets = check_kind(influence, "dtl.Influence", "influence").values.shape
    if included.shape[1] != n_classes or y.shape[1] != n_targets:
        raise InputError(
            f"Influences are of {n_classes} classes on {n_targets} targets, but the held-out models have "
            f"{included.shape[1]} classes and {y.shape[1]} targets."
        )
    y = y.astype(np.float64)
    predictions = included.astype(np.float64) @ influence.values
    varies = (np.ptp(y, axis=0) > 0) & (np.ptp(predictions, axis=0) > 0)
    if not varies.any():
        raise InputError("No target's outputs and predictions vary over the held-out models: use more or others.")
    if not varies.all():
        logger.warning("%d of %d targets do not vary and are left out of the score.", (~varies).sum(), n_targets)
    y, p = y[:, varies], predictions[:, varies]
    score = _rank_correlation(y, p)
    covariance = ((y - y.mean(axis=0)) * p).mean(axis=0) * (n_classes - 1) / n_classes
    shrinkage = 1.0
    if influence.method == "ridge":  # how much its values are shrunk, which is not quite their reliability
        noise = (np.square(influence.stderr) - np.square(influence.image_stderr)).mean(axis=0)[varies]
        shrinkage = 1 - noise / np.maximum(noise + influence.values.var(axis=0)[varies], np.finfo(float).tiny)
    additive = np.clip(covariance / np.maximum(shrinkage * y.var(axis=0), np.finfo(float).tiny), 0, 1)
    return float(score), float((6 / np.pi * np.arcsin(np.sqrt(additive) / 2)).mean())


class Evaluation(NamedTuple):
    """Linear datamodeling score, the ceiling that exact influences would reach, score / ceiling, and its interval."""

    score: float
    ceiling: float
    share: float
    low: float
    high: float


def evaluate(
    values: "Influence | ArrayLike",
    results: "Results | xr.Dataset",
    output: str = "margin",
    transfer: str | None = None,
    split: str = "validation",
    by: str | None = None,
    level: float = 0.95,
) -> Evaluation:
    """Score anybody's attribution against trained models that it was not made from.

    The ceiling is that of `linear_datamodeling_score`, from the additive share of the outputs' variance that a least
    squares fit to these models finds. The interval is Student's, from leaving out one in 20 of the pairs of models at a
    time (jackknife): targets share models, so they are not independent. Where the ceiling is near 1, which outputs of
    trained models seldom are, it is too narrow: 85 to 92 of 100 such 95% intervals held in simulations.

    Parameters
    ----------
    values : (K, n), what each source class does to each target image (target class with by="class"); larger helps more
    results : models on subsets, as `dtl.results.open` gives, or `study.results`; others than those of the values

    Raises
    ------
    InputError : row i of the outputs does not belong to subset i, shapes disagree, or models are too few

    >>> results = dtl.results.open("imagenet20-cifar10")
    >>> found = results.part("random").influence("ols", by="class")
    >>> dtl.evaluate(found, results["balanced"], by="class").share > 0.8
    True
    """
    if by is not None:
        choice(by, ("class",), "by")
    check_between(level, "level")
    study = results if isinstance(results, Results) else Results(check_kind(results, "xarray.Dataset", "results"))
    _check_subsets(study.data)
    chosen = study.comparable(output, transfer, split)
    masks, y = study.data["mask"].sel(model=chosen["model"]).values, chosen.values.astype(np.float64)
    if by == "class":
        y = group_means(y, chosen["label"].values)
    tau, data = floats(getattr(values, "values", values), "values"), study.data.attrs["settings"].get("data", {})
    if isinstance(values, Influence) and values.data:
        if values.data.get(f"target_{values.split}") != data.get(f"target_{split}"):
            what = f"the {values.split} images of problem {values.problem}"
            raise InputError(f"the influence is of {what}: give results of these, and split={values.split!r}")
    if tau.shape != (masks.shape[1], y.shape[1]) or not np.isfinite(tau).all():
        raise InputError(f"values must be finite, (sources, targets) {(masks.shape[1], y.shape[1])}, not {tau.shape}")
    pair = np.arange(len(masks)) // 2
    n, design = min(20, int(pair[-1]) + 1), "random" if checked_design(masks, None) == "random" else "paired"
    rows = [pair % n != left_out for left_out in range(-1, n)]  # first, nothing is left out
    try:
        ceilings = np.array([_ceiling(masks[kept], y[kept], design) for kept in rows])
    except InputError as error:
        why = str(error).split(":")[0]
        raise InputError(
            f"{len(masks)} models are too few to leave out one in {n} of them ({why}): train more"
        ) from error
    shares = np.array([_rank_correlation(y[kept], masks[kept] @ tau) for kept in rows]) / np.maximum(ceilings, 1e-9)
    errors = [math.sqrt((n - 1) ** 2 / n * found[1:].var(ddof=1)) for found in (ceilings, shares)]
    if ceilings[0] <= 2 * errors[0]:
        raise InputError("the outputs do not follow the subsets: train more models; is row i of both that of model i?")
    ceiling, share, half = float(ceilings[0]), float(shares[0]), student.isf((1 - level) / 2, n - 1) * errors[1]
    if share - half > 1:
        logger.warning("the share is above 1, that of exact influences: are the values made from these very models?")
    return Evaluation(share * ceiling, ceiling, share, float(share - half), float(share + half))


def _check_subsets(data: xr.Dataset) -> None:
    """InputError unless the subset in each row is the one that its design gives to the model of that row."""
    of = data.attrs["settings"]
    if of["design"] not in DESIGNS or "seed" not in of:
        return
    models, masks = data["model"].values, data["mask"].values
    expected = subset_masks(masks.shape[1], int(models.max()) + 1, of["design"], of["fraction"], of["seed"])
    astray = (expected[models] != masks).any(axis=1)
    if astray.any():
        raise InputError(f"the subsets of models {listed(astray)} are not those of their design: restore their order")


def _ceiling(masks: np.ndarray, y: np.ndarray, design: str | None) -> float:
    """What exact influences would score, from the additive share of the outputs' variance that these models show."""
    found = estimate_influence(masks, y, "ols", design)
    signal = found.values.var(axis=0) - (found.stderr**2).mean(axis=0)
    additive = masks.mean() * (1 - masks.mean()) * (masks.shape[1] - 1) * signal
    share = np.divide(additive, y.var(axis=0), out=np.zeros_like(additive), where=y.var(axis=0) > 0)
    return float((6 / np.pi * np.arcsin(np.sqrt(np.clip(share, 0, 1)) / 2)).mean())


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, of the columns that vary in both, averaged; 0 if there is none."""
    varies = (np.ptp(a, axis=0) > 0) & (np.ptp(b, axis=0) > 0)
    if not varies.any():
        return 0.0
    found: Any = pearsonr(*(rankdata(x[:, varies], axis=0) for x in (a, b)), axis=0)
    return float(found.statistic.mean())
