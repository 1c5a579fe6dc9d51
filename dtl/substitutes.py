"""Cheap substitutes of influences: what one source model, trained once on everything, says of source classes.

Each gives a score for every source class and target example, to be ranked like an influence. None retrains anything,
so none can tell harm from mere distance.
"""

from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from dtl.data import TransferProblem
from dtl.models import Nets
from dtl.training import Recipe, open_pixels, resolve_device, train_sources
from dtl.transfer import features


def full_source_nets(
    problem: TransferProblem, recipe: Recipe | None = None, seeds: tuple[int, ...] = (0,), device: str = "auto"
) -> Nets:
    """Models trained on the whole source, one for each seed, side by side.

    >>> nets = dtl.substitutes.full_source_nets(problem, seeds=(0, 1))
    """
    everything = np.ones((len(seeds), problem.source.n_classes), dtype=bool)
    return train_sources(problem.source, everything, seeds, recipe or Recipe(), resolve_device(device))


def feature_similarity(
    problem: TransferProblem, nets: Nets | None = None, recipe: Recipe | None = None, split: str = "validation"
) -> np.ndarray:
    """Cosine similarity of each target example and the mean of each source class, (K, n), averaged over nets.

    Features are standardised by their mean and deviation over the source.

    >>> dtl.substitutes.feature_similarity(problem)[:, 0].argmax()
    """
    source, target = _features(problem, nets, recipe, split)
    centre, deviation = source.mean(1, keepdim=True), source.std(1, keepdim=True).clamp(min=1e-6)
    source, target = (source - centre) / deviation, (target - centre) / deviation
    labels = problem.source.labels.to(source.device)
    means = torch.stack([source[:, labels == c].mean(1) for c in range(problem.source.n_classes)], 1)
    unit = partial(F.normalize, dim=2)
    return (unit(means) @ unit(target).mT).mean(0).cpu().numpy()


def label_mapping(
    problem: TransferProblem, nets: Nets | None = None, recipe: Recipe | None = None, split: str = "validation"
) -> np.ndarray:
    """Probability that the source model gives to each source class for each target example, (K, n), averaged over nets.

    Counting the most probable class over target images gives the label mapping of Zhang et al. 2023 (DP4TL).

    >>> dtl.substitutes.label_mapping(problem).mean(axis=1)
    """
    nets = nets or full_source_nets(problem, recipe)
    _, target = _features(problem, nets, recipe, split)
    logits = torch.baddbmm(nets.bias.detach(), target, nets.weight.detach())
    return logits.softmax(2).mean(0).T.cpu().numpy()


def _features(
    problem: TransferProblem, nets: Nets | None, recipe: Recipe | None, split: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of the source and of a target split, (nets, n, n_features) each."""
    recipe = recipe or Recipe()
    part = f"target_{split}"
    if part not in problem.parts:
        raise ValueError(f"unknown split {split!r}: use 'train', 'validation' or 'test'")
    nets = nets or full_source_nets(problem, recipe)
    device = nets.weight.device
    source, target = (
        features(nets, open_pixels(data, problem.source, device), recipe)
        for data in (problem.source, problem.parts[part])
    )
    return source, target
