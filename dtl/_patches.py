"""The convolution of patches that do not overlap, with a gradient that is twice as fast on a CPU."""

from itertools import product
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight


class Patches(nn.Conv2d):
    """Convolution of 2 x 2 patches that do not overlap, for `n_models` nets side by side."""

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
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: the base class promises any arguments
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        (x, weight), (gradient,) = ctx.saved_tensors, gradients
        back = weight.unflatten(0, (ctx.groups, -1)).transpose(1, 2).flatten(0, 1)
        of_x = torch.zeros_like(x)
        height, width = (2 * side for side in gradient.shape[2:])
        for i, j in product((0, 1), (0, 1)):
            of_x[:, :, i:height:2, j:width:2] = F.conv2d(gradient, back[:, :, i, j, None, None], groups=ctx.groups)
        of_weight = conv2d_weight(x, weight.shape, gradient, stride=2, groups=ctx.groups)
        return of_x, of_weight, None
