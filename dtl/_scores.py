"""The formulas of the transferability scores; `dtl.scores` says what they take and where to find each."""

from typing import Any

import numpy as np
import ot
import scipy.stats
from numpy.typing import ArrayLike
from scipy.spatial.distance import pdist
from sklearn.base import ClassifierMixin
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import BayesianRidge, LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dtl._checks import InputError, floats, real, whole


def checked(x: ArrayLike, labels: ArrayLike, what: str = "features") -> tuple[np.ndarray, np.ndarray]:
    """`x` as float64 (n, d) and labels (n,) renumbered 0..K-1; InputError for what no score can be computed from."""
    x, labels = floats(x, what), np.asarray(labels)
    if x.ndim != 2 or labels.shape != x.shape[:1]:
        raise InputError(f"{what} must be (n, d) with one label for each row, not {x.shape} and {labels.shape}")
    if not np.isfinite(x).all():
        raise InputError(f"{what} are NaN or infinite: the model diverged, or its input is not finite")
    if labels.dtype.kind not in "iu" or len(labels) and labels.min() < 0:
        raise InputError(f"labels must be whole numbers from 0 on, not {labels.dtype} {labels[:3]}")
    classes, y = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"labels hold {len(classes)} class: a score needs images of at least two")
    if len(labels) <= labels.max():
        raise InputError(f"{len(labels)} images of {labels.max() + 1} classes: give more images than classes")
    return x, y


def _probabilities(probabilities: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    p, y = checked(probabilities, labels, "probabilities")
    if (p < 0).any() or (np.abs(p.sum(1) - 1) > 1e-4).any():
        raise InputError("probabilities must not be negative and must sum to one in each row: take the softmax first")
    return p, y


def leep(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Log expected empirical prediction: log likelihood of target labels given source classes (Nguyen et al. 2020).

    >>> round(dtl.scores.leep([[0.9, 0.1], [0.2, 0.8], [0.2, 0.8]], [0, 1, 1]), 3)
    -0.291
    """
    p, y = _probabilities(probabilities, labels)
    p = p[:, p.any(0)]
    joint = p.T @ np.eye(y.max() + 1)[y]  # (source classes, target classes)
    return float(np.log((p @ (joint / joint.sum(1, keepdims=True)))[np.arange(len(y)), y]).mean())


def nce(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Negative conditional entropy of target labels given the most probable source class (Tran et al. 2019).

    >>> dtl.scores.nce([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], [0, 1, 1])
    0.0
    """
    p, y = _probabilities(probabilities, labels)
    return leep(np.eye(p.shape[1])[p.argmax(1)], y)


def n_leep(features: ArrayLike, labels: ArrayLike, seed: int = 0) -> float:
    """LEEP of the clusters of a Gaussian mixture in place of source classes (Li et al. 2021): no source head needed.

    >>> dtl.scores.n_leep([[0.0], [0.1], [5.0], [5.1]], [0, 0, 1, 1]) > -1e-6
    True
    """
    x, y = checked(features, labels)
    x = PCA(0.8, svd_solver="full").fit_transform(x)
    clusters = min(5 * (y.max() + 1), len(np.unique(x, axis=0)))
    mixture = GaussianMixture(clusters, random_state=whole("seed", seed, 0), max_iter=500)
    return leep(mixture.fit(x).predict_proba(x), y)


def logme(features: ArrayLike, labels: ArrayLike) -> float:
    """Log maximum evidence of Bayesian regression on one-vs-rest labels, per image and class (You et al. 2021).

    The published program stops short of the maximum, and is wrong with fewer images than features.

    >>> x = np.random.default_rng(0).normal(size=(40, 3))
    >>> dtl.scores.logme(x, np.arange(40) % 2) < dtl.scores.logme(x, (x[:, 0] > 0).astype(int))
    True
    """
    x, y = checked(features, labels)
    flat: Any = dict.fromkeys(("alpha_1", "alpha_2", "lambda_1", "lambda_2"), 1e-25)  # 0 fails for features all 0
    model = BayesianRidge(**flat, max_iter=1000, tol=1e-10, fit_intercept=False, compute_score=True)
    return float(np.mean([model.fit(x, target).scores_[-1] for target in np.eye(y.max() + 1)[y].T])) / len(y)


def _by_class(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    return [x[y == k] for k in range(y.max() + 1)]


def h_score(features: ArrayLike, labels: ArrayLike, shrunk: bool = False) -> float:
    """Variance between classes in units of the features' covariance: tr(cov(F)^+ cov(E[F|y])) (Bao et al. 2019).

    shrunk : with the covariance of Ledoit and Wolf (Ibrahim et al. 2022); needed unless images far outnumber features

    >>> round(dtl.scores.h_score([[0.0], [0.1], [1.0], [1.1]], [0, 0, 1, 1]), 3)
    0.99
    """
    x, y = checked(features, labels)
    x = x - x.mean(0)
    means = np.stack([part.mean(0) for part in _by_class(x, y)])
    between = np.atleast_2d(np.cov(means[y].T))
    if not shrunk:
        return float(np.trace(np.linalg.pinv(np.atleast_2d(np.cov(x.T)), rcond=1e-10) @ between))
    found = LedoitWolf(assume_centered=True).fit(x)
    return float((1 - found.shrinkage_) * np.trace(np.linalg.solve(found.covariance_, between)))


def transrate(features: ArrayLike, labels: ArrayLike, eps: float = 1e-4) -> float:
    """Nats of coding rate that knowing the class saves (Huang et al. 2022); grows with d / n, so compare at equal n.

    >>> round(dtl.scores.transrate([[0.0], [0.1], [5.0], [5.1]], [0, 0, 1, 1]), 3)
    0.0
    """
    x, y = checked(features, labels)
    x = x - x.mean(0)
    values = [np.linalg.svd(part, compute_uv=False) ** 2 / len(part) for part in (x, *_by_class(x, y))]
    rate = [0.5 * np.log1p(value / real("eps", eps)).sum() for value in values]
    return float(rate[0] - np.mean(rate[1:]))


def gbc(features: ArrayLike, labels: ArrayLike, spherical: bool = False, floor: float = 1e-4) -> float:
    """Minus the summed Bhattacharyya overlap of every two classes, as Gaussians (Pandy et al. 2022).

    spherical : with one variance for all features;  floor : least variance

    >>> dtl.scores.gbc([[0.0], [0.1], [5.0], [5.1]], [0, 0, 1, 1]) > -1e-6
    True
    """
    x, y = checked(features, labels)
    parts = _by_class(x, y)
    mean, variance = np.stack([part.mean(0) for part in parts]), np.stack([part.var(0) for part in parts])
    if spherical:
        variance = np.broadcast_to(variance.mean(1, keepdims=True), variance.shape)
    variance = np.maximum(variance, real("floor", floor))
    both = (variance[:, None] + variance) / 2
    apart = (mean[:, None] - mean) ** 2 / both / 8 + 0.5 * np.log(both / np.sqrt(variance[:, None] * variance))
    return float(len(mean) - np.exp(-apart.sum(2)).sum())


def parc(features: ArrayLike, labels: ArrayLike) -> float:
    """Rank correlation, in percent, of the images' distances by features and by labels (Bolya et al. 2021).

    >>> round(dtl.scores.parc([[0.0, 1.0], [0.1, 1.1], [1.0, 0.0], [1.1, 0.1]], [0, 0, 1, 1]))
    100
    """
    x, y = checked(features, labels)
    by_features = pdist(StandardScaler().fit_transform(x), "correlation")
    # one-hot labels correlate by 1 within and by -1/(K-1) between classes: two values, so their ranks go like !=
    return 100 * float(np.corrcoef(scipy.stats.rankdata(by_features), pdist(y[:, None], "hamming"))[0, 1])


def _both(source: ArrayLike, source_labels: ArrayLike, target: ArrayLike, labels: ArrayLike) -> list[np.ndarray]:
    found = [*checked(source, source_labels, "source"), *checked(target, labels, "target")]
    widths = found[0].shape[1], found[2].shape[1]
    if widths[0] != widths[1]:
        raise InputError(f"source and target have {widths[0]} and {widths[1]} features: use one encoder")
    return found


def ot_nce(source: ArrayLike, source_labels: ArrayLike, target: ArrayLike, labels: ArrayLike) -> float:
    """Minus the entropy of target labels given source labels under the optimal transport plan (Tan et al. 2021).

    >>> dtl.scores.ot_nce([[0.0], [1.0]], [0, 1], [[0.1], [1.1]], [1, 0])
    0.0
    """
    z, of_source, x, y = _both(source, source_labels, target, labels)
    plan = ot.emd([], [], ot.dist(z, x), numItermax=10**7)
    joint = np.eye(of_source.max() + 1)[of_source].T @ plan @ np.eye(y.max() + 1)[y]
    given = joint / joint.sum(1, keepdims=True)
    return float((joint * np.log(given, out=np.zeros_like(given), where=joint > 1e-15)).sum())


def otdd(source: ArrayLike, source_labels: ArrayLike, target: ArrayLike, labels: ArrayLike) -> float:
    """Optimal transport dataset distance: classes are as far as their Gaussians (Alvarez-Melis and Fusi 2020).

    >>> x = np.random.default_rng(0).normal(size=(20, 2))
    >>> dtl.scores.otdd(x, np.arange(20) % 2, x, np.arange(20) % 2) < 1e-6
    True
    """
    z, of_source, x, y = _both(source, source_labels, target, labels)
    if min(*np.bincount(of_source), *np.bincount(y)) < 2:
        raise InputError("otdd needs two images of every class for its covariance: give more, or leave classes out")
    far = np.array([[_bures(a, b) for b in _by_class(x, y)] for a in _by_class(z, of_source)])
    return float(np.sqrt(max(ot.emd2([], [], ot.dist(z, x) + far[of_source][:, y]), 0.0)))


def _bures(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Wasserstein distance of the Gaussians of two samples, which may have fewer images than features."""
    means = a.mean(0), b.mean(0)
    a, b = (a - means[0]) / np.sqrt(len(a) - 1), (b - means[1]) / np.sqrt(len(b) - 1)
    # the nuclear norm of a b' is tr (C_a^1/2 C_b C_a^1/2)^1/2
    return ((means[0] - means[1]) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * np.linalg.norm(a @ b.T, "nuc")


def knn(features: ArrayLike, labels: ArrayLike, k: int = 5) -> float:
    """Share of images that most of their `k` nearest others have the label of.

    >>> dtl.scores.knn([[0.0], [0.1], [1.0], [1.1]], [0, 0, 1, 1], k=1)
    1.0
    """
    x, y = checked(features, labels)
    nearest = KNeighborsClassifier(min(whole("k", k, 1), len(x) - 1))
    return float((nearest.fit(x, y).predict(None) == y).mean())


def lda(features: ArrayLike, labels: ArrayLike) -> float:
    """Cross-validated accuracy of linear discriminants with shrunk covariance.

    >>> dtl.scores.lda(np.arange(8.0)[:, None] ** 2, np.arange(8) // 4)
    0.875
    """
    return _held_out(LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"), *checked(features, labels))


def probe(features: ArrayLike, labels: ArrayLike, l2: float = 1e-2) -> float:
    """Cross-validated accuracy of a linear probe with the penalty of fixed transfer (`Recipe.probe_l2`).

    >>> dtl.scores.probe(np.arange(8.0)[:, None], np.arange(8) // 4)
    1.0
    """
    x, y = checked(features, labels)
    return _held_out(LogisticRegression(C=1 / (len(x) * real("l2", l2)), max_iter=1000), x, y)


def _held_out(model: ClassifierMixin, x: np.ndarray, y: np.ndarray) -> float:
    folds = min(5, int(np.bincount(y).min()))
    if folds < 2 or len(y) - -(-len(y) // folds) <= y.max() + 1:
        raise InputError("cross-validation needs two images of every class, and three of one: give more images")
    split = StratifiedKFold(folds, shuffle=True, random_state=0)
    return float(cross_val_score(make_pipeline(StandardScaler(), model), x, y, cv=split).mean())
