"""Batches trained by workers elsewhere: the same arrays, no images in a message, nothing lost when a worker dies."""

import contextlib
import dataclasses
import os
import platform
import shutil
import signal
import threading
import time

import dask
import numpy as np
import pytest
import xarray as xr
from PIL import Image

import dtl
from dtl.data import ImageDataset, TransferProblem
from dtl.engine import workers
from dtl.engine.workers import Run, open_problem, publish, work

N = 20  # models, in five batches

distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")


def identical(study, expected):
    xr.testing.assert_identical(study.results.load().drop_attrs(), expected.results.load().drop_attrs())


@pytest.fixture(scope="module")
def reference(problem, recipe):
    return dtl.Study(problem, recipe, transfer=("fixed", "full")).run(N, progress=False)


@pytest.fixture(scope="module")
def client():
    """Two worker processes; a busy machine may take its time to start and to stop them."""
    with dask.config.set({"distributed.comm.timeouts.connect": "600s", "distributed.comm.timeouts.tcp": "600s"}):
        cluster = distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=":0")
        client = distributed.Client(cluster, timeout="600s")
    yield client
    client.close()
    with contextlib.suppress(TimeoutError):
        cluster.close()


@pytest.fixture
def by_hand(problem):
    """A problem that no call can make again."""
    return TransferProblem("by hand", **problem.parts)


class Marking(distributed.WorkerPlugin):
    """Leaves a file for each batch that a worker trains; the second batch of one worker never ends."""

    def __init__(self, folder, hang):
        self.folder, self.hang = folder, hang

    def setup(self, worker):
        self.original = workers.train_batch

        def train_batch(*args):
            (self.folder / f"{os.getpid()}-{time.time_ns()}").touch()
            if self.hang and len([*self.folder.glob(f"{os.getpid()}-*")]) == 2:
                with contextlib.suppress(FileExistsError):
                    hanging = self.folder.with_name("hanging")
                    hanging.mkdir()
                    (hanging / str(os.getpid())).touch()
                    threading.Event().wait()
            return self.original(*args)

        workers.train_batch = train_batch

    def teardown(self, worker):
        workers.train_batch = self.original


@pytest.fixture
def marks(client, tmp_path, request):
    (tmp_path / "marks").mkdir()
    client.register_plugin(Marking(tmp_path / "marks", request.param), name="marking")
    yield tmp_path / "marks"
    client.unregister_worker_plugin("marking")


# Other processes


@pytest.mark.parametrize("marks", [False], indirect=True)
def test_processes_write_the_same_store(problem, recipe, reference, client, marks, tmp_path, monkeypatch):
    """Each batch is trained once, elsewhere, and saved there; no image is in a message."""
    monkeypatch.setattr(ImageDataset, "__reduce_ex__", None)  # cannot be pickled
    study = dtl.Study(problem, recipe, transfer=("fixed", "full"), store=tmp_path / "s")
    with monkeypatch.context() as patch:
        patch.setattr(study.store, "save", None)  # not by this process
        study.run(N, client=client, progress=False)
    identical(study, reference)
    pids = {int(mark.name.split("-")[0]) for mark in marks.iterdir()}
    assert len([*marks.iterdir()]) == N // 4 and os.getpid() not in pids
    assert study.results.attrs["runs"][-1]["device"] == platform.machine()


@pytest.mark.parametrize("marks", [True], indirect=True)
def test_a_worker_killed_in_the_middle_of_a_batch(problem, recipe, reference, client, marks, tmp_path):
    """Its batch is trained again by another, and only that one, though Dask forgets all that the worker has done."""

    def kill():
        while not (hanging := [*marks.with_name("hanging").glob("*")]):  # it has done another batch by then
            time.sleep(0.01)
        os.kill(int(hanging[0].name), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    study = dtl.Study(problem, recipe, transfer=("fixed", "full"), store=tmp_path / "s")
    study.run(N, client=client, progress=False)
    killer.join()
    identical(study, reference)
    assert len([*marks.iterdir()]) == N // 4 + 1


@pytest.mark.parametrize("marks", [False], indirect=True)
def test_problems_made_by_hand_and_stores_in_memory(by_hand, problem, recipe, reference, client, marks, tmp_path):
    study = dtl.Study(by_hand, recipe, transfer=("fixed", "full"), store=tmp_path / "s")
    identical(study.run(8, client=client, progress=False), dtl.Study(problem, recipe, transfer=("fixed", "full")).run(8, progress=False))  # fmt: skip  # noqa: E501
    assert [file.suffix for file in sorted((tmp_path / "s" / "data").iterdir())] == [".safetensors"]
    identical(dtl.Study(problem, recipe, transfer=("fixed", "full")).run(N, client=client, progress=False), reference)
    with pytest.raises(ValueError, match="made by hand, so other processes cannot open it: give the study a store"):
        dtl.Study(by_hand, recipe).run(4, client=client, progress=False)


def test_processes_of_this_machine_share_the_work(by_hand, problem, recipe, reference, training, tmp_path, monkeypatch):
    """Equal arrays, trained and saved elsewhere; no images in a message, and the store's folder may be missing."""
    training.forbid()  # here
    study = dtl.Study(problem, recipe, transfer=("fixed", "full"), store=tmp_path / "s")
    with monkeypatch.context() as patch:
        patch.setattr(study.store, "save", None)
        study.run(8, device="cpu", workers=2, progress=False)
    identical(study, dtl.Study(problem, recipe, transfer=("fixed", "full")).merge(tmp_path / "s"))
    np.testing.assert_array_equal(study.results.margin, reference.results.margin[:, :8])
    in_memory = dtl.Study(by_hand, recipe, transfer=("fixed", "full")).run(8, "cpu", workers=1, progress=False)
    np.testing.assert_array_equal(in_memory.results.margin, reference.results.margin[:, :8])
    with pytest.raises(RuntimeError, match="models 0, 1, 2, 3 diverged"):
        dtl.Study(problem, dataclasses.replace(recipe, lr=1e30)).run(4, "cpu", workers=1, progress=False)


@pytest.mark.parametrize(
    ("workers", "message"),
    [(0, "workers must be a whole number of at least 1"), ("2", "workers must be a whole number")],
)
def test_numbers_of_processes_that_are_none(problem, recipe, training, workers, message):
    training.forbid()
    with pytest.raises(ValueError, match=message):
        dtl.Study(problem, recipe).run(4, workers=workers, progress=False)


def test_errors_elsewhere_arrive(problem, recipe, client, tmp_path):
    study = dtl.Study(problem, recipe, store=tmp_path / "s")
    with pytest.raises(ValueError, match="device 'cuda:99' was asked for but torch sees"):
        study.run(4, device="cuda:99", client=client, progress=False)
    slow = dataclasses.replace(recipe, lr=1e30)
    with pytest.raises(RuntimeError, match="models 0, 1, 2, 3 diverged"):
        dtl.Study(problem, slow, store=tmp_path / "d").run(4, client=client, progress=False)


# What a worker does, in this process


@pytest.fixture
def batch(problem, recipe, tmp_path):
    """A study of eight models, of which the second batch is to be trained, and what a worker is sent for it."""
    study = dtl.Study(problem, recipe, store=tmp_path / "s").run(4, progress=False)
    masks, rows = dtl.subset_masks(24, 8), np.arange(4, 8)
    _, run = study._prepare(masks, "cpu")
    run = dataclasses.replace(run, origin=publish(problem, study.store.folder), store=study.store.folder)
    return study, run, (rows, np.packbits(masks[rows], axis=1), study.seeds(8)[rows])


def test_a_batch_may_be_repeated(problem, recipe, batch, training):
    study, run, arguments = batch
    assert work(run, *arguments).outputs is None
    identical(study, dtl.Study(problem, recipe).run(8, progress=False))
    training.forbid()
    assert work(run, *arguments).rows.tolist() == [4, 5, 6, 7]


def test_a_worker_that_outlived_its_run_writes_nothing(batch):
    study, run, arguments = batch
    study.run(4, progress=False, repair=True)  # another run has begun since
    late = work(run, *arguments)
    assert late.outputs is not None and study.results.sizes["model"] == 4


def test_a_worker_that_does_not_see_the_store_sends_its_outputs(batch, tmp_path):
    study, run, arguments = batch
    shutil.move(tmp_path / "s", tmp_path / "t")
    sent = work(run, *arguments)
    assert sent.outputs is not None and sent.outputs["margin"].shape == (1, 4, 80) and not (tmp_path / "s").exists()


# Problems by name


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.setattr(workers, "_OPEN", {})


def test_a_problem_is_opened_once_and_checked(problem, fresh, monkeypatch, tmp_path):
    opened = open_problem(publish(problem, None), problem.fingerprints)
    assert opened is not problem and opened.fingerprints == problem.fingerprints
    assert open_problem({"load": "nothing any more"}, problem.fingerprints) is opened
    other = dtl.load("testbed", seed=1, per_class=20, train=5, validation=5, test=5)
    with pytest.raises(ValueError, match="the data of .* have changed: .* now gives another source, target_train, "):
        open_problem(publish(other, None), problem.fingerprints | {"source": "?"})
    with pytest.raises(
        ValueError, match="cannot open .* \\(unknown problem 'x'.*\\): the data must be there as they are"
    ):
        open_problem({"load": "x", "options": {}}, {})


def test_folders_of_images_are_opened_by_their_absolute_path(fresh, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for k, name in enumerate(("a/0", "a/1", "b/0", "b/1")):
        (tmp_path / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i + k}.png")
    monkeypatch.chdir(tmp_path)
    problem = dtl.from_folders("a", "b", size=8, cache="cache", show_progress=False)
    assert problem.origin == {"load": "folders", "options": {"source_dir": str(tmp_path / "a"), "target_dir": str(tmp_path / "b"), "size": 8, "cache": str(tmp_path / "cache"), "show_progress": False}}  # fmt: skip  # noqa: E501
    monkeypatch.chdir("/")
    assert open_problem(publish(problem, None), problem.fingerprints).name == "a-b"
    shutil.rmtree(tmp_path / "a")
    workers._OPEN.clear()
    with pytest.raises(ValueError, match="cannot open .*a is not a folder"):
        open_problem(publish(problem, None), problem.fingerprints)


def test_a_changed_problem_forgets_how_it_was_made(problem):
    assert problem.origin is not None and dataclasses.replace(problem, name="mine").origin is None


def test_a_copy_of_the_images(by_hand, fresh, tmp_path):
    (tmp_path / "s").mkdir()
    origin = publish(by_hand, tmp_path / "s")
    assert publish(by_hand, tmp_path / "s") == origin and str(tmp_path / "s" / "data") in origin["options"]["path"]
    opened = open_problem(origin, by_hand.fingerprints)
    assert opened.name == "by hand" and opened.fingerprints == by_hand.fingerprints
    with open(origin["options"]["path"], "r+b") as file:
        file.seek(-9, os.SEEK_END)
        file.write(b"!")
    workers._OPEN.clear()
    with pytest.raises(ValueError, match="cannot open .* is damaged"):
        open_problem(origin, by_hand.fingerprints)


def test_what_a_run_says_is_small(problem, batch):
    import pickle

    _, run, arguments = batch
    assert isinstance(run, Run) and len(pickle.dumps((run, arguments))) < 3000
