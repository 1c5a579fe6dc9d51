"""One GPU: models an hour beside a loop as papers write it, where the time goes, and how many epochs are enough.

    python tests/benchmarks/gpu.py speed DATA > speed.md
    python tests/benchmarks/gpu.py epochs DATA > epochs.md

DATA holds `imagenet200` and `cifar10` (see `dtl.load`). `--toy` takes four classes and two epochs, which a CPU does in
a few minutes: it shows that the script runs, and no more.
"""

import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

import dtl
from dtl.data import ImageDataset
from dtl.doctor import hardware
from dtl.models import initialise
from dtl.training import open_pixels, resolve_device, schedule, train_sources
from dtl.transfer import features, fine_tune, solve_probes

RECIPE = dtl.Recipe(  # that of book/results/run.py
    "resnet9", (32, 64, 128, 256), epochs=8, batch_size=512, lr=0.4, augment=2, models_at_once=1,
    precision="bfloat16", finetune_epochs=3,
)  # fmt: skip
TOY = ("bullfrog", "sports car", "goose", "moving van")
PROBE_EPOCHS, PROBE_LR = 15, 0.1
app = typer.Typer(add_completion=False)


class Views(Dataset[tuple[torch.Tensor, int]]):
    """Images one by one, augmented on the CPU, as a DataLoader takes them."""

    def __init__(self, dataset: ImageDataset, like: ImageDataset, augment: int) -> None:
        mean, std = (statistic.tolist() for statistic in like.statistics())
        shifts = [v2.RandomCrop(dataset.size, augment, padding_mode="reflect"), v2.RandomHorizontalFlip()]
        last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        self.dataset, self.views = dataset, v2.Compose([*(shifts if augment else []), *last])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.views(self.dataset.images[index]), int(self.dataset.labels[index])


def loop(problem: dtl.TransferProblem, recipe: dtl.Recipe, masks: np.ndarray, device: torch.device) -> np.ndarray:
    """One model at a time: SGD on the source, SGD of a head through the frozen net, fine-tuning, accuracies."""
    accuracy = []
    for seed, mask in enumerate(masks):
        kept = problem.source.subset(mask[problem.source.labels.numpy()])
        net = initialise(recipe.model, problem.source.n_classes, [seed], recipe.widths)
        net = net.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

        def sgd(
            dataset: ImageDataset,
            trained: list[nn.Parameter],
            epochs: int,
            lr: float,
            train: bool,
            net: nn.Module = net,
        ) -> None:
            views = Views(dataset, problem.source, recipe.augment)
            batches = DataLoader(
                views, min(recipe.batch_size, len(views)), True, num_workers=workers(device), drop_last=True,
                pin_memory=device.type == "cuda", persistent_workers=workers(device) > 0,
            )  # fmt: skip
            optimiser = torch.optim.SGD(trained, lr, recipe.momentum, weight_decay=recipe.weight_decay)
            decay = torch.optim.lr_scheduler.OneCycleLR(
                optimiser,
                lr,
                epochs * len(batches) + 1,
                pct_start=recipe.warmup,
                anneal_strategy="linear",
                cycle_momentum=False,
            )
            net.train(train)
            for _ in range(epochs):
                for x, y in batches:
                    x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
                    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                        loss = F.cross_entropy(net(x)[0].float(), y)
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    decay.step()

        sgd(kept, list(net.parameters()), recipe.epochs, recipe.lr, True)
        net.new_head(problem.target_train.n_classes, [seed])
        net.backbone.requires_grad_(False)
        sgd(problem.target_train, net.head, PROBE_EPOCHS, PROBE_LR, False)
        accuracy.append(evaluate(net, problem, recipe, device))
        net.backbone.requires_grad_(True)
        sgd(problem.target_train, list(net.parameters()), recipe.finetune_epochs, recipe.finetune_lr, True)
        evaluate(net, problem, recipe, device)
    return np.array(accuracy)


@torch.inference_mode()
def evaluate(net: nn.Module, problem: dtl.TransferProblem, recipe: dtl.Recipe, device: torch.device) -> float:
    """Accuracy on test; validation is evaluated too, as a study does."""
    net.eval()
    accuracy = 0.0
    for dataset in (problem.target_validation, problem.target_test):
        hits = []
        for x, y in DataLoader(Views(dataset, problem.source, 0), 512, num_workers=workers(device)):
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                hits.append(net(x.to(device))[0].argmax(1).cpu() == y)
        accuracy = torch.cat(hits).float().mean().item()
    return accuracy


def workers(device: torch.device) -> int:
    return 8 if device.type == "cuda" else 0


def seconds(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(device: torch.device) -> float:
    """FLOP/s of large bfloat16 matrix products, the best of five."""
    n, times = (8192, 20) if device.type == "cuda" else (1024, 2)
    a, b = torch.randn(2, n, n, dtype=torch.bfloat16, device=device)
    torch.mm(a, b)
    best = min(seconds(lambda: [torch.mm(a, b) for _ in range(times)], device) for _ in range(5))
    return 2 * n**3 * times / best


def parts(problem: dtl.TransferProblem, recipe: dtl.Recipe, mask: np.ndarray, device: torch.device) -> dict[str, float]:
    """Seconds of each part of one batch of models, and FLOP/s of source training."""
    masks, seeds = np.repeat(mask[None], recipe.models_at_once, 0), list(range(recipe.models_at_once))
    found: dict[str, float] = {}
    nets = train_sources(problem.source, masks, seeds, recipe, device)
    found["source training"] = seconds(lambda: train_sources(problem.source, masks, seeds, recipe, device), device)
    pixels = {name: open_pixels(part, problem.source, device) for name, part in problem.parts.items()}
    found["features"] = seconds(
        lambda: [features(nets, p, recipe) for name, p in pixels.items() if name != "source"], device
    )
    x, y = features(nets, pixels["target_train"], recipe), pixels["target_train"].labels
    found["probes"] = seconds(lambda: solve_probes(x, y, problem.target_train.n_classes, recipe.probe_l2), device)
    nets.new_head(problem.target_train.n_classes, seeds)
    found["fine-tuning"] = seconds(lambda: fine_tune(nets, problem, seeds, recipe, only_head=False), device)
    steps, batch = schedule(int(problem.source.counts[mask].sum()), recipe)
    index = torch.arange(batch, device=device).repeat(recipe.models_at_once, 1)
    one = initialise(recipe.model, problem.source.n_classes, [0], recipe.widths).to(device)  # groups are miscounted
    with FlopCounterMode(display=False) as flops:
        one(pixels["source"].batch(index[:1])).sum().backward()
    done = flops.get_total_flops() * recipe.models_at_once * steps
    return found | {"flops": done / found["source training"]}


def problem_of(data: Path, toy: bool) -> tuple[dtl.TransferProblem, dtl.Recipe, torch.device]:
    options = {"classes": TOY, "limit": 64, "target_limit": 20} if toy else {}
    recipe = replace(RECIPE, epochs=2, batch_size=32, finetune_epochs=1) if toy else RECIPE
    return dtl.load("imagenet200-cifar10", data, **options), recipe, resolve_device("auto")


def heading(problem: dtl.TransferProblem, recipe: dtl.Recipe) -> None:
    print(f"\n{hardware()}, python {platform.python_version()}, torch {torch.__version__}")
    print(f"{problem.name}, " + ", ".join(f"{part} {len(dataset)}" for part, dataset in problem.parts.items()))
    print(f"{recipe}\n")


@app.command()
def speed(
    data: Path,
    rounds: Annotated[int, typer.Option(min=1, help="interleaved rounds")] = 3,
    models: Annotated[int, typer.Option(min=2, help="models of each arm of `dtl` in a round")] = 4,
    loop_models: Annotated[int, typer.Option(min=1, help="models of the loop in a round")] = 1,
    side_by_side: Annotated[str, typer.Option(help="models at once to compare")] = "1,2,4",
    toy: bool = False,
) -> None:
    """Models an hour, seconds of each part, and the share of the chip's peak."""
    problem, recipe, device = problem_of(data, toy)
    masks = dtl.subset_masks(problem.source.n_classes, rounds * max(models, loop_models))
    arms: dict[str, Callable[[np.ndarray], np.ndarray]] = {"loop": lambda m: loop(problem, recipe, m, device)}
    for n in map(int, side_by_side.split(",")):
        one = replace(recipe, models_at_once=n)
        arms[f"dtl, {n} at once"] = lambda m, one=one: (
            dtl.Study(problem, one, m, ("fixed", "full")).run(device=str(device), progress=False)
            .outputs("correct", split="test").mean(1)
        )  # fmt: skip
    rate: dict[str, list[float]] = {name: [] for name in arms}
    accuracy: dict[str, list[float]] = {name: [] for name in arms}
    for r in range(-1, rounds):  # the first is a warm-up
        for name, arm in arms.items():
            own = masks[: max(2, models)] if name != "loop" else masks[:loop_models]
            own = np.roll(masks, -max(r, 0) * len(own), axis=0)[: len(own)]
            start = time.perf_counter()
            found = arm(own)
            if r >= 0:
                rate[name].append(3600 * len(own) / (time.perf_counter() - start))
                accuracy[name].extend(found)
    heading(problem, recipe)
    print("| arm | models | models an hour, median (min to max) | times the loop | test accuracy, fixed (sd) |")
    print("|---|---|---|---|---|")
    for name, rates in rate.items():
        ratio, a = np.array(rates) / rate["loop"], np.array(accuracy[name])
        print(
            f"| {name} | {len(a)} | {np.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f}) | "
            f"{np.median(ratio):.1f} ({ratio.min():.1f} to {ratio.max():.1f}) | {a.mean():.3f} ({a.std():.3f}) |"
        )
    top = peak(device)
    print(f"\nPeak of bfloat16 matrix products: {top / 1e12:.1f} TFLOP/s\n")
    print("| models at once | source training | features | probes | fine-tuning (s a batch) | share of the peak |")
    print("|---|---|---|---|---|---|")
    for n in map(int, side_by_side.split(",")):
        p = parts(problem, replace(recipe, models_at_once=n), masks[0], device)
        flops = p.pop("flops")
        print(f"| {n} | " + " | ".join(f"{s:.2f}" for s in p.values()) + f" | {flops / top:.2f} |")


@app.command()
def epochs(
    data: Path,
    candidates: Annotated[str, typer.Option(help="numbers of epochs")] = "4,6,8,10",
    seeds: Annotated[int, typer.Option(min=2, help="models each")] = 4,
    toy: bool = False,
) -> None:
    """Accuracy after transfer for several numbers of source epochs, relative to four times as many."""
    problem, recipe, device = problem_of(data, toy)
    masks = dtl.subset_masks(problem.source.n_classes, seeds)
    heading(problem, recipe)
    print("| epochs | fixed | relative to 4 times as many | full | relative | seconds a model |")
    print("|---|---|---|---|---|---|")
    known: dict[int, dict[str, float]] = {}

    def measured(n: int) -> dict[str, float]:
        if n not in known:
            start = time.perf_counter()
            study = dtl.Study(problem, replace(recipe, epochs=n), masks, ("fixed", "full")).run(progress=False)
            took = {"seconds": (time.perf_counter() - start) / seeds}
            known[n] = took | {t: study.outputs("correct", t, "test").mean() for t in ("fixed", "full")}
        return known[n]

    for n in [1] if toy else map(int, candidates.split(",")):
        short, long = measured(n), measured(4 * n)
        cells = [f"{short[t]:.3f} | {short[t] / long[t]:.3f}" for t in ("fixed", "full")]
        print(f"| {n} | " + " | ".join(cells) + f" | {short['seconds']:.1f} |", flush=True)


if __name__ == "__main__":
    app()
