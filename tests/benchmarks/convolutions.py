"""Processor time of one training step of the small net on a CPU: `dtl` against torch's own grouped convolutions.

    python tests/benchmarks/convolutions.py [--rounds 10]

Both run forward and backward on the same images, in one interleaved run, with one thread each, as workers do.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
import typer
from torch import nn

from dtl.doctor import hardware
from dtl.models import initialise

SIZES = [(16, 16), (32, 16), (28, 16), (32, 4), (16, 1)]  # pixels a side, nets side by side


def step(nets: nn.Module, forward: Callable, x: torch.Tensor, gradient: torch.Tensor) -> float:
    start = time.process_time()
    nets.zero_grad()
    forward(x).backward(gradient)
    return time.process_time() - start


def times_as_fast(side: int, n: int, rounds: int) -> np.ndarray:
    ours, theirs = (initialise("small", 10, range(n)).train().backbone for _ in range(2))
    theirs = theirs.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    x, gradient = torch.randn(64, 3 * n, side, side), torch.randn(64, 64 * n)
    last = x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)  # as `Batches.normalised` makes it
    channels_last = x.to(memory_format=torch.channels_last)

    def plain(x: torch.Tensor) -> torch.Tensor:
        return nn.Sequential.forward(theirs, x).permute(0, 2, 3, 1).flatten(1, 2).mean(1)

    took = []
    for _ in range(rounds + 1):
        took.append((step(theirs, plain, channels_last, gradient), step(ours, ours, last, gradient)))
    theirs_took, ours_took = np.array(took[1:]).T
    return theirs_took / ours_took


def main(rounds: int = 10) -> None:
    torch.set_num_threads(1)
    print(hardware())
    print(f"| images, nets | times as fast, median of {rounds} (range) |\n|---|---|")
    for side, n in SIZES:
        ratio = times_as_fast(side, n, rounds)
        print(f"| {side} pixels, {n} | {np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f}) |", flush=True)


if __name__ == "__main__":
    typer.run(main)
