"""Faults: what a study loses when something goes wrong. Real stores, real processes.

    python tests/benchmarks/faults.py               # two minutes or so on two quiet cores

Every line does one thing to a study of small nets and compares its arrays with those of an uninterrupted run. "Trained
again" counts the models whose training started more than once. Dask's own warnings go to standard error.
"""

import errno
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr
from distributed import Client, LocalCluster, WorkerPlugin
from jsonargparse import auto_cli
from zarr.storage import MemoryStore, WrapperStore

import dtl
from dtl.data import ImageDataset, TransferProblem
from dtl.engine import weights as weights_module
from dtl.engine import workers

PROBLEM = dtl.testbed.make(0, per_class=20, train=5, validation=5, test=5)
RECIPE = dtl.Recipe(epochs=1, widths=(8, 16), models_at_once=4, finetune_epochs=2)
N = 40


def study(store: object, **options: object) -> dtl.Study:
    return dtl.Study(**{"problem": PROBLEM, "recipe": RECIPE, "store": store} | options)  # pyright: ignore


def count(marks: Path) -> None:
    """From now on leave a file in `marks` for each model whose training starts in this process."""
    original = workers.train_batch

    def train_batch(problem: TransferProblem, masks: np.ndarray, *rest: object) -> dict[str, np.ndarray]:
        for seed in rest[0]:  # pyright: ignore
            (marks / f"{seed}-{os.getpid()}-{time.time_ns()}").touch()
        return original(problem, masks, *rest)  # pyright: ignore

    workers.train_batch = train_batch


class Counting(WorkerPlugin):
    def __init__(self, marks: Path) -> None:
        self.marks = marks

    def setup(self, worker: object) -> None:
        count(self.marks)


def alone(store: Path, marks: Path, n: int = N) -> None:
    """What a process of its own does."""
    count(marks)
    workers.joblib.cpu_count = lambda: 1
    study(store).run(n, progress=False)


class Full(WrapperStore):
    """A disk with room for so many more writes."""

    room = 0

    async def set(self, key: str, value: object) -> None:
        Full.room -= 1
        if Full.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        await super().set(key, value)  # pyright: ignore


class Faults:
    """Each method is one fault: its docstring says what was done, it returns the study that remains, or a message."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.marks = folder, folder / "marks"
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["dtl.study", "dtl.testbed"])  # not dtl alone, which imports nothing
        self.whole = study(folder / "whole").run(N, progress=False)
        count(self.marks)

    def process(self, *arguments: object):
        process = self.context.Process(target=alone, args=arguments)
        process.start()
        return process

    def copy(self) -> dtl.Study:
        return study(shutil.copytree(self.folder / "whole", self.folder / "s"))

    def killed(self) -> dtl.Study:
        """kill -9 of the run of 300 models at 20 random moments"""
        rng = np.random.default_rng(0)
        for _ in range(20):
            before = len([*self.marks.iterdir()])
            process = self.process(self.folder / "s", self.marks, 300)
            while len([*self.marks.iterdir()]) == before:
                time.sleep(0.001)
            process.join(rng.uniform(0, 0.2))
            process.kill()
            process.join()
        self.process(self.folder / "s", self.marks, 300).join()
        return study(self.folder / "s")

    def worker_killed(self) -> dtl.Study:
        """kill -9 of a Dask worker in the middle of a batch"""
        with LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
            client.register_plugin(Counting(self.marks))

            def kill() -> None:
                while len(started := [*self.marks.iterdir()]) < N // 2:
                    time.sleep(0.001)
                latest = max(started, key=lambda mark: mark.name.split("-")[2])
                os.kill(int(latest.name.split("-")[1]), signal.SIGKILL)

            killer = threading.Thread(target=kill)
            killer.start()
            found = study(self.folder / "s").run(N, client=client, progress=False)
            killer.join()
            return found

    def two_coordinators(self) -> dtl.Study:
        """two runs of one study at the same time"""
        for process in [self.process(self.folder / "s", self.marks) for _ in range(2)]:
            process.join()
        return study(self.folder / "s")

    def bit_flipped(self) -> dtl.Study:
        """one bit of a chunk flipped, then repair=True"""
        file = self.copy().store.zarr.root / "margin/c/0/2/0"  # pyright: ignore
        data = bytearray(file.read_bytes())
        data[100] ^= 1
        file.write_bytes(data)
        return study(self.folder / "s").run(N, progress=False, repair=True)

    def truncated(self) -> dtl.Study:
        """a chunk cut short, another deleted, then repair=True"""
        root = self.copy().store.zarr.root  # pyright: ignore
        os.truncate(root / "probability/c/0/3/0", 50)
        (root / "correct/c/0/5/0").unlink()
        return study(self.folder / "s").run(N, progress=False, repair=True)

    def disk_full(self) -> dtl.Study:
        """disk full after 60 writes, then space again"""
        Full.room, store = 60, Full(MemoryStore())
        try:
            study(store).run(N, progress=False)
        except OSError as error:
            assert error.errno == errno.ENOSPC
        Full.room = 10**6
        return study(store).run(N, progress=False)

    def moved(self) -> dtl.Study:
        """store moved, copied, its files dated 2096"""
        self.copy()
        shutil.move(self.folder / "s", self.folder / "t")
        for file in (self.folder / "t").rglob("*"):
            os.utime(file, (4e9, 4e9))
        return study(shutil.copytree(self.folder / "t", self.folder / "u")).run(N, progress=False)

    def extended(self) -> dtl.Study:
        """100 models extended to 300"""
        return study(self.folder / "s").run(100, progress=False).run(300, progress=False)

    def merged(self) -> dtl.Study:
        """two halves trained apart and merged"""
        study(self.folder / "a").run(N // 2, progress=False)
        study(self.folder / "b").run(N, start=N // 2, progress=False)
        return study(self.folder / "s").merge(self.folder / "a").merge(self.folder / "b")

    def second_target(self) -> str:
        """a second target, source weights kept"""
        weights, trained = self.folder / "w", []
        study(self.folder / "a", weights=weights).run(N, progress=False)
        train, validation, test = (
            ImageDataset(part.images, part.labels % 2, ("a", "b"))
            for part in (PROBLEM.target_validation, PROBLEM.target_train, PROBLEM.target_test)
        )
        second = TransferProblem("second", PROBLEM.source, train, validation, test)
        original = weights_module.train_sources
        weights_module.train_sources = lambda *args: trained.append(len(args[1])) or original(*args)
        found = study(self.folder / "b", problem=second, weights=weights).run(N, progress=False)
        weights_module.train_sources = original
        equal = np.array_equal(found.results.margin, study(None, problem=second).run(N, progress=False).results.margin)
        return f"source models trained for it: {sum(trained)}; arrays {'equal' if equal else 'DIFFER'}"

    def refused(self) -> str:
        """store of another version and another seed"""
        root = zarr.open_group(self.copy().store.zarr.root)  # pyright: ignore
        root.attrs["settings"] = {**root.attrs["settings"], "format": 1}  # pyright: ignore
        try:
            study(self.folder / "s", seed=3)
        except ValueError as error:
            return f"refused: {str(error).split('study ')[1].split(':')[0]}"
        return "ACCEPTED"

    def diverged(self) -> str:
        """learning rate of 1e30"""
        try:
            study(self.folder / "s", recipe=dtl.Recipe(epochs=1, lr=1e30)).run(2, progress=False)
        except RuntimeError as error:
            return str(error).split(" and are")[0] + "; not in the results"
        return "STORED"


def main() -> None:
    """Do one fault after the other and print the table."""
    faults: list[Callable[[Faults], dtl.Study | str]] = [
        f for n, f in vars(Faults).items() if n[0] != "_" and f.__doc__
    ]
    print(f"{'fault':56}{'lost':>6}{'trained again':>16}{'s':>6}  arrays")
    with tempfile.TemporaryDirectory() as folder:
        one = Faults(Path(folder))
        for fault in faults:
            for path in Path(folder).iterdir():
                if path.name not in ("whole", "whole.lock"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            one.marks.mkdir()
            start = time.perf_counter()
            found = fault(one)
            seconds, again, lost, note = time.perf_counter() - start, "", "", found
            if isinstance(found, dtl.Study):
                started = [mark.name.split("-")[0] for mark in one.marks.iterdir()]
                results = found.results
                expected = (
                    one.whole.results if results.sizes["model"] == N else study(None).run(300, progress=False).results
                )
                lost = str(expected.sizes["model"] - results.sizes["model"])
                new = "bit" in fault.__name__ or "trunc" in fault.__name__
                again = str(len(started) if new else len(started) - len(set(started)))
                equal = all(np.array_equal(results[name], expected[name]) for name in expected)
                note = "equal" if equal else "DIFFER"
            print(f"{fault.__doc__:56}{lost:>6}{again:>16}{seconds:6.1f}  {note}", flush=True)


if __name__ == "__main__":
    auto_cli(main)
