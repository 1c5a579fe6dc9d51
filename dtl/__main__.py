"""The command line: python -m dtl doctor|run|status|resume|merge|influence|export|remove|audit|scores|report"""

import logging
import os
import re
import shlex
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from dask.utils import format_bytes, format_time
from jsonargparse import auto_cli

from dtl import doctor as health
from dtl._advise import advise
from dtl._audit import audit as find_bias
from dtl._checks import Diverged, InputError, choice, whole
from dtl._flags import Parser, read_file
from dtl._report import report as write_report
from dtl.data import TransferProblem, reopen
from dtl.datasets.overlays import NAMED
from dtl.design import DESIGNS
from dtl.engine.files import check_file, write
from dtl.engine.store import array_of, local_folder, marks_of, open_store
from dtl.removal import ORDERS, removal_curve, select
from dtl.results import open as open_results
from dtl.scores import benchmark
from dtl.study import Study
from dtl.training import Recipe, resolve_device

BAD_USE, FAILURE, INTERRUPTED = 2, 1, 130


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
    models = models or (array_of(root, "done").shape[0] if root.attrs["runs"] else None)
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


def influence(
    store: str,
    by: str = "all",
    method: str | None = None,
    output: str = "margin",
    transfer: str | None = None,
    split: str = "validation",
    top: int = 10,
    out: str | None = None,
) -> None:
    """Print the source classes that help the target most and those that hurt most, with their standard errors.

    Reliability is the estimated squared correlation of these influences with the true ones. Needs no images.

    Args:
        store: folder of the study
        by: all (the whole target) or class (each target class)
        method: difference, ols or ridge; default is what suits the design
        output: margin, probability or correct
        transfer: one that the study has; default is its first
        split: validation or test
        top: print at most so many that help and that hurt
        out: write every influence to this file.csv, too
    """
    whole("--top", top, 1)
    check_file(out, ".csv")
    found = open_results(store).influence(method, output, transfer, split, by)
    table = found.to_frame()
    print(f"{found.n_models} models, {found.method} of the {output} on {split} examples")
    width = max(len(str(name)) for name in table["source"])
    for name, group in table.groupby("target", sort=False):
        print(f"\n{name}, reliability {group['reliability'].iloc[0]:.2f}")
        ranked = group.sort_values("influence", ascending=False)
        helpful, harmful = ranked[ranked["influence"] > 0].head(top), ranked[ranked["influence"] < 0].tail(top)[::-1]
        for word, rows in (("helps", helpful), ("hurts", harmful)):
            for name, value, error in zip(rows["source"], rows["influence"], rows["stderr"], strict=True):
                print(f"  {word}  {name!s:<{width}}  {value:+8.3f} +- {error:.3f}")
    if out:
        print_written(write(out, table))


def export(store: str, out: str) -> None:
    """Write what STORE holds to one file for other programs.

    Args:
        store: folder of the study
        out: x.nc or x.zarr.zip for all results, x.csv for the influence of each source class on each target class
    """
    check_file(out, ".nc", ".zarr.zip", ".csv")
    print_written(open_results(store).save(out))


def remove(
    study: str,
    counts: str = "",
    orders: str = ",".join(ORDERS),
    seeds: int = 10,
    store: str | None = None,
    out: str | None = None,
    seed: int | None = None,
    method: str | None = None,
    output: str = "margin",
    device: str = "auto",
    scheduler: str | None = None,
    **data: Any,
) -> None:
    """Retrain without the most harmful (negative), most helpful (positive) or random classes, and transfer again.

    Prints the test accuracy for each count, then the count that is best on validation and what it gains on test.

    Args:
        study: folder of the study
        counts: numbers of classes to remove, such as 2,4,8
        orders: which classes first
        seeds: retrainings for each order and count
        store: folder that keeps the outputs of the retrained models, to resume from
        out: write the curve to this file.csv, too
        seed: of the retrained models; default is the study's plus one
        method: as in influence, as is output
        device: as in run, as is scheduler
    """
    names = orders.split(",")
    try:
        numbers = [int(number) for number in counts.split(",")]
    except ValueError:
        raise InputError(f"counts must be whole numbers with commas, such as 2,4,8, not {counts!r}") from None
    check_file(out, ".csv")
    device = device if scheduler else str(resolve_device(device))
    ours = study_in(study, None, None, **data)
    found = ours.influence(method, output, by="all")
    with client_of(scheduler) as client:
        chosen: Any = {"store": store, "seed": seed, "device": device, "client": client}
        curve = removal_curve(ours, found, numbers, names, seeds, **chosen)
    accuracy = curve["test"].to_series().unstack("seed")
    cells = accuracy.mean(axis=1).map("{:.3f}".format) + accuracy.sem(axis=1).map(" +- {:.3f}".format)
    print(f"test accuracy, {curve.attrs['transfer']} transfer, mean +- standard error of {seeds} retrainings")
    print(cells.unstack("count").loc[names].to_string())
    print("\nnumber chosen on validation, its gain on test")
    for order in names:
        best = select(curve, order)
        print(f"{order:<8} {best.count:>4}  {best.gain:+.3f} +- {best.stderr:.3f}")
    if out:
        print_written(write(out, curve.to_dataframe().reset_index()))


def audit(
    study: str,
    views: str = ",".join(NAMED),
    seeds: int = 8,
    weights: str | None = None,
    out: str | None = None,
    device: str = "auto",
    **data: Any,
) -> None:
    """Say which changes of the images move the study's models more than models from scratch, whence, and what to do.

    Args:
        study: folder of the study, to which what its models say of the changed images is added
        views: changes to look at, with commas
        seeds: models of the whole source, and from scratch, that are compared
        weights: folder of the study's source weights; without them its models are trained again
        out: write this to file.md, too, or as a section of the whole report to file.html
        device: as in run
    """
    check_file(out, ".md", ".html")
    for name in views.split(","):
        choice(name, NAMED, "view")
    ours = study_in(study, None, weights, **data)
    problem = ours.problem.with_views({name: NAMED[name]() for name in views.split(",")})
    settings = (ours.recipe, ours.design or "balanced", ours.transfer, study, ours.seed, ours.fraction, ours.unit)
    viewed = Study(problem, *settings, weights).run(ours.results.sizes["model"], device)
    found = find_bias(viewed, seeds, device=device)
    print(found)
    if out and out.endswith(".html"):
        write_report(viewed, out, audit=found)
    elif out:
        Path(out).write_text(str(found), "utf8")


def scores(
    study: str,
    weights: str | None = None,
    truth: str | None = None,
    split: str = "validation",
    replicate: str | None = None,
    out: str | None = None,
    device: str = "auto",
    **data: Any,
) -> None:
    """Say how far transferability scores, and influence, agree with test accuracy over the models of a study.

    Prints correlations r with 95% intervals, how far each is behind influence, and seconds a model.

    Args:
        study: folder of the study
        weights: folder of its source weights; models that are missing there are trained again, which takes as in run
        truth: transfer after which accuracy counts; default is full if the study has it
        split: target images that the scores see, train, validation or test
        replicate: folder of a study of the same subsets with another seed, whose accuracy is the best prediction
        out: write the table to this file.csv, too
        device: as in run
    """
    check_file(out, ".csv")
    if weights is None:
        raise InputError("scores look at source models: add --weights FOLDER, where the study kept them")
    ours, again = study_in(study, None, weights, **data), open_results(replicate) if replicate else None
    found = benchmark(ours, truth=truth, split=split, replicate=again, device=device)
    table = found.drop_dims("model").to_dataframe().reset_index()
    print(f"{len(ours.masks)} models, test accuracy after {found.truth.item()} transfer, scores of {split} images")
    print(table.drop(columns=["models", "truth", "split"]).to_string(index=False, float_format="{:.3f}".format))
    if out:
        print_written(write(out, table))


def report(
    store: str, out: str = "report.html", seeds: int = 0, scores: str | None = None, device: str = "auto", **data: Any
) -> None:
    """Write one page of what STORE found, and every number of it to CSV files beside the page.

    Args:
        store: folder of the study
        out: the page, NAME.html
        seeds: retrain so often without the classes that hurt, to advise what to drop; 0 gives no advice
        scores: file.csv that the command scores wrote, for a section on them
        device: as in run
    """
    check_file(Path(out), ".html")
    results = study_in(store, None, None, **data) if seeds else open_results(store)
    advice = advise(results, seeds, device=device) if isinstance(results, Study) else None
    print(f"wrote {write_report(results, out, advice, pd.read_csv(scores) if scores else None)}")


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
        done = marks_of(study.store.open()).done[start:models] if study.store.ready else ()
        missing = models - start - int(np.sum(done))
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


def print_written(out: Path) -> None:
    print(f"wrote {out}, {format_bytes(out.stat().st_size)}")


FUNCTIONS = (run, status, resume, merge, influence, export, remove, audit, scores, report)
COMMANDS: Any = {"doctor": health.report} | {function.__name__: function for function in FUNCTIONS}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code. Errors that it foresees are one line on standard error, others tracebacks."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dtl").setLevel(logging.INFO)  # it says what it decides, such as which splits are held out
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given[:1] == ["run"] and given[1:] and not given[1].startswith("-"):
            given = ["run", *read_file(Path(given[1])), *given[2:]]
        auto_cli(COMMANDS, args=given or ["--help"], parser_class=Parser, prog="python -m dtl")
        return 0
    except SystemExit as stop:  # after help
        return BAD_USE if not given else int(stop.code or 0)
    except KeyboardInterrupt as stop:
        message, code = f"Stopped. {stop}", INTERRUPTED
    except (InputError, FileNotFoundError) as error:
        message, code = f"Error: {error}", BAD_USE
    except (OSError, Diverged, torch.OutOfMemoryError) as error:
        message, code = "Error: " + re.sub(r"^\[Errno \d+\] ", "", str(error)), FAILURE
    print(" ".join(message.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
