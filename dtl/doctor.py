"""What this machine can do and what is missing: versions, devices, data, disk, minutes for each scale."""

import importlib.metadata
import importlib.util
import io
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import platformdirs
import torch

from dtl import book
from dtl.datasets.registry import load
from dtl.engine.store import array_of
from dtl.study import Study
from dtl.training import resolve_device

ENOUGH_DISK = 5e9  # bytes


class Finding(NamedTuple):
    """One line of the report; `remedy` says what to do where something is wrong."""

    topic: str
    found: str
    remedy: str = ""


def diagnose(quick: bool = False) -> Iterator[Finding]:
    """What the probes find; one that breaks is a finding too. `quick` leaves out the measurement of training speed.

    >>> next(dtl.doctor.diagnose(quick=True)).topic
    'versions'
    """
    for topic, probe in PROBES.items():
        try:
            yield from () if quick and topic == "minutes" else probe()
        except Exception as error:  # the doctor reports what is broken, so nothing may stop it
            yield Finding(topic, "could not be checked", f"{type(error).__name__}: {error}")


def report(quick: bool = False) -> None:
    """Say what this machine can do, what is missing, and how long each scale will take.

    Args:
        quick: do not measure training speed
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a path may hold what the terminal cannot show
    problems = []
    for finding in diagnose(quick):
        print(f"{finding.topic:<9} {finding.found}", flush=True)
        problems += [finding] if finding.remedy else []
    print(f"\n{len(problems)} problem{'s' * (len(problems) != 1)} found{':' if problems else '.'}")
    for finding in problems:
        print(f"- {finding.topic}, {finding.found}: {finding.remedy}")


def hardware() -> str:
    """The GPU if there is one, the processor and its cores to use, in words; for the record of a measurement.

    >>> " cores, " in dtl.doctor.hardware()
    True
    """
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    graphics = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{graphics}{joblib.cpu_count()} cores, {name}"


def _versions() -> Iterator[Finding]:
    yield Finding("versions", f"python {platform.python_version()}, {platform.platform()}")
    for name in ("dtl", "torch", "torchvision"):
        yield Finding("versions", f"{name} {importlib.metadata.version(name)}")
    if importlib.util.find_spec("ffcv") is None:
        yield Finding("versions", "ffcv is not installed: optional, it reads large image sets faster")


def _device() -> Iterator[Finding]:
    yield Finding("device", f"CPU, {joblib.cpu_count()} cores to use")
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        yield Finding("device", f"cuda:{i}, {card.name}, {card.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        remedy = "update the NVIDIA driver, or install a torch build that fits it" if shutil.which("nvidia-smi") else ""
        yield Finding("device", "no CUDA device that torch can use", remedy)


def _data() -> Iterator[Finding]:
    if "DTL_DATA" not in os.environ:
        yield Finding("data", "DTL_DATA is not set: the testbed needs no data")
    for folder in filter(None, os.environ.get("DTL_DATA", "").split(os.pathsep)):
        held = sorted(path.name for path in Path(folder).glob("*/"))
        remedy = "" if held else "correct DTL_DATA, or put folders of images there"
        yield Finding("data", f"{folder} holds {', '.join(held[:8]) or 'no folders'}", remedy)
    yield _disk(Path(platformdirs.user_cache_dir("dtl")), "XDG_CACHE_HOME")


def _scale() -> Iterator[Finding]:
    scale = book.scale()
    yield Finding("scale", f"{scale.name}: {scale.models} models a study, {scale.seeds} seeds a removal curve")
    yield _disk(scale.folder, "DTL_STUDIES")


def _disk(folder: Path, setting: str) -> Finding:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    fine = free > ENOUGH_DISK and os.access(place, os.W_OK)
    remedy = "" if fine else f"make room there and allow writing, or set {setting} to another folder"
    return Finding("disk", f"{free / 1e9:.0f} GB free in {place}", remedy)


def _minutes() -> Iterator[Finding]:
    study = Study(load("testbed"))
    cost = measure(study, study.recipe.models_at_once * joblib.cpu_count())
    for name, (models, _) in book.SIZES.items():
        minutes = " to ".join(dict.fromkeys(f"{s * models / 60:.1f}" for s in (cost.least, cost.most)))
        yield Finding("minutes", f"{minutes} for a testbed study of {models} models, scale {name}")


class Cost(NamedTuple):
    """What one model of a study costs: seconds, at least and at most, to train and transfer it, and bytes to store."""

    least: float
    most: float
    bytes: float


def measure(study: Study, n_models: int, device: str = "auto", enough: float = 1.0) -> Cost:
    """The cost of a model, from trial studies in memory; the study and its store stay as they are.

    At most one batch for each worker is trained, twice each for 1, 2, 4, ... epochs (or steps), until trials take
    `enough` seconds and more epochs take longer: two tell what all epochs cost, and two pairs how far to trust that.

    >>> 0 < dtl.doctor.measure(study, 8, "cpu").least
    True
    """
    workers = 1 if resolve_device(device).type == "cuda" else joblib.cpu_count()
    n_models = max(2, min(n_models, study.recipe.models_at_once * workers))
    design: Any = study.design if study.given is None else study.given
    unit: Any = study.groups or study.unit
    length = "epochs" if study.recipe.steps is None else "steps"
    goal: int = getattr(study.recipe, length)

    def trial(epochs: int, n: int) -> tuple[float, Study]:
        short = replace(study.recipe, **{length: epochs})
        new = Study(study.problem, short, design, study.transfer, None, study.seed, study.fraction, unit)
        start = time.perf_counter()
        new.run(n, device, progress=False)
        return time.perf_counter() - start, new

    trial(1, 2)  # the first run of a process is slower
    shortest = [trial(1, n_models) for _ in range(2)]
    first = last = [seconds for seconds, _ in shortest]
    epochs, slope = 1, [0.0]
    while epochs < goal and (min(last) < enough or min(slope) <= 0):  # noise can hide what an epoch costs
        epochs = min(2 * epochs, goal)
        last = [trial(epochs, n_models)[0] for _ in range(2)]
        slope = [(long - short) / (epochs - 1) for long in last for short in first]
    done = shortest[0][1]
    stored = done.store.open()
    per_model = [array_of(stored, str(name)) for name, v in done.results.data_vars.items() if "model" in v.dims]
    totals = [long + each * (goal - epochs) for long in last for each in slope]
    size = sum(array.nbytes_stored() for array in per_model) / done.results.sizes["model"]
    return Cost(min(totals) / n_models, max(totals) / n_models, size)


PROBES: dict[str, Callable[[], Iterator[Finding]]] = {
    "versions": _versions, "device": _device, "data": _data, "scale": _scale, "minutes": _minutes,
}  # fmt: skip
