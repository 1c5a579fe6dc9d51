"""Training several source models at once, each on its own subset of the source."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from numbers import Integral, Real

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dtl._checks import InputError
from dtl.data import ImageDataset
from dtl.datasets.ffcv import Beton
from dtl.models import WIDTHS, Nets, check_model, initialise


@dataclass(frozen=True)
class Recipe:
    """Settings of source training and of transfer; written beside every result.

    Parameters
    ----------
    model : "small", "resnet9" (these train side by side) or the name of a torchvision classifier
    widths : channels of the stride-2 convolutions of "small" or of the four stages of "resnet9"; default is the net's
        own
    epochs, batch_size, lr, momentum, weight_decay : source training by SGD; lr rises to its peak over the first
        `warmup` share of the steps and falls linearly to zero
    augment : shift images by up to this many pixels and flip them left-right at random; 0 for neither. From a `.beton`
        any number above 0 means random resized crops and flips
    models_at_once : nets that train side by side, also the number of models that are saved together
    precision : "float32" or "bfloat16" (autocast)
    probe_l2 : penalty of the fixed-feature probe, on standardised features, per example
    finetune_epochs, finetune_lr : full-network transfer, and the head of `fixed+bn`
    steps : optimiser steps of source training, whatever the size of a subset; None for `epochs`

    >>> Recipe(epochs=4).lr
    0.3
    """

    model: str = "small"
    widths: tuple[int, ...] = ()
    epochs: int = 16
    batch_size: int = 64
    lr: float = 0.3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.2
    augment: int = 0
    models_at_once: int = 16
    precision: str = "float32"
    probe_l2: float = 1e-2
    finetune_epochs: int = 15
    finetune_lr: float = 0.05
    steps: int | None = None

    def __post_init__(self) -> None:
        at_least = {"epochs": 1, "batch_size": 2, "models_at_once": 1, "finetune_epochs": 1, "augment": 0, "steps": 1}
        for name, least in at_least.items():
            value = getattr(self, name)
            if name == "steps" and value is None:
                continue
            if not isinstance(value, Integral) or value < least:
                raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")
            object.__setattr__(self, name, int(value))  # numbers of NumPy cannot be written to a store
        for name in ("lr", "finetune_lr", "probe_l2", "momentum", "weight_decay", "warmup"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= float(value) < float("inf"):
                raise InputError(f"{name} must be a number that is not negative, not {value!r}")
            object.__setattr__(self, name, float(value))
        for name in ("lr", "finetune_lr", "probe_l2"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, not {getattr(self, name)}")
        check_model(self.model)
        own = WIDTHS.get(self.model, ())
        widths = tuple(self.widths) or own
        if self.model != "small" and widths in WIDTHS.values():
            widths = own  # what `replace(recipe, model=...)` hands on from the net before
        if not all(isinstance(n, Integral) and int(n) > 0 for n in widths):
            raise InputError(f"widths must be positive numbers of channels, not {widths}")
        if self.model != "small" and len(widths) != len(own):
            raise InputError(f"{self.model} has {len(own)} widths to set, not {len(widths)}: leave them out")
        if not 0 < self.warmup < 1:
            raise InputError(f"warmup is the share of the steps before the peak, between 0 and 1, not {self.warmup}")
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(f"unknown precision {self.precision!r}: use 'float32' or 'bfloat16'")
        object.__setattr__(self, "widths", tuple(map(int, widths)))

    def settings(self) -> dict[str, object]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def check_size(recipe: Recipe, height: int, width: int) -> None:
    """InputError if images are too small for the recipe's net, found out without computing anything."""
    nets = Nets(recipe.model, 2, 1, recipe.widths).to("meta")  # made elsewhere: some torchvision nets cannot be there
    try:
        nets(torch.empty(2, 3, height, width, device="meta"))
    except (RuntimeError, AssertionError) as error:
        widths = f" with widths {recipe.widths}" if recipe.model == "small" else ""
        raise InputError(
            f"{recipe.model}{widths} cannot take images of {height} x {width} pixels ({error}): use images of another "
            "size, or a net that halves them fewer times"
        ) from error


class Pixels:
    """Images on a device, normalised with the channel statistics of `like`, cut into batches for nets side by side."""

    def __init__(self, dataset: ImageDataset, like: ImageDataset, device: torch.device, pad: int = 0) -> None:
        self._normalise(dataset, like, device)
        images = dataset.images
        self.height, self.width = images.shape[2:]
        rows, columns = (np.pad(np.arange(side), pad, mode="reflect") for side in images.shape[2:])
        images = images.to(device)
        self.images = images[:, :, rows][..., columns] if pad else images
        self.pad = pad

    def _normalise(self, dataset: ImageDataset, like: ImageDataset, device: torch.device) -> None:
        mean, std = like.statistics()
        self.scale = (1 / (255 * std))[:, None, None].to(device)
        self.shift = (-mean / std)[:, None, None].to(device)
        self.labels = dataset.labels.to(device)

    def batch(self, index: torch.Tensor, rng: Sequence[np.random.Generator] = ()) -> torch.Tensor:
        """index (models, batch) -> float (batch, models * 3, height, width), shifted and flipped if padded"""
        if self.pad:
            draws = np.stack([r.integers(0, (2 * self.pad + 1, 2 * self.pad + 1, 2), (index.shape[1], 3)) for r in rng])
            dy, dx, flip = torch.from_numpy(draws).to(index.device).transpose(0, 1).unbind(-1)
            windows = self.images.unfold(2, self.height, 1).unfold(3, self.width, 1)  # (n, 3, dy, dx, h, w), a view
            x = windows[index.T, :, dy, dx]
            x = torch.where(flip.bool()[..., None, None, None], x.flip(-1), x)
        else:
            x = self.images.index_select(0, index.T.flatten()).unflatten(0, index.T.shape)  # (batch, models, 3, h, w)
        return self._finish(x)

    def batches(self, order: torch.Tensor, rng: Sequence[np.random.Generator]) -> Iterator[torch.Tensor]:
        """`batch` of each step of an order (steps, models, batch)."""
        for index in order.to(self.labels.device):
            yield self.batch(index, rng)

    def _finish(self, x: torch.Tensor) -> torch.Tensor:
        """uint8 (batch, models, 3, height, width) -> float (batch, models * 3, height, width), normalised"""
        models = x.shape[1]
        # reordered while a pixel is still one byte
        x = x.flatten(1, 2).contiguous(memory_format=torch.channels_last).float()
        return x.mul_(self.scale.repeat(models, 1, 1)).add_(self.shift.repeat(models, 1, 1))


class BetonPixels(Pixels):
    """The same batches from a `.beton`, decoded when they are needed; random resized crops in place of shifts."""

    def __init__(self, dataset: Beton, like: ImageDataset, device: torch.device, augment: bool = False) -> None:
        self._normalise(dataset, like, device)
        self.dataset, self.augment = dataset, augment

    def batch(self, index: torch.Tensor, rng: Sequence[np.random.Generator] = ()) -> torch.Tensor:
        return self._finish(self._decode(index, rng, None).to(self.labels.device))

    def batches(self, order: torch.Tensor, rng: Sequence[np.random.Generator]) -> Iterator[torch.Tensor]:
        """`batch` of each step, at the resolution that the schedule says; the next one is decoded in the meantime."""
        schedule = self.dataset.schedule if self.augment else None
        sizes = [schedule and schedule.resolution(step * schedule.epochs // len(order)) for step in range(len(order))]
        with ThreadPoolExecutor(1) as ahead:  # one thread, so that draws from `rng` keep their order
            following = ahead.submit(self._decode, order[0], rng, sizes[0])
            for step in range(len(order)):
                x = following.result()
                if step + 1 < len(order):
                    following = ahead.submit(self._decode, order[step + 1], rng, sizes[step + 1])
                yield self._finish(x.to(self.labels.device))

    def _decode(self, index: torch.Tensor, rng: Sequence[np.random.Generator], resolution: int | None) -> torch.Tensor:
        """index (models, batch) -> uint8 (batch, models, 3, height, width)"""
        rows = index.cpu().numpy()
        boxes = flips = None
        if self.augment:
            drawn = [self.dataset.draw(row, r) for row, r in zip(rows, rng, strict=True)]
            boxes, flips = (
                np.stack(part, 1).reshape(rows.size, *part[0].shape[1:]) for part in zip(*drawn, strict=True)
            )
        x = self.dataset.read(rows.T.flatten(), boxes, flips, resolution)
        return x.unflatten(0, rows.T.shape)


def open_pixels(dataset: ImageDataset, like: ImageDataset, device: torch.device, augment: int = 0) -> Pixels:
    """The batches of a dataset, in memory or in a `.beton`, augmented as `Recipe.augment` says."""
    if isinstance(dataset, Beton):
        return BetonPixels(dataset, like, device, augment > 0)
    return (Pixels if device.type == "cpu" else _resident)(dataset, like, device, augment)


@lru_cache(8)
def _resident(dataset: ImageDataset, like: ImageDataset, device: torch.device, augment: int) -> Pixels:
    """Kept on a GPU from model to model: sending 100,000 small images takes a good part of a second."""
    return Pixels(dataset, like, device, augment)


def members(masks: np.ndarray, source: ImageDataset, unit: str) -> np.ndarray:
    """The images that each model sees, bool (models, N), from subsets of classes (models, K) or of images."""
    return masks[:, source.labels.numpy()] if unit == "class" else masks


def schedule(n: int, recipe: Recipe) -> tuple[int, int]:
    """(steps, batch size) of a model that sees n images; models that share both can train side by side."""
    batch = min(recipe.batch_size, n)
    return recipe.steps or recipe.epochs * (n // batch), batch


def fit(
    nets: Nets,
    pixels: Pixels,
    order: torch.Tensor,
    recipe: Recipe,
    lr: float,
    rng: Sequence[np.random.Generator],
    parameters: Iterable[nn.Parameter],
    absent: torch.Tensor | None = None,
) -> None:
    """SGD on cross-entropy, in place. The loss is summed over models, so one backward pass serves all of them.

    order : (steps, models, batch) indices of examples;  absent : (models, classes) bool, logits left out
    """
    optimiser = torch.optim.SGD(parameters, lr, recipe.momentum, weight_decay=recipe.weight_decay, fused=True)
    total = len(order) + 1
    # at exactly one step of warm-up OneCycleLR divides by zero
    warmup = recipe.warmup if recipe.warmup * total != 1 else np.nextafter(recipe.warmup, 1)
    lr_schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, lr, total, pct_start=float(warmup), anneal_strategy="linear", cycle_momentum=False
    )
    nets.train()
    device = pixels.labels.device
    for index, x in zip(order.to(device), pixels.batches(order, rng), strict=True):
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            logits = nets(x).float()  # (models, batch, classes)
        if absent is not None:
            logits = logits.masked_fill(absent[:, None], -torch.inf)
        loss = F.cross_entropy(logits.flatten(0, 1), pixels.labels[index].flatten(), reduction="sum") / index.shape[1]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        lr_schedule.step()
    nets.eval()


def draw_order(members: np.ndarray, steps: int, batch: int, rng: np.random.Generator) -> torch.Tensor:
    """(steps, batch) indices into `members`: a new permutation each epoch, the incomplete batch dropped."""
    per_epoch = len(members) // batch
    epochs = [rng.permutation(members)[: per_epoch * batch] for _ in range(-(-steps // per_epoch))]
    return torch.from_numpy(np.concatenate(epochs)[: steps * batch].reshape(steps, batch))


def train_sources(
    source: ImageDataset,
    masks: np.ndarray,
    seeds: Sequence[int],
    recipe: Recipe,
    device: torch.device,
    unit: str = "class",
) -> Nets:
    """Source models side by side, each on what its mask holds; classes of which it sees nothing are out of its loss.

    Parameters
    ----------
    masks : (models, K) bool, or (models, N) for unit "example"; all rows must have one `schedule`
    seeds : a model's initial weights, order of examples and augmentation depend on its seed alone

    >>> masks = dtl.subset_masks(problem.source.n_classes, 4)
    >>> nets = train_sources(problem.source, masks, [0, 1, 2, 3], Recipe(), torch.device("cpu"))
    """
    seen, labels = members(masks, source, unit), source.labels.numpy()
    plans = {schedule(int(n), recipe) for n in seen.sum(1)}
    if len(plans) > 1:
        raise InputError(f"models of different schedules cannot train side by side: {sorted(plans)}")
    ((steps, batch),) = plans
    rng = [np.random.default_rng([int(seed), 1]) for seed in seeds]
    orders = [draw_order(np.flatnonzero(images), steps, batch, r) for images, r in zip(seen, rng, strict=True)]
    nets = initialise(recipe.model, source.n_classes, seeds, recipe.widths)
    nets = nets.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    pixels = open_pixels(source, source, device, recipe.augment)
    absent = torch.ones(len(masks), source.n_classes, dtype=torch.bool)
    for row, images in zip(absent, seen, strict=True):
        row[labels[images]] = False
    fit(nets, pixels, torch.stack(orders, 1), recipe, recipe.lr, rng, nets.parameters(), absent.to(device))
    return nets


def resolve_device(device: str) -> torch.device:
    """A torch device from "auto", "cpu", "cuda" or "cuda:1"; one clear error when it is unknown or absent."""
    if isinstance(device, torch.device):
        device = str(device)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name, _, number = str(device).partition(":")
    if name not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise InputError(f"unknown device {device!r}: use 'auto', 'cpu', 'cuda' or 'cuda:1'")
    if name == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {device!r} was asked for but torch sees {torch.cuda.device_count()} CUDA devices: use 'cpu', or "
            "check the driver with 'python -m dtl doctor'"
        )
    return torch.device(device)
