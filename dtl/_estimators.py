"""Estimators behind `dtl.influence`: values and variances of influences, for each method and design.

A solver is built from the masks once, then called on tiles of outputs, so that memory stays O(models x targets).
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy  # which loads its parts when they are first used

from dtl._checks import InputError, choice, listed
from dtl.design import DESIGNS, block_length, is_balanced

logger = logging.getLogger(__name__)

MIN_DOF = 10  # below this, +-1.96 standard errors cover less than 92%: such a residual variance is not relied on
PENALTIES = np.logspace(-4, 2, 49)  # of ridge, as multiples of the largest eigenvalue of X'X

Errors = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # outputs, D, signs' D -> variances (t,)


def plain(array: Any, what: str) -> np.ndarray:
    if np.ma.is_masked(array):
        raise InputError(f"{what} have masked entries: leave these models or targets out, a mask would be ignored")
    try:
        return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
    except ValueError as error:
        raise InputError(f"{what} are no array ({error})") from None


def checked(included: Any, outputs: Any, held_out: bool = False) -> tuple[Any, Any]:
    """The masks as bool, and the outputs, after every check of the two; they may be dask arrays."""
    shapes = included.shape, outputs.shape
    if included.ndim != 2 or outputs.ndim != 2 or len(included) != len(outputs):
        raise InputError("masks must be (models, classes), outputs (models, targets), got {} and {}".format(*shapes))
    if included.dtype != bool and not np.isin(included, (0, 1)).all():
        raise InputError("masks must be boolean or 0/1: True where the model was trained on the class")
    included = included.astype(bool)
    if min(included.shape) < 2 or outputs.shape[1] < 1:
        raise InputError("at least two models, two classes and a target are needed, got {} and {}".format(*shapes))
    if not (np.issubdtype(outputs.dtype, np.number) or outputs.dtype == bool) or np.iscomplexobj(outputs):
        raise InputError(f"outputs must be real numbers, got dtype {outputs.dtype}")
    bad = np.asarray(~np.isfinite(outputs).all(axis=1))
    if bad.any():
        raise InputError(f"outputs are NaN or infinite for models {listed(bad)}: train them again or leave them out")
    counts = np.asarray(included.sum(axis=0))
    for flags, when in ((counts == 0, "never"), (counts == len(included), "always")):
        if flags.any() and not held_out:
            raise InputError(
                f"classes {when} in a subset: {listed(flags)}. Their influence cannot be estimated; train more models "
                "or leave these classes out"
            )
    return included, outputs


def refuse_twins(included: np.ndarray, y: np.ndarray) -> None:
    """Models that are all there twice or more would halve the errors; a few equal rows are chance."""
    if np.unique(np.packbits(included, axis=1), axis=0, return_counts=True)[1].min() > 1 and (y != y[0]).any():
        copies = Counter(mask.tobytes() + row.tobytes() for mask, row in zip(included, y, strict=True))
        if len(set(copies.values())) == 1 and copies.total() > len(copies):
            times = copies.total() // len(copies)
            raise InputError(f"each model is there {times} times, with equal subset and outputs: give each one once")


def precision(outputs: Any) -> np.dtype:
    """float32 for outputs that it holds: sums round to 1e-6 of an output's spread, far below a standard error."""
    return np.result_type(outputs.dtype, np.float32)


def from_first(outputs: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Levels do not matter; measured from the first model, a target that never varies is exactly zero."""
    return np.subtract(outputs, outputs[:1], dtype=dtype)


class Solver(NamedTuple):
    """Of outputs (m, t), values and variances (K, t); and the degrees of freedom that the variances rest on."""

    solve: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    dof: float

    def __call__(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.solve(y)


def difference(z: np.ndarray, design: str) -> Solver:
    """Difference in means, in the precision of ``z``; the products of the masks with the outputs are all the work."""
    choice(design, DESIGNS, "design")
    n_in = z.sum(axis=0)[:, None].astype(np.float64)
    n_out = len(z) - n_in
    if len(z) < (3 if design == "random" else 4):
        logger.warning("%d models are too few for standard errors of a %s design: they are infinite.", len(z), design)
        return _values_only(z, n_in, n_out)
    if design == "random":
        return _welch(z, n_in, n_out)
    return _pairs(z, n_in, n_out, whole=resolve_errors(z > 0, design) == "balanced")


def resolve_errors(included: np.ndarray, design: str) -> str:
    """The design that standard errors of a difference rest on: pairs (logged) where balanced blocks are not whole."""
    if design == "balanced" and not is_balanced(included):
        logger.warning("The balanced design stops inside a block: standard errors are conservative, those of pairs.")
        return "paired"
    return design


def _values_only(z: np.ndarray, n_in: np.ndarray, n_out: np.ndarray) -> Solver:
    weights = (1 / n_in + 1 / n_out).astype(z.dtype)

    def solve(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = z.T @ _centred(y) * weights
        return values, np.full_like(values, np.inf)

    return Solver(solve, 1)


def _welch(z: np.ndarray, n_in: np.ndarray, n_out: np.ndarray) -> Solver:
    """Variances weigh the sums of squares around the mean with a class, and around the mean without it."""
    few = np.minimum(n_in, n_out) < 2
    if few.any():
        logger.warning("A class is in, or left out of, one subset only: its standard errors use the pooled variance.")
    weights = 1 / n_in + 1 / n_out
    pooled = weights / (len(z) - 2)
    of_in, of_out = (np.where(few, pooled, 1 / (n * np.maximum(n - 1, 1))) for n in (n_in, n_out))
    of_squares, of_sums = of_in - of_out, of_in / n_in + of_out / n_out
    weights, of_out, of_squares, of_sums = (w.astype(z.dtype) for w in (weights, of_out, of_squares, of_sums))

    def solve(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = _centred(y)  # now the sum over the models without a class is minus the sum over those with it
        sums = z.T @ y
        variances = of_squares * (z.T @ y**2) + of_out * sums_of_squares(y) - of_sums * sums**2
        return sums * weights, np.maximum(variances, 0)

    return Solver(solve, len(z) - 2)


def _pairs(z: np.ndarray, n_in: np.ndarray, n_out: np.ndarray, whole: bool) -> Solver:
    """The estimate is the mean over pairs of sign x D, so its variance is the sample variance of that product.

    A last model without its complement adds its deviation to the sum over the models with a class, and moves a mean by
    that deviation / (pairs + 1).
    """
    signs, last = _signs(z), 2 * z[len(z) // 2 * 2 :] - 1  # (pairs, K); (0 or 1, K)
    n_pairs = len(signs)
    weights = ((1 / n_in + 1 / n_out) / 2).astype(z.dtype)
    errors, dof = _whole_blocks(signs, len(z)) if whole else (None, n_pairs - 1)

    def solve(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        d = _pair_differences(y)
        products = signs.T @ d
        if errors:
            return products * weights, np.broadcast_to(errors(y, d, products), products.shape)
        variances = (sums_of_squares(d) - products**2 / n_pairs) / ((n_pairs - 1) * n_pairs)
        if len(last):
            products += last.T @ _centred(y)[-1:]
            variances += y.var(axis=0, ddof=1, dtype=np.float64) / (n_pairs + 1) ** 2
        return products * weights, np.maximum(variances, 0)

    return Solver(solve, dof)


def _whole_blocks(signs: np.ndarray, m: int) -> tuple[Errors, int]:
    """Residual variance of the regression of D on the signs; in whole blocks the normal equations are diagonal."""
    n_pairs, n_classes = signs.shape
    sizes = signs.sum(axis=1)
    eigenvalue = n_pairs + m // block_length(n_classes)  # of S'S on contrasts of classes: q + 1 a block
    dof = n_pairs - (n_classes - 1) - int(sizes.any())
    if dof < MIN_DOF:
        _warn_of_pair_sums(dof)
        return lambda y, d, products: _pair_sum_variance(y) / n_pairs, n_pairs - 1

    def variances(y: np.ndarray, d: np.ndarray, products: np.ndarray) -> np.ndarray:
        level = sizes @ d
        fitted = sums_of_squares(products - level / n_classes) / eigenvalue
        if sizes.any():
            fitted += level**2 / (sizes @ sizes)
        return np.maximum(sums_of_squares(d) - fitted, 0) / dof / n_pairs

    return variances, dof


class _Regression:
    """Least squares of outputs (or pair differences) on the masks, with intercept and subset size projected out.

    What is left of the regressors sums to zero over classes, so coefficients do too, and rank K - 1 is full rank.
    """

    def __init__(self, z: np.ndarray, design: str):
        choice(design, DESIGNS, "design")
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

    def fit(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The response on each eigenvector, the squares that each explains, and the residual sums of squares."""
        d = self._without_nuisance(_pair_differences(y) if self.paired else y)
        rotated = self.vectors.T @ (self.x.T @ d)
        explained = rotated**2 / self.eigenvalues[:, None]
        return rotated, explained, np.maximum(sums_of_squares(d) - explained.sum(axis=0), 0)

    def _without_nuisance(self, array: np.ndarray) -> np.ndarray:
        return array - self.basis @ (self.basis.T @ array)


def ols(z: np.ndarray, design: str) -> Solver:
    r = _Regression(z, design)
    rank, n_classes = len(r.eigenvalues), r.n_classes
    dof = r.dof - rank
    whole = design == "balanced" and is_balanced(z > 0)
    if not whole and (r.n_rows <= n_classes or dof < 1):
        needed = max(n_classes, n_classes - 1 + r.basis.shape[1]) * (2 if r.paired else 1)
        raise InputError(
            f"OLS needs more than {needed} models for {n_classes} classes in a {design} design, got {len(z)}: "
            'train more, or use method="ridge" or "difference".'
        )
    if rank < n_classes - 1:
        raise InputError('The masks hold too few distinct subsets for OLS: use method="ridge" or "difference".')
    use_sums = whole and dof < MIN_DOF
    if use_sums:
        _warn_of_pair_sums(dof)
    elif dof < MIN_DOF:
        logger.warning("Only %d residual degrees of freedom: +-1.96 standard errors cover less than 92%%.", dof)
    factors = r.scale**2 * (r.vectors**2 @ (1 / r.eigenvalues))[:, None]

    def solve(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rotated, _, residual = r.fit(y)
        values = r.scale * (r.vectors @ (rotated / r.eigenvalues[:, None]))
        return values, factors * (_pair_sum_variance(y) if use_sums else residual / dof)

    return Solver(solve, r.n_rows - 1 if use_sums else dof)


def ridge(z: np.ndarray, design: str) -> Solver:
    r = _Regression(z, design)
    block = block_length(r.n_classes)
    if design == "balanced" and len(z) <= block:
        raise InputError(
            f"Ridge cannot choose its penalty within one balanced block: train more than {block} models, or use "
            'method="difference".'
        )
    if r.dof < MIN_DOF:
        needed = (MIN_DOF + r.basis.shape[1]) * (2 if r.paired else 1)
        raise InputError(f'Ridge needs at least {needed} models for its penalty, got {len(z)}: use method="difference"')
    if r.n_rows < 1.5 * r.n_classes:
        logger.warning("Few models for ridge, %d rows for %d classes: its 95%% intervals cover about 90%%.", *r.x.shape)
    penalties = PENALTIES * r.eigenvalues[-1]
    kept = r.eigenvalues[:, None] / (r.eigenvalues[:, None] + penalties)  # (rank, penalties)
    dof = r.dof - kept.sum(axis=0)
    # With about as many rows as classes, GCV falls again towards interpolation: such fits are not offered to it.
    offered = dof >= r.dof / 3
    penalties, kept, dof = penalties[offered], kept[:, offered], dof[offered]
    unseen = np.maximum(1 - 1 / r.n_classes - (r.vectors**2).sum(axis=1), 0)[:, None]  # contrasts that no row shows

    def solve(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rotated, explained, residual = r.fit(y)
        residual = residual + ((1 - kept) ** 2).T @ explained  # (penalties, t)
        gcv = r.n_rows * np.log(np.maximum(residual, np.finfo(float).tiny) / dof[:, None] ** 2)
        best, smallest = gcv.argmin(axis=0), (gcv <= gcv.min(axis=0) + 2).argmax(axis=0)
        values = r.scale * (r.vectors @ (rotated / (r.eigenvalues[:, None] + penalties[best])))
        variance = np.take_along_axis(residual, smallest[None], axis=0)[0] / dof[smallest]
        posterior = r.vectors**2 @ (1 / (r.eigenvalues[:, None] + penalties[smallest])) + unseen / penalties[smallest]
        return values, r.scale**2 * variance * posterior

    return Solver(solve, r.dof)


def _warn_of_pair_sums(dof: int) -> None:
    logger.warning("Only %d residual degrees of freedom: standard errors come from the sums over pairs.", dof)


def _pair_sum_variance(y: np.ndarray) -> np.ndarray:
    return (y[0::2] + y[1::2]).var(axis=0, ddof=1, dtype=np.float64)


def _pair_differences(y: np.ndarray) -> np.ndarray:
    last = len(y) // 2 * 2
    return y[0:last:2] - y[1:last:2]


def _signs(z: np.ndarray) -> np.ndarray:
    return 2 * z[0 : len(z) // 2 * 2 : 2] - 1


def _centred(y: np.ndarray) -> np.ndarray:
    return y - y.mean(axis=0, dtype=np.float64).astype(y.dtype)


def sums_of_squares(array: np.ndarray) -> np.ndarray:
    """Of every column, added up in float64."""
    return np.einsum("ij,ij->j", array, array, dtype=np.float64).astype(array.dtype)


def reliability_of(noise: np.ndarray, spread: np.ndarray, dof: int) -> np.ndarray:
    """Squared correlation of estimates with the truth, from their mean variance and their variance over classes.

    R = 1 - noise / spread is too low on average, by 2 / dof of the share of noise, where dof is that of the spread,
    K - 1 for one column: a mean of ratios is not the ratio of the means (Efron and Morris 1973, where K - 3 stands for
    K - 1). That is added, but for an R so low that luck alone may have made it: there it goes to zero with R.
    """
    plain = np.clip(1 - np.divide(noise, spread, out=np.ones_like(noise), where=spread > 0), 0, 1)
    few = 2 / dof
    return plain + few * (1 - plain) * plain / (plain + few)


SOLVERS = {"difference": difference, "ols": ols, "ridge": ridge}
