"""Estimators behind `dtl.influence`: values and variances of influences, for each method and design.

A solver is built from the masks once, then called on tiles of outputs, so that memory stays O(models x targets).
"""

import logging
from collections.abc import Callable

import numpy as np
import scipy.linalg

from dtl.design import block_length

logger = logging.getLogger(__name__)

MIN_DOF = 10  # below this, +-1.96 standard errors cover less than 92%: such a residual variance is not relied on
PENALTIES = np.logspace(-4, 2, 49)  # of ridge, as multiples of the largest eigenvalue of X'X

Solver = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # outputs (m, t) -> values (K, t), variances (K, t)
Errors = Callable[[np.ndarray, np.ndarray], np.ndarray]  # outputs (m, t), values (K, t) -> variances, (K, t) or (t,)


def are_complements(included: np.ndarray) -> bool:
    last = len(included) // 2 * 2
    return bool((included[0:last:2] != included[1:last:2]).all())


def is_balanced(included: np.ndarray) -> bool:
    """Whether complementary pairs form whole balanced blocks: as many models, and all pairs of classes meet equally."""
    m, n_classes = included.shape
    length = block_length(n_classes)
    if m % length:
        return False
    signs = 2 * included[::2].astype(np.float32) - 1
    gram = signs.T @ signs + m // length
    return not gram[~np.eye(n_classes, dtype=bool)].any()


def difference(z: np.ndarray, design: str) -> Solver:
    n_in = z.sum(axis=0)[:, None]
    weights = 1 / n_in + 1 / (len(z) - n_in)
    errors = _difference_errors(z, design)

    def solve(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = y - y.mean(axis=0)  # now the sum over the models without a class is minus the sum over those with it
        values = z.T @ y * weights
        return values, np.broadcast_to(errors(y, values), values.shape)

    return solve


def _difference_errors(z: np.ndarray, design: str) -> Errors:
    """Chooses the variance of the difference in means that is right for the design, or else conservative (logged)."""
    m = len(z)
    if m < (3 if design == "random" else 4):
        logger.warning("%d models are too few for standard errors of a %s design: they are infinite.", m, design)
        return lambda y, values: np.full_like(values, np.inf)
    if design == "random":
        return _welch(z)
    if design == "balanced" and is_balanced(z > 0):
        return _whole_blocks(z)
    if design == "balanced":
        logger.warning(
            "The balanced design stops inside a block: the standard errors are conservative, those of pairs."
        )
    return _pairs(z)


def _welch(z: np.ndarray) -> Errors:
    n_in = z.sum(axis=0)[:, None]
    n_out = len(z) - n_in
    if min(n_in.min(), n_out.min()) < 2:
        logger.warning("A class is in, or left out of, one subset only: its standard errors use the pooled variance.")

    def variances(y: np.ndarray, values: np.ndarray) -> np.ndarray:
        sums, squares = z.T @ y, z.T @ y**2
        squares_in = squares - sums**2 / n_in
        squares_out = sums_of_squares(y) - squares - sums**2 / n_out
        pooled = (squares_in + squares_out) / (len(z) - 2) * (1 / n_in + 1 / n_out)
        welch = squares_in / np.maximum(n_in - 1, 1) / n_in + squares_out / np.maximum(n_out - 1, 1) / n_out
        return np.maximum(np.where(np.minimum(n_in, n_out) > 1, welch, pooled), 0)

    return variances


def _pairs(z: np.ndarray) -> Errors:
    """The estimate is the mean over pairs of sign x D, so its variance is the sample variance of that product."""
    signs = _signs(z)
    n_pairs = len(signs)

    def variances(y: np.ndarray, values: np.ndarray) -> np.ndarray:
        d = _pair_differences(y)
        result = (sums_of_squares(d) - (signs.T @ d) ** 2 / n_pairs) / (n_pairs - 1) / n_pairs
        if len(z) % 2:  # a last model without its complement moves a mean by its deviation / (n_pairs + 1)
            result += y.var(axis=0, ddof=1) / (n_pairs + 1) ** 2
        return np.maximum(result, 0)

    return variances


def _whole_blocks(z: np.ndarray) -> Errors:
    """Residual variance of the regression of D on the signs; in whole blocks the normal equations are diagonal."""
    signs = _signs(z)
    n_pairs, n_classes = signs.shape
    sizes = signs.sum(axis=1)
    centred = signs - signs.mean(axis=1, keepdims=True)
    eigenvalue = n_pairs + len(z) // block_length(n_classes)  # of S'S on contrasts of classes: q + 1 a block
    dof = n_pairs - (n_classes - 1) - int(sizes.any())
    if dof < MIN_DOF:
        _warn_of_pair_sums(dof)
        return lambda y, values: _pair_sum_variance(y) / n_pairs

    def variances(y: np.ndarray, values: np.ndarray) -> np.ndarray:
        d = _pair_differences(y)
        fitted = sums_of_squares(centred.T @ d) / eigenvalue
        if sizes.any():
            fitted += (sizes @ d) ** 2 / (sizes @ sizes)
        return np.maximum(sums_of_squares(d) - fitted, 0) / dof / n_pairs

    return variances


class _Regression:
    """Least squares of outputs (or pair differences) on the masks, with intercept and subset size projected out.

    What is left of the regressors sums to zero over classes, so coefficients do too, and rank K - 1 is full rank.
    """

    def __init__(self, z: np.ndarray, design: str):
        self.paired = design != "random"
        if self.paired and len(z) % 2:
            logger.warning("The last model has no complement yet and is left out.")
        x = _signs(z) if self.paired else z
        sizes = x.sum(axis=1, keepdims=True)
        nuisance = sizes if self.paired else np.hstack([np.ones_like(sizes), sizes])
        self.basis = scipy.linalg.orth(nuisance)  # one column less where all sizes agree
        self.x = self._without_nuisance(x - x.mean(axis=1, keepdims=True))
        self.n_rows, self.n_classes = x.shape
        eigenvalues, vectors = np.linalg.eigh(self.x.T @ self.x)
        kept = eigenvalues > 1e-10 * eigenvalues[-1]
        self.eigenvalues, self.vectors = eigenvalues[kept], vectors[:, kept]
        self.dof = self.n_rows - self.basis.shape[1]  # before any class enters
        self.scale = self.n_classes / (self.n_classes - 1)

    def response(self, y: np.ndarray) -> np.ndarray:
        return self._without_nuisance(_pair_differences(y) if self.paired else y)

    def _without_nuisance(self, array: np.ndarray) -> np.ndarray:
        return array - self.basis @ (self.basis.T @ array)


def ols(z: np.ndarray, design: str) -> Solver:
    r = _Regression(z, design)
    rank, n_classes = len(r.eigenvalues), r.n_classes
    dof = r.dof - rank
    whole = design == "balanced" and is_balanced(z > 0)
    if not whole and (r.n_rows <= n_classes or dof < 1):
        needed = max(n_classes, n_classes - 1 + r.basis.shape[1]) * (2 if r.paired else 1)
        raise ValueError(
            f"OLS needs more than {needed} models for {n_classes} classes in a {design} design, got {len(z)}: "
            'train more, or use method="ridge" or "difference".'
        )
    if rank < n_classes - 1:
        raise ValueError('The masks hold too few distinct subsets for OLS: use method="ridge" or "difference".')
    use_sums = whole and dof < MIN_DOF
    if use_sums:
        _warn_of_pair_sums(dof)
    elif dof < MIN_DOF:
        logger.warning("Only %d residual degrees of freedom: +-1.96 standard errors cover less than 92%%.", dof)
    factors = r.scale**2 * (r.vectors**2 @ (1 / r.eigenvalues))[:, None]

    def solve(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        d = r.response(y)
        rotated = r.vectors.T @ (r.x.T @ d)
        values = r.scale * (r.vectors @ (rotated / r.eigenvalues[:, None]))
        if use_sums:
            return values, factors * _pair_sum_variance(y)
        residual = np.maximum(sums_of_squares(d) - (rotated**2 / r.eigenvalues[:, None]).sum(axis=0), 0)
        return values, factors * residual / dof

    return solve


def ridge(z: np.ndarray, design: str) -> Solver:
    r = _Regression(z, design)
    block = block_length(r.n_classes)
    if design == "balanced" and len(z) <= block:
        raise ValueError(
            f"Ridge cannot choose its penalty within one balanced block: train more than {block} models, or use "
            'method="difference".'
        )
    if r.dof < MIN_DOF:
        needed = (MIN_DOF + r.basis.shape[1]) * (2 if r.paired else 1)
        raise ValueError(
            f'Ridge needs at least {needed} models to choose its penalty, got {len(z)}: use method="difference".'
        )
    if r.n_rows < 1.5 * r.n_classes:
        logger.warning(
            "Few models for ridge: +-1.96 standard errors cover about 90%% (%d rows for %d classes).", *r.x.shape
        )
    penalties = PENALTIES * r.eigenvalues[-1]
    kept = r.eigenvalues[:, None] / (r.eigenvalues[:, None] + penalties)  # (rank, penalties)
    dof = r.dof - kept.sum(axis=0)
    # With about as many rows as classes, GCV falls again towards interpolation: such fits are not offered to it.
    offered = dof >= r.dof / 3
    penalties, kept, dof = penalties[offered], kept[:, offered], dof[offered]
    unseen = np.maximum(1 - 1 / r.n_classes - (r.vectors**2).sum(axis=1), 0)[:, None]  # contrasts that no row shows

    def solve(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        d = r.response(y)
        rotated = r.vectors.T @ (r.x.T @ d)
        explained = rotated**2 / r.eigenvalues[:, None]
        residual = np.maximum(sums_of_squares(d) - explained.sum(axis=0), 0) + ((1 - kept) ** 2).T @ explained
        gcv = r.n_rows * np.log(np.maximum(residual, np.finfo(float).tiny) / dof[:, None] ** 2)  # (penalties, t)
        best, smallest = gcv.argmin(axis=0), (gcv <= gcv.min(axis=0) + 2).argmax(axis=0)
        values = r.scale * (r.vectors @ (rotated / (r.eigenvalues[:, None] + penalties[best])))
        variance = np.take_along_axis(residual, smallest[None], axis=0)[0] / dof[smallest]
        posterior = r.vectors**2 @ (1 / (r.eigenvalues[:, None] + penalties[smallest])) + unseen / penalties[smallest]
        return values, r.scale**2 * variance * posterior

    return solve


def _warn_of_pair_sums(dof: int) -> None:
    logger.warning(
        "The balanced blocks leave %d residual degrees of freedom: standard errors come from the sums over pairs, "
        "which hold training noise and even interactions.",
        dof,
    )


def _pair_sum_variance(y: np.ndarray) -> np.ndarray:
    return (y[0::2] + y[1::2]).var(axis=0, ddof=1)


def _pair_differences(y: np.ndarray) -> np.ndarray:
    last = len(y) // 2 * 2
    return y[0:last:2] - y[1:last:2]


def _signs(z: np.ndarray) -> np.ndarray:
    return 2 * z[0 : len(z) // 2 * 2 : 2] - 1


def sums_of_squares(array: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->j", array, array)


SOLVERS = {"difference": difference, "ols": ols, "ridge": ridge}
