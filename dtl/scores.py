"""Transferability scores, and which of them to believe: `benchmark` compares them with accuracy after transfer.

A score says without transfer how well a source model will do on a target, the higher the better (but `otdd` is a
distance). Scores take arrays: `features` (n, d) or `probabilities` (n, K) of the source head, 0 for classes that it has
never seen, and `labels` (n,) int, all of target images; two compare them with `source` features (N, d) and labels (N,).
InputError for arrays that do not fit or are not finite, for one class, and for fewer images than classes.
"""

import logging
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
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

from dtl._checks import InputError, check_kind, check_mapping, check_number, choice, floats, path_of, several, some
from dtl._scores import gbc, h_score, knn, lda, leep, logme, n_leep, nce, ot_nce, otdd, parc, probe, transrate
from dtl.data import ImageDataset, TransferProblem
from dtl.design import block_length, is_balanced
from dtl.influence import estimate_influence
from dtl.models import Nets, check_model
from dtl.training import Recipe
from dtl.transfer import REGIMES, embed, transfer

if TYPE_CHECKING:
    from dtl.results import Results
    from dtl.study import Study

logger = logging.getLogger(__name__)

__all__ = [
    "SCORES", "Candidate", "View", "agreement", "benchmark", "choose", "cross_fitted", "gbc", "h_score", "knn", "lda",
    "leep", "logme", "n_leep", "nce", "ot_nce", "otdd", "parc", "pretrained", "probe", "transrate",
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


def _judged(
    nets: Nets,
    problem: TransferProblem,
    seeds: Sequence[int],
    recipe: Recipe,
    present: np.ndarray,
    split: str,
    scores: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Of nets that have seen the classes `present` (models, K): scores and, last, the probe's accuracy on validation
    images, and the seconds of each score. Scores see at most 20 images of each source class."""
    target, of_source = problem.parts[f"target_{split}"], problem.source.labels.numpy()
    few = np.concatenate([np.flatnonzero(of_source == k)[:20] for k in range(problem.source.n_classes)])
    found = embed(nets, target, problem.source, recipe, present)
    source = embed(nets, problem.source.subset(few), problem.source, recipe).features.double().numpy()
    p, x, y = found.probabilities.double().numpy(), found.features.double().numpy(), target.labels.numpy()
    if x.shape[2] >= len(y) and (poor := {"H-score", "TransRate"} & set(scores)):
        logger.warning(f"{some(sorted(poor))} say little of {x.shape[2]} features of no more than {len(y)} images")
    values, seconds = np.empty((len(seeds), len(scores) + 1)), np.empty((len(seeds), len(scores)))
    for i, classes in enumerate(present):
        seen = classes[of_source[few]]
        view = View(x[i], p[i], y, source[i][seen], of_source[few][seen])
        for k, name in enumerate(scores):
            start = time.perf_counter()
            values[i, k] = _value(name, view)
            seconds[i, k] = time.perf_counter() - start
    values[:, -1] = transfer(nets, problem, seeds, recipe, "fixed")["validation"].correct.float().mean(1).cpu()
    return values, seconds


def _value(name: str, view: View) -> float:
    """A score; InputError that names it where it has no value."""
    try:
        with np.errstate(invalid="ignore", divide="ignore"):
            value, why = SCORES[name](view), "no number comes out"
    except (InputError, np.linalg.LinAlgError) as error:
        value, why = np.nan, str(error)
    if not np.isfinite(value):
        raise InputError(f"{name} cannot judge these {len(view.labels)} target images ({why}): leave it out of scores=")
    return value


def _known(scores: Sequence[str], split: str) -> tuple[str, ...]:
    """The names of scores; InputError for an unknown one, or an unknown split."""
    scores = several(scores, "scores")
    for name in scores:
        choice(name, SCORES, "score")
    choice(split, ("train", "validation", "test"), "split")
    return scores


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Over the last axis; NaN where one of them does not vary."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    size = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return np.divide((x * y).sum(-1), size, out=np.full(size.shape, np.nan), where=size > 1e-12)


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
    (Bonferroni). NaN for a predictor that does not vary. With few models intervals are too short: simulated, those of r
    hold 85% of the time for 4 models, 90% for 8 and 93% for 24; those of `behind` 88% for 24, 94% or more from 46 on.

    >>> found = dtl.scores.agreement({"a": [1, 2, 3, 5], "b": [1, 3, 2, 1]}, [1, 2, 3, 4])
    >>> found.r.sel(predictor="a").item().__round__(2)
    0.98
    """
    check_number(draws, 1, 10**7, "draws")
    check_number(seed, 0, 2**32, "seed")
    names, y = list(check_mapping(values, "values")), floats(truth, "truth", 1)
    choice(against, [None, *names], "predictor against =")
    x = floats([values[name] for name in names], "values", 2)
    if len(y) < 4 or x.shape[1] != len(y) or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError(f"agreement needs finite values of at least four models, not {x.shape} and {y.shape}")
    index = np.random.default_rng(seed).integers(len(y), size=(draws, len(y)))
    drawn = pd.DataFrame({name: _pearson(row[index], y[index]) for name, row in zip(names, x, strict=True)})
    found = pd.DataFrame({"r": _pearson(x, y), "tau": [scipy.stats.weightedtau(row, y)[0] for row in x]}, names)
    found["low"], found["high"] = drawn.quantile(0.025), drawn.quantile(0.975)
    if against is not None:
        tail, behind = 0.025 / max(1, len(names) - 1), drawn.rsub(drawn[against], axis=0)
        found["behind"] = found.r[against] - found.r
        found["behind_low"], found["behind_high"] = behind.quantile(tail), behind.quantile(1 - tail)
    return found.to_xarray().rename(index="predictor").assign_coords(predictor=names)  # text, which files can hold


def cross_fitted(masks: np.ndarray, outputs: np.ndarray, folds: int = 5) -> np.ndarray:
    """What influences of the other models say of each model, (models,): the sum over the classes of its subset.

    Complements, neighbours in a study's order, and whole balanced blocks are left out together. InputError for less
    than two of these: the rows of a block are orthogonal, so that the others say nothing of one that is left out.

    >>> masks = dtl.subset_masks(10, 60)
    >>> found = dtl.scores.cross_fitted(masks, masks @ np.arange(10.0))
    >>> round(float(np.corrcoef(found, masks @ np.arange(10.0))[0, 1]), 3)
    0.891
    """
    masks, outputs = floats(masks, "masks", 2).astype(bool), floats(outputs, "outputs")
    check_number(folds, 2, 10**6, "folds")
    if outputs.shape != masks.shape[:1]:
        raise InputError(f"give masks, models x classes, and an output of each, not {masks.shape}, {outputs.shape}")
    block = block_length(masks.shape[1])
    if len(masks) < 2 * block and is_balanced(masks[:block]):
        raise InputError(f"these models are less than two balanced blocks: give {2 * block} or more, not {len(masks)}")
    part = np.arange(len(masks)) // block if len(masks) >= 2 * block else np.arange(len(masks)) // 2 % folds
    found = np.empty(len(masks))
    for k in np.unique(part):
        left = part == k
        found[left] = masks[left] @ estimate_influence(masks[~left], outputs[~left, None], design="random").values[:, 0]
    return found


def benchmark(
    study: "Study",
    scores: Sequence[str] = tuple(SCORES),
    truth: str | None = None,
    split: str = "validation",
    replicate: "Study | Results | None" = None,
    device: str = "auto",
) -> xr.Dataset:
    """Which scores agree with test accuracy after transfer, over the models of a study, and does influence?

    Parameters
    ----------
    study : of unit "class", run with `weights`
    scores : names out of `SCORES`
    truth : the transfer after which accuracy counts; default is "full" if the study has it
    split : target images that the scores see; influences are of validation images
    replicate : the same subsets trained from another seed, whose accuracy is the best that can be predicted

    Returns
    -------
    Dataset of `agreement` with influence (NaN, and a warning in the log, for a balanced study of less than two whole
    blocks), with `value` (predictor, model), `accuracy` (model), `seconds` a model
    (of scoring alone; NaN where models must be trained) and `kind` (predictor): score, influence, baseline or ceiling

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     kept = dtl.Study(problem, dtl.Recipe(epochs=1), weights=folder).run(8, progress=False)
    ...     found = dtl.scores.benchmark(kept, ["NCE", "LogME"], truth="fixed", device="cpu")
    >>> found.predictor.values.tolist()
    ['influence', 'NCE', 'LogME', 'probe on validation', 'images']
    """
    check_kind(study, "dtl.Study", "study")
    truth = truth or ("full" if "full" in study.transfer else study.transfer[0])
    choice(truth, study.transfer, "truth")
    scores = _known(scores, split)
    if study.groups or study.unit != "class":
        raise InputError("a benchmark needs a study whose units are classes, not groups of them or examples")
    if replicate is not None and not np.array_equal(getattr(replicate, "masks", ()), study.masks):
        raise InputError("replicate must hold the same subsets: make it with design=study.masks and another seed")
    problem, masks, numbers = study.problem, study.masks, study.results["model"].values
    values, seconds = np.empty((len(masks), len(scores) + 1)), np.empty((len(masks), len(scores)))
    for rows, nets in study.nets(numbers.tolist(), device):
        at = np.searchsorted(numbers, rows)
        values[at], seconds[at] = _judged(nets, problem, rows.tolist(), study.recipe, masks[at], split, scores)
    outputs, needed = study.outputs("correct", truth).mean(1), 2 * block_length(masks.shape[1])
    too_few = len(masks) < needed and (study.settings["design"] == "balanced" or is_balanced(masks[: needed // 2]))
    if too_few:
        logger.warning(f"influence is not compared: that takes two balanced blocks, {needed} models, not {len(masks)}")
    by_name = {"influence": np.zeros(len(masks)) if too_few else cross_fitted(masks, outputs)}
    by_name |= dict(zip([*scores, "probe on validation"], values.T, strict=True))
    by_name["images"] = masks @ problem.source.counts
    kinds = ["influence"] + ["score"] * len(scores) + ["baseline"] * 2
    if replicate is not None:
        by_name["the same trained again"] = replicate.outputs("correct", truth, "test").mean(1)
        kinds.append("ceiling")
    accuracy = study.outputs("correct", truth, "test").mean(1)
    return agreement(by_name, accuracy, "influence").assign(
        value=(("predictor", "model"), np.stack([*by_name.values()])),
        accuracy=("model", accuracy),
        seconds=("predictor", pd.Series(seconds.mean(0), list(scores)).reindex(list(by_name))),
    ).assign_coords(kind=("predictor", kinds), model=numbers, models=len(masks), truth=truth, split=split)  # fmt: skip


class Candidate(NamedTuple):
    """A pre-trained model to start from, one net, and the source that it was trained on."""

    nets: Nets
    source: ImageDataset
    recipe: Recipe


def pretrained(model: str, file: str | Path) -> Nets:
    """A torchvision classifier with weights from a file that torchvision publishes for it (a state dict).

    >>> import torchvision
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(torchvision.models.resnet18(num_classes=5).state_dict(), f"{folder}/resnet18.pth")
    ...     dtl.scores.pretrained("resnet18", f"{folder}/resnet18.pth").n_classes
    5
    """
    check_model(model)
    try:
        state = torch.load(path_of(file, "file"), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise InputError(f"{file} is no file of weights that torch reads safely: download it again") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{file} holds no weights, which are tensors by name")
    nets = Nets(model, 2)
    known = nets.backbone.state_dict().keys()
    head = [value for key, value in state.items() if key not in known and "aux" not in key.lower()]
    shapes = [(*value.shape,) for value in head]
    if known - state.keys() or len(head) != 2 or shapes[0] != (*shapes[1], nets.n_features):
        raise InputError(f"{file} holds no weights of torchvision's {model}: give the file that belongs to it")
    nets.backbone.load_state_dict({key: state[key] for key in known})
    nets.weight = torch.nn.Parameter(head[0].T[None].clone())
    nets.bias = torch.nn.Parameter(head[1][None, None].clone())
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
    candidates : four or more of any architecture, name -> net, source and recipe
    scores, truth, split : as in `benchmark`
    seeds : transfers of each candidate

    Returns
    -------
    Dataset of `agreement`, with `value` (predictor, candidate), `accuracy` (candidate, seed), and for each predictor
    the candidate `chosen` by it, `regret`, the test accuracy lost against the candidate that is best by the other
    seeds, and its standard error `regret_stderr`, over transfers, for these test images. Where a net has as many
    features as the split has images, H-score and TransRate say little of it: a warning in the log

    >>> quick = dtl.Recipe(epochs=1, finetune_epochs=1)
    >>> nets = [dtl.baselines.full_source_nets(problem, quick, [s], "cpu") for s in range(4)]
    >>> models = {f"seed {s}": dtl.scores.Candidate(net, problem.source, quick) for s, net in enumerate(nets)}
    >>> dtl.scores.choose(problem, models, ["LogME"], seeds=2).chosen.sel(predictor="LogME").item() in models
    True
    """
    check_kind(problem, "dtl.TransferProblem", "problem")
    check_number(seeds, 2, 10**6, "seeds, two or more for a standard error,")
    if len(check_mapping(candidates, "candidates")) < 4:
        raise InputError(f"give four candidates or more, not {len(candidates)}")
    for name, candidate in candidates.items():
        check_kind(candidate, "dtl.scores.Candidate", f"candidate {name!r}")
    choice(truth, REGIMES, "truth")
    scores = _known(scores, split)
    values, accuracy = [], np.empty((len(candidates), seeds))
    for c, (nets, source, recipe) in enumerate(candidates.values()):
        own, present = replace(problem, source=source, truth=None), np.ones((1, nets.n_classes), dtype=bool)
        judged, _ = _judged(nets, own, [0], recipe, present, split, scores)
        values.append([*judged[0], len(source), sum(p.numel() for p in nets.parameters())])
        for s in range(seeds):
            accuracy[c, s] = transfer(deepcopy(nets), own, [s], recipe, truth)["test"].correct.float().mean()
    by_name = dict(zip([*scores, "probe on validation", "images", "parameters"], np.transpose(values), strict=True))
    chosen = np.array([np.argmax(row) for row in by_name.values()])
    others = (accuracy.sum(1, keepdims=True) - accuracy) / (seeds - 1)
    lost = accuracy[others.argmax(0), np.arange(seeds)] - accuracy[chosen]  # (predictor, seed)
    return agreement(by_name, accuracy.mean(1)).assign(
        value=(("predictor", "candidate"), np.stack([*by_name.values()])),
        accuracy=(("candidate", "seed"), accuracy),
        chosen=("predictor", np.array(list(candidates))[chosen]),
        regret=("predictor", lost.mean(1)),
        regret_stderr=("predictor", lost.std(1, ddof=1) / np.sqrt(seeds)),
    ).assign_coords(candidate=list(candidates))  # fmt: skip
