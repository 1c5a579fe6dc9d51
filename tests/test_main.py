"""The command line, on toy studies: what it trains, prints and refuses, and with which exit code."""

import contextlib
import dataclasses
import inspect
import io
import json
import re
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml
import zarr
from PIL import Image
from zarr.storage import ZipStore

import dtl
from dtl import __main__ as command_line
from dtl import doctor
from dtl.datasets import registry
from dtl.engine import store as engine_store
from dtl.engine.store import array_of
from dtl.results import open as open_results

N = 12  # models, in three batches
PROBLEM = {"load": "testbed", "options": {"per_class": 20, "train": 5, "validation": 5, "test": 5}}
RECIPE = {"epochs": 1, "widths": [8, 16], "models_at_once": 4, "finetune_epochs": 2}
SETTINGS = {"problem": PROBLEM, "recipe": RECIPE, "store": "kept/toy", "models": N}
BY_FLAGS = ["--problem", "testbed", *(f"--options.{name}={value}" for name, value in PROBLEM["options"].items())]


def invoke(*arguments):
    """Exit code, standard output and standard error of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command_line.main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def call(*arguments, code=0):
    """Standard output, or the one line of an error, of which nothing but a progress bar stands in front."""
    found, out, err = invoke(*arguments)
    assert found == code, err
    if not code:
        return out
    line = err.split("\r")[-1]
    assert line.startswith("Error: ") and err.count("\n") == 1, err
    return line.removeprefix("Error: ").strip()


def process(*arguments, cwd, first=""):
    """The command in a process of its own; `first` is Python that it runs before."""
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # in the background it is ignored
    code = f"import runpy, sys\n{heard}\n{first}\nsys.argv[0] = 'dtl'\nrunpy.run_module('dtl', run_name='__main__')"
    command = [sys.executable, *(["-c", code] if first else ["-m", "dtl"]), *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


ONE_BATCH = """
import threading, time
from dtl.engine import workers
original, only_one = workers.train_batch, threading.Lock()

def train_batch(*args):
    while not only_one.acquire(blocking=False):  # the others wait until they are stopped, however fast the machine
        time.sleep(0.01)
    return original(*args)

workers.train_batch = train_batch
"""

STOPPED_WHILE_SAVING = """
import os, signal, threading, time
from dtl.engine.store import Durable
flush, first = Durable._flush, threading.Lock()

def slow(self, file):
    if {"margin", "c"} <= {*file.parts} and first.acquire(blocking=False):  # outputs of the first batch
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(2)
    flush(self, file)

Durable._flush = slow
"""


def saved(folder, **changes):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | changes))
    return path


@pytest.fixture(scope="module")
def reference(problem, recipe, tmp_path_factory):
    """An uninterrupted study of the same settings by the Python interface."""
    return dtl.Study(problem, recipe, store=tmp_path_factory.mktemp("reference") / "toy").run(N, progress=False)


@pytest.fixture
def store(reference):
    return reference.store.folder


@pytest.fixture
def no_data(monkeypatch):
    """Reading images is an error."""

    def refuse(*arguments, **options):
        raise AssertionError("data were loaded")

    monkeypatch.setattr(registry, "load", refuse)


def facts(store) -> dict[str, Any]:
    return zarr.open_group(store, mode="r").attrs.asdict()


def same(store, study):
    one, other = open_results(store).data.load(), study.results.load()
    xr.testing.assert_identical(one.drop_attrs(), other.drop_attrs())


# Settings


def test_every_setting_of_the_python_interface_can_be_given_with_its_default():
    study, run = (inspect.signature(f).parameters for f in (dtl.Study, dtl.Study.run))
    code, shown, _ = invoke("run", "--help")
    assert code == 0
    for name, parameter in {**study, **run}.items():
        flag = {"n_models": "models", "client": "scheduler"}.get(name, name)
        if flag not in ("self", "progress"):
            assert f"--{flag} " in shown or f"--{flag}\n" in shown, flag
            default = parameter.default
            if flag in ("design", "fraction", "unit", "seed", "device", "start"):
                (said,) = re.findall(rf"  --{flag} .*?default:\s+(\S+)\)", shown, re.DOTALL)
                assert said == str(default)
    assert all(f"--{name} " in shown for name in ("source", "target", "options"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modles: 3", "unknown setting --modles: did you mean --models?"),
        ("xyz: 3", "unknown setting --xyz"),
        ("models: many", "--models cannot be 'many': it must be int"),
        ("seed: 1.5", "--seed cannot be '1.5': it must be int"),
        ("seed: on", "--seed cannot be 'True': it must be int"),
        ("fraction: yes", "--fraction cannot be 'True': it must be float"),
        ("recipe: {epochs: on}", "recipe setting epochs cannot be 'on'"),
        ("recipe: {augment: true}", "recipe.augment cannot be True: give a number"),
        ("- models", "settings must be names with values"),
        ("models: [3", "is no YAML file"),
        ("models: 3\nseed: 1\nmodels: 4", 'found duplicate key "models"'),
        ("recipe: {lr: 1, lr: 2}", 'found duplicate key "lr"'),
        ("recipe: &x {lr: *x}", "is no YAML file"),
        ("recipe: {epoch: 3}", "unknown recipe setting 'epoch': did you mean 'epochs'?"),
        ("recipe: {epochs: four}", "recipe setting epochs cannot be 'four'"),
        ("recipe: {epochs: 0}", "recipe setting epochs cannot be 0"),
        ("recipe: {widths: 8}", "recipe setting widths cannot be 8"),
        ("problem: {load: testbed, options: {sed: 1}}", "unexpected keyword argument 'sed'; its options are seed"),
        ("problem: {load: nothing}", "unknown problem 'nothing': known are"),
        ("problem: {name: testbed}", "give a problem, 'load' with a name"),
        ("problem: {}", "give a problem, 'load' with a name"),
        ("problem: {from_folders: {source_dir: here}}", "missing a required argument: 'target_dir'"),
        ("problem: {from_folders: {source_dir: a, target_dir: b}}", "is not a folder"),
        ("design: blanced", "blanced"),
        ("transfer: frozen", "unknown transfer"),
        ("unit: pixel", "unknown unit"),
        ("device: tpu", "unknown device"),
        ("models: 1", "1"),
        ("store: null", "give a folder for the results: --store FOLDER"),
        ("store: ''", "'' is no folder"),
        ("store: s3://bucket/study", "s3://bucket/study is a URL, not a folder"),
        ("weights: ''", "'' is no folder"),
        ("models: null", "give the number of models: --models N"),
    ],
)
def test_a_wrong_setting_is_one_line(text, message, tmp_path, monkeypatch):
    path = saved(tmp_path)
    changed = yaml.safe_load(text) if not re.search(r"\[3|models: 4|lr: 2|\*x", text) else None
    if isinstance(changed, dict):
        lines = yaml.safe_dump({k: v for k, v in SETTINGS.items() if k not in changed})
        text = f"{lines}{text}\n"
    path.write_text(text)
    assert message in call("run", path, code=2)
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--modle", 3], "unknown setting --modle: did you mean --models?"),
        (["--model", 3], "unknown setting --model: did you mean --models?"),
        (["--models", "x"], "--models"),
        (["--recipe", "epochs"], "--recipe cannot be 'epochs'"),
        (["--recipe.widths", "[8"], "recipe setting widths cannot be"),
        (["--recipe.epoch", "3"], "did you mean 'epochs'?"),
        (["--options.sede", "3"], "unexpected keyword argument 'sede'"),
        (["--problem", "testbed", "--source", "a"], "not both"),
        (["--source", "a"], "missing a required argument: 'target_dir'"),
        (["--store", ""], "'' is no folder"),
        (["--store", "s3://bucket/study"], "s3://bucket/study is a URL, not a folder"),
        (["--store", "."], "holds 'study.yaml' but no study: give another folder"),
    ],
)
def test_a_wrong_flag_is_one_line(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in call("run", saved(tmp_path), *flags, code=2)


def test_a_missing_file_and_a_missing_command_are_one_line(tmp_path):
    assert "No such file" in call("run", tmp_path / "none.yaml", code=2)
    assert "invalid choice: 'rnu'" in call("rnu", code=2)
    code, out, err = invoke()
    assert code == 2 and "influence" in out and not err


def test_numbers_that_yaml_reads_as_strings_are_numbers(tmp_path):
    path = saved(tmp_path)
    path.write_text(path.read_text().replace("epochs: 1", "epochs: 1\n  lr: 3e-1\n  probe_l2: 1e-2"))
    call("run", path, "--models", 2)
    recipe = facts(tmp_path / "kept/toy")["settings"]["recipe"]
    assert recipe["lr"] == 0.3 and recipe["probe_l2"] == 0.01 and recipe["widths"] == [8, 16]


def test_bugs_show_their_traceback(tmp_path, monkeypatch):
    def bug(*args, **options):
        raise ValueError("operands could not be broadcast together")

    monkeypatch.setattr(dtl.Study, "run", bug)
    with pytest.raises(ValueError, match="broadcast"):
        invoke("run", saved(tmp_path))


# Run, resume, status


def test_run_from_another_folder_gives_the_arrays_of_the_python_interface(reference, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    path = saved(tmp_path)
    monkeypatch.chdir(tmp_path / "elsewhere")
    out = call("run", path)
    assert out.splitlines()[-1] == "../kept/toy: 12 models done. Next: python -m dtl influence ../kept/toy"
    same(tmp_path / "kept/toy", reference)  # folders of a file are relative to the file
    assert set(path.parent.iterdir()) == {path, tmp_path / "kept", tmp_path / "elsewhere"}


def test_flags_alone_do_the_same_and_are_relative_to_where_you_are(reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = [f"--recipe.{name}={value}" for name, value in RECIPE.items()]
    out = call("run", *BY_FLAGS, *recipe, "--store", "here", "--models", N, "--transfer", "fixed")
    assert out.endswith("here: 12 models done. Next: python -m dtl influence here\n")
    same(tmp_path / "here", reference)


def test_a_flag_wins_over_the_file(tmp_path):
    path = saved(tmp_path, seed=3, transfer=["full"])
    options = {
        "unit": "example",
        "design": "random",
        "fraction": 0.25,
        "seed": 4,
        "models": 4,
        "transfer": "fixed,full",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    call("run", path, *flags, "--store", tmp_path / "x", "--recipe.augment", 1, "--options.seed", 2)
    settings = facts(tmp_path / "x")["settings"]
    assert settings["seed"] == 4 and settings["transfer"] == ["fixed", "full"] and settings["unit"] == "example"
    assert settings["fraction"] == 0.25 and settings["design"] == "random"
    assert settings["recipe"] == dtl.Recipe(**RECIPE, augment=1).settings()  # the file's other ones are kept
    assert settings["data"] == dtl.load("testbed", **PROBLEM["options"], seed=2).fingerprints
    assert open_results(tmp_path / "x").data.sizes["model"] == 4


def test_your_own_folders(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for place in ("animals/cat", "animals/dog", "animals/eel", "animals/fox", "pets/tom", "pets/rex"):
        (tmp_path / place).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / place / f"{i}.png")
    folders = {"source_dir": "animals", "target_dir": "pets", "size": 8, "cache": "decoded"}
    path = saved(tmp_path, problem={"from_folders": folders}, models=4)
    monkeypatch.chdir("/")
    call("run", path)
    assert open_results(tmp_path / "kept/toy").data.source.values.tolist() == ["cat", "dog", "eel", "fox"]
    given = ["--source", tmp_path / "animals", "--target", tmp_path / "pets", "--options.size", 8]
    out = call("resume", tmp_path / "kept/toy", *given, f"--options.cache={tmp_path / 'decoded'}", "--models", 6)
    assert "6 models done" in out


def test_an_interrupted_run_says_how_to_go_on_and_resumes_to_the_same_arrays(problem, recipe, tmp_path):
    """Ctrl+C in the middle of a write, while batches are in flight that would never end."""
    path, folder = saved(tmp_path), tmp_path / "kept/toy"
    run = process("run", path, cwd=tmp_path, first=ONE_BATCH + STOPPED_WHILE_SAVING)
    _, err = run.communicate()
    assert run.returncode == 130 and "Traceback" not in err
    assert err.splitlines()[-1].endswith("Saved models are safe: python -m dtl resume kept/toy")
    out = call("status", folder)
    assert "4 done, 8 missing" in out and out.endswith(f"python -m dtl resume {folder}\n")
    call("resume", folder, *BY_FLAGS)
    same(folder, dtl.Study(problem, recipe).run(N, progress=False))


def test_resume_needs_the_store_alone(reference, tmp_path, monkeypatch):
    folder = tmp_path / "toy"
    call("run", saved(tmp_path), "--store", folder, "--models", 4)
    monkeypatch.chdir("/")
    assert "12 models done" in call("resume", folder, "--models", N)
    same(folder, reference)
    assert "12 models done" in call("resume", folder), "nothing is missing"


def test_switches_may_stand_in_a_file(tmp_path):
    assert "--seed" in call("run", saved(tmp_path, seed=False), code=2), "which is none"
    assert "12 models to train" in call("run", saved(tmp_path, dry_run=True, repair=True))
    assert "4 models done" in call("run", saved(tmp_path, dry_run=False, repair=True, models=4))


def test_a_study_of_groups_goes_on(problem, recipe, tmp_path):
    groups = {name: f"group {i % 6}" for i, name in enumerate(problem.source.classes)}
    dtl.Study(problem, recipe, unit=groups, store=tmp_path / "a").run(4, progress=False)
    assert "12 models done" in call("resume", tmp_path / "a", "--models", 12)
    same(tmp_path / "a", dtl.Study(problem, recipe, unit=groups).run(12, progress=False))
    assert "12 models done" in call("merge", tmp_path / "b", tmp_path / "a")
    assert "group 0" in call("influence", tmp_path / "b")
    assert "negative" in call("remove", tmp_path / "b", "--counts", 1, "--seeds", 2, "--orders", "negative")
    assert "2 models each" in call("audit", tmp_path / "b", "--views", "square", "--seeds", 2)


def test_resume_says_what_it_lacks(problem, recipe, tmp_path):
    folder = tmp_path / "toy"
    dtl.Study(dataclasses.replace(problem, name="mine"), recipe, store=folder).run(4, progress=False)
    assert "does not say how to load its problem: add --problem NAME" in call("resume", folder, code=2)
    assert "data.source is" in call("resume", folder, "--problem", "testbed", code=2)
    assert "n_models" in call("resume", folder, *BY_FLAGS, "--models", 0, code=2)
    assert "6 models done" in call("resume", folder, *BY_FLAGS, "--models", 6)


def test_status_reads_no_results_and_no_images(store, no_data, tmp_path):
    copy = shutil.copytree(store, tmp_path / "copy")
    for path in copy.rglob("c/**/*"):
        if path.is_file() and not {"done", "digest"} & {*path.parts}:
            path.write_bytes(b"cannot be read")
    out = call("status", copy)
    for found in ("load testbed", "24 source, 4 target", "12 done, 0 missing", "balanced", "epochs 1", f" {copy}\n"):
        assert found in out
    (run,) = facts(store)["runs"]
    assert f"{run['date']}, 12 models on {run['device']}: dtl {run['dtl']}" in out
    assert "resume" not in out


def test_a_store_that_was_killed_at_its_very_start(store, reference, tmp_path):
    begun = {"settings", "problem", "origin", "source_classes", "target_classes", "n_units"}
    zarr.create_group(tmp_path / "toy", attributes={k: v for k, v in facts(store).items() if k in begun} | {"runs": []})
    assert "0 done, 0 missing" in call("status", tmp_path / "toy")
    assert "has no finished model" in call("influence", tmp_path / "toy", code=2)
    assert "give the number of models: --models N" in call("resume", tmp_path / "toy", code=2)
    call("resume", tmp_path / "toy", "--models", N)
    same(tmp_path / "toy", reference)


def test_models_that_diverge_are_a_failure_and_the_rest_is_kept(tmp_path):
    message = call("run", saved(tmp_path), "--recipe.lr", "1e30", "--models", 4, code=1)
    assert message.startswith("models 0, 1, 2, 3 diverged")
    assert "0 done, 4 missing" in call("status", tmp_path / "kept/toy")


def test_a_folder_without_a_study_is_refused_by_every_command(tmp_path):
    (tmp_path / "file").write_text("")
    zarr.create_array(tmp_path / "array", shape=(2,), dtype=int)
    zarr.create_group(tmp_path / "group")
    for place in ("nowhere", ".", "file", "array", "group"):
        for command in (
            ["status"],
            ["resume"],
            ["influence"],
            ["export", tmp_path / "x.nc"],
            ["remove", "--counts", 2],
        ):
            name, *rest = command
            assert "holds no study" in call(name, tmp_path / place, *rest, code=2)


def test_a_store_of_another_format_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_store, "FORMAT", 99)
    assert "and this dtl reads 99" in call("status", store, code=2)


def test_exit_codes(tmp_path, monkeypatch):
    """2 for what is asked wrongly, in a process too, where it is the command's own and not that of a traceback."""
    wrong = process("run", saved(tmp_path), "--recipe.epoch", "3", cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert "give a folder that you may write" in call("run", saved(tmp_path), "--store", "file/x", code=1)
    out, err = wrong.communicate()
    assert wrong.returncode == 2, err
    assert err.startswith("Error: ") and "did you mean 'epochs'?" in err and err.count("\n") == 1 and not out


def test_training_on_a_dask_scheduler(reference, tmp_path):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as cluster:
        call("run", saved(tmp_path), "--scheduler", cluster.scheduler_address)
    same(tmp_path / "kept/toy", reference)


def test_parts_of_a_study_are_merged(reference, tmp_path):
    path = saved(tmp_path)
    call("run", path, "--store", tmp_path / "a", "--models", 4)
    call("run", path, "--store", tmp_path / "b", "--start", 4)
    assert "4 done, 0 missing" in call("status", tmp_path / "a")
    assert "8 done, 4 missing" in call("status", tmp_path / "b")
    assert "12 models done" in call("merge", tmp_path / "all", tmp_path / "a", tmp_path / "b")
    same(tmp_path / "all", reference)
    call("run", path, "--store", tmp_path / "other", "--models", 4, "--seed", 1)
    for parts in (("all", "other"), ("new", "a", "other")):
        assert "holds another study (seed is" in call("merge", *(tmp_path / part for part in parts), code=2)
    assert "required: merge.stores" in call("merge", tmp_path / "all", code=2)


def test_a_chunk_that_is_lost_is_named_and_trained_again(reference, tmp_path, caplog):
    path, folder = saved(tmp_path), tmp_path / "kept/toy"
    call("run", path)
    (folder / "margin/c/0/1/0").unlink()
    out = call("status", folder)
    assert "8 done, 4 missing" in out and "lost      margin/c/0/1/0\n" in out and "resume" in out
    assert "8 models, difference" in call("influence", folder)
    assert "lacks margin/c/0/1/0: run again, which trains the models" in caplog.text
    assert "12 models done" in call("run", path)
    same(folder, reference)


def test_a_damaged_chunk_is_named_and_trained_again_on_request(reference, tmp_path):
    path, folder = saved(tmp_path), tmp_path / "kept/toy"
    call("run", path)
    chunk = folder / "margin/c/0/1/0"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    assert "margin of models 4 to 7" in call("influence", folder, code=2)
    assert "12 models done" in call("resume", folder, "--repair")
    same(folder, reference)


def test_weights_are_kept_where_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call("run", saved(tmp_path), "--weights", "source-models", "--models", 4)
    assert len([file for file in (tmp_path / "source-models").rglob("*.safetensors")]) == 4


# What a run would cost


def test_a_dry_run_writes_nothing_and_counts_what_is_missing(tmp_path):
    path = saved(tmp_path)
    assert "12 models to train: " in call("run", path, "--dry-run")
    assert list(tmp_path.iterdir()) == [path]
    call("run", path, "--models", 4)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert "8 models to train: " in call("run", path, "--dry-run")
    assert "No model is missing." in call("resume", tmp_path / "kept/toy", *BY_FLAGS, "--dry-run")
    assert "8 models to train" in call("resume", tmp_path / "kept/toy", *BY_FLAGS, "--models", N, "--dry-run")
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_expected_bytes_are_those_of_the_store(reference, problem, recipe):
    cost = doctor.measure(dtl.Study(problem, recipe), N)
    root = reference.store.open()
    stored = sum(array_of(root, n).nbytes_stored() for n in ("margin", "probability", "correct", "prediction"))
    assert stored < N * cost.bytes < 2 * stored and 0 < cost.least <= cost.most


# Results


def table(text) -> dict[str, dict[str, tuple[float, float]]]:
    """{target: {source: (influence, stderr)}} as printed"""
    found, rows = {}, {}
    for line in text.splitlines()[1:]:
        if "reliability" in line:
            rows = found[line.split(",")[0]] = {}
        elif line.startswith("  "):
            name, value, _, error = line[9:].rsplit(None, 3)
            rows[name.strip()] = (float(value), float(error))
    return found


@pytest.mark.parametrize("by", ["all", "class"])
def test_influences_are_those_of_the_python_interface(by, reference, store, no_data, tmp_path):
    expected = reference.influence(by=by)
    out = call("influence", store, "--by", by, "--top", 3, "--out", tmp_path / "x.csv")
    rows = pd.read_csv(tmp_path / "x.csv")
    np.testing.assert_allclose(rows["influence"].to_numpy().reshape(-1, 24).T, expected.values)
    np.testing.assert_allclose(rows["stderr"].to_numpy().reshape(-1, 24).T, expected.stderr)
    np.testing.assert_allclose(rows["reliability"].to_numpy()[::24], expected.reliability)
    classes, targets = np.array(reference.problem.source.classes), reference.problem.target_train.classes
    printed = table(out)
    assert list(printed) == list(targets if by == "class" else ["whole target"])
    for values, found in zip(expected.values.T, printed.values(), strict=True):
        order = np.argsort(-values)
        assert list(found) == [*classes[order[:3]], *classes[order[::-1][:3]]]
        assert [v for v, _ in found.values()] == pytest.approx([*values[order[:3]], *values[order[::-1][:3]]], abs=1e-3)


def test_influence_takes_the_options_of_the_python_interface(problem, recipe, tmp_path):
    study = dtl.Study(problem, recipe, transfer=("fixed", "full"), store=tmp_path / "x", design="random")
    study.run(48, progress=False)
    options = {"method": "ridge", "output": "probability", "transfer": "full", "split": "test"}
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    call("influence", tmp_path / "x", *flags, "--out", tmp_path / "x.csv")
    found = pd.read_csv(tmp_path / "x.csv")["influence"]
    np.testing.assert_allclose(found, study.influence(**options, by="all").values[:, 0])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--by", "colour"], "unknown grouping by 'colour': choose one of class, all"),
        (["--method", "magic"], "nknown method 'magic'"),
        (["--output", "loss"], "unknown output of this study 'loss': choose one of margin"),
        (["--transfer", "full"], "unknown transfer of this study 'full': choose one of fixed"),
        (["--split", "train"], "unknown split of this study 'train'"),
        (["--top", 0], "--top"),
        (["--out", "x.txt"], "end it with .csv"),
        (["--out", "nowhere/x.csv"], "nowhere is no folder"),
    ],
)
def test_wrong_options_of_influence_are_one_line(flags, message, store):
    assert message in call("influence", store, *flags, code=2)


def test_exports_hold_the_results(reference, store, no_data, tmp_path):
    for name in ("x.nc", "x.zarr.zip", "x.csv"):
        assert f"{name}, " in call("export", store, tmp_path / name)
    expected = reference.results.load().drop_attrs()
    with xr.open_dataset(tmp_path / "x.nc", engine="h5netcdf") as found:
        xr.testing.assert_equal(found.load().drop_attrs(), expected)
        assert json.loads(found.attrs["settings"])["recipe"] == reference.recipe.settings()
    with ZipStore(tmp_path / "x.zarr.zip", mode="r") as zipped:
        found = xr.open_zarr(zipped)
        xr.testing.assert_equal(found.load().drop_attrs(), expected)
        assert found.attrs["settings"]["recipe"] == reference.recipe.settings()
    rows = pd.read_csv(tmp_path / "x.csv")
    assert rows.columns.tolist() == ["target", "source", "influence", "stderr", "reliability"]
    np.testing.assert_allclose(rows["influence"].to_numpy().reshape(4, 24).T, reference.influence(by="class").values)
    assert {path.name for path in tmp_path.iterdir()} == {"x.nc", "x.zarr.zip", "x.csv"}


def test_a_study_of_examples_is_exported_and_analysed(problem, recipe, no_data, tmp_path):
    study = dtl.Study(problem, recipe, "paired", unit="example", store=tmp_path / "x").run(48, progress=False)
    expected = study.influence(by="all")
    call("influence", tmp_path / "x", "--out", tmp_path / "x.csv")
    np.testing.assert_allclose(pd.read_csv(tmp_path / "x.csv")["influence"], expected.values[:, 0])
    call("export", tmp_path / "x", tmp_path / "x.nc")
    with xr.open_dataset(tmp_path / "x.nc", engine="h5netcdf") as found:
        xr.testing.assert_equal(found.load().drop_attrs(), study.results.load().drop_attrs())


def test_export_of_an_unfinished_store(reference, store, tmp_path):
    shutil.copytree(store, tmp_path / "toy")
    done = zarr.open_array(tmp_path / "toy", path="done", mode="r+")
    done[4:8] = False
    for name in ("x.nc", "x.zarr.zip"):
        call("export", tmp_path / "toy", tmp_path / name)
    with ZipStore(tmp_path / "x.zarr.zip", mode="r") as zipped:
        found = xr.open_zarr(zipped).load()
    rows = [0, 1, 2, 3, 8, 9, 10, 11]
    xr.testing.assert_equal(found.drop_attrs(), reference.results.isel(model=rows).load().drop_attrs())
    done[:] = False
    assert "has no finished model" in call("export", tmp_path / "toy", tmp_path / "y.nc", code=2)
    assert "end it with .nc or .zarr.zip or .csv" in call("export", tmp_path / "toy", tmp_path / "y.txt", code=2)


def test_removal_on_a_dask_scheduler(reference, store, tmp_path):
    distributed = pytest.importorskip("distributed")
    arguments = ["--counts", 2, "--seeds", 2, "--orders", "negative", "--out", tmp_path / "x.csv"]
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as cluster:
        call("remove", store, *arguments, "--scheduler", cluster.scheduler_address)
    expected = dtl.removal_curve(reference, reference.influence(by="all"), [2], ["negative"], 2, progress=False)
    found = pd.read_csv(tmp_path / "x.csv").set_index(["order", "count", "seed"]).to_xarray()
    np.testing.assert_allclose(found["test"].sel(expected.coords), expected["test"])


def test_removal_is_that_of_the_python_interface(reference, store, tmp_path):
    arguments = ["--counts", "2,4", "--seeds", 2, "--orders", "negative,random", "--store", tmp_path / "kept"]
    out = call("remove", store, *arguments, "--out", tmp_path / "x.csv")
    influence = reference.influence(by="all")
    expected = dtl.removal_curve(reference, influence, [2, 4], ("negative", "random"), 2, progress=False)
    found = pd.read_csv(tmp_path / "x.csv").set_index(["order", "count", "seed"]).to_xarray()
    for split in ("validation", "test"):
        np.testing.assert_allclose(found[split].sel(expected.coords), expected[split])
    assert f"{float(expected.test.sel(order='random', count=4).mean()):.3f} +- " in out
    chosen = dtl.removal.select(expected)
    assert f"negative {chosen.count:>4}  {chosen.gain:+.3f} +- {chosen.stderr:.3f}" in out
    assert "given one by one" in call("resume", tmp_path / "kept", code=2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--counts", "two"], "counts must be whole numbers with commas"),
        (["--counts", "2,99"], "must be one whole number in 0..22, not 99"),
        (["--counts", "2", "--orders", "worst"], "orders must be different, out of negative, positive, random"),
        (["--counts", "2", "--seeds", 1], "seeds, two or more for a standard error, must be one whole number"),
        (["--counts", "2", "--device", "tpu"], "unknown device"),
        (["--counts", "2", "--out", "x.nc"], "end it with .csv"),
        (["--counts", "2", "--out", "nowhere/x.csv"], "nowhere is no folder"),
        ([], "counts must be whole numbers with commas"),
    ],
)
def test_wrong_options_of_remove_are_one_line(flags, message, store):
    assert message in call("remove", store, *flags, code=2)


def test_report_is_a_page_with_its_tables_and_advice_on_demand(store, tmp_path):
    page = tmp_path / "found.html"
    assert str(page) in call("report", store, "--out", page)
    files = {page.name, *(f"found-{name}.csv" for name in ("facts", "whole", "classes"))}
    assert {path.name for path in tmp_path.iterdir()} == files
    assert "Nothing was retrained" in page.read_text("utf8")
    call("report", store, "--out", page, "--seeds", 3, *BY_FLAGS)
    assert "false discovery rate of 0.05" in page.read_text("utf8")
    assert "html" in call("report", store, "--out", tmp_path / "found.pdf", code=2)


def test_scores_are_those_of_the_python_interface_and_go_into_a_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    regimes = ("fixed", "full")
    call("run", saved(tmp_path, transfer=[*regimes]), "--weights", "nets")
    out = call("scores", "kept/toy", "--weights", "nets", "--replicate", "kept/toy", "--out", "scores.csv")
    assert out.startswith("12 models, test accuracy after full transfer, scores of validation images\n")
    problem, recipe = dtl.load("testbed", **PROBLEM["options"]), dtl.Recipe(**RECIPE)
    study = dtl.Study(problem, recipe, transfer=regimes, store="kept/toy", weights="nets")
    expected, found = dtl.scores.benchmark(study), pd.read_csv("scores.csv").set_index("predictor")
    assert found.index.tolist() == [*expected.predictor.values, "the same trained again"]
    for name in ("r", "tau", "low", "high"):
        np.testing.assert_allclose(found[name].iloc[:-1], expected[name], atol=1e-9)
    assert found.r.iloc[-1] == pytest.approx(1) and found.kind.iloc[-1] == "ceiling"  # the study itself
    assert (found.seconds[found.kind == "score"] > 0).all() and found.seconds["influence":"influence"].isna().all()
    for name, row in found.iterrows():
        assert re.search(rf"^ *{name} +({row.r:.3f}|NaN)", out, re.MULTILINE), name
    call("report", "kept/toy", "--out", "found.html", "--scores", "scores.csv")
    pd.testing.assert_frame_equal(pd.read_csv("found-scores.csv"), found.reset_index())
    assert "after full transfer" in (tmp_path / "found.html").read_text("utf8")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "add --weights FOLDER"),
        (["--weights", "nets", "--truth", "full"], "unknown truth 'full': choose one of fixed"),
        (["--weights", "nets", "--split", "all"], "unknown split 'all'"),
        (["--weights", "nets", "--out", "x.nc"], "end it with .csv"),
        (["--weights", "nets", "--replicate", "nowhere"], "nowhere"),
    ],
)
def test_wrong_options_of_scores_are_one_line(flags, message, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in call("scores", store, *flags, code=2)
