"""Seconds, share of the machine's matrix-product peak, and memory of influence estimation, in memory and in tiles.

    OMP_NUM_THREADS=1 python tests/benchmarks/estimation.py        # the sizes of the paper; ten minutes on a quiet core
    python tests/benchmarks/estimation.py --classes 200 --models 398 --targets 2000 --examples 20000      # seconds

In memory, rounds interleaved:

meter : what the papers' code does on a GPU, here on the CPU with the same shapes: for every 1,024 models and 1,000
    targets, the masks and their complements times the outputs of each target, added to two sums; values only
dtl : `dtl.estimate_influence`, values, standard errors and reliability; for random halves, and for pairs
peak : the product of two square float32 matrices by NumPy

The share of the peak counts the products that are needed: two of (K x m) by (m x n) for random subsets (outputs, and
their squares for Welch's errors), half of one for pairs (differences within pairs).

Out of core: `dtl.influence_to_zarr`, from packed masks and outputs stored by model to influences and errors, all on
disk. Memory is the peak of a process of its own less what it held after its imports (Linux), so data are part of it.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import zarr
from threadpoolctl import threadpool_info

import dtl
from dtl.doctor import hardware

BATCH, STEP = 1024, 1000  # of the papers' code: models at a time, targets at a time
SIDE = 4096  # of the square matrices


def meter(masks: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Difference in means (n, K) from running sums over batches of models."""
    (m, k), n = masks.shape, outputs.shape[1]
    sums, counts = torch.zeros(2, n, k), torch.zeros(2, 1, k)
    for first in range(0, m, BATCH):
        y = torch.from_numpy(outputs[first : first + BATCH]).T.unsqueeze(-1)  # (n, batch, 1)
        z = torch.from_numpy(masks[first : first + BATCH]).float()
        for arm, members in enumerate((z, 1 - z)):
            counts[arm] += members.sum(0)
            for start in range(0, n, STEP):
                sums[arm, start : start + STEP] += (members.T @ y[start : start + STEP]).squeeze(-1)
    means = sums / counts
    return (means[0] - means[1]).numpy()


def timed(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    work()
    return clock() - start


def outputs_of(m: int, n: int) -> np.ndarray:
    return np.random.default_rng(0).random((m, n), dtype=np.float32)


def in_memory(classes: int, models: int, targets: int, rounds: int, clock: Callable[[], float]) -> None:
    outputs = outputs_of(models, targets)
    masks = {design: dtl.subset_masks(classes, models, design) for design in ("random", "paired")}
    square = outputs_of(SIDE, SIDE)
    product = models * targets * classes * 2 / 1e9  # GFLOP
    needed = {"random": 2 * product, "paired": product / 2}
    seconds: dict[str, list[float]] = {}
    found: dict[str, np.ndarray] = {}

    def influence(design: str) -> None:
        found[design] = dtl.estimate_influence(masks[design], outputs, design=design).values

    def reference() -> None:
        found["meter"] = meter(masks["random"], outputs)

    for _ in range(rounds):
        for design in masks:
            for name, work in (("peak", lambda: square @ square), (design, lambda design=design: influence(design))):
                seconds.setdefault(f"{name} ({design})" if name == "peak" else name, []).append(timed(work, clock))
        seconds.setdefault("meter", []).append(timed(reference, clock))
    print(f"\nIn memory: {models} models, {targets} targets, {classes} classes, float32, n = {rounds} rounds\n")
    unit = "CPU seconds" if clock is time.process_time else "seconds"
    print(f"| arm | {unit} | GFLOP needed | share of peak | times faster than the meter | peak memory, MiB |")
    print("|---|---|---|---|---|---|")
    data = f"dtl.subset_masks({classes}, {models}, {{!r}}), e.outputs_of({models}, {targets})"
    for design, work in needed.items():
        memory = alone(f"dtl.estimate_influence({data.format(design)}, design={design!r})")[2]
        t, peak = np.array(seconds[design]), 2e-9 * SIDE**3 / np.array(seconds[f"peak ({design})"])
        print(
            f"| dtl, {design} | {spread(t)} | {work:.3g} | {spread(work / t / peak)} | "
            f"{spread(np.array(seconds['meter']) / t)} | {memory:.0f} |"
        )
    memory = alone(f"e.meter({data.format('random')})")[2]
    print(f"| meter | {spread(np.array(seconds['meter']))} | {2 * product:.3g} | | 1 | {memory:.0f} |")
    peaks = np.concatenate([2e-9 * SIDE**3 / np.array(t) for name, t in seconds.items() if name.startswith("peak")])
    apart = np.abs(found["random"] - found["meter"].T).max()
    size = outputs.nbytes / 2**20
    print(f"\npeak {spread(peaks)} GFLOP/s; outputs alone {size:.0f} MiB; values differ by {apart:.0e}")


def out_of_core(examples: int, models: int, targets: int, folder: Path) -> None:
    """Packed masks by model, as a study stores them; pairs, which also serve as random subsets."""
    rng, batch, width = np.random.default_rng(0), 16, -(-examples // 8)
    root = zarr.create_group(folder / "study")
    packed = root.create_array("mask", shape=(models, width), chunks=(batch, width), dtype="uint8")
    for first in range(0, models, batch):
        halves = rng.integers(0, 256, (batch // 2, width), dtype=np.uint8)
        packed[first : first + batch] = np.stack([halves, ~halves], axis=1).reshape(batch, width)[: models - first]
    root.create_array("margin", data=outputs_of(models, targets), chunks=(batch, targets))
    print(f"\nOut of core: {examples} examples, {targets} targets, {models} models, packed masks, n = 1 each\n")
    print(
        "| design | seconds | of CPU | GB read and written | GB/s | GFLOP/s needed | peak memory, MiB | with imports |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for design, products in (("random", 2), ("paired", 0.5)):
        masks, outputs = (f"e.zarr.open_array('{folder}/study/{name}')" for name in ("mask", "margin"))
        call = f"dtl.influence_to_zarr({masks}, {outputs}, '{folder}/{design}', {design!r}, {examples})"
        seconds, cpu, grown, whole = alone(call)
        moved = (models * width + 4 * models * targets + 8 * examples * targets) / 1e9
        rate = 2e-9 * products * models * examples * targets / seconds
        row = (f"{seconds:.0f}", f"{cpu:.0f}", f"{moved:.1f}", f"{moved / seconds:.2f}", f"{rate:.0f}", f"{grown:.0f}")
        print(f"| {design} | {' | '.join(row)} | {whole:.0f} |", flush=True)
        shutil.rmtree(folder / design)


def alone(call: str) -> list[float]:
    """Of a call in a new process: seconds, CPU seconds, and peak memory in MiB without and with what imports hold."""
    code = f"import dtl, estimation as e; e.report(lambda: {call})"
    folders = [str(Path(__file__).parent), str(Path(dtl.__file__).parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def report(work: Callable[[], object]) -> None:
    before = resident("RSS")
    start = time.process_time()
    print(timed(work), time.process_time() - start, resident("HWM") - before, resident("HWM"))


def resident(kind: str) -> float:
    """MiB, now (RSS) or at most (HWM); the peak of getrusage would be that of the parent process, if it is larger."""
    return int(re.findall(rf"Vm{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def spread(values: np.ndarray) -> str:
    return f"{np.median(values):.3g} ({values.min():.3g} to {values.max():.3g})"


def main(
    classes: int = 1000,
    models: int = 7540,
    targets: int = 10_000,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds in memory; 0 leaves this part out")] = 3,
    cpu: Annotated[bool, typer.Option(help="Time CPU seconds in memory: with one thread, on a busy machine")] = False,
    examples: Annotated[int, typer.Option(help="0 leaves the part out of core out")] = 10**6,
    example_models: int = 2000,
    example_targets: int = 1000,
    folder: Annotated[Path | None, typer.Option(help="Where files go for a while; default the system's")] = None,
) -> None:
    threads = ", ".join(f"{pool['internal_api']} {pool['num_threads']}" for pool in threadpool_info())
    print(f"{hardware()}, load {os.getloadavg()[0]:.1f}, {platform.platform()}")
    print(f"python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}; threads: {threads}")
    if rounds:
        in_memory(classes, models, targets, rounds, time.process_time if cpu else time.perf_counter)
    if examples:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            out_of_core(examples, example_models, example_targets, Path(temporary))


if __name__ == "__main__":
    typer.run(main)
