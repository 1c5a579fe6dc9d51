"""Transfer of source models to the target: fixed features, fixed with BatchNorm adapting, the full network, or none."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from dtl._batches import Batches, Images
from dtl._checks import InputError, check_images, check_kind, real, several, whole
from dtl._step import enough_memory
from dtl._streams import stream
from dtl.data import TransferProblem
from dtl.models import Nets, initialise
from dtl.training import Recipe, draw_plan, fit, schedule

REGIMES = ("fixed", "fixed+bn", "full", "scratch")
TOLERANCE = 2e-6  # largest entry of the gradient at which a probe is solved


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


class Embedding(NamedTuple):
    """What source models make of images, on the CPU: features (models, n, n_features) and logits (models, n, K)."""

    features: torch.Tensor
    logits: torch.Tensor

    @property
    def probabilities(self) -> torch.Tensor:
        """Of the source classes, (models, n, K)."""
        return self.logits.softmax(2)


@enough_memory()
def embed(
    nets: Nets, images: Images, like: Images, recipe: Recipe | None = None, present: np.ndarray | None = None
) -> Embedding:
    """Features of a dataset's images and logits of the source heads, float32, by source models in eval mode.

    Parameters
    ----------
    like : the source on which the nets were trained; its channel statistics normalise the images
    recipe : for its precision; default float32
    present : (models, K) bool, the classes that each model has seen: the logits of others are -inf; default all

    Raises
    ------
    InputError : nets of another number of source classes
    RuntimeError : features are not finite, because training diverged

    >>> nets = dtl.baselines.full_source_nets(problem, dtl.Recipe(epochs=1), seeds=(0, 1), device="cpu")
    >>> found = dtl.transfer.embed(nets, problem.target_test, like=problem.source)
    >>> found.probabilities.shape == (2, len(problem.target_test), problem.source.n_classes)
    True
    """
    check_kind(nets, "dtl.models.Nets", "nets")
    check_kind(recipe, "dtl.Recipe", "recipe", optional=True)
    check_images(images, "images")
    if nets.n_classes != check_images(like, "like").n_classes:
        raise InputError(f"the nets have {nets.n_classes} source classes, not the {like.n_classes} of this source")
    x = finite(features(nets, images.batches(like, nets.weight.device), recipe or Recipe()))
    logits = torch.baddbmm(nets.bias.detach(), x, nets.weight.detach()).cpu()
    if present is not None:
        if np.asarray(present).dtype != bool or np.shape(present) != (nets.n_models, nets.n_classes):
            raise InputError(f"present must be bool, {(nets.n_models, nets.n_classes)}, not {np.shape(present)}")
        logits = logits.masked_fill(~torch.as_tensor(present)[:, None], -torch.inf)
    return Embedding(x.cpu(), logits)


@enough_memory()
def transfer(
    nets: Nets, problem: TransferProblem, seeds: Sequence[int], recipe: Recipe, regime: str
) -> dict[str, Outputs]:
    """Transfer every net and evaluate it on the validation and test splits, and on the views of the problem.

    Parameters
    ----------
    nets : source models side by side, on any device; changed by "full" and "fixed+bn"
    regime : "fixed" (features of the frozen net, linear probes solved to convergence), "fixed+bn" (weights frozen but
        BatchNorm adapting while an SGD head trains, as the code of Jain et al. 2022 does), "full" (all fine-tuned) or
        "scratch" (new nets, trained on the target alone as sources are)

    >>> nets = dtl.baselines.full_source_nets(problem, dtl.Recipe(epochs=1), seeds=(0, 1), device="cpu")
    >>> outputs = dtl.transfer.transfer(nets, problem, [0, 1], dtl.Recipe(), "fixed")
    >>> accuracy = outputs["test"].correct.float().mean(1)
    """
    said = target_logits(nets, problem, seeds, recipe, regime)
    return {name: outputs(logits, problem.judges[name].labels.to(logits.device)) for name, logits in said.items()}


def target_logits(
    nets: Nets, problem: TransferProblem, seeds: Sequence[int], recipe: Recipe, regime: str
) -> dict[str, torch.Tensor]:
    """Logits of the transferred nets on each of `problem.judges`, (models, n, classes); see `transfer`."""
    check_kind(nets, "dtl.models.Nets", "nets")
    check_kind(problem, "dtl.TransferProblem", "problem")
    check_kind(recipe, "dtl.Recipe", "recipe")
    if len(several(seeds, "seeds")) != nets.n_models:
        raise InputError(f"give one seed for each of {nets.n_models} nets, not {len(seeds)}")
    device, train = nets.weight.device, problem.target_train
    if regime == "fixed":
        x = features(nets, train.batches(problem.source, device), recipe)
        weight, bias = solve_probes(x, train.labels.to(device), train.n_classes, recipe.probe_l2)
    else:
        own = replace(recipe, steps=None)
        if regime == "scratch":
            nets = initialise(recipe.model, train.n_classes, seeds, recipe.widths)
            nets = nets.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        elif regime in ("fixed+bn", "full"):
            nets.new_head(train.n_classes, seeds)
            decay = recipe.weight_decay if recipe.finetune_weight_decay is None else recipe.finetune_weight_decay
            own = replace(own, epochs=recipe.finetune_epochs, lr=recipe.finetune_lr, weight_decay=decay)
        else:
            raise InputError(f"unknown transfer {regime!r}: use one of {', '.join(REGIMES)}")
        batches = train.batches(problem.source, device, recipe.augment)
        rng = [stream("training" if regime == "scratch" else "transfer", seed) for seed in seeds]
        plan = draw_plan([np.arange(len(train))] * len(seeds), schedule(len(train), own), rng, batches, own)
        fit(nets, batches, plan, own, only_head=regime == "fixed+bn")
        weight, bias = nets.weight.detach(), nets.bias.detach()
    judges = {name: judge.batches(problem.source, device) for name, judge in problem.judges.items()}
    return {name: features(nets, batches, recipe) @ weight + bias for name, batches in judges.items()}


@torch.inference_mode()
def features(nets: Nets, batches: Batches, recipe: Recipe) -> torch.Tensor:
    """Features of all images under every net, in eval mode, (models, n, n_features) float32."""
    check_kind(nets, "dtl.models.Nets", "nets").eval()
    device = batches.labels.device
    each = nets.n_models * batches.size[0] * batches.size[1]
    # on a CPU as few images at a time as its cache holds for all nets, which is up to four times as fast
    size = min(256, max(16, 2**18 // each)) if device.type == "cpu" else max(256, 2**21 // each)
    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
        return torch.cat([nets.features(x).float() for x in batches.in_order(size)], 1)


def finite(x: torch.Tensor) -> torch.Tensor:
    """Features as they are, or an error that names the nets whose features are not finite."""
    if not torch.isfinite(check_kind(x, "torch.Tensor", "features")).all():
        diverged = (~torch.isfinite(x).all(2).all(1)).nonzero().flatten().tolist()
        raise RuntimeError(f"features of nets {diverged} are not finite: training diverged, so lower the learning rate")
    return x


def solve_probes(
    x: torch.Tensor, labels: torch.Tensor, n_classes: int, l2: float, max_steps: int = 2000
) -> tuple[torch.Tensor, torch.Tensor]:
    """Multinomial logistic regression with an L2 penalty, one problem per model, all solved together.

    Minimises mean cross-entropy + ``l2/2 |W|^2`` over standardised features (the intercept is free) by accelerated
    proximal-Newton steps: the Hessian is bounded by 1/2 X'X/n + l2 (Böhning 1992), so one Cholesky factor per model
    serves every step.

    Parameters
    ----------
    x : (models, n, n_features) float;  labels : (n,) int

    Returns
    -------
    weight (models, n_features, n_classes) and bias (models, 1, n_classes), for the features as given

    >>> x, labels = torch.randn(8, 100, 64), torch.arange(100) % 4
    >>> weight, bias = dtl.transfer.solve_probes(x, labels, n_classes=4, l2=1e-2)
    >>> weight.shape, bias.shape
    (torch.Size([8, 64, 4]), torch.Size([8, 1, 4]))
    """
    n, n_classes = finite(x).shape[1], whole("n_classes", n_classes, 2)
    l2, max_steps = real("l2", l2), whole("max_steps", max_steps, 1)
    if check_kind(labels, "torch.Tensor", "labels").shape != (n,):
        raise InputError(f"labels must be one for each of {n} images, not {tuple(labels.shape)}")
    mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True, correction=0)
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
        new = (worst < TOLERANCE) & ~found
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
        f"linear probes did not converge in {max_steps} steps (gradient {worst.max():.1e}, wanted {TOLERANCE:.0e}): "
        "raise probe_l2 or lower the source learning rate"
    )


def outputs(logits: torch.Tensor, labels: torch.Tensor) -> Outputs:
    """What logits (models, n, classes) say of examples with labels (n,)."""
    check_kind(logits, "torch.Tensor", "logits")
    index = labels.expand(len(logits), -1)[..., None]
    true = logits.gather(2, index)[..., 0]
    others = logits.scatter(2, index, -torch.inf)
    margin = true - others.logsumexp(2)
    return Outputs(margin.float(), torch.sigmoid(margin).float(), true > others.amax(2), logits.argmax(2))
