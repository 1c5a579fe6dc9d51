"""Transfer of source models to the target: fixed features, fixed with BatchNorm adapting, or the full network."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dtl._checks import InputError
from dtl.data import ImageDataset, TransferProblem
from dtl.models import Nets
from dtl.training import BetonPixels, Pixels, Recipe, draw_order, fit, open_pixels

REGIMES = ("fixed", "fixed+bn", "full")


class Outputs(NamedTuple):
    """What a transferred model says of each target example; every field has the shape (models, n).

    margin : log p - log(1 - p) of the correct class, in nats
    probability : p of the correct class
    correct : whether the correct class has the highest logit, bool
    prediction : class with the highest logit, int
    """

    margin: torch.Tensor
    probability: torch.Tensor
    correct: torch.Tensor
    prediction: torch.Tensor


def transfer(
    nets: Nets, problem: TransferProblem, seeds: Sequence[int], recipe: Recipe, regime: str
) -> dict[str, Outputs]:
    """Transfer every net and evaluate it on the validation and test splits.

    Parameters
    ----------
    nets : source models side by side, on any device; changed by "full" and "fixed+bn"
    regime : "fixed" (backbone in eval mode, features computed once, linear probes solved to convergence),
        "fixed+bn" (weights frozen but BatchNorm statistics adapting while an SGD head trains, as the code of
        Jain et al. 2022 does) or "full" (every weight fine-tuned)

    >>> outputs = transfer(nets, problem, seeds, Recipe(), "fixed")
    >>> outputs["test"].correct.float().mean(1)             # accuracy of each model
    """
    device = nets.weight.device
    splits = {"validation": problem.target_validation, "test": problem.target_test}
    pixels = {name: open_pixels(split, problem.source, device) for name, split in splits.items()}
    if regime == "fixed":
        train = open_pixels(problem.target_train, problem.source, device)
        weight, bias = solve_probes(
            features(nets, train, recipe), train.labels, problem.target_train.n_classes, recipe.probe_l2
        )
        logits = {name: features(nets, p, recipe) @ weight + bias for name, p in pixels.items()}
    elif regime in REGIMES:
        nets.new_head(problem.target_train.n_classes, seeds)
        fine_tune(nets, problem, seeds, recipe, only_head=regime == "fixed+bn")
        logits = {
            name: features(nets, p, recipe) @ nets.weight.detach() + nets.bias.detach() for name, p in pixels.items()
        }
    else:
        raise InputError(f"unknown transfer {regime!r}: use one of {', '.join(REGIMES)}")
    return {name: outputs(logits[name], pixels[name].labels) for name in splits}


def fine_tune(nets: Nets, problem: TransferProblem, seeds: Sequence[int], recipe: Recipe, only_head: bool) -> None:
    """SGD on the target's training images, in place, each model in its own order."""
    target: ImageDataset = problem.target_train
    batch = min(recipe.batch_size, len(target))
    steps = recipe.finetune_epochs * (len(target) // batch)
    rng = [np.random.default_rng([int(seed), 2]) for seed in seeds]
    order = torch.stack([draw_order(np.arange(len(target)), steps, batch, r) for r in rng], 1)
    pixels = open_pixels(target, problem.source, nets.weight.device, recipe.augment)
    nets.backbone.requires_grad_(not only_head)
    fit(nets, pixels, order, recipe, recipe.finetune_lr, rng, nets.head if only_head else nets.parameters())


@torch.inference_mode()
def features(nets: Nets, pixels: Pixels, recipe: Recipe) -> torch.Tensor:
    """Features of all images under every net, in eval mode, (models, n, n_features) float32."""
    nets.eval()
    found, device = [], pixels.labels.device
    stem = next(module for module in nets.modules() if isinstance(module, nn.Conv2d))
    groups = stem.groups
    stem.groups = groups // nets.n_models  # all nets look at the same images, so these need no copy for each
    try:
        for index in torch.arange(len(pixels.labels), device=device).split(_batch(nets, pixels)):
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                found.append(nets.features(pixels.batch(index[None])).float())
    finally:
        stem.groups = groups
    return torch.cat(found, 1)


def _batch(nets: Nets, pixels: Pixels, most: int = 256) -> int:
    """Images at a time; on a CPU as few as its cache holds for all nets, which is up to four times as fast."""
    if isinstance(pixels, BetonPixels):
        return most
    if pixels.labels.device.type != "cpu":
        return max(most, 2**21 // (nets.n_models * pixels.height * pixels.width))
    return min(most, max(16, 2**18 // (nets.n_models * pixels.height * pixels.width)))


def finite(x: torch.Tensor) -> torch.Tensor:
    """Features as they are, or an error that names the nets whose features are not finite."""
    if not torch.isfinite(x).all():
        diverged = (~torch.isfinite(x).all(2).all(1)).nonzero().flatten().tolist()
        raise RuntimeError(f"features of nets {diverged} are not finite: training diverged, so lower the learning rate")
    return x


def solve_probes(
    x: torch.Tensor, labels: torch.Tensor, n_classes: int, l2: float, tolerance: float = 2e-6, max_steps: int = 2000
) -> tuple[torch.Tensor, torch.Tensor]:
    """Multinomial logistic regression with an L2 penalty, one problem per model, all solved together.

    Minimises mean cross-entropy + ``l2/2 |W|^2`` over standardised features (the intercept is free) by accelerated
    proximal-Newton steps: the Hessian is bounded by 1/2 X'X/n + l2 (Böhning 1992), so one Cholesky factor per model
    serves every step.

    Parameters
    ----------
    x : (models, n, n_features) float;  labels : (n,) int
    tolerance : largest entry of the gradient at which the solution is accepted

    Returns
    -------
    weight (models, n_features, n_classes) and bias (models, 1, n_classes), for the features as given

    >>> weight, bias = solve_probes(torch.randn(8, 100, 64), torch.arange(100) % 4, 4, l2=1e-2)
    """
    n = x.shape[1]
    mean, std = finite(x).mean(1, keepdim=True), x.std(1, keepdim=True, correction=0)
    std = torch.where(std > 1e-6 * std.amax(2, keepdim=True).clamp(min=1e-30), std, torch.inf)  # dead features: out
    z = x.new_ones(len(x), x.shape[2] + 1, n)  # the ones are the intercept's; with examples last, steps are fast
    z[:, :-1] = ((x - mean) / std).mT
    onehot = F.one_hot(labels, n_classes).T.to(z.dtype)
    penalty = F.pad(z.new_full((x.shape[2],), l2), (0, 1))
    factor, failed = torch.linalg.cholesky_ex(z @ z.mT / (2 * n) + penalty.diag())
    if failed.any():
        raise RuntimeError(f"the probe of fixed features has no solution in float32 at probe_l2={l2}: raise it")
    inverse = torch.cholesky_inverse(factor)
    w = ahead = solution = z.new_zeros(len(z), n_classes, len(penalty))
    momentum = z.new_ones(len(z), 1, 1)
    worst, found = torch.full_like(momentum, torch.inf), torch.zeros_like(momentum, dtype=torch.bool)
    for _ in range(max_steps):
        residual = torch.softmax(torch.bmm(ahead, z), 1) - onehot
        gradient = torch.baddbmm(ahead * penalty, residual, z.mT, alpha=1 / n)
        worst = gradient.abs().amax((1, 2), keepdim=True)
        # a model keeps its first solution: how long the others take must not change it
        new = (worst < tolerance) & ~found
        solution, found = torch.where(new, ahead, solution), found | new
        if found.all():
            weight = solution[..., :-1].mT / std.mT
            return weight, solution[:, None, :, -1] - mean @ weight
        following = torch.baddbmm(ahead, gradient, inverse, alpha=-1)
        step = following - w
        # restart a model's momentum when it points uphill (O'Donoghue & Candès 2015)
        uphill = (gradient * step).sum((1, 2), keepdim=True) > 0
        momentum = torch.where(uphill, 1.0, momentum)
        faster = (1 + (1 + 4 * momentum * momentum).sqrt()) / 2
        ahead = following + (momentum - 1) / faster * step
        w, momentum = following, faster
    raise RuntimeError(
        f"linear probes did not converge in {max_steps} steps (gradient {worst.max():.1e}, wanted {tolerance:.0e}): "
        "raise probe_l2 or lower the source learning rate"
    )


def outputs(logits: torch.Tensor, labels: torch.Tensor) -> Outputs:
    """What logits (models, n, classes) say of examples with labels (n,)."""
    index = labels.expand(len(logits), -1)[..., None]
    true = logits.gather(2, index)[..., 0]
    others = logits.scatter(2, index, -torch.inf)
    margin = true - others.logsumexp(2)
    return Outputs(margin.float(), torch.sigmoid(margin).float(), true > others.amax(2), logits.argmax(2))
