"""Small nets side by side on a CPU: every convolution a product of matrices, with the batch as the last dimension.

There a pixel of all images lies in one piece of memory. So patches are copied row by row, and no layer has to reorder
what the one before it made. The sums are those of torch's grouped convolutions, which take half as long again.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Convolutions(nn.Sequential):
    """Layers of convolution, BatchNorm and ReLU, then the mean over the picture."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Images (batch, n_models * 3, h, w), or shared ones (batch, 3, h, w) -> (batch, n_models * n_features)"""
        if input.device.type != "cpu":
            return super().forward(input).permute(0, 2, 3, 1).flatten(1, 2).mean(1)  # with a channels-last gradient
        x = input.permute(1, 2, 3, 0)
        for convolution, norm, relu in self:  # pyright: ignore[reportGeneralTypeIssues]
            x = product(convolution, x)
            x = relu(batch_norm(norm, x.flatten(1, 2)[None])).view(x.shape)
        # by way of one dimension, for a gradient that has the batch last again
        return x.mean((1, 2)).flatten().view(-1, len(input)).T


def product(convolution: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A convolution of images with the batch last, (channels, h, w, batch) -> (n_out, h', w', batch).

    It has as many groups as the images bring channels for; of one group, all nets share the images.
    """
    n_in, side, _ = convolution.weight.shape[1:]
    stride, pad = convolution.stride[0], convolution.padding[0]
    if pad:
        x = F.pad(x, (0, 0, pad, pad, pad, pad))  # pyright: ignore[reportArgumentType]
    if side == stride:  # patches that do not overlap: a view, and so is its gradient
        x = x[:, : x.shape[1] // side * side, : x.shape[2] // side * side]
        patches = x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).permute(0, 2, 4, 1, 3, 5)
    else:
        patches = x.unfold(1, side, stride).unfold(2, side, stride).permute(0, 4, 5, 1, 2, 3)
    weight = convolution.weight.reshape(len(x) // n_in, -1, n_in * side * side)
    return torch.bmm(weight, patches.reshape(*weight.shape[::2], -1)).view(-1, *patches.shape[3:])


def batch_norm(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """What BatchNorm makes of one row of pixels a channel, (1, channels, pixels, batch), and of its statistics.

    In training that is GroupNorm with a group a channel, of which torch's is several times as fast for such rows.
    """
    if not norm.training:
        return norm(x)
    channels, n = x.shape[1], x[0, 0].numel()
    y, mean, scale = torch.native_group_norm(x, norm.weight, norm.bias, 1, channels, n, channels, norm.eps)
    of_batch = mean[0], (scale[0] ** -2 - norm.eps) * n / (n - 1)
    with torch.no_grad():
        for kept, new in zip((norm.running_mean, norm.running_var), of_batch, strict=True):
            kept.lerp_(new.float(), norm.momentum)  # pyright: ignore
        norm.num_batches_tracked.add_(1)  # pyright: ignore[reportOptionalMemberAccess]
    return y
