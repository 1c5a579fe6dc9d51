"""Commands that keep studies alive: run, resume, merge and status."""

import os
import shlex
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from dask.utils import format_bytes, format_time

from dtl import doctor as health
from dtl._checks import InputError
from dtl.data import TransferProblem
from dtl.datasets.registry import reopen
from dtl.design import DESIGNS
from dtl.engine.store import array_of, local_folder, marks_of, open_store
from dtl.engine.views import done_in
from dtl.study import Study
from dtl.training import Recipe, resolve_device


def run(
    problem: str | dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    source: str | None = None,
    target: str | None = None,
    recipe: dict[str, Any] | None = None,
    design: str = "balanced",
    transfer: str | list[str] = "fixed",
    unit: str = "class",
    fraction: float = 0.5,
    seed: int = 0,
    models: int | None = None,
    store: str | None = None,
    weights: str | None = None,
    **how: Any,
) -> None:
    """Train the models that the store of a study lacks; may be killed and run again: run [STUDY.yaml] [--flags].

    Settings come from a file, whose folders are relative to it, from flags, which win, or from both.

    Args:
        problem: a name that dtl.load knows; in a file also {load: testbed, options: {seed: 0}}
        options: of the problem, such as --options.seed 1
        source: folder of your source images, with a folder for each class
        target: folder of your target images, likewise
        recipe: settings of dtl.Recipe, such as --recipe.epochs 4
        design: balanced, random or paired
        transfer: one or more of fixed, fixed+bn, full, scratch, with commas
        unit: what a subset holds or leaves out, class or example
        fraction: share of the units in a random subset
        seed: of subsets, initial weights and order of images
        models: how many the study shall have
        store: folder of the results
        weights: folder that keeps source weights, of which none is trained twice
    """
    for name, value in (recipe or {}).items():
        if isinstance(value, bool):  # which would become 1 or 0
            raise InputError(f"recipe.{name} cannot be {value}: give a number")
    settings = Recipe(**recipe or {})  # before the data, which can take long
    if store is None:
        raise InputError("give a folder for the results: --store FOLDER, or 'store' in the file")
    if models is None:
        raise InputError("give the number of models: --models N, or 'models' in the file")
    regimes = transfer.split(",") if isinstance(transfer, str) else transfer
    data = problem_of(problem, options, source, target)
    train(Study(data, settings, design, regimes, store, seed, fraction, unit, weights), models, **how)


def resume(
    store: str,
    models: int | None = None,
    weights: str | None = None,
    problem: str | None = None,
    options: dict[str, Any] | None = None,
    source: str | None = None,
    target: str | None = None,
    **how: Any,
) -> None:
    """Train the models that STORE lacks, with the settings that it holds.

    Args:
        store: folder of the study
        models: extends the study
        weights: as in run
        problem: as in run, and needed only where the store cannot say how to load it; so are options, source, target
    """
    root = open_store(store)
    if models is None and root.attrs["runs"]:
        models = array_of(root, "done").shape[0]
    if models is None:
        raise InputError("give the number of models: --models N")
    train(study_in(store, store, weights, problem, options, source, target), models, **how)


def merge(out: str, stores: list[str], **data: Any) -> None:
    """Copy the models of several stores of one study into OUT, which may be one of that study already.

    Args:
        out: store that gets the models
        stores: parts of one study
    """
    study = study_in(stores[0], out, None, **data)
    for store in stores:
        study.merge(store)
    print_done(study, "status")


def status(store: str) -> None:
    """Say what STORE holds: models done, missing and lost, settings, runs. Loads no data.

    Args:
        store: folder of the study
    """
    root = open_store(store)
    facts: Any = root.attrs.asdict()
    marks = marks_of(root) if facts["runs"] else None
    done, missing = (int(marks.done.sum()), int((~marks.done).sum())) if marks else (0, 0)
    lines = {
        "store": local_folder(store).absolute(),
        "problem": facts["problem"],
        "origin": facts["origin"] or "made by hand",
        "classes": f"{len(facts['source_classes'])} source, {len(facts['target_classes'])} target",
        "models": f"{done} done, {missing} missing",
        "lost": ", ".join(marks.lost) if marks else "",
        **facts["settings"],
    }
    for topic, value in lines.items():
        value = ", ".join(f"{key} {of}" for key, of in value.items()) if isinstance(value, dict) else value
        if topic != "data" and value != "":
            print(f"{topic:<9} {value}")
    for one in facts["runs"]:
        versions = ", ".join(f"{k} {v}" for k, v in one.items() if k not in ("id", "date", "models", "device"))
        print(f"run       {one['date']}, {one['models']} models on {one['device']}: {versions}")
    if missing or not done:
        print(f"\nNext: python -m dtl resume {shlex.quote(store)}")


def train(
    study: Study,
    models: int,
    device: str = "auto",
    workers: int | None = None,
    scheduler: str | None = None,
    start: int = 0,
    repair: bool = False,
    dry_run: bool = False,
) -> None:
    """Run a study and say what comes next, or say what that would cost.

    Args:
        device: auto (the GPU if there is one), cpu, cuda or cuda:1
        workers: processes of this machine that share the work
        scheduler: address of a Dask scheduler whose workers shall train
        start: first model, to share a study between stores
        repair: read the whole store first, and train models of damaged chunks again
        dry_run: print expected time and bytes; train and write nothing
    """
    device = device if scheduler else str(resolve_device(device))
    if dry_run:
        missing = int((~done_in(study.stores, max(models, 0)))[start:].sum())
        if missing < 1:
            print("No model is missing.")
            return
        device = str(resolve_device(device))
        cost = health.measure(study, missing, device)
        time = " to ".join(dict.fromkeys(format_time(seconds * missing) for seconds in (cost.least, cost.most)))
        size = format_bytes(int(cost.bytes * missing))
        print(f"{missing} models to train: about {time} on this machine ({device}), {size} to store")
        return
    with client_of(scheduler) as client:
        try:
            study.run(models, device, client, start=start, repair=repair, workers=workers)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"Saved models are safe: python -m dtl resume {place_of(study)}") from None
    print_done(study, "influence")


def study_in(
    location: str,
    store: str | None,
    weights: str | None,
    problem: str | None = None,
    options: dict[str, Any] | None = None,
    source: str | None = None,
    target: str | None = None,
) -> Study:
    """The study that a store holds, to go on in `store`.

    Args:
        problem: as in run, and needed only where the store cannot say how to load it; so are options, source, target
    """
    facts: Any = open_store(location).attrs.asdict()
    if facts["settings"]["design"] not in DESIGNS:
        raise InputError(f"{location} holds models on subsets that were given one by one: continue it where it began")
    if not (facts["origin"] or problem or source):
        raise InputError(f"{location} does not say how to load its problem: add --problem NAME or --source, --target")
    known = {name: facts["settings"][name] for name in ("design", "transfer", "seed", "fraction", "unit")}
    known["unit"] = facts["settings"].get("groups", known["unit"])
    known |= {"recipe": Recipe(**facts["settings"]["recipe"]), "store": store or location, "weights": weights}
    return Study(problem_of(problem or facts["origin"], options, source, target), **known)


def problem_of(spec: Any, options: dict[str, Any] | None, source: str | None, target: str | None) -> TransferProblem:
    """The problem of a name, or of what a file or a store says, changed by the flags.

    >>> problem_of("testbed", {"seed": 1}, None, None).name
    'testbed-1'
    """
    if isinstance(spec, str):
        if source or target:
            raise InputError("give --problem, or --source and --target, not both")
        spec = {"load": spec}
    spec = dict(spec or {})
    if "from_folders" in spec:
        spec = {"load": "folders", "options": spec["from_folders"]}
    if source or target:
        folders = {"source_dir": source, "target_dir": target}
        kept = spec.get("options", {}) if spec.get("load") == "folders" else {}
        spec = {"load": "folders", "options": kept | {name: folder for name, folder in folders.items() if folder}}
    if "load" not in spec or set(spec) - {"load", "options"}:
        known = "'load' with a name and perhaps 'options', or 'from_folders' with source_dir and target_dir"
        raise InputError(f"give a problem, {known}, not {spec or 'nothing'}")
    return reopen({"load": spec["load"], "options": spec.get("options", {}) | (options or {})})


def client_of(scheduler: str | None) -> AbstractContextManager[Any]:
    if scheduler is None:
        return nullcontext()
    try:
        from distributed import Client
    except ImportError:
        raise InputError("--scheduler needs the extra 'cluster': pip install 'dtl[cluster]'") from None
    return Client(scheduler)


def place_of(study: Study) -> str:
    return shlex.quote(os.path.relpath(study.store.folder or "."))


def print_done(study: Study, command: str) -> None:
    done = study.results.sizes["model"]
    print(f"{place_of(study)}: {done} models done. Next: python -m dtl {command} {place_of(study)}")
