"""Cheap rivals of influence: what source models trained once, on everything, say of source classes.

Each gives a score for every source class (or example) and target example, to be ranked like an influence. None retrains
anything, so none can tell harm from mere distance.
"""

import io
import logging
from collections.abc import Sequence
from contextlib import redirect_stderr
from copy import deepcopy
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dtl._checks import InputError, check_images, check_kind, check_number, choice, floats, several
from dtl.data import ImageDataset, TransferProblem
from dtl.models import Nets, unstack
from dtl.training import Recipe, check_size, train_sources
from dtl.transfer import embed, solve_probes


def full_source_nets(
    problem: TransferProblem,
    recipe: Recipe | None = None,
    seeds: Sequence[int] = (0,),
    device: str | torch.device = "auto",
) -> Nets:
    """Models trained on the whole source, one for each seed, side by side.

    >>> nets = dtl.baselines.full_source_nets(problem, dtl.Recipe(epochs=1), seeds=(0, 1), device="cpu")
    >>> nets.n_models
    2
    """
    check_kind(problem, "dtl.TransferProblem", "problem")
    check_kind(recipe, "dtl.Recipe", "recipe", optional=True)
    if not several(seeds, "seeds"):
        raise InputError("seeds is empty: give one seed for each model")
    recipe = recipe or Recipe()
    check_size(recipe, *problem.source.size)
    everything = np.ones((len(seeds), problem.source.n_classes), dtype=bool)
    return train_sources(problem.source, everything, seeds, recipe, device)


def feature_similarity(
    problem: TransferProblem, nets: Nets | None = None, recipe: Recipe | None = None, split: str = "validation"
) -> np.ndarray:
    """Cosine similarity of each target example and the mean of each source class, (K, n), averaged over nets.

    Features are standardised by their mean and deviation over the source.

    >>> dtl.baselines.feature_similarity(problem).shape == (problem.source.n_classes, len(problem.target_validation))
    True
    """
    evaluated, nets = _part(problem, split), _nets(problem, nets, recipe)
    source, target = (embed(nets, part, problem.source, recipe).features for part in (problem.source, evaluated))
    centre, deviation = source.mean(1, keepdim=True), source.std(1, keepdim=True)
    deviation = torch.where(deviation > 1e-6 * deviation.amax(2, keepdim=True), deviation, torch.inf)  # dead: out
    source, target = (source - centre) / deviation, (target - centre) / deviation
    means = [source[:, problem.source.labels == c].mean(1) for c in range(problem.source.n_classes)]
    return (F.normalize(torch.stack(means, 1), dim=2) @ F.normalize(target, dim=2).mT).mean(0).numpy()


def label_mapping(
    problem: TransferProblem, nets: Nets | None = None, recipe: Recipe | None = None, split: str = "validation"
) -> np.ndarray:
    """Probability that the source model gives to each source class for each target example, (K, n), averaged over nets.

    Zhang et al. 2023 (DP4TL) count the most probable class of each target image; means keep ties apart.

    >>> bool(np.allclose(dtl.baselines.label_mapping(problem).sum(0), 1, atol=1e-5))
    True
    """
    evaluated, nets = _part(problem, split), _nets(problem, nets, recipe)
    return embed(nets, evaluated, problem.source, recipe).probabilities.mean(0).T.numpy()


def source_loss(problem: TransferProblem, nets: Nets | None = None, recipe: Recipe | None = None) -> np.ndarray:
    """Cross-entropy of each source example under its own label, (N,), averaged over nets that trained on it.

    What nets fit last is often wrong or ambiguous: a loss ranks such examples without any retraining.

    >>> to_look_at = dtl.baselines.source_loss(problem).argsort()[::-1][:20]
    """
    nets = _nets(problem, nets, recipe)
    logits = embed(nets, problem.source, problem.source, recipe).logits
    labels = problem.source.labels.expand(len(logits), -1)
    return F.cross_entropy(logits.mT, labels, reduction="none").mean(0).numpy()


def class_sums(by_example: np.ndarray, source: ImageDataset) -> np.ndarray:
    """Scores of source examples summed over those of each class, (N, n) -> (K, n).

    >>> bool((dtl.baselines.class_sums(np.ones((len(problem.source), 1)), problem.source)[:, 0] > 1).all())
    True
    """
    rows, n = np.atleast_1d(floats(by_example, "by_example")), len(check_images(source, "source").labels)
    if len(rows) != n:
        raise InputError(f"{len(rows)} rows of scores for {n} source examples: give one row for each")
    return np.stack([rows[source.labels.numpy() == c].sum(0) for c in range(source.n_classes)])


def _nets(problem: TransferProblem, nets: Nets | None, recipe: Recipe | None) -> Nets:
    check_kind(problem, "dtl.TransferProblem", "problem")
    return check_kind(nets, "dtl.models.Nets", "nets", optional=True) or full_source_nets(problem, recipe)


def _part(problem: TransferProblem, split: str) -> ImageDataset:
    check_kind(problem, "dtl.TransferProblem", "problem")
    choice(split, ("train", "validation", "test"), "split")
    return problem.parts[f"target_{split}"]


def trak(
    problem: TransferProblem,
    nets: Nets | None = None,
    recipe: Recipe | None = None,
    split: str = "validation",
    dimension: int = 64,
    seed: int = 0,
) -> np.ndarray:
    """Score of each source example for the margin of each target example, (N, n), averaged over nets.

    TRAK (Park et al. 2023) by its authors' library, with one change for transfer: the margin of a source example comes
    from the source head, that of a target example from the probe of "fixed" transfer, and gradients are with respect
    to the backbone, which both share. The library fixes the unit up to a factor, so scores are for ranking. Sum the
    rows of a class for the score of the class, `class_sums`.

    Parameters
    ----------
    dimension : of the random projection of gradients, at most N; the more source examples, the larger it may be
    seed : of that projection

    >>> scores = dtl.baselines.trak(problem, dimension=8)
    >>> by_class = dtl.baselines.class_sums(scores, problem.source)
    """
    check_kind(problem, "dtl.TransferProblem", "problem")
    try:
        from trak import TRAKer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("TRAK needs its library: install it with pip install 'dtl[trak]'") from error
    check_number(dimension, 1, len(problem.source), "dimension, at most the source examples,")
    check_number(seed, 0, 2**32, "seed")
    like, train, evaluated, recipe = problem.source, problem.target_train, _part(problem, split), recipe or Recipe()
    nets = _nets(problem, nets, recipe)
    device, x = nets.weight.device, embed(nets, train, like, recipe).features
    probes = (p.to(device) for p in solve_probes(x, train.labels, train.n_classes, recipe.probe_l2))
    models = [nn.Sequential(net, nn.Flatten(0, 1)) for net in unstack(nets)]  # logits (batch, classes)
    for (net, _), *probe in zip(models, *probes, strict=True):  # of both heads, those of the source first
        net.weight, net.bias = (nn.Parameter(torch.cat([a, b[None]], 2)) for a, b in zip(net.head, probe, strict=True))

    def without(model: nn.Module, classes: slice) -> Any:  # the margin is then that under the other head
        state = {name: values.clone() for name, values in model.state_dict().items()}
        state["0.bias"][..., classes] = -torch.inf
        return state

    with TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):  # no option turns its progress bars off
        tracer = TRAKer(
            deepcopy(models[0]), "image_classification", len(like), folder, device=str(device),
            proj_dim=dimension, projector_seed=seed, use_half_precision=False, logging_level=logging.WARNING,
            grad_wrt=[name for name, _ in models[0].named_parameters() if name.startswith("0.backbone")],
        )  # fmt: skip
        source, target = (part.batches(like, device) for part in (like, evaluated))
        for number, model in enumerate(models):
            tracer.load_checkpoint(without(model, slice(like.n_classes, None)), number)
            for images, labels in zip(source.in_order(100), source.labels.split(100), strict=True):
                tracer.featurize((images, labels), num_samples=len(labels))
        tracer.finalize_features()
        cast(Any, tracer.projector).model_id = None  # it has dropped its matrix: it must draw that of net 0 again
        for number, model in enumerate(models):
            of_target = without(model, slice(like.n_classes))
            tracer.start_scoring_checkpoint("target", of_target, number, len(evaluated))
            for images, labels in zip(target.in_order(100), target.labels.split(100), strict=True):
                tracer.score((images, labels + like.n_classes), num_samples=len(labels))
        return np.array(tracer.finalize_scores("target"))
