"""Frozen transfer of one batch of models: features cached and all probes solved together, against SGD through the net.

    python tests/benchmarks/frozen_transfer.py                         # five rounds, four minutes or so on a quiet core
    python tests/benchmarks/frozen_transfer.py --rounds 1 --models 4

Every round trains new source nets (not timed) on random halves of the testbed's classes. Each arm then fits a linear
head to every one of them on the same target pictures, with the backbone in eval mode and no augmentation:

dtl : `dtl.transfer` with "fixed": features of each picture computed once, the heads solved to convergence together
loop : the loop of the papers' code, model by model: a DataLoader, 15 epochs of SGD, a forward pass of the frozen
    backbone for every batch of every epoch
side by side : the same loop for all models at once, as one grouped network

SGD has momentum .9 and a rate that falls linearly to zero from the best of five, chosen by validation accuracy on nets
of its own (not timed); dtl has the penalty of the default recipe, and in a row of its own the best of five, likewise.
Rounds are interleaved, so that what else the machine does hits all arms. Targets: the testbed as it is, and larger
ones. "fit" is what the heads take, "all" the validation and test pictures too. The last column is the mean difference
in test accuracy from the loop, model by model, with its standard error and its standard deviation over models.
"""

import os
import platform
import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
import typer
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dtl
from dtl.doctor import hardware
from dtl.models import Nets, unstack
from dtl.training import train_sources
from dtl.transfer import features, solve_probes

CPU, RECIPE = torch.device("cpu"), dtl.Recipe()
EPOCHS, RATES, PENALTIES = 15, (0.03, 0.1, 0.3, 1.0, 3.0), (3e-2, 1e-2, 3e-3, 1e-3, 3e-4)
TARGETS = {
    "testbed, 16 px, 120 pictures": {},
    "testbed, 16 px, 1000 pictures": {"train": 125, "validation": 125, "test": 125},
    "testbed, 32 px, 1000 pictures": {"size": 32, "train": 125, "validation": 125, "test": 125},
}
Predict = Callable[[dtl.ImageDataset], torch.Tensor]  # dataset -> hits of every model, bool (models, n)
Arm = Callable[[Nets, dtl.TransferProblem, float], Predict]


def solved(nets: Nets, problem: dtl.TransferProblem, l2: float) -> Predict:
    train = problem.target_train.batches(problem.source, CPU)
    n_classes = problem.target_train.n_classes
    weight, bias = solve_probes(features(nets, train, RECIPE), train.labels, n_classes, l2)

    def hits(split: dtl.ImageDataset) -> torch.Tensor:
        logits = features(nets, split.batches(problem.source, CPU), RECIPE) @ weight + bias
        return logits.argmax(2) == split.labels

    return hits


def loop(nets: Nets, problem: dtl.TransferProblem, lr: float) -> Predict:
    singles = unstack(nets)
    data = TensorDataset(normalised(problem.target_train, problem), problem.target_train.labels)
    for net in singles:
        net.backbone.requires_grad_(False)
        optimiser, schedule = descent(net, lr, len(data))
        for _ in range(EPOCHS):
            for images, labels in DataLoader(data, RECIPE.batch_size, shuffle=True):
                optimiser.zero_grad()
                F.cross_entropy(net(images)[0], labels).backward()
                optimiser.step()
                schedule.step()

    def hits(split: dtl.ImageDataset) -> torch.Tensor:
        rest = DataLoader(TensorDataset(normalised(split, problem), split.labels), RECIPE.batch_size)
        with torch.inference_mode():
            return torch.stack([torch.cat([net(x)[0].argmax(1) == labels for x, labels in rest]) for net in singles])

    return hits


def side_by_side(nets: Nets, problem: dtl.TransferProblem, lr: float) -> Predict:
    batches, none = problem.target_train.batches(problem.source, CPU), torch.empty(0)
    n = len(batches.labels)
    optimiser, schedule = descent(nets, lr, n)
    for _ in range(EPOCHS):
        order = torch.stack([torch.randperm(n) for _ in range(nets.n_models)])
        for index in order.split(RECIPE.batch_size, dim=1):
            with torch.no_grad():
                x = nets.features(batches.images(index, none))
            logits = torch.baddbmm(nets.bias, x, nets.weight)
            loss = F.cross_entropy(logits.flatten(0, 1), batches.labels[index].flatten(), reduction="sum")
            optimiser.zero_grad()
            (loss / index.shape[1]).backward()
            optimiser.step()
            schedule.step()
    weight, bias = nets.weight.detach(), nets.bias.detach()

    def hits(split: dtl.ImageDataset) -> torch.Tensor:
        logits = features(nets, split.batches(problem.source, CPU), RECIPE) @ weight + bias
        return logits.argmax(2) == split.labels

    return hits


def normalised(dataset: dtl.ImageDataset, problem: dtl.TransferProblem) -> torch.Tensor:
    mean, std = problem.source.statistics()
    return (dataset.images.float() / 255 - mean[:, None, None]) / std[:, None, None]


def descent(nets: Nets, lr: float, n: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimiser = torch.optim.SGD(nets.head, lr, RECIPE.momentum)
    steps = EPOCHS * -(-n // RECIPE.batch_size)
    return optimiser, torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 1 / steps, steps)


def sources(problem: dtl.TransferProblem, models: int, seed: int) -> Nets:
    """Source nets in eval mode, with new heads for the target."""
    masks = dtl.subset_masks(problem.source.n_classes, models, seed=seed)
    seeds = [1000 * seed + j for j in range(models)]
    nets = train_sources(problem.source, masks, seeds, RECIPE, CPU)
    nets.new_head(problem.target_train.n_classes, seeds)
    return nets


def accuracy(hits: torch.Tensor) -> np.ndarray:
    return hits.float().mean(1).numpy()


def begin(nets: Nets, heads: list[torch.Tensor]) -> None:
    for parameter, value in zip(nets.head, heads, strict=True):
        parameter.data = value.clone()


def chosen(arm: Arm, values: tuple[float, ...], nets: Nets, problem: dtl.TransferProblem) -> float:
    """The setting with the best validation accuracy."""
    heads, tried = [head.detach().clone() for head in nets.head], {}
    for value in values:
        begin(nets, heads)
        tried[value] = accuracy(arm(nets, problem, value)(problem.target_validation)).mean()
    print("validation accuracy by setting: " + ", ".join(f"{value}: {found:.3f}" for value, found in tried.items()))
    return max(tried, key=lambda value: tried[value])


def measure(problem: dtl.TransferProblem, rounds: int, models: int) -> None:
    """Print the rows of one target."""
    trial = sources(problem, models, 0)
    lr, l2 = chosen(side_by_side, RATES, trial, problem), chosen(solved, PENALTIES, trial, problem)
    arms: dict[str, tuple[Arm, float]] = {
        f"dtl, penalty {RECIPE.probe_l2} of the recipe": (solved, RECIPE.probe_l2),
        f"dtl, penalty {l2} chosen": (solved, l2),
        f"loop, rate {lr} chosen": (loop, lr),
        "loop, side by side": (side_by_side, lr),
    }
    fit: list[list[float]] = [[] for _ in arms]
    whole: list[list[float]] = [[] for _ in arms]
    right: list[list[np.ndarray]] = [[] for _ in arms]
    for r in range(rounds):
        nets = sources(problem, models, r + 1)
        heads = [head.detach().clone() for head in nets.head]
        for i, (arm, setting) in enumerate(arms.values()):
            begin(nets, heads)
            start = time.perf_counter()
            hits = arm(nets, problem, setting)
            fit[i].append(time.perf_counter() - start)
            hits(problem.target_validation)
            right[i].append(accuracy(hits(problem.target_test)))
            whole[i].append(time.perf_counter() - start)
        print(f"round {r + 1}: " + ", ".join(f"{seconds[-1]:.3f} s" for seconds in fit), flush=True)

    print(f"\n{models} models, {rounds} rounds, {len(problem.target_test)} test pictures\n")
    print(
        "| arm | fit, s | loop takes | side by side takes | all, s | loop takes | test accuracy (sd) | minus loop's |"
    )
    print("|---|---|---|---|---|---|---|---|")
    seconds, total = np.array(fit), np.array(whole)
    for i, name in enumerate(arms):
        own = np.concatenate(right[i])
        gap = own - np.concatenate(right[2])
        cells = [spread(seconds[i], "{:.3f}"), spread(seconds[2] / seconds[i]), spread(seconds[3] / seconds[i])]
        cells += [spread(total[i], "{:.3f}"), spread(total[2] / total[i]), f"{own.mean():.3f} ({own.std(ddof=1):.3f})"]
        cells += [
            f"{gap.mean():+.4f} ± {gap.std(ddof=1) / len(gap) ** 0.5:.4f} (sd {gap.std(ddof=1):.3f}, n {len(gap)})"
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def spread(values: np.ndarray, form: str = "{:.1f} x") -> str:
    """Median (minimum to maximum)."""
    middle, low, high = (form.format(f(values)) for f in (np.median, np.min, np.max))
    return f"{middle} ({low} to {high})"


def main(
    rounds: Annotated[int, typer.Option(min=1, help="interleaved rounds")] = 5,
    models: Annotated[int, typer.Option(min=2, help="models in a batch")] = RECIPE.models_at_once,
    threads: Annotated[int, typer.Option(min=1, help="of torch, for every arm; a study has one for each batch")] = 1,
) -> None:
    """Measure seconds and accuracy of each way to fit the heads, and print a table for each target."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    print(f"{hardware()}, {threads} threads of torch, load {os.getloadavg()[0]:.1f}")
    print(f"python {platform.python_version()}, torch {torch.__version__}, {platform.platform()}")
    for name, options in TARGETS.items():
        print(f"\n{name}")
        measure(dtl.load("testbed", seed=0, **options), rounds, models)


if __name__ == "__main__":
    typer.run(main)
