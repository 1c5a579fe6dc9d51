"""Transferability scores, and which of them to believe: `benchmark` compares them with accuracy after transfer."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
import torch
import xarray as xr
from numpy.typing import ArrayLike

from dtl._checks import InputError, choice
from dtl._scores import gbc, h_score, knn, lda, leep, logme, n_leep, nce, ot_nce, otdd, parc, probe, transrate
from dtl.data import ImageDataset, TransferProblem
from dtl.design import block_length
from dtl.influence import estimate_influence
from dtl.models import Nets
from dtl.training import Recipe
from dtl.transfer import embed, transfer

if TYPE_CHECKING:
    from dtl.study import Study

__all__ = [
    "SCORES", "Candidate", "View", "agreement", "benchmark", "choose", "cross_fitted", "gbc", "h_score", "knn", "lda",
    "leep", "logme", "n_leep", "nce", "ot_nce", "otdd", "parc", "pretrained", "probe", "report", "transrate",
]  # fmt: skip


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

    >>> found = dtl.scores.agreement({"a": [1, 2, 3, 5], "b": [1, 3, 2, 1]}, [1, 2, 3, 4])
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

    tau = [scipy.stats.weightedtau(row, y)[0] if v else np.nan for row, v in zip(x, varies, strict=True)]
    found = {"r": r, "tau": tau, "low": at(0.025, drawn), "high": at(0.975, drawn)}
    if against is not None:
        tail, behind = 0.025 / max(1, len(names) - 1), drawn[names.index(against)] - drawn
        found |= {"behind": r[names.index(against)] - r}
        found |= {"behind_low": at(tail, behind), "behind_high": at(1 - tail, behind)}
    return xr.Dataset({name: ("predictor", row) for name, row in found.items()}, {"predictor": names})


def cross_fitted(masks: np.ndarray, outputs: np.ndarray, folds: int = 5) -> np.ndarray:
    """What influences of the other models say of each model, (models,): the sum over the classes of its subset.

    Complements, neighbours in a study's order, and whole balanced blocks, if there are two, are left out together.

    >>> masks = dtl.subset_masks(10, 60)
    >>> found = dtl.scores.cross_fitted(masks, masks @ np.arange(10.0))
    >>> round(float(np.corrcoef(found, masks @ np.arange(10.0))[0, 1]), 3)
    0.891
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
    ...     kept = dtl.Study(problem, dtl.Recipe(epochs=1), weights=folder).run(8, progress=False)
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
    for rows, nets in study.nets(numbers.tolist(), device):
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


def report(study: "Study", truth: str = "full", split: str = "validation", models: int | None = None) -> str:
    """`benchmark` as a table in words, for the command line.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     kept = dtl.Study(problem, dtl.Recipe(epochs=1), weights=folder).run(8, progress=False)
    ...     print(dtl.scores.report(kept, "fixed").splitlines()[0])
    Agreement with test accuracy after fixed transfer, 8 models; scores see validation images.
    """
    found = benchmark(study, truth=truth, split=split, models=models)
    rows = found.drop_dims("model").to_dataframe()
    table = pd.DataFrame({"kind": rows.kind, "r": rows.r.round(2), "weighted tau": rows.tau.round(2)})
    table["95% interval of r"] = [f"{low:.2f} to {high:.2f}" for low, high in zip(rows.low, rows.high, strict=True)]
    behind = zip(rows.behind, rows.behind_low, rows.behind_high, strict=True)
    table["behind influence (all 95%)"] = [f"{r:+.2f} ({low:+.2f} to {high:+.2f})" for r, low, high in behind]
    table["seconds a model"] = rows.seconds.map("{:.3f}".format)
    what = f"Agreement with test accuracy after {truth} transfer, {found.sizes['model']} models"
    return f"{what}; scores see {split} images.\n{table.replace('nan.*', '-', regex=True).to_string()}"


class Candidate(NamedTuple):
    """A pre-trained model to start from, one net, and the source that it was trained on."""

    nets: Nets
    source: ImageDataset
    recipe: Recipe


def pretrained(model: str, file: str | Path) -> Nets:
    """A torchvision classifier with weights from a file that torchvision publishes for it (a state dict).

    >>> import torchvision
    >>> nets = dtl.models.Nets("resnet18", 5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(torchvision.models.resnet18(num_classes=5).state_dict(), f"{folder}/resnet18.pth")
    ...     dtl.scores.pretrained("resnet18", f"{folder}/resnet18.pth").n_classes
    5
    """
    state = torch.load(file, map_location="cpu", weights_only=True)
    nets = Nets(model, 2)
    known = nets.backbone.state_dict().keys()
    head = [value for key, value in state.items() if key not in known and "aux" not in key.lower()]
    shapes = [tuple(value.shape) for value in head]
    if known - state.keys() or len(head) != 2 or shapes[0] != (len(head[1]), nets.n_features):
        raise InputError(f"{file} holds no weights of torchvision's {model}: give the file that belongs to it")
    nets.backbone.load_state_dict({key: state[key] for key in known})
    nets.weight, nets.bias = (
        torch.nn.Parameter(head[0].T[None].clone()),
        torch.nn.Parameter(head[1][None, None].clone()),
    )
    return nets


def choose(
    problem: TransferProblem,
    candidates: Mapping[str, Candidate],
    scores: Sequence[str] = tuple(SCORES),
    truth: str = "full",
    split: str = "validation",
    seeds: int = 3,
) -> xr.Dataset:
    """From which of several pre-trained models should one start, by each score, and what would its choice cost?

    Parameters
    ----------
    problem : gives the target; its source is not used
    candidates : name -> net, source and recipe: at least four, of any architecture
    scores, truth, split : as in `benchmark`
    seeds : transfers of each candidate

    Returns
    -------
    Dataset of `agreement`, with `value` (predictor, candidate), `accuracy` (candidate, seed), and for each predictor
    the candidate `chosen` by it, `regret`, the test accuracy lost against the candidate that is best by the other
    seeds, and its standard error `regret_stderr`. Baselines: the probe's accuracy on validation, images of the source,
    parameters of the net

    >>> quick = dtl.Recipe(epochs=1, finetune_epochs=1)
    >>> nets = [dtl.baselines.full_source_nets(problem, quick, [s], "cpu") for s in range(4)]
    >>> models = {f"seed {s}": dtl.scores.Candidate(net, problem.source, quick) for s, net in enumerate(nets)}
    >>> dtl.scores.choose(problem, models, ["LogME"], seeds=2).chosen.sel(predictor="LogME").item() in models
    True
    """
    if len(candidates) < 4 or seeds < 2:
        raise InputError(f"give four candidates or more, and two seeds or more, not {len(candidates)} and {seeds}")
    for name in scores:
        choice(name, SCORES, "score")
    names, accuracy, rows, values = list(candidates), np.empty((len(candidates), seeds)), [], []
    for c, (nets, source, recipe) in enumerate(candidates.values()):
        own = replace(problem, source=source, truth=None)
        values.append(_score(_views(nets, own, recipe, np.ones((1, nets.n_classes), dtype=bool), split), scores)[0][0])
        fixed = transfer(nets, own, [0], recipe, "fixed")["validation"].correct.float().mean().item()
        rows.append((fixed, len(source), sum(p.numel() for p in nets.parameters())))
        for s in range(seeds):
            accuracy[c, s] = transfer(deepcopy(nets), own, [s], recipe, truth)["test"].correct.float().mean()
    by_name = dict(zip(scores, np.transpose(values), strict=True))
    by_name |= dict(zip(("probe on validation", "images", "parameters"), np.transpose(rows), strict=True))
    chosen = np.array([np.argmax(row) for row in by_name.values()])
    others = (accuracy.sum(1, keepdims=True) - accuracy) / (seeds - 1)
    lost = accuracy[others.argmax(0), np.arange(seeds)] - accuracy[chosen]  # (predictor, seed)
    return agreement(by_name, accuracy.mean(1)).assign(
        value=(("predictor", "candidate"), np.stack([*by_name.values()])),
        accuracy=(("candidate", "seed"), accuracy),
        chosen=("predictor", np.array(names)[chosen]),
        regret=("predictor", lost.mean(1)),
        regret_stderr=("predictor", lost.std(1, ddof=1) / np.sqrt(seeds)),
    ).assign_coords(candidate=names)  # fmt: skip
