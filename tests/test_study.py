"""Studies: resumable at any moment, extensible, checked on opening, and one clear error for every bad input."""

import dataclasses
import errno
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from zarr.storage import FsspecStore, LocalStore, MemoryStore, WrapperStore

import dtl
from dtl._checks import InputError
from dtl.engine import workers
from dtl.engine.store import Store
from dtl.results import open as open_results

N = 12  # models, in three batches


def run(problem, recipe, n=N, **options):
    return dtl.Study(problem, recipe, **options).run(n, progress=False)


def same(one, other, exact=True):
    """Equal results; `exact` to the bit, otherwise up to the order of floating-point sums."""
    one, other = one.results.load(), other.results.load()
    if exact:
        xr.testing.assert_identical(one.drop_attrs(), other.drop_attrs())
        return
    for name in ("mask", "seed"):
        np.testing.assert_array_equal(one[name], other[name])
    for name in ("margin", "probability"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-2, atol=1e-2)


@pytest.fixture(scope="module")
def reference(problem, recipe):
    """An uninterrupted run in memory."""
    return run(problem, recipe, transfer=("fixed", "full"))


@pytest.fixture
def no_training(training):
    training.forbid()


# Results


def test_results_are_what_the_contract_says(problem, recipe, reference):
    results = reference.results
    assert dict(results.sizes) == {"model": N, "source": 24, "target": 80, "transfer": 2}
    for name in ("margin", "probability", "correct", "prediction"):
        assert results[name].dims == ("transfer", "model", "target")
        assert isinstance(results[name].data, dask.array.Array), "results are read when used"
    assert results["mask"].dims == ("model", "source") and results["seed"].dims == ("model",)
    assert results["mask"].dtype == results["correct"].dtype == bool and results["margin"].dtype == np.float32
    assert tuple(results["source"].values) == problem.source.classes
    assert results["transfer"].values.tolist() == ["fixed", "full"] and results["model"].values.tolist() == [*range(N)]
    assert results["split"].values.tolist() == ["validation"] * 40 + ["test"] * 40
    labels = torch.cat([problem.target_validation.labels, problem.target_test.labels])
    np.testing.assert_array_equal(results["label"], labels)
    np.testing.assert_array_equal(reference.masks, dtl.subset_masks(24, N))
    assert len(set(results["seed"].values.tolist())) == N
    assert repr(reference) == "Study(testbed-0: 12 models done, balanced subsets, fixed, full)"


def test_outputs_agree_with_each_other_and_with_results(reference):
    margin, probability, correct = (reference.outputs(o, "full", "test") for o in ("margin", "probability", "correct"))
    assert margin.shape == (N, 40) and margin.dtype == np.float32
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-margin.astype(float))), rtol=1e-4)
    assert set(np.unique(correct)) == {0, 1} and (correct[probability > 0.5] == 1).all()
    labels = reference.results["label"][40:].values
    np.testing.assert_array_equal(reference.outputs("prediction", "full", "test") == labels, correct == 1)
    chosen = reference.results.sel(transfer="fixed").margin[:, :40]
    np.testing.assert_array_equal(reference.outputs(), chosen)
    for bad in ({"output": "loss"}, {"transfer": "fixed+bn"}, {"split": "train"}):
        with pytest.raises(
            ValueError,
            match=f"unknown {next(iter(bad))} of this study '{next(iter(bad.values()))}': choose".replace("+", r"\+"),
        ):
            reference.outputs(**bad)


def test_outputs_are_those_of_each_model_alone(problem, recipe, reference):
    """Batches of models, several regimes and the store put every number where it belongs."""
    for model in (0, 7):
        mask, seed = reference.masks[[model]], reference.seeds(N)[[model]]
        found = workers.train_batch(problem, mask, seed, recipe, ("full", "fixed"), "cpu")
        for name in ("margin", "probability"):
            expected = reference.results[name].values[::-1, model]
            np.testing.assert_allclose(found[name][:, 0], expected, rtol=1e-2, atol=1e-2)
    assert np.abs(np.diff(reference.results.margin.values, axis=1)).max() > 1


@pytest.mark.parametrize("by", [None, "class", "all", "array"])
def test_influence_of_a_study(problem, reference, by):
    groups = problem.truth.subpopulation["test"] if by == "array" else by
    found = reference.influence("difference", "probability", "full", "test", by=groups)
    n = {None: 40, "class": 4, "all": 1, "array": 8}[by]
    assert found.values.shape == found.stderr.shape == (24, n) and found.reliability.shape == (n,)
    assert np.isfinite(found.reliability).all() and np.isfinite(found.stderr).all()
    assert found.design == "balanced" and found.n_models == N
    masks, outputs = reference.masks, reference.outputs("probability", "full", "test").astype(float)
    labels = problem.target_test.labels.numpy()
    columns = {None: np.arange(40), "class": labels, "all": 0 * labels, "array": problem.truth.subpopulation["test"]}[
        by
    ]
    outputs = np.stack([outputs[:, columns == g].mean(1) for g in range(n)], 1)
    by_hand = np.stack([outputs[m].mean(0) - outputs[~m].mean(0) for m in masks.T])
    np.testing.assert_allclose(found.values, by_hand, atol=1e-6)
    with pytest.raises(ValueError, match="unknown grouping by 'classes'"):
        reference.influence(by="classes")


def test_a_study_without_results_says_so(problem, recipe):
    study = dtl.Study(problem, recipe)
    assert "0 models done" in repr(study)
    with pytest.raises(ValueError, match=r"no results yet: call run\(n_models\) first"):
        study.results  # noqa: B018


# Resuming and extending


def test_extending_equals_running_at_once(problem, recipe):
    at_once = run(problem, recipe, 20)
    same(run(problem, recipe, 8).run(20, progress=False), at_once)  # whole batches
    same(run(problem, recipe, 6).run(9, progress=False).run(20, progress=False), at_once, exact=False)  # cut batches


def test_a_finished_study_trains_nothing(problem, recipe, tmp_path, request):
    done = run(problem, recipe, 8, store=tmp_path / "s")
    request.getfixturevalue("no_training")
    again = run(problem, recipe, 8, store=tmp_path / "s")
    same(again, done)
    same(again.run(4, progress=False), done)  # fewer than there are: all are kept
    same(dtl.Study(problem, recipe, store=str(tmp_path / "s")), done)  # opening is enough to read
    runs: Any = again.results.attrs["runs"]
    assert [r["models"] for r in runs] == [8] and {"date", "device", "torch", "dtl"} <= set(runs[0])


def test_only_models_that_are_done_are_shown(problem, recipe, training, tmp_path):
    run(problem, recipe, store=tmp_path / "s")
    zarr.open_array(tmp_path / "s", path="done")[4:8] = False
    study = dtl.Study(problem, recipe, store=tmp_path / "s")
    assert study.results.model.values.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    np.testing.assert_array_equal(study.masks, dtl.subset_masks(24, N)[[0, 1, 2, 3, 8, 9, 10, 11]])
    training.sizes.clear()
    study.run(N, progress=False)
    assert training.sizes == [4] and study.results.sizes["model"] == N


class Dying(LocalStore):
    """Kills its process at a chosen write."""

    left = 0

    async def set(self, key, value):
        Dying.left -= 1
        if Dying.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        await super().set(key, value)


def work(problem, recipe, path, kill_at_write, trained, n_workers=2, begun=None):
    """What a process of its own does: the study, counting the models whose training it starts."""
    torch.set_num_threads(1)
    original = workers.train_batch

    def train_batch(*args):
        with trained.get_lock():
            trained.value += len(args[1])
        return original(*args)

    workers.train_batch = train_batch
    workers.joblib.cpu_count = lambda: n_workers
    if begun:
        begun.set()
    Dying.left = kill_at_write
    store = Dying(path) if kill_at_write else path
    dtl.Study(problem, recipe, transfer=("fixed", "full"), store=store).run(N, progress=False)


@pytest.fixture(scope="module")
def processes():
    """Forks of a server that has imported dtl and this module, and nothing else has happened to."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dtl.study", "dtl.testbed", __name__])  # not dtl alone, which imports nothing
    with pytest.MonkeyPatch.context() as patch:  # Python 3.11 tells the server no other way where modules are
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()
    return context


@pytest.mark.parametrize("first", [0, 6])
def test_killed_at_any_write_and_run_again(problem, recipe, reference, tmp_path, processes, first):
    """One store, whose runs are killed again and again, each time some writes later; `first`: while it is extended."""
    expected, options = reference, {"transfer": ("fixed", "full"), "store": tmp_path / "s"}
    if first:  # the seventh and eighth models are trained apart from the rest of their batch
        run(problem, recipe, first, **options)
        expected = run(problem, recipe, first, transfer=("fixed", "full")).run(N, progress=False)
    trained, deaths, write = processes.Value("i", 0), 0, 1
    while write < 200:
        process = processes.Process(target=work, args=(problem, recipe, tmp_path / "s", write, trained))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        deaths, write = deaths + 1, write + 5
        study = dtl.Study(problem, recipe, **options)
        assert repr(study).startswith("Study(testbed-0: ")
        if study.store.ready:  # what is done can be read, and is right, at any moment
            results = study.results.load()
            whole = expected.results.sel(model=results.model).load()
            xr.testing.assert_identical(results.drop_attrs(), whole.drop_attrs())
            assert results.sizes["model"] >= first
    assert deaths >= 5 and trained.value > N - first
    same(dtl.Study(problem, recipe, **options), expected)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_and_run_again(problem, recipe, reference, tmp_path, processes):
    """Stores whose runs are killed until all models are done: each kill costs one batch at most."""
    rng, kills, stores = np.random.default_rng(0), 0, 0
    while kills < 20:
        before, stores, trained = kills, stores + 1, processes.Value("i", 0)
        store = tmp_path / f"{stores}"
        while True:
            begun = processes.Event()
            process = processes.Process(target=work, args=(problem, recipe, store, 0, trained, 1, begun))
            process.start()
            begun.wait()
            process.join(rng.uniform(0, 0.3) if kills < 20 else None)
            if process.exitcode == 0:
                break
            process.kill()
            process.join()
            kills += 1
        assert N <= trained.value <= N + 4 * (kills - before)
        same(dtl.Study(problem, recipe, transfer=("fixed", "full"), store=store), reference)


def test_two_processes_on_one_store_share_the_work(problem, recipe, reference, tmp_path, processes):
    trained = processes.Value("i", 0)
    both = [processes.Process(target=work, args=(problem, recipe, tmp_path / "s", 0, trained)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert trained.value == N, "the second process found the models of the first"
    same(dtl.Study(problem, recipe, transfer=("fixed", "full"), store=tmp_path / "s"), reference)


def test_a_second_writer_says_that_it_waits(problem, recipe, tmp_path, caplog):
    study = dtl.Study(problem, recipe, store=tmp_path / "s")
    with caplog.at_level(logging.WARNING):
        with dtl.Study(problem, recipe, store=tmp_path / "s").store.lock():
            waiting = threading.Thread(target=lambda: study.run(4, progress=False))
            waiting.start()
            while "waiting for it to end" not in caplog.text:
                time.sleep(0.01)
            assert waiting.is_alive() and not study.store.exists
        waiting.join()
    assert f"another process is writing {tmp_path / 's'}: waiting" in caplog.text
    assert study.results.sizes["model"] == 4


def test_an_error_in_a_worker_keeps_what_was_saved(problem, recipe, reference, training, monkeypatch, tmp_path):
    seeds, others = reference.seeds(N), threading.Semaphore(0)
    save = Store.save

    def train_batch(problem, masks, own, *args):
        if seeds[4] in own:
            others.acquire()  # until both other batches have been saved
            others.acquire()
            raise RuntimeError("no memory left")
        return training.original(problem, masks, own, *args)

    training.replace(train_batch)
    monkeypatch.setattr(Store, "save", lambda *args: save(*args) or others.release())
    monkeypatch.setattr(workers.joblib, "cpu_count", lambda: 3)
    study = dtl.Study(problem, recipe, transfer=("fixed", "full"), store=tmp_path / "s")
    with pytest.raises(RuntimeError, match="no memory left"):
        study.run(N, progress=False)
    assert study.results.model.values.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    training.replace(training.original)
    same(study.run(N, progress=False), reference)


def test_an_interrupt_stops_training_and_can_be_resumed(problem, recipe, training, monkeypatch):
    """The first batch that is saved interrupts; those in flight would never end, and are stopped all the same."""
    first, began = threading.Lock(), []

    def train_batch(*args):
        began.append(threading.current_thread())
        while not first.acquire(blocking=False):
            time.sleep(0.001)
        return training.original(*args)

    def interrupted(self, root, rows, outputs):
        raise KeyboardInterrupt

    study = dtl.Study(problem, dataclasses.replace(recipe, models_at_once=2))
    training.replace(train_batch)
    monkeypatch.setattr(workers.joblib, "cpu_count", lambda: 3)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", interrupted)
        torch_threads = torch.get_num_threads()
        with pytest.raises(KeyboardInterrupt) as stopped:
            study.run(40, progress=False)
        # the traceback is alive, as it is in a notebook: workers have stopped all the same
        assert stopped.tb is not None and len(training.sizes) <= 4
        assert began and not [thread for thread in began if thread.is_alive()]
        assert torch.get_num_threads() == torch_threads
    training.replace(training.original)
    assert study.results.sizes["model"] == 0
    assert study.run(4, progress=False).results.sizes["model"] == 4


# Disks


class Full(WrapperStore):
    """A disk with room for so many more writes."""

    room = 0

    async def set(self, key, value):
        Full.room -= 1
        if Full.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        await super().set(key, value)


@pytest.fixture(scope="module")
def writes(problem, recipe):
    """How many writes a run takes."""
    Full.room = 10_000
    dtl.Study(problem, recipe, transfer=("fixed", "full"), store=Full(MemoryStore())).run(N, progress=False)
    return 10_000 - Full.room


@pytest.mark.parametrize("share", [0, 0.01, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97])
def test_a_full_disk_loses_nothing(problem, recipe, reference, writes, share):
    Full.room = int(share * writes)
    study = dtl.Study(problem, recipe, transfer=("fixed", "full"), store=Full(MemoryStore()))
    with pytest.raises(
        OSError, match="cannot save .*No space left.* saved before is safe; free space and run again"
    ) as error:
        study.run(N, progress=False)
    assert error.value.errno == errno.ENOSPC
    Full.room = 10_000
    before = study.results.load() if study.store.ready else None
    assert share < 0.9 or (before is not None and before.sizes["model"])
    study.run(N, progress=False)
    same(study, reference)
    if before is not None:
        xr.testing.assert_identical(study.results.sel(model=before.model).load().drop_attrs(), before.drop_attrs())


def test_a_disk_that_is_really_full(problem, recipe, reference, tmp_path):
    def mount(*options):
        return subprocess.run(["mount", *options, str(tmp_path)], capture_output=True).returncode == 0

    if os.geteuid() != 0 or not mount("-t", "tmpfs", "-o", "size=104k", "tmpfs"):
        pytest.skip("mounting a small file system needs privileges that this process does not have")
    try:
        study = dtl.Study(problem, recipe, transfer=("fixed", "full"), store=tmp_path / "s")
        with pytest.raises(OSError, match="No space left on device.* is safe; free space and run again"):
            study.run(N, progress=False)
        assert mount("-o", "remount,size=8m")
        same(study.run(N, progress=False), reference)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_read_only_stores(problem, recipe, tmp_path, request):
    done = run(problem, recipe, 4, store=tmp_path / "s")
    request.getfixturevalue("no_training")
    read_only = dtl.Study(problem, recipe, store=LocalStore(tmp_path / "s", read_only=True))
    same(read_only, done)
    with pytest.raises(OSError, match="is read-only: open it for writing, or give another folder"):
        read_only.run(8, progress=False)


@pytest.mark.parametrize("where", ["/proc/study", "/proc/self/study", "file/study", "file"])
def test_places_that_cannot_be_written(problem, recipe, tmp_path, no_training, where):
    if where.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot save .*, or give a folder that you may write to"):
        run(problem, recipe, store=tmp_path / where)


# Stores of another study


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"design": "paired"}, "design is 'balanced' there and 'paired' here"),
        ({"transfer": ("full",)}, r"transfer is \['fixed'\] there and \['full'\] here"),
        ({"recipe": dtl.Recipe(epochs=2, widths=(8, 16), models_at_once=4, finetune_epochs=2, lr=0.1)},
         "recipe.epochs is 1 there and 2 here; recipe.lr is 0.3 there and 0.1 here"),
        ({"problem": dtl.testbed.make(1, per_class=20, train=5, validation=5, test=5)},
         "data.source is '.*' there and '.*' here; data.target_test is "),
        ({"design": np.eye(24, dtype=bool)[:4] | np.eye(24, k=1, dtype=bool)[:4]}, "design is 'balanced' there and '"),
    ],
)  # fmt: skip
def test_a_store_of_another_study_is_refused(problem, recipe, tmp_path, change, message):
    run(problem, recipe, 4, store=tmp_path / "s")
    own = {"problem": problem, "recipe": recipe, "store": tmp_path / "s"} | change
    with pytest.raises(
        ValueError, match=f"holds another study \\(.*{message}.*\\): use its settings, or another folder"
    ):
        dtl.Study(**own)


def test_a_store_of_which_no_model_was_saved_claims_nothing(problem, recipe, training, tmp_path):
    """Neither a run that fails in its first batch nor one of which all models diverge."""
    wild = dataclasses.replace(recipe, lr=1e12)

    def fail(*args):
        raise MemoryError("no memory left")

    training.replace(fail)
    for seed in (1, 2):
        with pytest.raises(MemoryError):
            run(problem, recipe, 8, store=tmp_path / "s", seed=seed)
    training.replace(training.original)
    with pytest.raises(RuntimeError, match="models 0, 1, 2, 3 diverged"):
        run(problem, wild, 4, store=tmp_path / "s")
    with pytest.raises(ValueError, match="has no finished model"):
        open_results(tmp_path / "s")
    study = run(problem, recipe, 4, store=tmp_path / "s")
    same(study, run(problem, recipe, 4))
    with pytest.raises(ValueError, match="recipe.lr is 0.3 there"):
        dtl.Study(problem, wild, store=tmp_path / "s")


def test_a_store_that_another_run_fills_in_the_meantime_is_refused(problem, recipe, tmp_path):
    one, two = (dtl.Study(problem, recipe, store=tmp_path / "s", seed=seed) for seed in (0, 1))
    one.run(4, progress=False)
    with pytest.raises(ValueError, match="seed is 0 there and 1 here"):
        two.run(4, progress=False)
    same(one, run(problem, recipe, 4))


def test_a_home_folder_is_that_of_the_user(problem, recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    study = run(problem, recipe, 4, store="~/kept/s", weights="~/weights")
    assert study.store.folder == tmp_path / "kept" / "s" and len(list((tmp_path / "weights").iterdir())) == 4
    same(dtl.Study(problem, recipe).merge("~/kept/s"), study)
    assert study.influence_to_zarr("~/i.zarr").sizes["source"] == 24 and (tmp_path / "i.zarr").is_dir()
    assert open_results("~/kept/s").data.sizes["model"] == 4


def test_a_relative_folder_stays_the_one_it_was(problem, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = run(problem, recipe, 4, store="kept/s")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert "4 models done" in repr(study) and study.run(8, progress=False).results.sizes["model"] == 8
    assert not any((tmp_path / "elsewhere").iterdir()) and open_results(tmp_path / "kept/s").data.sizes["model"] == 8


@pytest.mark.parametrize("n", [12, 13, 14, 16])
def test_the_default_estimator_never_refuses(uneven, recipe, n):
    """Six classes: twice as many models, a pair cut apart, a whole block, more."""
    found = dtl.Study(uneven, recipe).run(n, progress=False).influence(by="all")
    assert found.n_models == n // 2 * 2 and np.isfinite(found.values).all()


def with_few_classes(problem, n):
    few = problem.source.subset(problem.source.labels.numpy() < n)
    return dataclasses.replace(problem, source=dtl.ImageDataset(few.images, few.labels, few.classes[:n]))


def test_two_classes_have_no_subsets(problem, recipe):
    with pytest.raises(
        ValueError, match="fewer than two of the 2 classes, which a source model needs: use more classes"
    ):
        dtl.Study(with_few_classes(problem, 2), recipe, design="random", fraction=2 / 3)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "'' is no folder: give one"),
        (" ", "' ' is no folder: give one"),
        ("s3://bucket/study", "s3://bucket/study is a URL, not a folder: in Python, give a Zarr store such as"),
        ("file:///tmp/study", "file:///tmp/study is a URL"),
    ],
)
def test_places_that_are_no_folder(problem, recipe, place, message):
    for option in ("store", "weights"):
        with pytest.raises(ValueError, match=message):
            dtl.Study(problem, recipe, **{option: place})


def test_a_zarr_store_elsewhere_holds_a_study(problem, recipe, reference):
    """What the error for a URL says, with a file system of fsspec in memory."""
    store = FsspecStore.from_url("memory://studies/one")
    study = run(problem, recipe, transfer=("fixed", "full"), store=store)
    again = dtl.Study(problem, recipe, transfer=("fixed", "full"), store=store)
    same(again, reference)
    assert study.influence().n_models == N


def test_a_problem_may_change_its_name(problem, recipe, tmp_path):
    run(problem, recipe, 4, store=tmp_path / "s")
    renamed = dtl.Study(dataclasses.replace(problem, name="moved"), recipe, store=tmp_path / "s")
    assert renamed.results.sizes["model"] == 4 and renamed.results.attrs["problem"] == problem.name


def test_folders_that_hold_something_else(problem, recipe, tmp_path):
    zarr.create_group(tmp_path / "group")
    zarr.create_array(tmp_path / "array", shape=(3,), dtype="f4")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "zarr.json").write_text("{")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for name in ("group", "array", "broken", "mine"):
        with pytest.raises(ValueError, match="no study.*: give another"):
            dtl.Study(problem, recipe, store=tmp_path / name)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / ".gitkeep").touch()
    assert run(problem, recipe, 2, store=tmp_path / "kept").results.sizes["model"] == 2
    late = dtl.Study(problem, recipe, store=tmp_path / "later")
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "thesis.tex").write_text("done")
    with pytest.raises(ValueError, match="later holds 'thesis.tex' but no study: give another folder"):
        late.run(4, progress=False)
    assert (tmp_path / "later" / "thesis.tex").read_text() == "done"


# Subsets, workers, schedules


def test_given_subsets(problem, recipe, tmp_path):
    masks = np.random.default_rng(0).random((6, 24)) < 0.5
    masks[:, :2] = True
    study = dtl.Study(problem, recipe, masks, store=tmp_path / "s").run(progress=False)
    np.testing.assert_array_equal(study.masks, masks)
    same(dtl.Study(problem, recipe, masks.tolist(), store=tmp_path / "s"), study)
    with pytest.raises(ValueError, match="classes always in a subset"):
        study.influence()
    part = dtl.Study(problem, recipe, masks).run(4, progress=False)
    np.testing.assert_array_equal(part.results.margin, study.results.margin[:, :4])


def test_subsets_of_examples(problem, recipe, reference, tmp_path):
    """Subsets of examples that happen to be whole classes give the models of a class study, to the bit."""
    labels = problem.source.labels.numpy()
    whole = reference.masks[:, labels]
    study = dtl.Study(problem, recipe, whole, ("fixed", "full"), tmp_path / "s", unit="example").run(progress=False)
    np.testing.assert_array_equal(study.results.margin, reference.results.margin)
    assert study.results.sizes["source"] == len(labels) and study.results["source"].values.tolist()[:2] == [0, 1]
    with pytest.raises(ValueError, match="unit is 'example' there and 'class' here"):
        dtl.Study(problem, recipe, ("balanced"), ("fixed", "full"), tmp_path / "s")


def test_an_example_study_leaves_out_examples(problem, recipe):
    study = dtl.Study(problem, recipe, unit="example").run(8, progress=False)
    np.testing.assert_array_equal(study.masks, dtl.subset_masks(len(problem.source), 8))
    by_class = study.influence(by="class")
    assert by_class.values.shape == (len(problem.source), 4) and np.isfinite(by_class.stderr).all()


def example_study(problem, recipe, store=None):
    """477 images, so that the last byte of packed masks is not full."""
    few = dataclasses.replace(problem, source=problem.source.subset(np.arange(477)))
    return dtl.Study(few, recipe, design="paired", transfer=("fixed", "full"), unit="example", store=store)


def test_masks_of_examples_are_packed_on_disk(problem, recipe, tmp_path):
    study = example_study(problem, recipe, tmp_path / "s").run(6, progress=False)
    expected = dtl.subset_masks(477, 6, "paired")
    stored = zarr.open_group(tmp_path / "s", mode="r")["mask"]
    assert isinstance(stored, zarr.Array) and stored.dtype == np.uint8 and stored.nbytes == 6 * 60
    np.testing.assert_array_equal(stored[:], np.packbits(expected, axis=1))
    assert isinstance(study.results["mask"].data, dask.array.Array), "read when used"
    assert study.results["mask"].dtype == bool and study.results["mask"].dims == ("model", "source")
    np.testing.assert_array_equal(study.masks, expected)


def test_example_studies_merge_resume_and_repair(problem, recipe, tmp_path, caplog):
    study = example_study(problem, recipe, tmp_path / "all").run(8, progress=False)
    one = example_study(problem, recipe, tmp_path / "one").run(4, progress=False)
    example_study(problem, recipe, tmp_path / "two").run(8, progress=False, start=4)
    same(one.merge(tmp_path / "two"), study)
    same(example_study(problem, recipe).run(4, progress=False).run(8, progress=False), study)
    (tmp_path / "all" / "mask" / "c" / "1" / "0").write_bytes(b"")
    with pytest.raises(ValueError, match="mask of models 4 to 7 in .* is damaged"):
        study.masks  # noqa: B018
    same(study.run(8, progress=False, repair=True), one)


def test_influences_of_examples_out_of_core(problem, recipe, tmp_path):
    """As in memory, from masks that stay packed."""
    study = example_study(problem, recipe, tmp_path / "s").run(48, progress=False)
    for options in ({}, {"output": "correct", "transfer": "full", "split": "test"}):
        found = study.influence_to_zarr(tmp_path / f"{len(options)}.zarr", **options, tile=(64, 16))
        expected = study.influence("difference", **options)
        for name, values in (("influence", expected.values), ("stderr", expected.stderr)):
            np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found["reliability"], expected.reliability, atol=1e-5)
    with pytest.raises(ValueError, match="exists: open it with xarray.open_zarr, or give a new folder"):
        study.influence_to_zarr(tmp_path / "s")


def test_influences_out_of_core_after_a_cut_run(problem, recipe, caplog, tmp_path):
    """Batches of three: models 3 to 5 are lost, so that 2 has no complement."""
    study = example_study(problem, dataclasses.replace(recipe, models_at_once=3)).run(48, progress=False)
    root = zarr.open_group(study.store.zarr, mode="r+")
    root["done"][3:6] = False  # pyright: ignore[reportIndexIssue, reportArgumentType]
    expected, found = study.influence(), study.influence_to_zarr(tmp_path / "i")
    assert expected.n_models == found.attrs["n_models"] == 44
    np.testing.assert_allclose(found["influence"], expected.values, rtol=1e-4, atol=1e-6)
    assert "1 models are left out" in caplog.text


def test_influences_of_classes_go_to_disk_too(problem, recipe, tmp_path):
    study = run(problem, recipe, 46)
    found = study.influence_to_zarr(tmp_path / "i")
    np.testing.assert_allclose(found["influence"], study.influence("difference").values, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="predictions are numbers of classes"):
        study.influence_to_zarr(tmp_path / "p", "prediction")


def test_subsets_of_unequal_schedules(uneven, recipe):
    """A batch of models whose step counts differ is trained in groups, each model as it would be alone."""
    small = dataclasses.replace(recipe, batch_size=8, models_at_once=8, epochs=2, lr=0.05)
    masks = np.array(
        [[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0]], bool
    )
    steps = {workers.schedule(int(uneven.source.counts[mask].sum()), small) for mask in masks}
    assert len(steps) >= 3
    together = dtl.Study(uneven, small, masks, ("fixed", "full")).run(progress=False)
    one_by_one = dtl.Study(uneven, dataclasses.replace(small, models_at_once=1), masks, ("fixed", "full")).run(
        progress=False
    )
    same(together, one_by_one, exact=False)


def test_a_dask_client_gives_the_same_arrays(problem, recipe, reference):
    distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    with (
        distributed.LocalCluster(1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        study = dtl.Study(problem, recipe, transfer=("fixed", "full")).run(N, client=client, progress=False)
    same(study, reference)


def test_torchvision_models_one_at_a_time(uneven):
    recipe = dtl.Recipe(model="resnet18", epochs=1, models_at_once=1, lr=0.01)
    study = dtl.Study(uneven, recipe, design="random", fraction=0.5).run(2, progress=False)
    assert study.results.sizes["model"] == 2 and np.isfinite(study.outputs()).all()


def test_progress_says_models_and_time(problem, recipe, capsys, monkeypatch):
    monkeypatch.setenv("DTL_PROGRESS", "line")
    study = dtl.Study(problem, recipe).run(8)
    assert "training: 8 models in" in capsys.readouterr().out
    study.run(8)
    assert capsys.readouterr().out == ""


# Bad input: one clear error, before any training


MASK = np.ones((3, 24), dtype=bool)


@pytest.mark.parametrize(
    ("options", "n", "message"),
    [
        ({"design": "latin"}, 4, "unknown design 'latin': choose one of balanced, random, paired"),
        ({"design": "random", "fraction": 0}, 4, "fraction must lie strictly between 0 and 1, not 0"),
        ({"design": "random", "fraction": 1}, 4, "fraction must lie strictly between 0 and 1, not 1"),
        ({"fraction": 0.3}, 4, "balanced design has fraction 0.5 only"),
        ({}, 1, "n_models must be a whole number of at least 2, not 1"),
        ({}, 0, "n_models must be a whole number of at least 2, not 0"),
        ({}, None, "run needs the number of models"),
        ({"seed": -1}, 4, "seed must be a whole number of at least 0"),
        ({"seed": 1.5}, 4, "seed must be a whole number of at least 0, not 1.5"),
        ({"seed": "1"}, 4, "seed must be a whole number .* not '1'"),
        ({"seed": True}, 4, "seed must be a whole number .* not True"),
        ({"recipe": {"epochs": 1}}, 4, r"recipe must be a dtl.Recipe, not \{'epochs': 1\}"),
        ({"recipe": {}}, 4, r"recipe must be a dtl.Recipe, not \{\}"),
        ({"problem": "testbed"}, 4, "problem must be a dtl.TransferProblem, not 'testbed'"),
        ({}, 10**9, "subsets of 24 units for 1000000000 models take 24 GB: ask for fewer"),
        ({"transfer": ()}, 4, "unknown transfer"),
        ({"transfer": "linear"}, 4, "unknown transfer .*linear.*: use one or more of fixed, fixed\\+bn, full"),
        ({"transfer": 5}, 4, "transfer must be a name or a sequence, not 5"),
        ({"unit": 5}, 4, "unit must be a name or a sequence, not 5"),
        ({"weights": 5}, 4, "5 is no folder"),
        ({"design": [[True, False], [True]]}, None, "given subsets are no array"),
        ({"transfer": ("fixed", "fixed")}, 4, "unknown transfer .*: use one or more of .*, each once"),
        ({"design": MASK[:1]}, None, "given subsets must be bool, two or more models x 24 classes"),
        ({"design": MASK[:, :5]}, None, "given subsets must be bool"),
        ({"design": MASK.astype(int)}, None, "given subsets must be bool.*not int64"),
        ({"design": np.eye(24, dtype=bool)}, None, "subset 0 has fewer than two of the 24 classes"),
        ({"design": MASK}, 1, "n_models must be 2 to 3, the given subsets, not 1"),
        ({"design": MASK}, 4, "n_models must be 2 to 3, the given subsets, not 4"),
        ({"design": "random", "fraction": 1 / 24}, 4, "subset 0 has fewer than two of the 24 classes"),
        ({"unit": "pixel"}, 4, "unknown unit 'pixel': choose one of class, example"),
        ({"unit": "example", "design": MASK}, None, "given subsets must be bool, two or more models x 480 examples"),
        (
            {"recipe": dtl.Recipe(widths=(8, 8, 8, 8, 8))},
            4,
            r"small .* cannot take images of 16 x 16 pixels",
        ),
        ({"recipe": dtl.Recipe(model="resnet18")}, 4, "resnet18 trains one model at a time: set models_at_once=1"),
    ],
)
def test_bad_input_is_refused_before_training(problem, recipe, no_training, options, n, message):
    with pytest.raises(ValueError, match=message):
        dtl.Study(**({"problem": problem, "recipe": recipe} | options)).run(n, progress=False)


@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", "unknown device 'gpu'"), ("cuda:99", "device 'cuda:99' was asked for but torch sees")],
)
def test_bad_devices_are_refused_before_training(problem, recipe, no_training, device, message):
    study = dtl.Study(problem, recipe)
    with pytest.raises(ValueError, match=message):
        study.run(4, device=device, progress=False)
    assert not study.store.exists


def test_a_cut_run_is_analysed_by_its_whole_pairs(problem, recipe, caplog):
    """Batches of three: models 3 to 5 are lost, so that 2 has no complement."""
    study = dtl.Study(problem, dataclasses.replace(recipe, models_at_once=3)).run(46, progress=False)
    root = zarr.open_group(study.store.zarr, mode="r+")
    root["done"][3:6] = False  # pyright: ignore[reportIndexIssue, reportArgumentType]
    masks, outputs = study.masks, study.outputs()
    kept = ~np.isin(study.results.model.values, [2])
    expected = dtl.estimate_influence(masks[kept], outputs[kept], design="balanced")
    assert kept.sum() == 42
    np.testing.assert_array_equal(study.influence().values, expected.values)
    assert "1 models are left out: their complements are not done" in caplog.text


def test_subsets_of_unequal_size_are_estimated_without_the_effect_of_size(uneven, recipe):
    study = dtl.Study(uneven, recipe).run(2 * dtl.design.block_length(6), progress=False)
    assert np.ptp(study.masks.sum(1)) > 0 and study.influence().method == "ols"
    assert study.influence("difference").method == "difference"


def test_predictions_have_no_influence(problem, recipe):
    with pytest.raises(ValueError, match="predictions are numbers of classes"):
        dtl.Study(problem, recipe).run(4, progress=False).influence(output="prediction")


def test_a_study_keeps_the_subsets_that_it_was_given(problem, recipe):
    masks = dtl.subset_masks(24, 4)
    given = masks.copy()
    study = dtl.Study(problem, recipe, given)
    given[:] = True
    np.testing.assert_array_equal(study.run(progress=False).masks, masks)


def test_a_finished_store_may_be_read_only(problem, recipe, tmp_path):
    dtl.Study(problem, recipe, store=tmp_path / "s").run(4, progress=False)
    store = LocalStore(tmp_path / "s", read_only=True)
    assert dtl.Study(problem, recipe, store=store).run(4, progress=False).results.sizes["model"] == 4


def test_files_beside_a_store_without_models_are_kept(problem, recipe, tmp_path, monkeypatch):
    first = dtl.Study(problem, recipe, store=tmp_path / "s", weights=tmp_path / "s/weights")
    monkeypatch.setattr(dtl.study, "train", lambda *_: (batch for batch in ()))
    first.run(2, progress=False)
    monkeypatch.undo()
    (tmp_path / "s/notes.txt").write_text("mine")
    second = dtl.Study(problem, recipe, store=tmp_path / "s", seed=5).run(2, progress=False)
    assert (tmp_path / "s/notes.txt").read_text() == "mine" and len(second.masks) == 2
    np.testing.assert_array_equal(second.masks, dtl.subset_masks(24, 2, seed=5))


def test_a_design_without_two_classes_in_each_subset_is_refused_at_once(problem, recipe):
    with pytest.raises(InputError, match='fewer than two of the 5 classes.*design="random"'):
        dtl.Study(with_few_classes(problem, 5), recipe)


@pytest.mark.parametrize("models", [20, 21])
def test_too_few_subsets_for_least_squares_are_read_as_differences(problem, recipe, models):
    study = dtl.Study(with_few_classes(problem, 9), recipe).run(models, "cpu", progress=False)
    assert study.influence(by="all").method == "difference"
    with pytest.raises(InputError, match="too few distinct subsets"):
        study.influence("ols", by="all")


def test_the_whole_target_has_no_specific_part(problem, recipe):
    study = dtl.Study(problem, recipe).run(4, "cpu", progress=False)
    with pytest.raises(InputError, match="the whole target has no specific part"):
        study.influence(by="all", part="specific")
    with pytest.raises(InputError, match="unknown part 'x'"):
        study.influence(by="all", part="x")
    assert study.influence(by="all").part == study.influence(by="all", part="common").part == "common"
