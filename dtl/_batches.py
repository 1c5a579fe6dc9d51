"""How the images of a dataset become what a training step sees: normalised batches on a device, of a fixed shape.

What is random about a batch is drawn before training (`draw`), what is on a disk is read ahead of the step (`load`),
and the rest is a function of tensors (`images`), which a GPU can compile and replay.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from dtl.data import ImageDataset

Steps = torch.Tensor | Sequence[torch.Tensor]  # for each step the numbers of its images, (models, batch) on the CPU


class Images(Protocol):
    """What training and transfer ask of a dataset, wherever its images are."""

    @property
    def labels(self) -> torch.Tensor: ...  # (n,) int64, on the CPU
    @property
    def n_classes(self) -> int: ...
    @property
    def size(self) -> tuple[int, int]: ...
    def __len__(self) -> int: ...
    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]: ...
    def batches(self, like: "Images", device: torch.device, augment: int = 0) -> "Batches": ...


class Batches(ABC):
    """Images of a dataset on a device, normalised with the channel statistics of `like`."""

    def __init__(self, dataset: Images, like: Images, device: torch.device) -> None:
        mean, std = like.statistics()
        self.scale = (1 / (255 * std))[:, None, None].to(device)
        self.shift = (-mean / std)[:, None, None].to(device)
        self.labels, self.size = dataset.labels.to(device), dataset.size

    @abstractmethod
    def draw(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What is random about the images of one model's steps, (steps, batch) -> integers (steps, batch, d)."""

    @abstractmethod
    def load(self, order: Steps, draws: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        """For each step what `images` needs beside the numbers of its images (models, batch), on the device."""

    @abstractmethod
    def images(self, index: torch.Tensor, loaded: torch.Tensor) -> torch.Tensor:
        """One step: numbers of images (models, batch) -> float (batch, models * 3, height, width)."""

    def in_order(self, size: int) -> Iterator[torch.Tensor]:
        """All images as they follow each other, float (batch, 3, height, width), `size` of them at a time."""
        order, device = torch.arange(len(self.labels))[None].split(size, 1), self.labels.device
        for index, loaded in zip(order, self.load(order), strict=True):
            yield self.images(index.to(device), loaded)

    def normalised(self, x: torch.Tensor) -> torch.Tensor:
        """uint8 (batch, models, 3, height, width) -> float (batch, models * 3, height, width)"""
        models = x.shape[1]
        # reordered while a pixel is still one byte, for a CPU as dtl._patches wants it
        if x.device.type == "cpu":
            x = x.flatten(1).T.contiguous().view(*x[0].flatten(0, 1).shape, len(x)).permute(3, 0, 1, 2).float()
        else:
            x = x.flatten(1, 2).contiguous(memory_format=torch.channels_last).float()
        return x.mul_(self.scale.repeat(models, 1, 1)).add_(self.shift.repeat(models, 1, 1))


class InMemory(Batches):
    """Images that lie on the device, each shifted by up to `pad` pixels and flipped left-right, as drawn."""

    def __init__(self, dataset: "ImageDataset", like: Images, device: torch.device, pad: int = 0) -> None:
        super().__init__(dataset, like, device)
        rows, columns = (np.pad(np.arange(side), pad, mode="reflect") for side in self.size)
        self.pixels, self.pad = dataset.images.to(device), pad
        if pad:
            self.pixels = self.pixels[:, :, rows][..., columns]

    def draw(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self.pad:
            return np.empty((*order.shape, 0), dtype=np.int32)
        return rng.integers(0, (2 * self.pad + 1, 2 * self.pad + 1, 2), (*order.shape, 3)).astype(np.int32)

    def load(self, order: Steps, draws: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        return iter((torch.empty(len(order), 0) if draws is None else draws).to(self.labels.device))

    def images(self, index: torch.Tensor, loaded: torch.Tensor) -> torch.Tensor:
        if not self.pad:
            x = self.pixels.index_select(0, index.T.flatten())
            return self.normalised(x.unflatten(0, index.T.shape))
        dy, dx, flip = loaded.long().transpose(0, 1).unbind(-1)
        windows = self.pixels.unfold(2, self.size[0], 1).unfold(3, self.size[1], 1)  # (n, 3, dy, dx, h, w), a view
        x = windows[index.T, :, dy, dx]
        return self.normalised(torch.where(flip.bool()[..., None, None, None], x.flip(-1), x))


resident = lru_cache(8)(InMemory)  # for a GPU: to send 100,000 small images there takes a good part of a second
