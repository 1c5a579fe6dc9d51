import dataclasses
import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import torch

import dtl
from dtl import doctor
from dtl.__main__ import main


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DTL_DATA", "DTL_SCALE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DTL_STUDIES", str(tmp_path / "studies"))
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache" / name))


def findings(topic: str) -> list[doctor.Finding]:
    return [finding for finding in doctor.diagnose(quick=True) if finding.topic == topic]


def test_command_line_in_a_fresh_process() -> None:
    done = subprocess.run([sys.executable, "-m", "dtl", "doctor", "--quick"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for found in (f"torch {importlib.metadata.version('torch')}", "cores to use", "models a study", "GB free"):
        assert found in done.stdout
    assert "minutes" not in done.stdout


def test_measured_minutes_grow_with_the_scale(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor.joblib, "cpu_count", lambda: 1)  # a batch for each processor would be trained
    monkeypatch.setattr(doctor, "load", lambda name: dtl.load(name, per_class=50))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    models = [int(n) for n in re.findall(r"study of (\d+) models", out)]
    minutes = [float(n) for n in re.findall(r"minutes +([\d.]+) (?:to|for)", out)]
    assert models == sorted(set(models)) and len(models) == 3
    assert minutes == sorted(minutes) and minutes[-1] > 0


def test_a_healthy_machine_has_no_problem(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "ENOUGH_DISK", 0)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(["doctor", "--quick"]) == 0
    assert capsys.readouterr().out.endswith("0 problems found.\n")


@pytest.mark.parametrize("broken", doctor.PROBES)
def test_a_broken_probe_is_reported_and_the_others_still_run(
    broken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def probe() -> Iterator[doctor.Finding]:
        yield doctor.Finding(broken, "half of it")
        raise RuntimeError("the probe fell off")

    monkeypatch.setitem(doctor.PROBES, broken, probe)
    assert main(["doctor"] if broken == "minutes" else ["doctor", "--quick"]) == 0
    out = capsys.readouterr().out
    assert "half of it" in out
    assert f"- {broken}, could not be checked: RuntimeError: the probe fell off" in out
    for other in set(doctor.PROBES) - {broken, "minutes"}:
        assert re.search(f"^{other} ", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [
        (torch.cuda, "device_count", RuntimeError("driver is gone")),
        (shutil, "disk_usage", OSError("no such disk")),
        (importlib.metadata, "version", ValueError("metadata is broken")),
        (platformdirs, "user_cache_dir", KeyError("HOME")),
        (doctor.book, "scale", MemoryError()),
    ],
)
def test_any_call_that_breaks_is_a_finding(
    module: object,
    name: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def breaks(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(module, name, breaks)
    assert main(["doctor", "--quick"]) == 0
    assert f"could not be checked: {type(error).__name__}" in capsys.readouterr().out


def test_a_measurement_that_fails_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(*arguments: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(doctor, "load", breaks)
    assert main(["doctor"]) == 0
    assert "- minutes, could not be checked: RuntimeError: out of memory" in capsys.readouterr().out


def test_unknown_scale_comes_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DTL_SCALE", "huge")
    (finding,) = findings("scale")
    assert "ci, laptop, gpu" in finding.remedy


def test_data_folders_are_listed_and_missing_ones_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "not set" in findings("data")[0].found
    (tmp_path / "pets").mkdir()
    monkeypatch.setenv("DTL_DATA", f"{tmp_path}:{tmp_path / 'nowhere'}")
    there, missing, *_ = findings("data")
    assert there.found.endswith("pets") and not there.remedy
    assert "nowhere" in missing.found and "DTL_DATA" in missing.remedy


def test_full_disk_and_driver_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ENOUGH_DISK", 1e30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert ["XDG_CACHE_HOME" in f.remedy or "DTL_STUDIES" in f.remedy for f in findings("disk")] == [True, True]
    assert "torch build" in findings("device")[-1].remedy


def test_cuda_devices_are_named_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        name, total_memory = "Big Card", 80 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: Card)
    assert findings("device")[-1].found == "cuda:0, Big Card, 80 GiB"


def fake_clock(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int, int], float]) -> list[int]:
    """Studies take `seconds(epochs, number of the trial)`, whatever the machine does; returns the epochs of trials."""
    now, trials, original = [0.0], [], doctor.Study.run

    def run(self: doctor.Study, *args: Any, **options: Any) -> doctor.Study:
        trials.append(self.recipe.epochs)
        now[0] += seconds(self.recipe.epochs, len(trials))
        self.recipe = dataclasses.replace(self.recipe, epochs=1)
        return original(self, *args, **options)

    monkeypatch.setattr(doctor.Study, "run", run)
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: now[0])
    return trials


def test_a_forecast_on_a_quiet_machine_is_one_number(
    problem: dtl.TransferProblem, recipe: dtl.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = dtl.Study(problem, dataclasses.replace(recipe, epochs=100))
    trials = fake_clock(monkeypatch, lambda epochs, trial: 0.5 + 0.25 * epochs)
    cost = doctor.measure(study, 4, "cpu")
    assert cost.least * 4 == pytest.approx(0.5 + 25) == cost.most * 4 and max(trials) == 2


def test_noise_never_makes_epochs_free(
    problem: dtl.TransferProblem, recipe: dtl.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials of one epoch are hit by something else on the machine: longer ones are no slower, until they are."""
    study = dtl.Study(problem, dataclasses.replace(recipe, epochs=100))
    trials = fake_clock(
        monkeypatch, lambda epochs, trial: 0.5 + 0.25 * epochs + (2 if trial in (2, 3) else 0.1 * (trial % 2))
    )
    cost = doctor.measure(study, 4, "cpu")
    assert max(trials) == 16 and cost.least * 4 > 4.5 + 84 * 0.1 and cost.most > cost.least


def test_what_noise_hides_is_measured_to_the_end(
    problem: dtl.TransferProblem, recipe: dtl.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = dtl.Study(problem, dataclasses.replace(recipe, epochs=20))
    trials = fake_clock(monkeypatch, lambda epochs, trial: 1.0)  # however many epochs
    cost = doctor.measure(study, 4, "cpu")
    assert max(trials) == 20 and cost.least * 4 == cost.most * 4 == 1
