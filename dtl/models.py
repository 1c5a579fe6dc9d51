"""Backbones, and how several nets of one kind run side by side as one grouped network.

A stack of M nets takes images of M * 3 channels, three for each net, and every convolution has M times as many
groups, so one call runs all M nets. Every parameter has the M nets along its first dimension, which makes stacking
a concatenation. M = 1 is the plain net.
"""

import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import lazy_loader
import torch
from torch import nn
from torch.nn import functional as F

from dtl._checks import InputError, check_kind, several, whole
from dtl._patches import Convolutions

torchvision: Any = lazy_loader.load("torchvision")  # takes as long as torch itself, and our own nets do without


class Nets(nn.Module):
    """`n_models` classifiers side by side: a backbone and one linear head each.

    >>> nets = dtl.models.Nets("small", n_classes=4, n_models=8)
    >>> nets(torch.zeros(2, 8 * 3, 16, 16)).shape          # (models, batch, classes)
    torch.Size([8, 2, 4])
    """

    def __init__(self, model: str, n_classes: int, n_models: int = 1, widths: Sequence[int] = ()) -> None:
        super().__init__()
        n_classes, n_models = whole("n_classes", n_classes, 1), whole("n_models", n_models, 1)
        self.model, self.n_models, self.widths = model, n_models, several(widths, "widths") or WIDTHS.get(model, ())
        self.backbone, self.n_features = _backbone(model, n_models, self.widths)
        self.weight = nn.Parameter(torch.empty(n_models, self.n_features, n_classes))
        self.bias = nn.Parameter(torch.zeros(n_models, 1, n_classes))
        nn.init.uniform_(self.weight, -(self.n_features**-0.5), self.n_features**-0.5)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Own images (batch, n_models * 3, h, w) or shared ones (batch, 3, h, w) -> (n_models, batch, n_features)"""
        return self.backbone(x).flatten(1).unflatten(1, (self.n_models, -1)).transpose(0, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images as for `features` -> logits (n_models, batch, n_classes)"""
        return torch.baddbmm(self.bias, self.features(x), self.weight)

    @property
    def n_classes(self) -> int:
        return self.weight.shape[2]

    @property
    def head(self) -> list[nn.Parameter]:
        return [self.weight, self.bias]

    def new_head(self, n_classes: int, seeds: Sequence[int]) -> None:
        """Replace the heads by new ones for `n_classes`, one seed per net."""
        heads = torch.empty(self.n_models, self.n_features, n_classes)
        for head, seed in zip(heads, seeds, strict=True):
            bound = self.n_features**-0.5
            head.uniform_(-bound, bound, generator=torch.Generator().manual_seed(int(seed)))
        self.weight = nn.Parameter(heads.to(self.weight.device))
        self.bias = nn.Parameter(torch.zeros(self.n_models, 1, n_classes, device=self.bias.device))


def initialise(model: str, n_classes: int, seeds: Sequence[int], widths: Sequence[int] = ()) -> Nets:
    """Nets side by side, each with the initial weights that its own seed gives it alone.

    >>> nets = dtl.models.initialise("small", n_classes=24, seeds=[0, 1])
    >>> nets.n_models
    2
    """
    if len(several(seeds, "seeds")) > 1 and model not in PARALLEL:
        raise InputError(f"{model} runs one model at a time: set models_at_once=1 in the recipe")
    states = []
    with _SEEDING, torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.default_generator.manual_seed(int(seed))  # not torch.manual_seed, which reseeds every GPU
            states.append(Nets(model, n_classes, 1, widths).state_dict())
    return stack(states, model, n_classes, widths)


def blank(model: str, n_classes: int, n_models: int = 1, widths: Sequence[int] = ()) -> Nets:
    """Nets whose weights are to be copied in: what they begin with draws on nobody's random numbers."""
    with _SEEDING, torch.random.fork_rng(devices=[]):
        return Nets(model, n_classes, n_models, widths)


def stack(states: Sequence[dict[str, torch.Tensor]], model: str, n_classes: int, widths: Sequence[int] = ()) -> Nets:
    """Single nets, by their states, side by side; `states_of` takes them apart again."""
    nets = blank(model, n_classes, len(several(states, "states")), widths)
    nets.load_state_dict({k: torch.cat([s[k] for s in states]) if v.ndim else v for k, v in states[0].items()})
    return nets


def states_of(nets: Nets) -> list[dict[str, torch.Tensor]]:
    """The state of each net of a stack on its own, views."""
    check_kind(nets, "dtl.models.Nets", "nets")
    parts = {k: v.chunk(nets.n_models) if v.ndim else [v] * nets.n_models for k, v in nets.state_dict().items()}
    return [{k: v[i] for k, v in parts.items()} for i in range(nets.n_models)]


def unstack(nets: Nets) -> list[Nets]:
    """The nets of a stack one by one, copies in eval mode.

    >>> [net.n_models for net in dtl.models.unstack(dtl.models.initialise("small", 24, seeds=[0, 1]))]
    [1, 1]
    """
    states = states_of(nets)
    singles = (stack([state], nets.model, nets.n_classes, nets.widths) for state in states)
    return [net.to(nets.weight.device).eval() for net in singles]


WIDTHS = {"small": (16, 32, 64), "resnet9": (64, 128, 256, 512)}
PARALLEL = tuple(WIDTHS)
_SEEDING = threading.Lock()  # torch draws initial weights from one generator, which all threads share


def _backbone(model: str, n_models: int, widths: Sequence[int]) -> tuple[nn.Module, int]:
    if model == "small":
        later = (nn.Conv2d(a * n_models, b * n_models, 2, 2, groups=n_models, bias=False) for a, b in pairwise(widths))
        return Convolutions(*map(_layer, (_Stem(widths[0], n_models, 2), *later))), widths[-1]
    if model == "resnet9":
        return _resnet9(n_models, widths), widths[-1]
    check_model(model)
    return _torchvision_backbone(model)


def check_model(model: str) -> None:
    """InputError if there is no such backbone."""
    if model not in PARALLEL and model not in torchvision.models.list_models(module=torchvision.models):
        raise InputError(f"unknown model {model!r}: use one of {', '.join(PARALLEL)} or a torchvision classifier")


class _Stem(nn.Conv2d):
    """First convolution: of the images of each net's own, or of images that all nets share and so need no copies of."""

    def __init__(self, n_out: int, n_models: int, stride: int = 1) -> None:
        super().__init__(3 * n_models, n_out * n_models, 3, stride, padding=1, groups=n_models, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.conv2d(input, self.weight, None, self.stride, self.padding, groups=input.shape[1] // 3)


def _layer(conv: nn.Conv2d, *pool: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True), *pool)


class _Residual(nn.Sequential):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input + super().forward(input)


def _resnet9(n: int, widths: Sequence[int]) -> nn.Sequential:
    a, b, c, d = widths

    def conv(n_in: int, n_out: int, *pool: nn.Module) -> nn.Sequential:
        return _layer(nn.Conv2d(n_in * n, n_out * n, 3, padding=1, groups=n, bias=False), *pool)

    return nn.Sequential(
        _layer(_Stem(a, n)),
        conv(a, b, nn.MaxPool2d(2)),
        _Residual(conv(b, b), conv(b, b)),
        conv(b, c, nn.MaxPool2d(2)),
        conv(c, d, nn.MaxPool2d(2)),
        _Residual(conv(d, d), conv(d, d)),
        nn.AdaptiveMaxPool2d(1),
    )


def _torchvision_backbone(model: str) -> tuple[nn.Module, int]:
    """A torchvision classifier without its last linear layer, wherever that layer is, and without dropout.

    Dropout draws from the generator that all threads share, so a model would not be a function of its seed.
    """
    auxiliary = {"aux_logits": False, "init_weights": True} if model in ("googlenet", "inception_v3") else {}
    net = torchvision.models.get_model(model, weights=None, **auxiliary)
    linear = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError(f"{model} has no linear layer to replace by a head: use another torchvision classifier")
    name, last = linear[-1]
    net.set_submodule(name, nn.Identity())
    for module in net.modules():
        if isinstance(module, nn.Dropout | torchvision.ops.StochasticDepth):
            module.p = 0.0
    return net, last.in_features
