"""Training several source models at once, each on its own subset of the source."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator
from pydantic.dataclasses import dataclass

from dtl._batches import Batches, Images
from dtl._checks import InputError, check_images, check_kind, choice, in_plain_words, real, several, whole
from dtl._step import enough_memory, step_of
from dtl._streams import stream
from dtl.models import WIDTHS, Nets, blank, check_model, initialise


class _Own(tuple[int, ...]):
    """Widths that a net has where none are given; another net, made by `dataclasses.replace`, has its own instead."""


@in_plain_words
@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Recipe:
    """Settings of source training and of transfer; written beside every result.

    Parameters
    ----------
    model : str
        "small", "resnet9" (these train side by side) or the name of a torchvision classifier
    widths : tuple of int
        Channels of the stride-2 convolutions of "small" or of the four stages of "resnet9"; default is the net's own
    epochs, batch_size, lr, momentum, weight_decay, warmup
        Source training by SGD; lr rises to its peak over the first `warmup` share of the steps and falls linearly to
        zero. In the papers `warmup` is 2 epochs of 16
    augment : int
        Shift images by up to this many pixels and flip them left-right at random; 0 for neither. From a `.beton` any
        number above 0 means random resized crops and flips
    models_at_once : int
        Nets that train side by side, also the number of models that are saved together
    precision : "float32" or "bfloat16" (autocast)
    probe_l2 : float
        Penalty of the fixed-feature probe, on standardised features, per example
    finetune_epochs, finetune_lr
        Full-network transfer, and the head of `fixed+bn`
    finetune_weight_decay : float, optional
        Of full-network transfer and `fixed+bn`; default that of source training
    steps : int, optional
        Optimiser steps of source training, whatever the size of the subset; default is that of `epochs`

    Raises
    ------
    InputError : an unknown setting, or a value that it cannot have; "1e-3" and numbers of NumPy are numbers

    >>> dtl.Recipe(epochs=4).lr
    0.3
    """

    model: str = "small"
    widths: tuple[PositiveInt, ...] = ()
    epochs: PositiveInt = 16
    batch_size: Annotated[int, Field(ge=2)] = 64
    lr: PositiveFloat = 0.3
    momentum: NonNegativeFloat = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    warmup: Annotated[float, Field(gt=0, lt=1)] = 0.2
    augment: NonNegativeInt = 0
    models_at_once: PositiveInt = 16
    precision: Literal["float32", "bfloat16"] = "float32"
    probe_l2: PositiveFloat = 1e-2
    finetune_epochs: PositiveInt = 15
    finetune_lr: PositiveFloat = 0.05
    finetune_weight_decay: NonNegativeFloat | None = None
    steps: PositiveInt | None = None

    @field_validator("widths", mode="before")
    @classmethod
    def _without_own(cls, widths: object) -> object:
        return () if isinstance(widths, _Own) else widths

    def __post_init__(self) -> None:
        check_model(self.model)
        own = _Own(WIDTHS.get(self.model, ()))
        widths = self.widths or own
        if self.model != "small" and len(widths) != len(own):
            raise InputError(f"{self.model} has {len(own)} widths to set, not {len(widths)}: leave them out")
        object.__setattr__(self, "widths", own if widths == own else widths)

    def settings(self) -> dict[str, object]:
        """What is written beside results, as JSON has it.

        >>> dtl.Recipe(widths=(8, 16)).settings()["widths"]
        [8, 16]
        """
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def check_size(recipe: Recipe, height: int, width: int) -> None:
    """InputError if images are too small for the recipe, found out without computing much."""
    check_kind(recipe, "dtl.Recipe", "recipe")
    if recipe.augment >= min(height, width):
        times = (height + 2 * recipe.augment) * (width + 2 * recipe.augment) / (height * width)
        raise InputError(
            f"augment={recipe.augment} shifts images of {height} x {width} pixels out of sight, and takes "
            f"{times:.0f} times their memory: use at most {min(height, width) - 1}, a few pixels is usual"
        )
    where = "cpu" if recipe.model == "small" else "meta"  # which loads the compiler; some nets cannot be made there
    nets = blank(recipe.model, 2, 1, recipe.widths).to(where)
    try:
        nets(torch.zeros(2, 3, height, width, device=where))
    except (RuntimeError, AssertionError) as error:
        widths = f" with widths {recipe.widths}" if recipe.model == "small" else ""
        raise InputError(
            f"{recipe.model}{widths} cannot take images of {height} x {width} pixels ({error}): use images of another "
            "size, or a net that halves them fewer times"
        ) from error


def images_of(masks: np.ndarray, source: Images, unit: str = "class") -> np.ndarray:
    """The images that each model sees, bool (models, N), from subsets of classes (models, K) or of images.

    >>> one_class_each = np.eye(problem.source.n_classes, dtype=bool)
    >>> bool((dtl.training.images_of(one_class_each, problem.source).sum(1) == problem.source.counts).all())
    True
    """
    choice(unit, ("class", "example"), "unit")
    n = check_images(source, "source").n_classes if unit == "class" else len(source)
    if np.asarray(masks).dtype != bool or np.shape(masks)[1:] != (n,):
        raise InputError(f"masks must be bool, models x {n}, not {np.asarray(masks).dtype} {np.shape(masks)}")
    return masks[:, source.labels.numpy()] if unit == "class" else masks


def schedule(n: int, recipe: Recipe) -> tuple[int, int]:
    """(steps, batch size) of a model that sees n images; models that share both can train side by side.

    >>> dtl.training.schedule(70, dtl.Recipe(epochs=3, batch_size=32))         # the incomplete batch is dropped
    (6, 32)
    """
    batch = min(check_kind(recipe, "dtl.Recipe", "recipe").batch_size, whole("n", n, 0))
    return recipe.steps or recipe.epochs * (n // batch), batch


class Plan(NamedTuple):
    """All that changes from step to step of models side by side, drawn before the first step.

    order : (steps, models, batch) int64, numbers of images
    draws : (steps, models, batch, d) int32, what is random about them (`Batches.draw`)
    lr : (steps,) float64
    """

    order: torch.Tensor
    draws: torch.Tensor
    lr: torch.Tensor


def draw_plan(
    examples: Sequence[np.ndarray],
    size: tuple[int, int],
    rng: Sequence[np.random.Generator],
    batches: Batches,
    recipe: Recipe,
) -> Plan:
    """The plan of models that see `examples` (numbers of images, an array each) for (steps, batch size).

    Everything random about a model comes from its own generator: the order of all steps first, then their draws.
    """
    orders = [draw_order(own, *size, r) for own, r in zip(several(examples, "examples"), rng, strict=True)]
    draws = [batches.draw(order, r) for order, r in zip(orders, rng, strict=True)]
    order, drawn = (torch.from_numpy(np.stack(part, 1)) for part in (orders, draws))
    return Plan(order, drawn, torch.from_numpy(learning_rates(size[0], recipe.lr, recipe.warmup)))


def draw_order(examples: np.ndarray, steps: int, batch: int, rng: np.random.Generator) -> np.ndarray:
    """(steps, batch) of these examples: a new permutation each epoch, the incomplete batch dropped."""
    if np.ndim(examples) != 1:
        raise InputError(f"examples must be numbers of images, not {examples!r}")
    per_epoch = len(examples) // batch
    epochs = [rng.permutation(examples)[: per_epoch * batch] for _ in range(-(-steps // per_epoch))]
    return np.concatenate(epochs)[: steps * batch].reshape(steps, batch)


def learning_rates(steps: int, lr: float, warmup: float) -> np.ndarray:
    """Linearly from lr / 25 to lr over the first `warmup` share of the steps, and towards lr / 250,000; (steps,).

    Those of torch's `OneCycleLR(..., total_steps=steps + 1, pct_start=warmup, anneal_strategy="linear")`.

    >>> dtl.training.learning_rates(4, 1.0, 0.4).round(3)
    array([0.04 , 1.   , 0.667, 0.333])
    """
    steps, lr, warmup = whole("steps", steps, 0), real("lr", lr), real("warmup", warmup)
    step, first, last = np.arange(steps), lr / 25, lr / 250_000
    warmup = warmup if warmup * (steps + 1) != 1 else np.nextafter(warmup, 1)  # a peak at step 0 divides by zero
    peak = warmup * (steps + 1) - 1
    falling = (last - lr) * ((step - peak) / (steps - peak)) + lr
    return np.where(step <= peak, (lr - first) * (step / peak) + first, falling)


def fit(
    nets: Nets,
    batches: Batches,
    plan: Plan,
    recipe: Recipe,
    absent: torch.Tensor | None = None,
    only_head: bool = False,
) -> None:
    """Run the steps of a plan, in place.

    Parameters
    ----------
    absent : (models, classes) bool, logits that are left out of the loss
    only_head : train the heads alone; the statistics of BatchNorm adapt all the same
    """
    check_kind(nets, "dtl.models.Nets", "nets")
    device = batches.labels.device
    absent = torch.zeros(nets.n_models, nets.n_classes, dtype=torch.bool) if absent is None else absent
    order, absent, rates = plan.order.to(device), absent.to(device), plan.lr.to(device)
    nets.train()
    with step_of(nets, batches, recipe.precision, recipe.momentum, recipe.weight_decay, only_head) as step:
        for index, loaded, lr in zip(order, batches.load(plan.order, plan.draws), rates, strict=True):
            step(index, loaded, absent, lr)
    nets.eval()


@enough_memory()
def train_sources(
    source: Images,
    masks: np.ndarray,
    seeds: Sequence[int],
    recipe: Recipe,
    device: str | torch.device = "auto",
    unit: str = "class",
) -> Nets:
    """Source models side by side, each on what its mask holds; classes of which it sees nothing are out of its loss.

    Parameters
    ----------
    masks : (models, K) bool, or (models, N) for unit "example"; all rows must have one `schedule`
    seeds : a model's initial weights, order of examples and augmentation depend on its seed alone

    >>> masks = dtl.subset_masks(problem.source.n_classes, 4)
    >>> nets = dtl.training.train_sources(problem.source, masks, [0, 1, 2, 3], dtl.Recipe(epochs=1), "cpu")
    >>> nets.n_models
    4
    """
    device, seen, labels = resolve_device(device), images_of(masks, source, unit), source.labels.numpy()
    sizes = {schedule(int(n), recipe) for n in seen.sum(1)}
    if len(sizes) > 1:
        raise InputError(f"models of different schedules cannot train side by side: {sorted(sizes)}")
    nets = initialise(recipe.model, source.n_classes, seeds, recipe.widths)
    nets = nets.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    batches = source.batches(source, device, recipe.augment)
    rng = [stream("training", seed) for seed in seeds]
    plan = draw_plan([*map(np.flatnonzero, seen)], sizes.pop(), rng, batches, recipe)
    absent = np.stack([~np.isin(np.arange(source.n_classes), labels[images]) for images in seen])
    fit(nets, batches, plan, recipe, torch.from_numpy(absent))
    return nets


def resolve_device(device: str | torch.device) -> torch.device:
    """A torch device from "auto", "cpu", "cuda" or "cuda:1"; one clear error when it is unknown or absent.

    >>> dtl.training.resolve_device("cpu")
    device(type='cpu')
    """
    device = str(device)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name, _, number = device.partition(":")
    if name not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise InputError(f"unknown device {device!r}: use 'auto', 'cpu', 'cuda' or 'cuda:1'")
    if name == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {device!r} was asked for but torch sees {torch.cuda.device_count()} CUDA devices: use 'cpu', or "
            "check the driver with 'python -m dtl doctor'"
        )
    return torch.device(device)
