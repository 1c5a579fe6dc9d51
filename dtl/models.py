"""Backbones, and how several nets of one kind run side by side as one grouped network.

A stack of M nets takes images of M * 3 channels, three for each net, and every convolution has M times as many
groups, so one call runs all M nets. Every parameter has the M nets along its first dimension, which makes stacking
a concatenation. M = 1 is the plain net.
"""

import threading
from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any

import torch
import torchvision
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight
from torchvision.ops import StochasticDepth

from dtl._checks import InputError


class Nets(nn.Module):
    """`n_models` classifiers side by side: a backbone and one linear head each.

    >>> nets = Nets("small", n_classes=4, n_models=8)
    >>> nets(torch.zeros(2, 8 * 3, 16, 16)).shape          # (models, batch, classes)
    torch.Size([8, 2, 4])
    """

    def __init__(self, model: str, n_classes: int, n_models: int = 1, widths: Sequence[int] = ()) -> None:
        super().__init__()
        self.n_models = n_models
        self.backbone, self.n_features = _backbone(model, n_models, widths or WIDTHS.get(model, ()))
        self.weight = nn.Parameter(torch.empty(n_models, self.n_features, n_classes))
        self.bias = nn.Parameter(torch.zeros(n_models, 1, n_classes))
        nn.init.uniform_(self.weight, -(self.n_features**-0.5), self.n_features**-0.5)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, n_models * 3, h, w) -> (n_models, batch, n_features)"""
        return self.backbone(x).flatten(1).unflatten(1, (self.n_models, -1)).transpose(0, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, n_models * 3, h, w) -> logits (n_models, batch, n_classes)"""
        return torch.baddbmm(self.bias, self.features(x), self.weight)

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

    >>> nets = initialise("small", n_classes=24, seeds=[0, 1])
    >>> nets.n_models
    2
    """
    if len(seeds) > 1 and model not in PARALLEL:
        raise InputError(f"{model} runs one model at a time: set models_at_once=1 in the recipe")
    states = []
    with _SEEDING, torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.default_generator.manual_seed(int(seed))  # not torch.manual_seed, which reseeds every GPU
            states.append(Nets(model, n_classes, 1, widths).state_dict())
        nets = Nets(model, n_classes, len(seeds), widths)
    nets.load_state_dict({k: torch.cat([s[k] for s in states]) if v.ndim else v for k, v in states[0].items()})
    return nets


def unstack(nets: Nets, model: str, widths: Sequence[int] = ()) -> list[Nets]:
    """The nets one by one, copies of a stack of `model` with these widths.

    >>> [net.n_models for net in unstack(initialise("small", 24, seeds=[0, 1]), "small")]
    [1, 1]
    """
    single = []
    states = {k: v.chunk(nets.n_models) if v.ndim else [v] * nets.n_models for k, v in nets.state_dict().items()}
    for i in range(nets.n_models):
        net = Nets(model, nets.weight.shape[2], 1, widths).to(nets.weight.device)
        net.load_state_dict({k: v[i] for k, v in states.items()})
        single.append(net.eval())
    return single


WIDTHS = {"small": (16, 32, 64), "resnet9": (64, 128, 256, 512)}
PARALLEL = tuple(WIDTHS)
_SEEDING = threading.Lock()  # torch draws initial weights from one generator, which all threads share


def _backbone(model: str, n_models: int, widths: Sequence[int]) -> tuple[nn.Module, int]:
    if model == "small":
        stem = nn.Conv2d(3 * n_models, widths[0] * n_models, 3, stride=2, padding=1, groups=n_models, bias=False)
        convolutions = [stem, *(_Patches(a, b, n_models) for a, b in pairwise(widths))]
        layers = [nn.Sequential(c, nn.BatchNorm2d(c.out_channels), nn.ReLU(inplace=True)) for c in convolutions]
        return nn.Sequential(*layers, _Mean()), widths[-1]
    if model == "resnet9":
        return _resnet9(n_models, widths), widths[-1]
    check_model(model)
    return _torchvision_backbone(model)


def check_model(model: str) -> None:
    """InputError if there is no such backbone."""
    if model not in PARALLEL and model not in torchvision.models.list_models(module=torchvision.models):
        raise InputError(f"unknown model {model!r}: use one of {', '.join(PARALLEL)} or a torchvision classifier")


class _Patches(nn.Conv2d):
    """Convolution of 2 x 2 patches that do not overlap."""

    def __init__(self, n_in: int, n_out: int, n_models: int) -> None:
        super().__init__(n_in * n_models, n_out * n_models, 2, stride=2, groups=n_models, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.device.type != "cpu":
            return super().forward(input)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            input, weight = input.to(dtype), weight.to(dtype)
        return _PatchConvolution.apply(input, weight, self.groups)


class _PatchConvolution(torch.autograd.Function):
    """Its input gradient by four 1 x 1 convolutions: twice as fast on a CPU as the one call, with the same sums."""

    generate_vmap_rule = True  # per-example gradients by torch.func

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, groups: int) -> torch.Tensor:
        return F.conv2d(x, weight, stride=2, groups=groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, int], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.groups = inputs[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x, weight), (gradient,) = ctx.saved_tensors, gradients
        back = weight.unflatten(0, (ctx.groups, -1)).transpose(1, 2).flatten(0, 1)
        of_x = torch.zeros_like(x)
        height, width = (2 * side for side in gradient.shape[2:])
        for i, j in product((0, 1), (0, 1)):
            of_x[:, :, i:height:2, j:width:2] = F.conv2d(gradient, back[:, :, i, j, None, None], groups=ctx.groups)
        of_weight = conv2d_weight(x, weight.shape, gradient, stride=2, groups=ctx.groups)
        return of_x, of_weight, None


def _conv(n_in: int, n_out: int, n_models: int, pool: bool = False) -> nn.Sequential:
    conv = nn.Conv2d(n_in * n_models, n_out * n_models, 3, padding=1, groups=n_models, bias=False)
    layers = [conv, nn.BatchNorm2d(n_out * n_models), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2)) if pool else nn.Sequential(*layers)


class _Mean(nn.Module):
    """Average over the picture, (batch, channels, h, w) -> (batch, channels), with a channels-last gradient.

    That of AdaptiveAvgPool2d is not, which slows the step before it down several times.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)


class _Residual(nn.Sequential):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input + super().forward(input)


def _resnet9(n: int, widths: Sequence[int]) -> nn.Sequential:
    a, b, c, d = widths
    return nn.Sequential(
        _conv(3, a, n),
        _conv(a, b, n, pool=True),
        _Residual(_conv(b, b, n), _conv(b, b, n)),
        _conv(b, c, n, pool=True),
        _conv(c, d, n, pool=True),
        _Residual(_conv(d, d, n), _conv(d, d, n)),
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
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0
    return net, last.in_features
