"""How well an attribution, ours or anybody's, predicts the outputs of models that it was not made from."""

import logging
import math
from typing import NamedTuple

import numpy as np
import scipy.stats
import xarray as xr
from numpy.typing import ArrayLike

from dtl._checks import InputError
from dtl._estimators import checked, plain, sums_of_squares
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
    influence : Influence
    masks, outputs : array_like
        Shapes (m, K) and (m, n): models that the influences were *not* estimated from.

    Returns
    -------
    score, ceiling : float
        Averages over targets. Targets whose outputs (or predictions) do not vary are left out, with a log message.

    Raises
    ------
    InputError
        If shapes disagree, or no target varies.

    Examples
    --------
    >>> masks, effects = dtl.subset_masks(20, 60, "random"), np.linspace(-1, 1, 20)[:, None]
    >>> y = masks @ effects + np.random.default_rng(0).normal(size=(60, 1))
    >>> score, ceiling = linear_datamodeling_score(estimate_influence(masks[:40], y[:40], "ols"), masks[40:], y[40:])
    >>> 0 < score <= 1, 0 < ceiling <= 1
    (True, True)
    """
    included, y = checked(plain(masks, "masks"), plain(outputs, "outputs"), held_out=True)
    n_classes, n_targets = influence.values.shape
    if included.shape[1] != n_classes or y.shape[1] != n_targets:
        raise InputError(
            f"Influences are of {n_classes} classes on {n_targets} targets, but the held-out models have "
            f"{included.shape[1]} classes and {y.shape[1]} targets."
        )
    y = y.astype(np.float64)
    predictions = included.astype(np.float64) @ influence.values
    varies = (np.ptp(y, axis=0) > 0) & (np.ptp(predictions, axis=0) > 0)
    if not varies.any():
        raise InputError(
            "No target's outputs and predictions vary over the held-out models: use more or other subsets."
        )
    if not varies.all():
        logger.warning("%d of %d targets do not vary and are left out of the score.", (~varies).sum(), n_targets)
    y, p = y[:, varies], predictions[:, varies]
    score = _rank_correlation(y, p)
    covariance = _correlation(y, p) * y.std(axis=0) * p.std(axis=0) * (n_classes - 1) / n_classes
    shrinkage = influence.reliability[varies] if influence.method == "ridge" else 1.0
    additive = np.clip(covariance / np.maximum(shrinkage * y.var(axis=0), np.finfo(float).tiny), 0, 1)
    return float(score), float((6 / np.pi * np.arcsin(np.sqrt(additive) / 2)).mean())


class Evaluation(NamedTuple):
    """How well an attribution predicts the outputs of models from their subsets.

    score : linear datamodeling score (Park et al. 2023), the mean rank correlation over targets
    ceiling : what exact influences would score, `share` : score / ceiling, in the interval `low` to `high`
    """

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

    The ceiling is that of `linear_datamodeling_score`, for influences estimated on one half of the models, tried on the
    other. The interval is Student's, from leaving out one in 20 of the pairs of models at a time (jackknife): targets
    share models, so they are not independent.

    Parameters
    ----------
    values : (K, n), what each source class does to each target image (target class with by="class"); larger helps more
    results : models on subsets; as `dtl.results.open` gives, or `study.results`

    Raises
    ------
    InputError : shapes disagree, row i of the outputs does not belong to subset i, or models are fewer than 24

    >>> results = dtl.results.open("imagenet20-cifar10")
    >>> found = results.part("random").influence("ols", by="class")
    >>> dtl.evaluate(found, results["balanced"], by="class").share > 0.8
    True
    """
    study = results if isinstance(results, Results) else Results(results)
    chosen = study.comparable(output, transfer, split)
    masks, y = study.data["mask"].sel(model=chosen["model"]).values, chosen.values.astype(np.float64)
    if by == "class":
        y = group_means(y, chosen["label"].values)
    tau = np.asarray(getattr(values, "values", values), dtype=np.float64)
    if tau.shape != (masks.shape[1], y.shape[1]) or not np.isfinite(tau).all():
        raise InputError(f"values must be finite, (sources, targets) {(masks.shape[1], y.shape[1])}, not {tau.shape}")
    if len(masks) < 24:
        raise InputError(f"an interval needs 24 models or more, these results have {len(masks)}")
    pair = np.arange(len(masks)) // 2
    measured = [_score_and_ceiling(tau, masks, y, pair, pair % 20 != left_out) for left_out in range(-1, 20)]
    score, ceiling = measured[0]
    if not ceiling:
        raise InputError("outputs do not follow the subsets at all: is row i of both from model i?")
    n = min(20, pair[-1] + 1)
    shares = np.array([s / max(c, 1e-9) for s, c in measured[1 : n + 1]])
    half = scipy.stats.t.isf((1 - level) / 2, n - 1) * math.sqrt((n - 1) ** 2 / n * shares.var(ddof=1))
    return Evaluation(score, ceiling, score / ceiling, score / ceiling - half, score / ceiling + half)


def _score_and_ceiling(
    tau: np.ndarray, masks: np.ndarray, y: np.ndarray, pair: np.ndarray, kept: np.ndarray
) -> tuple[float, float]:
    ceilings = []
    for half in (0, 1):
        one, other = kept & (pair % 2 == half), kept & (pair % 2 != half)
        ceilings.append(linear_datamodeling_score(estimate_influence(masks[one], y[one]), masks[other], y[other])[1])
    return _rank_correlation(y[kept], masks[kept] @ tau), float(np.mean(ceilings))


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, of the columns that vary in both, averaged; 0 if there is none."""
    varies = (np.ptp(a, axis=0) > 0) & (np.ptp(b, axis=0) > 0)
    ranks = (scipy.stats.rankdata(x[:, varies], axis=0) for x in (a, b))
    return float(_correlation(*ranks).mean()) if varies.any() else 0.0


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return np.einsum("ij,ij->j", a, b) / np.sqrt(sums_of_squares(a) * sums_of_squares(b))
