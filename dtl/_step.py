"""One step of training, a function of tensors of fixed shape: run as it is, or compiled and replayed on a GPU."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional as F
from torch.optim.sgd import sgd

from dtl._batches import Batches
from dtl._checks import InputError
from dtl.models import Nets, blank

logger = logging.getLogger(__name__)

REPLAYED = ("cuda",)  # types of device on which a step is prepared once and then replayed
ATTEMPTS = ((True, True), (False, True), (False, False))  # (compiled, captured): the first that works
KEPT = 4  # prepared steps of a process, each with nets of its own


class Step:
    """One step of SGD on cross-entropy, in place: (numbers of images, what they load, absent classes, learning rate).

    The loss is summed over models, so one backward pass serves all of them.
    """

    def __init__(
        self, nets: Nets, batches: Batches, precision: str, momentum: float, weight_decay: float, only_head: bool
    ) -> None:
        self.nets, self.batches, self.half = nets, batches, precision == "bfloat16"
        self.loss, self.device = self._loss, batches.labels.device
        nets.backbone.requires_grad_(not only_head)
        self.trained: list[torch.Tensor] = [*(nets.head if only_head else nets.parameters())]
        self.momenta = [torch.zeros_like(parameter) for parameter in self.trained]
        # where the optimiser reads its rate: a GPU wants float32, and a CPU is as exact as with a Python number
        self.lr = torch.zeros((), dtype=torch.float64 if self.device.type == "cpu" else None, device=self.device)
        self.settings = {"momentum": momentum, "weight_decay": weight_decay, "dampening": 0, "lr": self.lr}

    def _loss(self, index: torch.Tensor, loaded: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            logits = self.nets(self.batches.images(index, loaded)).float()  # (models, batch, classes)
        logits = logits.masked_fill(absent[:, None], -torch.inf).flatten(0, 1)
        return F.cross_entropy(logits, self.batches.labels[index].flatten(), reduction="sum") / index.shape[1]

    def __call__(self, index: torch.Tensor, loaded: torch.Tensor, absent: torch.Tensor, lr: torch.Tensor) -> None:
        self.lr.copy_(lr)
        self.nets.zero_grad()
        self.loss(index, loaded, absent).backward()
        gradients = [p.grad for p in self.trained if p.grad is not None]
        with torch.no_grad():  # the function behind torch.optim.SGD, which would load the compiler, seconds a process
            sgd(self.trained, gradients, [*self.momenta], fused=True, nesterov=False, maximize=False, **self.settings)


class Replay(Step):
    """The same on nets of its own: compiled, captured as a CUDA graph, and replayed for all models of its kind."""

    def __init__(self, nets: Nets, batches: Batches, *settings: Any) -> None:
        super().__init__(nets.train(), batches, *settings)
        self.ready: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, list[torch.Tensor]] | None] = {}
        torch.backends.cudnn.benchmark = True  # one shape for thousands of steps: worth the search for the best kernel

    def start(self, nets: Nets) -> None:
        """Go on with the weights and statistics of `nets`, as if there had been none before."""
        self.nets.load_state_dict(nets.state_dict())
        for momentum in self.momenta:
            momentum.zero_()

    def __call__(self, *inputs: torch.Tensor) -> None:
        shapes = tuple(x.shape for x in inputs)
        if shapes not in self.ready:
            self.ready[shapes] = self._prepared(inputs)
        if (replayed := self.ready[shapes]) is None:
            return super().__call__(*inputs)
        graph, places = replayed
        for place, x in zip(places, inputs, strict=True):
            place.copy_(x)
        graph.replay()

    def _prepared(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor]] | None:
        """The step as the first way that works here runs it; trying them leaves no trace in the nets."""
        state = [*self.momenta, *self.nets.state_dict().values()]
        before = [x.clone() for x in state]
        for compiled, captured in ATTEMPTS:
            try:
                # all of it or an error: a part that quietly stays uncompiled would be slow and nobody would know
                self.loss = torch.compile(self._loss, fullgraph=True, dynamic=False) if compiled else self._loss
                return self._captured([x.clone() for x in inputs]) if captured else super().__call__(*inputs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                if (compiled, captured) == ATTEMPTS[-1]:
                    raise
                how = ("compiled and " if compiled else "") + "captured as a CUDA graph"
                logger.warning("the training step cannot be %s, which would be faster: %s", how, error)
            finally:
                for x, old in zip(state, before, strict=True):
                    x.copy_(old)

    def _captured(self, places: list[torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor]]:
        with torch.cuda.device(self.device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # what happens once, such as compiling and the choice of kernels
                for _ in range(3):
                    super().__call__(*places)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                super().__call__(*places)
        return graph, places


@lru_cache(KEPT)
def _replay(
    batches: Batches, model: str, n_classes: int, n_models: int, widths: Sequence[int], *settings: Any
) -> Replay:
    nets = blank(model, n_classes, n_models, widths)
    nets = nets.to(batches.labels.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return Replay(nets, batches, *settings)


_REPLAYING = threading.Lock()  # a prepared step has one set of weights


@contextmanager
def step_of(nets: Nets, batches: Batches, *settings: Any) -> Iterator[Step]:
    """The training step of these nets with the settings of a `Step`; the nets hold what became of them at the end."""
    if batches.labels.device.type not in REPLAYED:
        yield Step(nets, batches, *settings)
        return
    with _REPLAYING:
        step = _replay(batches, nets.model, nets.n_classes, nets.n_models, nets.widths, *settings)
        step.start(nets)
        yield step
        nets.load_state_dict(step.nets.state_dict())


@contextmanager
def enough_memory() -> Iterator[None]:
    """One clear error where a GPU has too little memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        _replay.cache_clear()
        raise InputError(
            "the GPU has too little memory for these models: lower models_at_once, batch_size or widths of the recipe, "
            f"or run fewer processes on it ({str(error).split('. ')[0]})"
        ) from error
