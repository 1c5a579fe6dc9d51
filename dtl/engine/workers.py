"""Training the batches of a study: in threads, in processes of this machine, or on the workers of a Dask cluster.

A process elsewhere is sent names, subsets and seeds, never images: it opens the problem and the store itself, checks
that they are the study's own, and writes its own chunks.
"""

import ctypes
import hashlib
import json
import logging
import platform
import signal
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import joblib
import numpy as np
import torch
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.backend import get_context

from dtl._checks import InputError
from dtl.data import PLAIN, TransferProblem
from dtl.datasets.registry import reopen
from dtl.datasets.saved import save
from dtl.engine.store import SPLITS, Store
from dtl.engine.views import done_in, save_missing, splits_of, stores_of
from dtl.engine.weights import finite, source_nets, zero_diverged
from dtl.training import Recipe, images_of, resolve_device, schedule
from dtl.transfer import Outputs, outputs, target_logits

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

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
    views: Mapping[str, Any] = field(default_factory=dict)  # name -> change of images


def train(
    run: Run,
    problem: TransferProblem,
    stores: Mapping[str, Store],
    masks: np.ndarray,
    seeds: np.ndarray,
    batches: list[np.ndarray],
    client: "Client | None" = None,
    workers: int | None = None,
) -> Generator[Batch, None, None]:
    """Train batches of models (rows of `masks`) in parallel; yields each when it is done.

    stores : that of the study under "", and those of views (`dtl.engine.views`)
    workers : processes of this machine that share its GPUs, or its cores; None for a thread a core, or one for a GPU
    """
    jobs: dict[Future, np.ndarray] = {}
    here: Any = ()
    folder = stores[""].folder
    with _pool(run.device, client, workers) as pool, TemporaryDirectory() as shared:
        if isinstance(pool, _Threads):
            here = (problem, stores)
        else:
            origin = publish(problem, Path(shared) if folder is None and client is None else folder)
            run = replace(run, origin=origin, store=folder, views=problem.views)
        try:
            for rows in batches:
                jobs[pool.submit(work, run, rows, np.packbits(masks[rows], axis=1), seeds[rows], *here)] = rows
            for job in as_completed(jobs):
                del jobs[job]  # so that nobody keeps its outputs
                yield job.result()
        except (KeyboardInterrupt, GeneratorExit):
            logger.warning("stopping: models that are saved are safe, batches that have begun are lost")
            if isinstance(pool, _Threads | _Processes):
                pool.stop()
            raise
        finally:
            for job in jobs:
                job.cancel()


class _Threads(ThreadPoolExecutor):
    """Threads that can be stopped in the middle of a batch."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.busy: set[int] = set()
        self.stopped = False

    def submit(self, fn: Any, /, *args: Any, **options: Any) -> Future:
        def tracked() -> Any:
            self.busy.add(threading.get_ident())
            try:
                if self.stopped:  # one that is not busy yet when it is stopped
                    raise KeyboardInterrupt
                return fn(*args, **options)
            finally:
                self.busy.discard(threading.get_ident())

        return super().submit(tracked)

    def stop(self) -> None:
        """Raise in each what Ctrl+C raises in the main thread alone, at its next step of Python."""
        self.stopped = True
        for thread in [*self.busy]:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt))


class _Processes(ProcessPoolExecutor):
    """Processes of this machine that share its GPUs; they need no ``if __name__ == "__main__"`` in a script."""

    def __init__(self, n: int, device: str) -> None:
        count = torch.cuda.device_count() if device == "cuda" else 0
        devices = get_context("loky").SimpleQueue()
        for i in range(n):
            devices.put(f"cuda:{i % count}" if count else device)
        super().__init__(n, initializer=_begin, initargs=(devices,))

    def stop(self) -> None:
        with suppress(Empty):
            while True:
                self._work_ids.get_nowait()  # of jobs that shutdown forgets, and that loky's thread would look up
        self.shutdown(kill_workers=True)


def _begin(devices: Any) -> None:
    """What a process does first: take a device, and leave Ctrl+C to the process that began it."""
    global _DEVICE
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _DEVICE = devices.get()


_DEVICE: str | None = None  # of this process, where several share the GPUs


@contextmanager
def _pool(device: str, client: "Client | None", workers: int | None) -> Iterator[Executor]:
    before = torch.get_num_threads()
    if client is not None:
        executor: Any = client.get_executor(retries=RETRIES, pure=False)
    elif workers is not None:
        executor = _Processes(workers, device)
    elif device != "cpu":
        executor = _Threads(1)
    else:
        # One torch thread for each worker: several times as fast on small nets, and sums always in the same order,
        # which decides a result: training amplifies a last-bit difference to margins that differ by whole units.
        torch.set_num_threads(1)
        executor = _Threads(joblib.cpu_count())
    try:
        with executor as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def work(
    run: Run,
    rows: np.ndarray,
    packed: np.ndarray,
    seeds: np.ndarray,
    problem: TransferProblem | None = None,
    stores: Mapping[str, Store] | None = None,
) -> Batch:
    """Train one batch of models and save it, unless it is there already: Dask may repeat what a lost worker has done.

    packed : masks of the rows, by `np.packbits`;  problem, stores : opened by name if not given
    """
    settings, device = run.settings, resolve_device(_DEVICE or run.device)
    problem = problem or open_problem(run.origin or {}, settings["data"], run.views)
    stores = stores or stores_of(Store(run.store, settings), problem)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    if stores[""].open_during(run.id) is not None and done_in(stores, int(rows[-1]) + 1)[rows].all():
        return Batch(rows, None, rows[:0], where)
    units = problem.source.n_classes if settings["unit"] == "class" else len(problem.source)
    masks = np.unpackbits(packed, axis=1, count=units).astype(bool)
    recipe, regimes = Recipe(**settings["recipe"]), tuple(settings["transfer"])
    outputs = train_batch(problem, masks, seeds, recipe, regimes, str(device), settings["unit"], run.weights)
    good = np.isfinite(outputs["margin"]).all((0, 2))
    found = {name: values[:, good] for name, values in outputs.items()}
    saved = save_missing(stores, run.id, rows[good], found)  # asks again: another run may have begun
    return Batch(rows[good], None if saved else found, rows[~good], where)


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

    Logits on views, and on the images as they are, are "logits/<view>", (transfer, models, target x class).
    Outputs of a model whose source training diverged are NaN.
    """
    if device == "cpu":
        torch.set_num_threads(1)  # for a worker elsewhere; here the caller has done it and restores it
    n_targets = len(problem.target_validation) + len(problem.target_test)
    widths = dict.fromkeys(Outputs._fields, n_targets)
    views = [PLAIN, *problem.views] if problem.views else []
    widths |= {f"logits/{view}": n_targets * problem.target_train.n_classes for view in views}
    found = {name: np.empty((len(regimes), len(masks), n), dtype=np.float32) for name, n in widths.items()}
    plans = [schedule(int(n), recipe) for n in images_of(masks, problem.source, unit).sum(1)]
    for plan in sorted(set(plans)):
        together = np.flatnonzero([p == plan for p in plans])
        own = seeds[together].tolist()
        nets = source_nets(problem.source, masks[together], own, recipe, torch.device(device), unit, weights)
        diverged = ~finite(nets)
        zero_diverged(nets, diverged)
        for number, regime in enumerate(regimes):
            copied = deepcopy(nets)  # "full" changes the net that it is given
            said = target_logits(copied, problem, own, recipe, regime)
            judged = [outputs(said[split], problem.judges[split].labels.to(device)) for split in SPLITS]
            values = {name: torch.cat(parts, 1) for name, *parts in zip(Outputs._fields, *judged, strict=True)}
            for view in views:
                values[f"logits/{view}"] = torch.cat([said[split] for split in splits_of(view)], 1).flatten(1)
            for name, of in values.items():
                found[name][number, together] = of.float().cpu().numpy()
        for of in found.values():
            of[:, together[diverged]] = np.nan
    return found


def publish(problem: TransferProblem, folder: Path | None) -> dict[str, Any]:
    """How other processes open a problem: its `origin`, or that of a copy in the study's folder."""
    if problem.origin is not None:
        return problem.origin
    if folder is None:
        raise InputError(
            "this problem was made by hand, so other processes cannot open it: give the study a store folder, where "
            "its images are put for them, or make it with dtl.load or dtl.from_folders"
        )
    digest = hashlib.sha256(json.dumps(problem.fingerprints).encode()).hexdigest()
    file = folder / "data" / f"{digest[:32]}.safetensors"
    return {"load": "file", "options": {"path": str(file if file.exists() else save(problem, file))}}


def open_problem(
    origin: dict[str, Any], fingerprints: dict[str, str], views: Mapping[str, Any] | None = None
) -> TransferProblem:
    """The problem that `publish` described, opened once by each process; InputError if it is not the same data."""
    key = (*fingerprints.values(), repr(views))
    with _OPENING:
        if key not in _OPEN:
            try:
                problem = reopen(origin, fingerprints, views)
            except (OSError, ValueError) as error:
                raise InputError(
                    f"a worker on {platform.node()} cannot open {origin} ({error}): the data must be there as they are "
                    "where the study runs"
                ) from error
            _OPEN.clear()  # one problem at a time
            _OPEN[key] = problem
        return _OPEN[key]


_OPEN: dict[tuple[str, ...], TransferProblem] = {}
_OPENING = threading.Lock()
