"""One GPU: images a second of a training step, however it is run, and models an hour beside a loop as papers write it.

    python tests/benchmarks/gpu.py DATA > gpu.md        # eight minutes at most
    python tests/benchmarks/gpu.py DATA --toy           # a CPU, two minutes: shows that the script runs, and no more

DATA holds `imagenet200` and `cifar10` (see `dtl.load`), or is a file that holds the problem (`dtl.datasets.saved`).
What a run has no time for is named, not left out in silence.
"""

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

import dtl
from dtl import _step
from dtl._streams import stream
from dtl.data import ImageDataset
from dtl.models import initialise
from dtl.training import draw_plan, resolve_device, schedule

RECIPE = dtl.Recipe(
    "resnet9", (16, 32, 64, 128), epochs=4, batch_size=512, lr=0.2, augment=2, models_at_once=1, precision="bfloat16"
)
WAYS = {
    "eager": (False, False),
    "captured": (False, True),
    "compiled": (True, False),
    "compiled and captured": (True, True),
}
DEFAULT = _step.ATTEMPTS
TOY = ("bullfrog", "sports car", "goose", "moving van")
PROBE_EPOCHS, PROBE_LR = 15, 0.1
AIRBENCH = "airbench on one A100, a net of similar cost: 154,000 to 160,000 (its own epochs over its own seconds)"
START = time.perf_counter()


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
    """One model at a time: SGD on the source, SGD of a head through the frozen net, accuracy on test."""
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
                views, min(recipe.batch_size, len(views)), True, num_workers=readers(device), drop_last=True,
                pin_memory=device.type == "cuda", persistent_workers=readers(device) > 0,
            )  # fmt: skip
            optimiser = torch.optim.SGD(trained, lr, recipe.momentum, weight_decay=recipe.weight_decay)
            decay = torch.optim.lr_scheduler.OneCycleLR(
                optimiser, lr, epochs * len(batches) + 1, pct_start=recipe.warmup, anneal_strategy="linear",
                cycle_momentum=False,
            )  # fmt: skip
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
    return np.array(accuracy)


@torch.inference_mode()
def evaluate(net: nn.Module, problem: dtl.TransferProblem, recipe: dtl.Recipe, device: torch.device) -> float:
    """Accuracy on test; validation is evaluated too, as a study does."""
    net.eval()
    accuracy = 0.0
    for dataset in (problem.target_validation, problem.target_test):
        hits = []
        for x, y in DataLoader(Views(dataset, problem.source, 0), 512, num_workers=readers(device)):
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                hits.append(net(x.to(device))[0].argmax(1).cpu() == y)
        accuracy = torch.cat(hits).float().mean().item()
    return accuracy


def readers(device: torch.device) -> int:
    return min(8, os.cpu_count() or 1) if device.type == "cuda" else 0


def spread(of: np.ndarray, digits: int) -> list[float]:
    """Median, least and most."""
    return [round(float(x), digits) for x in (np.median(of), of.min(), of.max())]


def seconds(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(device: torch.device) -> float:
    """FLOP/s of large bfloat16 matrix products, the best of five."""
    n, times = (8192, 20) if device.type == "cuda" else (512, 2)
    a, b = torch.randn(2, n, n, dtype=torch.bfloat16, device=device)
    torch.mm(a, b)
    best = min(seconds(lambda: [torch.mm(a, b) for _ in range(times)], device) for _ in range(5))
    return 2 * n**3 * times / best


def steps(
    problem: dtl.TransferProblem, recipe: dtl.Recipe, device: torch.device, n: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, str], float]:
    """Images a second of each way to run a step, what it took to prepare or why it cannot be had, and FLOP an image."""
    source, every = problem.source, np.arange(len(problem.source))
    _, batch = schedule(len(every), recipe)
    batches = source.batches(source, device, recipe.augment)
    plan = draw_plan([every], (n, batch), [stream("training", 0)], batches, recipe)
    order, rates = plan.order.to(device), plan.lr.to(device)
    absent = torch.zeros(1, source.n_classes, dtype=torch.bool, device=device)
    ready: dict[str, Callable[[], None]] = {}
    notes: dict[str, str] = {}
    for name, way in WAYS.items():
        if device.type == "cpu" and way[0]:
            notes[name] = "left out on a CPU, where compiling takes minutes"
            continue
        _step.ATTEMPTS = (way,)  # this way or an error, which is reported
        nets = initialise(recipe.model, source.n_classes, [0], recipe.widths)
        nets = nets.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        step = _step.Replay(nets, batches, recipe.precision, recipe.momentum, recipe.weight_decay, False)

        def run(step: _step.Replay = step, to: int = n) -> None:
            inputs = zip(order[:to], batches.load(plan.order[:to], plan.draws[:to]), rates[:to], strict=True)
            for index, loaded, lr in inputs:
                step(index, loaded, absent, lr)

        try:
            notes[name] = f"{seconds(lambda run=run: run(to=1), device):.1f} s to prepare"
            ready[name] = run
        except Exception as error:
            notes[name] = f"cannot be had here: {str(error).splitlines()[0]}"
    _step.ATTEMPTS = DEFAULT
    rate: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):  # interleaved, so that whatever else happens hits all ways
        for name, whole in ready.items():
            rate[name].append(n * batch / seconds(whole, device))
    single = initialise(recipe.model, source.n_classes, [0], recipe.widths).to(device)
    with FlopCounterMode(display=False) as flops:
        single(next(problem.target_test.batches(source, device).in_order(64))).sum().backward()
    return rate, notes, flops.get_total_flops() / 64


def models(
    problem: dtl.TransferProblem, recipe: dtl.Recipe, device: torch.device, processes: list[int], n: int, until: float
) -> dict[str, dict[str, float]]:
    """Models an hour of the reference-style loop, and of a study in one process and in several, as a table."""
    masks = dtl.subset_masks(problem.source.n_classes, n)

    def study(m: int, count: int) -> tuple[float, np.ndarray]:
        options: dict[str, Any] = {} if count == 1 else {"workers": count}
        start = time.perf_counter()
        run = dtl.Study(problem, recipe, masks[:m]).run(device=str(device), progress=False, **options)
        return time.perf_counter() - start, run.outputs("correct", split="test").mean(1)

    print("| arm | models | seconds a model | models an hour | times the loop | start, s | test accuracy, fixed (sd) |")
    print("|---|---|---|---|---|---|---|")
    start = time.perf_counter()
    found = loop(problem, recipe, masks[:1], device)
    of_loop = time.perf_counter() - start
    facts = {"models": {"loop, one process": 1}, "seconds a model": {"loop, one process": round(of_loop, 2)}}
    print(f"| loop, one process | 1 | {of_loop:.2f} | {3600 / of_loop:.0f} | 1 | | {found.mean():.3f} |", flush=True)
    for count in processes:
        name = "dtl, one process" if count == 1 else f"dtl, {count} processes"
        if time.perf_counter() - START > until:
            print(f"| {name} | none: no time left | | | | | |")
            continue
        few = 2 * count
        before, _ = study(few, count)  # what happens once: processes and their data, compiling, capturing
        took, found = study(n, count)
        # processes are new to each study, so the first models cost what they cost before; this process is warm
        each = (took - before) / (n - few) if count > 1 else took / n
        print(
            f"| {name} | {n} | {each:.2f} | {3600 / each:.0f} | {of_loop / each:.1f} | {before - few * each:.0f} | "
            f"{found.mean():.3f} ({found.std():.3f}) |",
            flush=True,
        )
        facts["models"][name], facts["seconds a model"][name] = n, round(each, 2)
    return facts


def main(
    data: Path,
    rounds: Annotated[int, typer.Option(min=5, help="interleaved rounds of each way to run a step")] = 7,
    steps_a_round: Annotated[int, typer.Option(min=1)] = 100,
    n_models: Annotated[int, typer.Option(min=2, help="models of each study")] = 60,
    processes: Annotated[str, typer.Option(help="processes on the GPU, to compare")] = "1,2,3",
    minutes: Annotated[float, typer.Option(help="no further study begins after this long")] = 6.0,
    out: Annotated[Path | None, typer.Option(help="write it as JSON, too, for book/results/imagenet200.py")] = None,
    toy: bool = False,
) -> None:
    """Measure and print tables."""
    logging.basicConfig(level=logging.WARNING)
    options = {"classes": TOY, "limit": 64, "target_limit": 20} if toy else {}
    small = {"widths": (4, 8, 8, 16), "epochs": 2, "batch_size": 32, "precision": "float32"}
    recipe = replace(RECIPE, **small) if toy else RECIPE
    device = resolve_device("auto")
    problem = dtl.load("file", path=data) if data.is_file() else dtl.load("imagenet200-cifar10", data, **options)
    if toy:
        steps_a_round, n_models, processes = 3, 3, "1"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, load {os.getloadavg()[0]:.1f}"
    print(f"\n{where}, {os.cpu_count()} cores, python {platform.python_version()}, torch {torch.__version__}")
    print(f"{problem.name}, " + ", ".join(f"{part} {len(dataset)}" for part, dataset in problem.parts.items()))
    print(f"{recipe}\nloaded after {time.perf_counter() - START:.0f} s\n", flush=True)

    rate, notes, flop = steps(problem, recipe, device, steps_a_round, rounds)
    top = peak(device)
    print(f"| source training, {rounds} rounds | images a second, median (min to max) | times eager | of the peak | |")
    print("|---|---|---|---|---|")
    for name, note in notes.items():
        if name not in rate:
            print(f"| {name} | - | - | - | {note} |")
            continue
        ratio, middle = np.array(rate[name]) / rate["eager"], np.median(rate[name])
        print(
            f"| {name} | {middle:,.0f} ({min(rate[name]):,.0f} to {max(rate[name]):,.0f}) | {np.median(ratio):.2f} "
            f"({ratio.min():.2f} to {ratio.max():.2f}) | {'-' if toy else f'{middle * flop / top:.1%}'} | {note} |"
        )
    print(f"\nPeak of bfloat16 matrix products: {top / 1e12:.1f} TFLOP/s. {AIRBENCH}.\n", flush=True)

    facts = models(problem, recipe, device, [*map(int, processes.split(","))], n_models, 60 * minutes)
    if out is not None:
        ratios = {name: np.array(of) / rate["eager"] for name, of in rate.items() if name != "eager"}
        facts |= {
            "command": f"python {' '.join(['tests/benchmarks/gpu.py', 'DATA', *sys.argv[2:]])}",
            "commit": os.environ.get("DTL_COMMIT", "unknown"),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "hardware": f"{where}, {os.cpu_count()} cores",
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "rounds": rounds,
            "images a second": {name: spread(np.array(of), 0) for name, of in rate.items()},
            "times eager": {name: spread(ratio, 2) for name, ratio in ratios.items()},
            "peak TFLOP/s": round(top / 1e12, 1),
        }
        out.write_text(json.dumps(facts, indent=1))
    print(f"\n{time.perf_counter() - START:.0f} s in all")


if __name__ == "__main__":
    typer.run(main)
