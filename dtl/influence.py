"""Influences of source classes on target outputs: three estimators, their standard errors, and how good they are.

The estimand is that of Algorithm 1 (Jain et al. 2022): the mean output of models whose subset holds the class, minus
the mean over models whose subset does not. With subsets of one size an additive output ``sum_{c in S} beta_c`` gives
``tau_c = K/(K-1) (beta_c - mean(beta))``, whatever the size: influences are relative and sum to zero over classes.
The regressions are put on the same scale; where subset sizes differ they also remove the effect of the size.

- ``difference``: difference in means, Algorithm 1 itself.
- ``ols``: least squares of the outputs on the masks (a linear datamodel; Ilyas et al. 2022), on the differences between
  a subset and its complement where the design has them.
- ``ridge``: the same with a penalty chosen for each target by generalised cross-validation (Golub et al. 1979).
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import ArrayLike

from dtl._checks import InputError, choice, listed
from dtl._estimators import (
    SOLVERS,
    checked,
    from_first,
    plain,
    precision,
    refuse_twins,
    reliability_of,
    sums_of_squares,
)
from dtl.design import block_length, checked_design

if TYPE_CHECKING:
    from dtl.data import TransferProblem

logger = logging.getLogger(__name__)

_TILE = 2**22  # numbers of the outputs worked on at once


@dataclass(frozen=True, eq=False)
class Influence:
    """Estimated influences of K source classes on n targets.

    Attributes
    ----------
    values : np.ndarray
        Shape (K, n): output with the class minus without, in units of the output. Positive: the class helps.
    stderr : np.ndarray
        Shape (K, n): standard errors; ``values +- 1.96 stderr`` is the 95% interval. ``inf``: too few models to tell.
    reliability : np.ndarray
        Shape (n,), in [0, 1]: estimated squared correlation over classes between the values and the true influences.
    method, design : str
    n_models : int
    dof : float
        Degrees of freedom of the standard errors, for the Student distribution of ``z``.
    sources, targets : tuple of str
        Names of the K rows and the n columns; numbers where the rows are examples, or the columns images or groups.
        Empty for influences that were estimated from arrays.
    by, split, output, transfer, unit : str
        What a column is ("image", "class", "all" or "group"), of which split, output and transfer; what a row is.
    problem : str
        Name of the problem, and
    data : mapping
        the fingerprint of each of its parts.

    Examples
    --------
    >>> influence.values.shape, influence.targets
    ((24, 4), ('sky', 'chess', 'cards', 'travel'))
    """

    values: np.ndarray
    stderr: np.ndarray
    reliability: np.ndarray
    method: str
    design: str
    n_models: int
    dof: float = math.inf
    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    by: str = ""
    split: str = ""
    output: str = ""
    transfer: str = ""
    unit: str = "class"
    problem: str = ""
    data: Mapping[str, str] = field(default_factory=dict)

    @property
    def z(self) -> np.ndarray:
        """Values in standard errors, (K, n); zero for a target that never varies."""
        return np.divide(self.values, self.stderr, out=np.zeros_like(self.values), where=self.stderr > 0)

    def p_values(self, alternative: str = "two-sided") -> np.ndarray:
        """Probability of such a z, or one further away, if there were no influence, (K, n).

        alternative : "two-sided", "greater" (does it help?) or "less" (does it hurt?)

        >>> harmful = influence.p_values("less") < 0.05
        >>> harmful.shape
        (24, 4)
        """
        far = {"two-sided": np.abs(self.z), "greater": self.z, "less": -self.z}
        choice(alternative, far, "alternative")
        return scipy.stats.t.sf(far[alternative], self.dof) * (2 if alternative == "two-sided" else 1)

    def to_frame(self) -> pd.DataFrame:
        """A row for each target and source: target, source, influence, stderr, reliability.

        >>> influence.to_frame().query("target == 'sky'").nlargest(3, "influence").shape
        (3, 5)
        """
        k, n = self.values.shape
        sources, targets = self.sources or tuple(map(str, range(k))), self.targets or tuple(map(str, range(n)))
        columns = {
            "target": np.repeat(np.array(targets, dtype=object), k),
            "source": np.tile(np.array(sources, dtype=object), n),
            "influence": self.values.T.ravel(),
            "stderr": self.stderr.T.ravel(),
            "reliability": np.repeat(self.reliability, k),
        }
        return pd.DataFrame(columns)

    def check(self, problem: "TransferProblem", by: str | None = None) -> None:
        """InputError unless these are influences of the source of `problem` on its target.

        Influences of a study are known by the fingerprints of its data. Those of arrays are known by their numbers of
        rows and columns only.

        by : "image" or "class", if a column for each image of their split, or for each target class, is needed

        >>> influence.check(problem, by="class")
        """
        name, has = self.problem or "arrays", self.by or "other"
        theirs = problem.fingerprints if self.data else {}
        differ = [part for part, digest in theirs.items() if self.data.get(part) != digest]
        if differ:
            raise InputError(
                f"the influences are of problem {name}, whose {', '.join(differ)} differ from those of {problem.name}: "
                "estimate them from a study of this problem"
            )
        units, kind = (problem.source.n_classes, "classes") if self.unit == "class" else (len(problem.source), "images")
        if len(self.values) != units:
            raise InputError(f"influence is of {len(self.values)} {kind} but the source of {problem.name} has {units}")
        images = problem.parts[f"target_{self.split or 'validation'}"]
        n = {"image": len(images), "class": images.n_classes}.get(by or "", self.values.shape[1])
        if self.values.shape[1] != n or (by and self.by and self.by != by):
            call = "study.influence()" if by == "image" else f'study.influence(by="{by}")'
            raise InputError(f"a column for each target {by} is needed, {n} in all, as {call} gives: these are {has}")


def estimate_influence(
    masks: ArrayLike, outputs: ArrayLike, method: str = "difference", design: str | None = None
) -> Influence:
    """Influence of every class on every target, with standard errors that are right for the design.

    Parameters
    ----------
    masks : array_like
        Boolean (or 0/1), shape (m, K): the classes that each model was trained on.
    outputs : array_like
        Shape (m, n): output of each model on each target.
    method : {"difference", "ols", "ridge"}
    design : {"balanced", "random", "paired"}, optional
        How the masks were drawn. If None, what the masks show: "balanced" if they are whole balanced blocks, else
        "paired" if every odd row is the complement of the row before it, else "random".

    Returns
    -------
    Influence

    Raises
    ------
    InputError
        If the arrays do not fit, an output is not finite or masked, every model is there twice, a class is in all or
        none of the subsets, or the models are too few for the method.

    Notes
    -----
    Standard errors. random: Welch for the difference, classical least squares for OLS. paired: from the differences D
    between the outputs of a subset and of its complement. balanced: from the residuals of the regression of D on the
    signs. Where that leaves fewer than 10 degrees of freedom (one block), they come from the sums over each pair, which
    hold the training noise and the even interactions: conservative unless the odd interactions (order three and more)
    exceed the even ones. For the difference, a balanced design cut inside a block gets the errors of pairs, which are
    conservative. ridge: posterior standard deviation (Wahba 1983; Nychka 1988) at the smallest penalty whose
    ``rows * log(GCV)`` is within 2 of the minimum; at the minimum itself a weak signal is often shrunk to nothing, and
    its stated error with it.

    Examples
    --------
    >>> masks = np.array([[1, 0], [0, 1], [1, 0], [0, 1]])
    >>> estimate_influence(masks, [[3.0], [1.0], [5.0], [1.0]]).values.ravel().tolist()
    [3.0, -3.0]
    """
    choice(method, SOLVERS, "method")
    included, y = checked(plain(masks, "masks"), plain(outputs, "outputs"))
    refuse_twins(included, y)
    design = checked_design(included, design)
    n_classes, n_targets = included.shape[1], y.shape[1]
    dtype = precision(y) if method == "difference" else np.dtype(np.float64)
    solve = SOLVERS[method](included.astype(dtype), design)
    values, stderr = np.empty((n_classes, n_targets), dtype), np.empty((n_classes, n_targets), dtype)
    reliability = np.empty(n_targets)
    width = max(1, _TILE // len(included))
    for first in range(0, n_targets, width):
        tile = np.s_[:, first : first + width]
        values[tile], variances = solve(from_first(y[tile], dtype))
        np.sqrt(variances, out=stderr[tile])
        noise, spread = variances.mean(axis=0, dtype=np.float64), values[tile].var(axis=0, dtype=np.float64)
        # A posterior mean's spread is the signal alone.
        reliability[tile[1]] = reliability_of(noise, spread + noise if method == "ridge" else spread)
    return Influence(values, stderr, reliability, method, design, len(included), float(solve.dof))


def models_needed(influence: Influence, reliability: float = 0.8) -> int:
    """Models at which the influences would reach a reliability, pooled over targets.

    The noise falls as 1/m (OLS: as 1/(m - K), on pairs 1/(m - 2K)), so with noise-to-signal ratio q now and
    ``reliability = 1/(1 + q)``, the number follows. Whole blocks for the balanced design, whole pairs for the paired.

    Raises
    ------
    InputError
        If the reliability is not in (0, 1), or the spread of the influences does not exceed their errors.

    Examples
    --------
    >>> masks = dtl.subset_masks(20, 76)
    >>> noise = np.random.default_rng(0).normal(size=(76, 1))
    >>> models_needed(estimate_influence(masks, masks @ np.arange(20.0)[:, None] / 10 + noise), 0.9)
    114
    """
    if not 0 < reliability < 1:
        raise InputError(f"reliability must lie strictly between 0 and 1, got {reliability}")
    n_classes = len(influence.values)
    noise = float((influence.stderr**2).mean(axis=0).sum())
    spread = float(influence.values.var(axis=0).sum())
    signal = spread if influence.method == "ridge" else spread - noise  # a shrunk estimate's spread holds no noise
    if not (math.isfinite(noise) and signal > 0):
        raise InputError(
            f"No measurable signal with {influence.n_models} models: the influences spread no more than their errors; "
            "train more models first."
        )
    lost = 0
    if influence.method == "ols" and influence.design != "balanced":
        lost = n_classes if influence.design == "random" else 2 * n_classes
    ratio = noise / signal * reliability / (1 - reliability)
    step = {"random": 1, "paired": 2, "balanced": block_length(n_classes)}[influence.design]
    return step * max(math.ceil((lost + (influence.n_models - lost) * ratio) / step - 1e-9), math.ceil(2 / step))


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
    score = _correlation(scipy.stats.rankdata(y, axis=0), scipy.stats.rankdata(p, axis=0)).mean()
    covariance = _correlation(y, p) * y.std(axis=0) * p.std(axis=0) * (n_classes - 1) / n_classes
    shrinkage = influence.reliability[varies] if influence.method == "ridge" else 1.0
    additive = np.clip(covariance / np.maximum(shrinkage * y.var(axis=0), np.finfo(float).tiny), 0, 1)
    return float(score), float((6 / np.pi * np.arcsin(np.sqrt(additive) / 2)).mean())


def group_means(outputs: ArrayLike, groups: ArrayLike) -> np.ndarray:
    """Mean output of every group of targets, to estimate influences on groups with errors that respect shared models.

    outputs : (m, n);  groups : integers (n,), group of each target, 0 to G - 1, none of them empty. Gives (m, G),
    float64; InputError if shapes disagree or a group is empty.

    >>> group_means([[1.0, 3.0, 5.0]], [0, 0, 1]).tolist()
    [[2.0, 5.0]]
    """
    outputs, groups = plain(outputs, "outputs"), np.asarray(groups)
    if outputs.ndim != 2 or groups.shape != outputs.shape[1:]:
        raise InputError(f"groups must give one group per target: shapes {groups.shape} and {outputs.shape} disagree")
    if not np.issubdtype(groups.dtype, np.integer) or (groups < 0).any():
        raise InputError("groups must be non-negative integers")
    counts = np.bincount(groups)
    if (counts == 0).any():
        raise InputError(f"groups must be numbered without gaps: no target in {listed(counts == 0)}")
    return outputs @ (groups[:, None] == np.arange(len(counts))).astype(np.float64) / counts


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return np.einsum("ij,ij->j", a, b) / np.sqrt(sums_of_squares(a) * sums_of_squares(b))
