"""Workers: threads against processes, one against two, and what Dask costs for each batch of models.

    python tests/benchmarks/workers.py              # five rounds, five minutes or so on two quiet cores
    python tests/benchmarks/workers.py --rounds 2 --models 32

Every arm runs the same study of the testbed, with the default recipe, into a new store in a temporary folder:

threads : `Study.run` as it is by default, with 1 and 2 threads
processes : `Study.run(workers=...)`, 1 and 2 processes of this machine
dask : `Study.run(client=...)` on a `LocalCluster` of 1 and 2 worker processes of one thread, which keep freed memory
trimming : the same on 1 process, but with the memory settings that Dask gives its workers otherwise

Rounds are interleaved, so that what else the machine does hits all arms. Seconds of processor time are of all threads
and processes together. Last, the round trip of a batch that is done already: what it takes to send it, to open the
store and to see that nothing is left to do.
"""

import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import joblib
import numpy as np
import torch
from distributed import Client, LocalCluster
from jsonargparse import auto_cli

import dtl
from dtl.doctor import hardware
from dtl.engine import workers

KEEP_FREED = {"MALLOC_TRIM_THRESHOLD_": 64 << 20, "MALLOC_MMAP_THRESHOLD_": 32 << 20}  # bytes, where glibc itself ends


def processor_time(client: Client | None) -> float:
    there: Any = client.run(time.process_time) if client else {}
    ended = os.times()  # of processes of this machine, once they have ended
    return time.process_time() + ended.children_user + ended.children_system + sum(there.values())


def cluster_of(n: int, settings: dict[str, int]) -> LocalCluster:
    with dask.config.set({"distributed.nanny.pre-spawn-environ": settings}):
        return LocalCluster(n, threads_per_worker=1, dashboard_address=":0")


def main(rounds: int = 5, models: int = 64) -> None:
    """Time every arm and print the table.

    Args:
        rounds: repetitions of every arm
        models: models of a study
    """
    problem, recipe = dtl.load("testbed"), dtl.Recipe()
    trimming: Any = dask.config.get("distributed.nanny.pre-spawn-environ")
    clusters = [cluster_of(n, trimming | own) for n, own in ((1, KEEP_FREED), (2, KEEP_FREED), (1, {}))]
    clients = [Client(cluster) for cluster in clusters]
    arms: dict[str, tuple[int, Client | None, int | None]] = {
        "1 thread": (1, None, None),
        "2 threads": (2, None, None),
        "1 process": (1, None, 1),
        "2 processes": (1, None, 2),
        "dask, 1 process": (1, clients[0], None),
        "dask, 2 processes": (1, clients[1], None),
        "dask, 1, trimming": (1, clients[2], None),
    }
    wall: dict[str, list[float]] = {name: [] for name in arms}
    busy: dict[str, list[float]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as folder:

        def run(threads: int, client: Client | None, processes: int | None, n: int, where: str) -> dtl.Study:
            joblib.cpu_count = lambda: threads
            study = dtl.Study(problem, recipe, store=Path(folder) / where)
            return study.run(n, "cpu", client, progress=False, workers=processes)

        for name, arm in arms.items():  # imports, first allocations
            run(*arm, 2, f"warm {name}")
        for r in range(rounds):
            for name, arm in arms.items():
                start, before = time.perf_counter(), processor_time(arm[1])
                run(*arm, models, f"{name} {r}")
                wall[name].append(time.perf_counter() - start)
                busy[name].append(processor_time(arm[1]) - before)
        trip = round_trips(clients[0], run(1, None, None, models, "1 thread 0"))
    for client, cluster in zip(clients, clusters, strict=True):
        client.close()
        cluster.close()

    print(f"{models} models, {recipe.models_at_once} at once, {rounds} interleaved rounds")
    print(f"{hardware()}, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    print(f"{'':20}{'wall s, median (min-max)':>28}{'processor s, median (min-max)':>32}{'ratio':>8}")
    base = statistics.median(wall["1 thread"])
    for name in arms:
        print(f"{name:20}{spread(wall[name]):>28}{spread(busy[name]):>32}{base / statistics.median(wall[name]):8.2f}")
    batch = statistics.median(busy["1 thread"]) / (models / recipe.models_at_once)
    low, middle, high = (1e3 * f(trip) for f in (min, statistics.median, max))
    print(f"Dask, a batch that is done: {middle:.1f} ms ({low:.1f}-{high:.1f}), n = {len(trip)}")
    print(f"that is {middle / 1e3 / batch:.1%} of the {batch:.2f} s of processor time that a batch takes")


def round_trips(client: Client, study: dtl.Study, n: int = 100) -> list[float]:
    """Seconds from sending a batch to having its answer, one after the other."""
    rows, size = np.arange(study.recipe.models_at_once), len(study.masks)
    _, run = study._prepare(study.masks, "cpu")
    run = replace(run, origin=workers.publish(study.problem, None), store=study.store.folder)
    arguments = rows, np.packbits(study.masks[rows], axis=1), study.seeds(size)[rows]
    seconds = []
    for _ in range(n):
        start = time.perf_counter()
        client.submit(workers.work, run, *arguments, pure=False).result()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


if __name__ == "__main__":
    auto_cli(main)
