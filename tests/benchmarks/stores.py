"""Stores: what the checks of a store of many models cost when it is opened, and what a batch pays to reach the disk.

    python tests/benchmarks/stores.py               # two minutes or so on two quiet cores

A store of 10,000 models (625 batches of 16, 200 targets) is opened by turns with the checks (files that are missing,
digests of rows, the seal) and without, each time followed by reading one output of all models. Then batches are saved
by turns into a folder whose files are flushed and into one whose files are not.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from jsonargparse import auto_cli
from zarr.storage import LocalStore

from dtl.doctor import hardware
from dtl.engine import store as engine
from dtl.engine.store import OUTPUTS, Store, array_of, marks_of, read

TARGETS, BATCH = 200, 16


def prepared(store: Store, n: int) -> zarr.Group:
    rng = np.random.default_rng(0)
    known = {
        "label": xr.Variable("target", np.zeros(TARGETS, np.int64)),
        "split": xr.Variable("target", np.zeros(TARGETS, np.int8)),
        "mask": xr.Variable(("model", "source"), rng.random((n, 24)) < 0.5),
        "seed": xr.Variable("model", rng.integers(1, 2**62, n)),
    }
    dims, nothing = ("transfer", "model", "target"), np.zeros((1, n, TARGETS))
    known |= {name: xr.Variable(dims, nothing.astype(dtype)) for name, dtype in OUTPUTS.items()}
    return store.prepare(known, BATCH, {"problem": "none"}, {"id": "one", "models": n})


def batch() -> dict[str, np.ndarray]:
    return {name: np.random.default_rng(1).random((1, BATCH, TARGETS)).astype(kind) for name, kind in OUTPUTS.items()}


def checked(folder: Path) -> float:
    root = engine.open_store(folder)
    marks = marks_of(root)
    return float(read(root, "margin", marks).isel(model=np.flatnonzero(marks.done)).mean())


def unchecked(folder: Path) -> float:
    root = zarr.open_group(LocalStore(folder, read_only=True), mode="r")
    done = np.asarray(array_of(root, "done"))
    return float(read(root, "margin").isel(model=np.flatnonzero(done)).mean())


def opened(folder: Path) -> None:
    marks_of(engine.open_store(folder))


def opened_unchecked(folder: Path) -> None:
    np.asarray(array_of(zarr.open_group(LocalStore(folder, read_only=True), mode="r"), "done"))


def seconds(function: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main(models: int = 10_000, rounds: int = 7) -> None:
    """Print both tables.

    Args:
        models: of the store that is opened
        rounds: by turns, of each
    """
    took: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "large"
        store = Store(LocalStore(folder), {"format": engine.FORMAT})
        root, values = prepared(store, models), batch()
        for first in range(0, models, BATCH):
            rows = np.arange(first, min(first + BATCH, models))
            store.save(root, rows, {name: of[:, : len(rows)] for name, of in values.items()})
        arms = {
            "opened": opened,
            "opened, no checks": opened_unchecked,
            "and read": checked,
            "and read, none": unchecked,
        }
        for _ in range(rounds):
            for name, function in arms.items():
                took.setdefault(name, []).append(seconds(function, folder))
        kinds = {"saved, flushed": engine.Durable, "saved, not": LocalStore}
        stores = {name: Store(kind(Path(scratch) / name), {}) for name, kind in kinds.items()}
        roots = {name: prepared(store, rounds * BATCH) for name, store in stores.items()}
        for r in range(rounds):
            for name, store in stores.items():
                rows = np.arange(r * BATCH, (r + 1) * BATCH)
                took.setdefault(name, []).append(seconds(store.save, roots[name], rows, values))
    print(f"{models} models, {rounds} interleaved rounds; {hardware()}")
    for name, times in took.items():
        low, middle, high = (1e3 * f(times) for f in (min, statistics.median, max))
        print(f"{name:20} {middle:8.1f} ms ({low:.1f}-{high:.1f})")


if __name__ == "__main__":
    auto_cli(main)
