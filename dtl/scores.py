"""Transferability scores: what the features or the head of a source model say of a target without transfer to it.

Arrays in, one number out; a higher number promises a better model, except for `otdd`, which is a distance. Whether to
believe one is a question for `benchmark`, which has the accuracy after transfer to compare with.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import ot
import scipy.stats
import xarray as xr
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from sklearn.base import ClassifierMixin
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dtl._checks import InputError, choice
from dtl.data import TransferProblem
from dtl.design import block_length
from dtl.influence import estimate_influence
from dtl.models import Nets
from dtl.training import Recipe
from dtl.transfer import embed, transfer

if TYPE_CHECKING:
    from dtl.study import Study


def checked(x: ArrayLike, labels: ArrayLike, what: str = "features") -> tuple[np.ndarray, np.ndarray]:
    """`x` as float64 (n, d) and labels (n,) renumbered 0..K-1; InputError for what no score can be computed from."""
    x, labels = np.asarray(x, dtype=np.float64), np.asarray(labels)
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


def leep(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Log expected empirical prediction (Nguyen et al. 2020): mean log likelihood of a classifier made of two tables.

    Parameters
    ----------
    probabilities : (n, K) of the source head on target images; absent classes have probability 0
    labels : (n,) int, of the target

    >>> leep([[0.9, 0.1], [0.2, 0.8], [0.2, 0.8]], [0, 1, 1]) < leep(np.eye(2)[[0, 1, 1]], [0, 1, 1])
    True
    """
    p, y = checked(probabilities, labels, "probabilities")
    if (p < 0).any() or (np.abs(p.sum(1) - 1) > 1e-4).any():
        raise InputError("probabilities must not be negative and must sum to one in each row: take the softmax first")
    p = p[:, p.any(0)]
    joint = p.T @ np.eye(y.max() + 1)[y]  # (source classes, target classes)
    return float(np.log((p @ (joint / joint.sum(1, keepdims=True)))[np.arange(len(y)), y]).mean())


def nce(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Negative conditional entropy of target labels given the most probable source class (Tran et al. 2019).

    >>> nce([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], [0, 1, 1])
    0.0
    """
    p, _ = checked(probabilities, labels, "probabilities")
    return leep(np.eye(p.shape[1])[p.argmax(1)], labels)


def n_leep(features: ArrayLike, labels: ArrayLike, seed: int = 0) -> float:
    """LEEP of the clusters of a Gaussian mixture in place of source classes (Li et al. 2021): no source head needed.

    >>> n_leep([[0.0], [0.1], [5.0], [5.1]], [0, 0, 1, 1]) > -1e-6
    True
    """
    x, y = checked(features, labels)
    x = PCA(0.8, svd_solver="full").fit_transform(x)
    clusters = min(5 * (y.max() + 1), len(np.unique(x, axis=0)))
    return leep(GaussianMixture(clusters, random_state=seed, max_iter=500).fit(x).predict_proba(x), y)


def logme(features: ArrayLike, labels: ArrayLike) -> float:
    """Log maximum evidence (You et al. 2021) of Bayesian regression on one-vs-rest labels, per image and class.

    The maximum itself, by the ratio of the two variances: the published fixed point need not reach it, and is wrong
    with fewer images than features.

    >>> x = np.random.default_rng(0).normal(size=(40, 3))
    >>> logme(x, x[:, 0] > 0) > logme(x[::-1], x[:, 0] > 0)
    Traceback (most recent call last):
    ...
    dtl._checks.InputError: labels must be whole numbers from 0 on, not bool [ True  True  True]
    """
    x, y = checked(features, labels)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    u, s = u[:, s > 1e-10 * s[0]], s[s > 1e-10 * s[0]]
    total, n = 0.0, len(x)
    for target in np.eye(y.max() + 1)[y].T:
        along = (u.T @ target) ** 2
        outside = max(float(target.sum() - along.sum()), 0.0)

        def loss(log_ratio: float, along: np.ndarray = along, outside: float = outside) -> float:
            spread = 1 + np.exp(log_ratio) * s**2  # variance along each direction, in units of the noise
            noise = max(((along / spread).sum() + outside) / n, 1e-300)  # its best value
            return 0.5 * (n * np.log(2 * np.pi * noise) + n + np.log(spread).sum())

        grid = np.linspace(-30, 30, 121) - 2 * np.log(s[0])
        best = int(np.argmin([loss(g) for g in grid]))
        around = grid[max(best - 1, 0)], grid[min(best + 1, 120)]
        found = minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-9})
        total -= min(float(found.fun), loss(grid[best]))
    return total / (n * (y.max() + 1))


def _class_means(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([x[y == k].mean(0) for k in range(y.max() + 1)])


def h_score(features: ArrayLike, labels: ArrayLike, shrunk: bool = False) -> float:
    """Variance between classes in units of the features' covariance: tr(cov(F)^+ cov(E[F|y])) (Bao et al. 2019).

    shrunk : with the covariance of Ledoit and Wolf (Ibrahim et al. 2022); needed unless images far outnumber features

    >>> round(h_score([[0.0], [0.1], [1.0], [1.1]], [0, 0, 1, 1]), 3)
    0.99
    """
    x, y = checked(features, labels)
    x = x - x.mean(0)
    between = np.atleast_2d(np.cov(_class_means(x, y)[y].T))
    if not shrunk:
        return float(np.trace(np.linalg.pinv(np.atleast_2d(np.cov(x.T)), rcond=1e-10) @ between))
    found = LedoitWolf(assume_centered=True).fit(x)
    return float((1 - found.shrinkage_) * np.trace(np.linalg.solve(found.covariance_, between)))


def transrate(features: ArrayLike, labels: ArrayLike, eps: float = 1e-4) -> float:
    """Bits... of coding rate that knowing the classes saves (Huang et al. 2022): R(F) - mean over classes of R(F_k)."""
    x, y = checked(features, labels)
    x = x - x.mean(0)

    def rate(part: np.ndarray) -> float:
        values = np.linalg.svd(part, compute_uv=False)
        return 0.5 * float(np.log1p(values**2 / (len(part) * eps)).sum())

    return rate(x) - float(np.mean([rate(x[y == k]) for k in range(y.max() + 1)]))


def gbc(features: ArrayLike, labels: ArrayLike, spherical: bool = False, floor: float = 1e-4) -> float:
    """Minus the summed Bhattacharyya overlap of every two classes, as Gaussians (Pandy et al. 2022)."""
    x, y = checked(features, labels)
    mean, n_classes = _class_means(x, y), y.max() + 1
    variance = np.stack([x[y == k].var(0) for k in range(n_classes)])
    if spherical:
        variance = np.broadcast_to(variance.mean(1, keepdims=True), variance.shape)
    variance = np.maximum(variance, floor)
    both = (variance[:, None] + variance) / 2
    apart = (mean[:, None] - mean) ** 2 / both / 8 + 0.5 * np.log(both / np.sqrt(variance[:, None] * variance))
    return float(n_classes - np.exp(-apart.sum(2)).sum())


def parc(features: ArrayLike, labels: ArrayLike) -> float:
    """Rank correlation, in percent, of the images' distances by features and by labels (Bolya et al. 2021)."""
    x, y = checked(features, labels)
    upper = np.triu_indices(len(x), 1)
    by_features = 1 - np.corrcoef(StandardScaler().fit_transform(x))[upper]
    # one-hot labels correlate by 1 within and by -1/(K-1) between classes: two values, so their ranks are those of !=
    return 100 * float(scipy.stats.spearmanr(by_features, (y[:, None] != y)[upper]).statistic)


def _both(source: ArrayLike, source_labels: ArrayLike, target: ArrayLike, labels: ArrayLike) -> list[np.ndarray]:
    found = [*checked(source, source_labels, "source"), *checked(target, labels, "target")]
    if found[0].shape[1] != found[2].shape[1]:
        raise InputError(
            f"source and target have {found[0].shape[1]} and {found[2].shape[1]} features: use one encoder"
        )
    return found


def ot_nce(source: ArrayLike, source_labels: ArrayLike, target: ArrayLike, labels: ArrayLike) -> float:
    """Minus the entropy of target labels given source labels under the optimal transport plan (Tan et al. 2021).

    Parameters
    ----------
    source, target : (N, d) and (n, d) features;  source_labels, labels : (N,) and (n,) int

    >>> ot_nce([[0.0], [1.0]], [0, 1], [[0.1], [1.1]], [1, 0])
    0.0
    """
    z, of_source, x, y = _both(source, source_labels, target, labels)
    plan = ot.emd(np.full(len(z), 1 / len(z)), np.full(len(x), 1 / len(x)), ot.dist(z, x), numItermax=10**7)
    joint = np.eye(of_source.max() + 1)[of_source].T @ plan @ np.eye(y.max() + 1)[y]
    given = joint / joint.sum(1, keepdims=True)
    return float((joint * np.log(given, out=np.zeros_like(given), where=joint > 1e-15)).sum())


def otdd(source: ArrayLike, source_labels: ArrayLike, target: ArrayLike, labels: ArrayLike) -> float:
    """Optimal transport dataset distance (Alvarez-Melis and Fusi 2020): classes are as far as their Gaussians.

    >>> x = np.random.default_rng(0).normal(size=(20, 2))
    >>> otdd(x, np.arange(20) % 2, x, np.arange(20) % 2) < 1e-6
    True
    """
    z, of_source, x, y = _both(source, source_labels, target, labels)
    parts = [[a[b == k] for k in range(b.max() + 1)] for a, b in ((z, of_source), (x, y))]
    if min(len(part) for side in parts for part in side) < 2:
        raise InputError("otdd needs two images of every class for its covariance: give more, or leave classes out")
    far = np.empty([len(side) for side in parts])  # squared Bures-Wasserstein distances of Gaussians
    for i, j in np.ndindex(*far.shape):
        means = [parts[0][i].mean(0), parts[1][j].mean(0)]
        a, b = ((part - m) / np.sqrt(len(part) - 1) for part, m in zip((parts[0][i], parts[1][j]), means, strict=True))
        # tr (C_a^1/2 C_b C_a^1/2)^1/2 is the nuclear norm of a b', which stands fewer images than features
        far[i, j] = (
            ((means[0] - means[1]) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * np.linalg.norm(a @ b.T, "nuc")
        )
    cost = ot.dist(z, x) + far[of_source][:, y]
    return float(np.sqrt(max(ot.emd2(np.full(len(z), 1 / len(z)), np.full(len(x), 1 / len(x)), cost), 0.0)))


def knn(features: ArrayLike, labels: ArrayLike, k: int = 5) -> float:
    """Share of images that most of their `k` nearest others have the label of.

    >>> knn([[0.0], [0.1], [1.0], [1.1]], [0, 0, 1, 1], k=1)
    1.0
    """
    x, y = checked(features, labels)
    return float((KNeighborsClassifier(min(k, len(x) - 1)).fit(x, y).predict(None) == y).mean())


def _held_out(model: ClassifierMixin, x: np.ndarray, y: np.ndarray) -> float:
    folds = min(5, int(np.bincount(y).min()))
    if folds < 2:
        raise InputError("cross-validation needs two images of every class: give more, or leave classes out")
    split = StratifiedKFold(folds, shuffle=True, random_state=0)
    return float(cross_val_score(make_pipeline(StandardScaler(), model), x, y, cv=split).mean())


def lda(features: ArrayLike, labels: ArrayLike) -> float:
    """Cross-validated accuracy of linear discriminants with shrunk covariance."""
    return _held_out(LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"), *checked(features, labels))


def probe(features: ArrayLike, labels: ArrayLike, l2: float = 1e-2) -> float:
    """Cross-validated accuracy of a linear probe with the penalty of fixed transfer (`Recipe.probe_l2`)."""
    x, y = checked(features, labels)
    return _held_out(LogisticRegression(C=1 / (len(x) * l2), max_iter=1000), x, y)


class View(NamedTuple):
    """What one source model makes of a sample of the target and of the source classes that it has seen."""

    features: np.ndarray
    probabilities: np.ndarray
    labels: np.ndarray
    source: np.ndarray
    source_labels: np.ndarray


SCORES: dict[str, Callable[[View], float]] = {
    "NCE": lambda v: nce(v.probabilities, v.labels),
    "LEEP": lambda v: leep(v.probabilities, v.labels),
    "N-LEEP": lambda v: n_leep(v.features, v.labels),
    "LogME": lambda v: logme(v.features, v.labels),
    "H-score": lambda v: h_score(v.features, v.labels),
    "shrunk H-score": lambda v: h_score(v.features, v.labels, shrunk=True),
    "TransRate": lambda v: transrate(v.features, v.labels),
    "GBC": lambda v: gbc(v.features, v.labels),
    "PARC": lambda v: parc(v.features, v.labels),
    "OT-NCE": lambda v: ot_nce(v.source, v.source_labels, v.features, v.labels),
    "OTDD": lambda v: -otdd(v.source, v.source_labels, v.features, v.labels),
    "k-NN": lambda v: knn(v.features, v.labels),
    "LDA": lambda v: lda(v.features, v.labels),
    "probe": lambda v: probe(v.features, v.labels),
}


def _views(nets: Nets, problem: TransferProblem, recipe: Recipe, present: np.ndarray, split: str) -> Iterator[View]:
    """One for each net; at most 20 images of each source class, of the classes `present` (models, K)."""
    if f"target_{split}" not in problem.parts:
        raise InputError(f"unknown split {split!r}: use 'train', 'validation' or 'test'")
    target, of_source = problem.parts[f"target_{split}"], problem.source.labels.numpy()
    few = np.concatenate([np.flatnonzero(of_source == k)[:20] for k in range(problem.source.n_classes)])
    found = embed(nets, target, problem.source, recipe, present)
    source = embed(nets, problem.source.subset(few), problem.source, recipe).features.double().numpy()
    p, x, y = found.probabilities.double().numpy(), found.features.double().numpy(), target.labels.numpy()
    for i, classes in enumerate(present):
        seen = classes[of_source[few]]
        yield View(x[i], p[i], y, source[i][seen], of_source[few][seen])


def _score(views: Iterator[View], scores: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Values and seconds, (models, scores) each."""
    found = []
    for view in views:
        row = []
        for name in scores:
            start = time.perf_counter()
            row.append((SCORES[name](view), time.perf_counter() - start))
        found.append(row)
    values, seconds = np.moveaxis(np.array(found), 2, 0)
    return values, seconds


def agreement(
    values: Mapping[str, ArrayLike], truth: ArrayLike, against: str | None = None, draws: int = 4000, seed: int = 0
) -> xr.Dataset:
    """How far each predictor of models agrees with the truth about them, by the bootstrap over models.

    Parameters
    ----------
    values : name -> (models,);  truth : (models,)
    against : the predictor that all others are compared with

    Returns
    -------
    Dataset (predictor): Pearson `r`, weighted Kendall `tau`, `low` and `high` of the 95% interval of r; with `against`,
    `behind` = r of `against` minus r, and `behind_low`, `behind_high`, which hold 95% for all predictors together
    (Bonferroni). NaN for a predictor that does not vary.

    >>> found = agreement({"a": [1, 2, 3, 5], "b": [1, 3, 2, 1]}, [1, 2, 3, 4])
    >>> found.r.sel(predictor="a").item().__round__(2)
    0.98
    """
    names, y = list(values), np.asarray(truth, dtype=np.float64)
    x = np.stack([np.asarray(values[name], dtype=np.float64) for name in names])
    if len(y) < 4 or x.shape[1] != len(y) or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError(f"agreement needs finite values of at least four models, not {x.shape} and {y.shape}")
    index = np.random.default_rng(seed).integers(len(y), size=(draws, len(y)))

    def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
        size = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
        return np.divide((x * y).sum(-1), size, out=np.full(size.shape, np.nan), where=size > 1e-12)

    r, drawn = pearson(x, y), np.stack([pearson(row[index], y[index]) for row in x])
    varies = np.isfinite(r)
    drawn[~varies] = 0

    def at(level: float, of: np.ndarray) -> np.ndarray:
        return np.where(varies, np.nanquantile(of, level, 1), np.nan)

    tau = [scipy.stats.weightedtau(row, y).statistic if v else np.nan for row, v in zip(x, varies, strict=True)]
    found = {"r": r, "tau": tau, "low": at(0.025, drawn), "high": at(0.975, drawn)}
    if against is not None:
        tail, behind = 0.025 / max(1, len(names) - 1), drawn[names.index(against)] - drawn
        found |= {"behind": r[names.index(against)] - r}
        found |= {"behind_low": at(tail, behind), "behind_high": at(1 - tail, behind)}
    return xr.Dataset({name: ("predictor", row) for name, row in found.items()}, {"predictor": names})


def cross_fitted(masks: np.ndarray, outputs: np.ndarray, folds: int = 5) -> np.ndarray:
    """What influences of the other models say of each model, (models,): the sum over the classes of its subset.

    Complements, neighbours in a study's order, and whole balanced blocks, if there are two, are left out together.

    >>> masks = dtl.subset_masks(4, 60)
    >>> np.corrcoef(cross_fitted(masks, masks @ [1.0, 2, 0, -1]), masks @ [1.0, 2, 0, -1])[0, 1].round(3)
    1.0
    """
    block = block_length(masks.shape[1])
    part = np.arange(len(masks)) // block if len(masks) >= 2 * block else np.arange(len(masks)) // 2 % folds
    found = np.empty(len(masks))
    for k in np.unique(part):
        left = part == k
        found[left] = masks[left] @ estimate_influence(masks[~left], outputs[~left, None], design="random").values[:, 0]
    return found


def benchmark(
    study: "Study",
    scores: Sequence[str] = tuple(SCORES),
    truth: str = "full",
    split: str = "validation",
    models: int | None = None,
    replicate: "Study | None" = None,
    device: str = "auto",
) -> xr.Dataset:
    """Which scores agree with test accuracy after transfer, over the models of a study, and does influence?

    Parameters
    ----------
    study : of unit "class", run with `weights`
    scores : names out of `SCORES`
    truth : the transfer after which accuracy counts. After "fixed" a score is pointless in practice: the probe costs
        the same features
    split : target images that the scores see. Influences are of validation images
    models : the first ones; default all
    replicate : the same subsets trained from another seed, whose accuracy is the best that can be predicted

    Returns
    -------
    Dataset of `agreement` with influence, with `value` (predictor, model), `accuracy` (model), `seconds` a model
    (of scoring alone; NaN where models must be trained) and `kind` (predictor): score, influence, baseline or ceiling

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     kept = dtl.Study(problem, dtl.Recipe(epochs=1), "random", weights=folder).run(12, progress=False)
    ...     found = dtl.scores.benchmark(kept, ["NCE", "LogME"], truth="fixed", device="cpu")
    >>> found.predictor.values.tolist()
    ['influence', 'NCE', 'LogME', 'probe on validation', 'images']
    """
    for name in scores:
        choice(name, SCORES, "score")
    choice(truth, study.transfer, "truth")
    if study.unit != "class":
        raise InputError("a benchmark needs a study of classes: a subset of examples leaves no head of a class out")
    numbers, masks = study.results["model"].values[:models], study.masks[:models]

    def accuracy(of: "Study", split: str = "test") -> np.ndarray:
        return of.outputs("correct", truth, split)[: len(numbers)].mean(1)

    values, seconds = (np.empty((len(numbers), len(scores))) for _ in range(2))
    probed = np.empty(len(numbers))
    for rows, nets in study.nets(numbers, device):
        at = np.searchsorted(numbers, rows)
        views = _views(nets, study.problem, study.recipe, masks[at], split)
        values[at], seconds[at] = _score(views, scores)
        fixed = transfer(nets, study.problem, rows.tolist(), study.recipe, "fixed")
        probed[at] = fixed["validation"].correct.float().mean(1).cpu()
    by_name = {"influence": cross_fitted(masks, accuracy(study, "validation"))}
    by_name |= {name: values[:, k] for k, name in enumerate(scores)}
    by_name |= {"probe on validation": probed, "images": masks @ study.problem.source.counts}
    kinds = ["influence"] + ["score"] * len(scores) + ["baseline"] * 2
    if replicate is not None:
        if not np.array_equal(replicate.masks[: len(masks)], masks):
            raise InputError("replicate must hold the same subsets: make it with design=study.masks and another seed")
        by_name["the same trained again"], kinds = accuracy(replicate), [*kinds, "ceiling"]
    found = agreement(by_name, accuracy(study), "influence")
    of_scores = dict(zip(scores, seconds.mean(0), strict=True))
    return found.assign(
        value=(("predictor", "model"), np.stack([*by_name.values()])),
        accuracy=("model", accuracy(study)),
        seconds=("predictor", [of_scores.get(name, np.nan) for name in by_name]),
    ).assign_coords(kind=("predictor", kinds), model=numbers)
