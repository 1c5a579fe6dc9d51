"""Errors of influences on means over target images that also count the drawing of these images.

With noise of the estimate for image j made of a part that all images share and one of its own, the variance of the mean
about its value for new images of the same kind is that of the models (outputs averaged first, then estimated) plus

    max(scatter - own noise, 0) / n

where the scatter is the variance of the images' influences, and their own noise is the mean of their squared errors
less the squared error of the mean, times n / (n - 1). This is the two-way clustered variance (Cameron, Gelbach, Miller
2011) without its intersection counted twice, equivalently crossed random effects, and it is never negative.

What is drawn along the influences, where an image feels all classes more or less, lowers no correlation with the truth.
Reliability leaves it out, and takes the maximum over all classes together, which a few images bias less.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dtl._checks import InputError, listed
from dtl._estimators import SOLVERS, from_first, plain, precision

PARTS = ("whole", "common", "specific")
_TILE = 2**22  # numbers of the outputs worked on at once


class Images(NamedTuple):
    """Of each column, (K, T): the variance from the images, half of the squared error of that variance, and the noise
    of each image's own. Last, (T,), the mean variance over classes of what does not lie along the influences."""

    variance: np.ndarray
    uncertainty: np.ndarray
    own: np.ndarray
    across: np.ndarray


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


def contrasts(groups: np.ndarray, part: str) -> np.ndarray:
    """Weights (G, T) that the means of G groups have in each column.

    whole: each group;  common: all images together;  specific: each group less all images

    >>> contrasts(np.array([0, 0, 0, 1]), "specific").tolist()
    [[0.25, -0.75], [-0.25, 0.75]]
    """
    share = np.bincount(groups)[:, None] / len(groups)
    if part == "common":
        return share
    return np.eye(len(share)) - (share if part == "specific" else 0)


def image_variances(
    z: np.ndarray, y: np.ndarray, means: np.ndarray, groups: np.ndarray, weights: np.ndarray, method: str, design: str
) -> Images:
    """What the drawing of target images adds to the variance of influences on contrasts of their means.

    z : masks (m, K);  y : outputs (m, n);  means : (m, G) of the groups;  weights : (G, T), as of `contrasts`

    The influences of single images must be unbiased: for "ridge" they are differences. A group of one image shows no
    scatter, so its variance is infinite.
    """
    dtype = precision(y) if method != "ols" else np.dtype(np.float64)
    solve = SOLVERS["difference" if method == "ridge" else method](z.astype(dtype), design)
    of_means, of_models = solve(from_first(means, dtype))
    counts = np.bincount(groups)
    variance, uncertainty, alone = np.zeros([3, *of_means.shape])
    ahead = of_means @ weights - (of_means @ weights).mean(axis=0)  # the direction of each column's influences
    across, length = np.zeros(weights.shape[1]), np.maximum((ahead**2).sum(axis=0), np.finfo(dtype).tiny)
    for g, n in enumerate(counts):
        if n < 2:
            continue
        (squares, noise), forward = np.zeros((2, z.shape[1])), np.zeros(len(across))
        for columns in np.array_split(np.flatnonzero(groups == g), max(1, n * len(z) // _TILE)):
            values, variances = solve(from_first(y[:, columns], dtype))
            apart = values - of_means[:, [g]]
            squares += (apart**2).sum(axis=1, dtype=np.float64)
            forward += ((ahead.T @ apart) ** 2).sum(axis=1, dtype=np.float64)
            noise += variances.sum(axis=1, dtype=np.float64)
        own = np.zeros(len(noise))
        np.subtract(noise / n, of_models[:, g], out=own, where=np.isfinite(noise))
        own = np.maximum(own, 0) * n / (n - 1)
        scatter = squares / (n - 1)
        variance[:, g] = np.maximum(scatter - own, 0) / n
        uncertainty[:, g] = (scatter / n) ** 2 / (n - 1)
        alone[:, g] = own / n
        along = np.maximum(forward / (n - 1) - own @ ahead**2, 0) / length
        across += weights[g] ** 2 * np.maximum((scatter - own).sum() - along, 0) / n / len(own)
    parts = Images(variance @ weights**2, uncertainty @ weights**4, alone @ weights**2, across)
    parts.variance[:, (weights[counts < 2] != 0).any(axis=0)] = np.inf
    return parts
