"""Training the batches of a study: in threads, or as tasks on the workers of a Dask cluster.

A worker elsewhere is sent names, subsets and seeds, never images: it opens the problem and the store itself, checks
that they are the study's own, and writes its own chunks. Dask pickles these messages; no pickle is ever on disk.
"""

import ctypes
import hashlib
import json
import platform
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import joblib
import numpy as np
import torch
import zarr

from dtl._checks import InputError
from dtl.data import ImageDataset, TransferProblem, reopen
from dtl.engine.store import Store, array_of
from dtl.engine.weights import finite, load_tensors, save_tensors, source_nets, zero_diverged
from dtl.training import Recipe, images_of, resolve_device, schedule
from dtl.transfer import Outputs, transfer

if TYPE_CHECKING:
    from distributed import Client

SPLITS = ("validation", "test")
RETRIES = 2  # of a batch that fails on a worker elsewhere; Dask itself repeats those of workers that die


class Batch(NamedTuple):
    """What became of a batch: rows done, their outputs where the worker could not save them, rows that diverged."""

    rows: np.ndarray
    outputs: dict[str, np.ndarray] | None
    diverged: np.ndarray
    device: str


@dataclass(frozen=True)
class Run:
    """What all batches of a run share, as plain data: a worker opens the problem and the store by name."""

    id: str
    settings: dict[str, Any]
    device: str
    weights: Path | None
    origin: dict[str, Any] | None = None
    store: Path | None = None


def train(
    run: Run,
    problem: TransferProblem,
    store: Store,
    masks: np.ndarray,
    seeds: np.ndarray,
    batches: list[np.ndarray],
    client: "Client | None" = None,
) -> Generator[Batch, None, None]:
    """Train batches of models (rows of `masks`) in parallel; yields each when it is done."""
    here: tuple[Any, ...] = ()
    local = torch.device(run.device if client is None else "cpu")
    if client is None:
        pool, here = ThreadPoolExecutor(joblib.cpu_count() if local.type == "cpu" else 1), (problem, store)
    else:
        pool = client.get_executor(retries=RETRIES, pure=False)
        run = replace(run, origin=publish(problem, store.folder), store=store.folder)
    with one_thread(local), pool:
        jobs = {pool.submit(work, run, rows, np.packbits(masks[rows], axis=1), seeds[rows], *here) for rows in batches}
        try:
            for job in as_completed(jobs):
                jobs.remove(job)  # so that nobody keeps its outputs
                yield job.result()
        finally:
            for job in jobs:
                job.cancel()


def work(
    run: Run,
    rows: np.ndarray,
    packed: np.ndarray,
    seeds: np.ndarray,
    problem: TransferProblem | None = None,
    store: Store | None = None,
) -> Batch:
    """Train one batch of models and save it, unless it is there already: Dask may repeat what a lost worker has done.

    packed : masks of the rows, by `np.packbits`;  problem, store : opened by name if not given
    """
    if problem is None:
        keep_freed_memory()
        problem = open_problem(run.origin or {}, run.settings["data"])
    store = store or Store(run.store, run.settings)
    settings, device = run.settings, resolve_device(run.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    root = store.open_during(run.id)
    if root is not None and np.asarray(array_of(root, "done"))[rows].all():
        return Batch(rows, None, rows[:0], where)
    units = problem.source.n_classes if settings["unit"] == "class" else len(problem.source)
    masks = np.unpackbits(packed, axis=1, count=units).astype(bool)
    kept = () if run.weights is None else (run.weights,)
    outputs = train_batch(
        problem,
        masks,
        seeds,
        Recipe(**settings["recipe"]),
        tuple(settings["transfer"]),
        str(device),
        settings["unit"],
        *kept,
    )
    good = np.isfinite(outputs["margin"]).all((0, 2))
    found = {name: values[:, good] for name, values in outputs.items()}
    root = store.open_during(run.id)  # again: another run may have begun
    if root is not None:
        store.save(root, rows[good], found)
    return Batch(rows[good], found if root is None else None, rows[~good], where)


def train_batch(
    problem: TransferProblem,
    masks: np.ndarray,
    seeds: np.ndarray,
    recipe: Recipe,
    regimes: Sequence[str],
    device: str,
    unit: str = "class",
    weights: Path | None = None,
) -> dict[str, np.ndarray]:
    """Train source models side by side, transfer them, and return their outputs, (transfer, models, target) each.

    Outputs of a model whose source training diverged are NaN.
    """
    if device == "cpu":
        torch.set_num_threads(1)  # for a worker elsewhere; here the caller has done it and restores it
    n_targets = len(problem.target_validation) + len(problem.target_test)
    found = {name: np.empty((len(regimes), len(masks), n_targets), dtype=np.float32) for name in Outputs._fields}
    plans = [schedule(int(n), recipe) for n in images_of(masks, problem.source, unit).sum(1)]
    for plan in sorted(set(plans)):
        together = np.flatnonzero([p == plan for p in plans])
        own = seeds[together].tolist()
        nets = source_nets(problem.source, masks[together], own, recipe, torch.device(device), unit, weights)
        diverged = ~finite(nets)
        zero_diverged(nets, diverged)
        for regime in regimes:
            copied = deepcopy(nets)  # "full" changes the net that it is given
            by_split = transfer(copied, problem, own, recipe, regime)
            for name in Outputs._fields:
                values = torch.cat([getattr(by_split[split], name) for split in SPLITS], 1)
                found[name][regimes.index(regime), together] = values.cpu().numpy()
        for values in found.values():
            values[:, together[diverged]] = np.nan
    return found


def publish(problem: TransferProblem, folder: Path | None) -> dict[str, Any]:
    """How other processes open a problem: its `origin`, or {"file": path} of a copy in the study's folder."""
    if problem.origin is not None:
        return problem.origin
    if folder is None:
        raise InputError(
            "this problem was made by hand, so other processes cannot open it: give the study a store folder, where "
            "its images are put for them, or make it with dtl.load or dtl.from_folders"
        )
    zarr.open_group(folder / "data", mode="a")  # so that a reader of the store knows that this is no array
    digest = hashlib.sha256(json.dumps(problem.fingerprints).encode()).hexdigest()
    file = folder / "data" / f"{digest[:32]}.safetensors"
    if not file.exists():
        classes = {part: dataset.classes for part, dataset in problem.parts.items()}
        tensors = {f"{part}.images": dataset.images.contiguous() for part, dataset in problem.parts.items()}
        tensors |= {f"{part}.labels": dataset.labels.contiguous() for part, dataset in problem.parts.items()}
        save_tensors(file, tensors, {"name": problem.name, "classes": json.dumps(classes)})
    return {"file": str(file)}


def open_problem(origin: dict[str, Any], fingerprints: dict[str, str]) -> TransferProblem:
    """The problem that `publish` described, opened once by each process; ValueError if it is not the same data."""
    key = tuple(fingerprints.values())
    with _OPENING:
        if key not in _OPEN:
            here = f"a worker on {platform.node()}"
            try:
                problem = _read_problem(Path(origin["file"])) if "file" in origin else reopen(origin)
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{here} cannot open {origin} ({error}): the data must be there as it is where the study runs"
                ) from error
            other = [part for part, digest in problem.fingerprints.items() if digest != fingerprints[part]]
            if other:
                raise InputError(f"{here} finds another {', '.join(other)} in {origin}: give it the data of the study")
            _OPEN.clear()  # one problem at a time
            _OPEN[key] = problem
        return _OPEN[key]


_OPEN: dict[tuple[str, ...], TransferProblem] = {}
_OPENING = threading.Lock()


def _read_problem(file: Path) -> TransferProblem:
    tensors, facts = load_tensors(file)
    parts: dict[str, Any] = {
        part: ImageDataset(tensors[f"{part}.images"], tensors[f"{part}.labels"], tuple(classes))
        for part, classes in json.loads(facts["classes"]).items()
    }
    return TransferProblem(facts["name"], **parts)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """One torch thread for each worker: several times as fast on small nets, and sums always in the same order.

    Training amplifies a last-bit difference to margins that differ by whole units, so the order decides a result.
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next training step, as it does by default.

    Dask starts workers with ``MALLOC_TRIM_THRESHOLD_`` set, so that each step asks the system for its memory anew: 100
    times as many page faults, and 1.7 times the processor time, for small nets.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, where glibc's own adjustment ends
        libc.mallopt(-1, 64 << 20)  # M_TRIM_THRESHOLD
