"""The command line: python -m dtl doctor|run|status|resume|merge|influence|export|remove"""

import contextlib
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
import typer
import xarray as xr
import yaml
from dask.utils import format_bytes, format_time
from typer.core import TyperGroup

from dtl import config, doctor
from dtl._checks import InputError
from dtl.engine.files import check_file, write
from dtl.engine.store import read
from dtl.removal import ORDERS, removal_curve, select
from dtl.results import open as open_results
from dtl.study import Study
from dtl.training import resolve_device

if TYPE_CHECKING:
    from distributed import Client

BAD_USE, FAILURE, INTERRUPTED = 2, 1, 130


class OneLineErrors(TyperGroup):
    """Commands whose errors are one line on standard error; tracebacks are left to what nobody foresaw."""

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            sys.exit(super().main(*args, **{**options, "standalone_mode": False}))
        except typer.TyperException as error:
            message, code = error.format_message(), BAD_USE
        except (ValueError, FileNotFoundError) as error:
            message, code = str(error), BAD_USE
        except (OSError, RuntimeError) as error:  # such as a full disk, models that diverged, a GPU out of memory
            message, code = re.sub(r"^\[Errno \d+\] ", "", str(error)), FAILURE
        if message:  # calling without a command has printed the help
            print(f"Error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(code)


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback()
def main() -> None:
    """Data-based transfer learning: which source data helps or hurts a transferred model."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dtl").setLevel(logging.INFO)  # it says what it decides, such as which splits are held out


@app.command("doctor")
def check(quick: Annotated[bool, typer.Option("--quick", help="do not measure training speed")] = False) -> None:
    """Say what this machine can do, what is missing, and how long each scale will take."""
    doctor.report(quick)


def flag(name: str, metavar: str, what: str, panel: str | None = None) -> Any:
    return typer.Option(name, metavar=metavar, help=what, rich_help_panel=panel, show_default=False)


DATA, STUDY, INFLUENCE = "Problem", "Study", "Influence"
StoreOf = Annotated[Path, typer.Argument(metavar="STORE", help="folder of the study", show_default=False)]
ProblemName = Annotated[str | None, flag("--problem", "NAME", "a problem that dtl.load knows", DATA)]
Source = Annotated[Path | None, flag("--source", "FOLDER", "your source images, a folder for each class", DATA)]
Target = Annotated[Path | None, flag("--target", "FOLDER", "your target images, likewise", DATA)]
ProblemOption = Annotated[
    list[str] | None, flag("--option", "NAME=VALUE", "an option of the problem; repeatable", DATA)
]
Models = Annotated[int | None, flag("--models", "N", "models that the study shall have", STUDY)]
Weights = Annotated[
    str | None, flag("--weights", "FOLDER", "keep source weights there, and train none that are there", STUDY)
]
Start = Annotated[int, typer.Option(metavar="N", help="first model, to share a study between stores")]
Repair = Annotated[bool, typer.Option("--repair", help="read the store first; train models of damaged chunks again")]
Device = Annotated[str | None, flag("--device", "DEVICE", "auto (the GPU if there is one), cpu, cuda or cuda:1")]
Scheduler = Annotated[
    str | None, flag("--scheduler", "ADDRESS", "address of a Dask scheduler whose workers shall train")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print expected time and bytes; train and write nothing")]
Method = Annotated[
    str | None, flag("--method", "METHOD", "difference, ols or ridge; default: what suits the design", INFLUENCE)
]
Output = Annotated[
    str, typer.Option(metavar="OUTPUT", help="margin, probability or correct", rich_help_panel=INFLUENCE)
]
Regime = Annotated[str | None, flag("--transfer", "TRANSFER", "one that the study has; default: its first", INFLUENCE)]


@app.command()
def run(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="STUDY.yaml", exists=True, dir_okay=False, help="settings; a flag wins over the file"),
    ] = None,
    problem: ProblemName = None,
    source: Source = None,
    target: Target = None,
    option: ProblemOption = None,
    models: Models = None,
    store: Annotated[str | None, flag("--store", "FOLDER", "where results are kept", STUDY)] = None,
    recipe: Annotated[
        list[str] | None, flag("--recipe", "NAME=VALUE", "a setting of dtl.Recipe, such as epochs=4; repeatable", STUDY)
    ] = None,
    design: Annotated[str | None, flag("--design", "DESIGN", "balanced (default), random or paired", STUDY)] = None,
    transfer: Annotated[
        str | None, flag("--transfer", "LIST", "one or more of fixed (default), fixed+bn, full, with commas", STUDY)
    ] = None,
    unit: Annotated[str | None, flag("--unit", "UNIT", "class (default) or example", STUDY)] = None,
    fraction: Annotated[
        float | None, flag("--fraction", "SHARE", "share of the units in a random subset, default 0.5", STUDY)
    ] = None,
    seed: Annotated[int | None, flag("--seed", "N", "default 0", STUDY)] = None,
    weights: Weights = None,
    start: Start = 0,
    repair: Repair = False,
    device: Device = None,
    scheduler: Scheduler = None,
    dry_run: DryRun = False,
) -> None:
    """Train the models of a study that its store lacks. It may be killed and run again.

    Settings come from a file, from flags, or from both. In a file, folders are relative to it:

    ```yaml
    problem: {load: testbed, options: {seed: 0}}
    # problem: {from_folders: {source_dir: animals, target_dir: pets, size: 32}}
    recipe: {epochs: 16, lr: 0.3}
    transfer: [fixed, full]
    store: studies/testbed
    models: 184
    ```
    """
    settings = config.read_file(file) if file else {}
    flags = {"models": models, "store": store, "design": design, "unit": unit, "fraction": fraction, "seed": seed}
    flags |= {"weights": weights, "device": device, "transfer": transfer.split(",") if transfer else None}
    settings |= config.absolute({name: value for name, value in flags.items() if value is not None}, Path.cwd())
    settings["problem"] = chosen_problem(settings.get("problem", {}), problem, source, target, option)
    settings["recipe"] = settings.get("recipe", {}) | pairs(recipe)
    train(config.Config(**config.checked(settings, config.Config, "setting")), start, repair, scheduler, dry_run)


@app.command()
def resume(
    store: StoreOf,
    models: Models = None,
    problem: ProblemName = None,
    source: Source = None,
    target: Target = None,
    option: ProblemOption = None,
    weights: Weights = None,
    start: Start = 0,
    repair: Repair = False,
    device: Device = None,
    scheduler: Scheduler = None,
    dry_run: DryRun = False,
) -> None:
    """Train the models that are missing in STORE, with the settings that it holds.

    With --models the study is extended. The problem needs flags only where the store cannot say how to load it.
    """
    settings = stored(store, problem, source, target, option)
    flags = {"models": models, "weights": weights, "device": device}
    given = config.absolute({name: value for name, value in flags.items() if value is not None}, Path.cwd())
    train(replace(settings, **given), start, repair, scheduler, dry_run)


@app.command()
def merge(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="store that gets the models", show_default=False)],
    stores: Annotated[list[Path], typer.Argument(metavar="STORE...", help="parts of one study", show_default=False)],
    problem: ProblemName = None,
    source: Source = None,
    target: Target = None,
    option: ProblemOption = None,
) -> None:
    """Copy the models of several stores of one study into OUT, which may be one of that study already."""
    study = replace(stored(stores[0], problem, source, target, option), store=str(out)).study()
    for store in stores:
        study.merge(store)
    said = shlex.quote(str(out))
    print(f"{said}: {study.results.sizes['model']} models done. Next: python -m dtl status {said}")


@app.command()
def status(store: StoreOf) -> None:
    """Say what STORE holds: models done and missing, settings, runs, bytes. Loads no data."""
    root = config.open_store(store)
    facts: Any = root.attrs.asdict()
    done = np.asarray(read(root, "done")) if "done" in root else np.zeros(0, dtype=bool)
    missing = int((~done).sum())
    show("store", f"{store.absolute()}, {format_bytes(folder_size(store))}")
    show("problem", facts["problem"])
    show("origin", facts["origin"] or "made by hand")
    show("classes", f"{len(facts['source_classes'])} source, {len(facts['target_classes'])} target")
    show("models", f"{done.sum()} done, {missing} missing")
    for name, value in facts["settings"].items():
        if name != "data":
            show(name, value)
    for one in facts["runs"]:
        versions = ", ".join(f"{k} {v}" for k, v in one.items() if k not in ("id", "date", "models", "device"))
        show("run", f"{one['date']}, {one['models']} models on {one['device']}: {versions}")
    if missing or not len(done):
        print(f"\nNext: python -m dtl resume {shlex.quote(str(store))}")


@app.command("influence")
def show_influence(
    store: StoreOf,
    by: Annotated[str, typer.Option(metavar="GROUPS", help="all: the whole target; class: each target class")] = "all",
    method: Method = None,
    output: Output = "margin",
    transfer: Regime = None,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="validation or test", rich_help_panel=INFLUENCE)] = (
        "validation"
    ),
    top: Annotated[int, typer.Option(metavar="N", min=1, help="print at most N that help and N that hurt")] = 10,
    out: Annotated[Path | None, flag("--out", "FILE.csv", "write every influence to a file, too")] = None,
) -> None:
    """Print the source classes that help the target most and those that hurt most, with their standard errors.

    An influence is the mean output of models trained with the class minus that of models trained without. Reliability
    is the estimated squared correlation of these influences with the true ones. Needs the store alone, no images.
    """
    if by not in ("all", "class"):
        raise InputError(f"unknown groups {by!r}: use all or class")
    if out:
        check_file(out, ".csv")
    influence = open_results(store).influence(method, output, transfer, split, by)
    table = influence.to_frame()
    print(f"{influence.n_models} models, {influence.method} of the {output} on {split} examples")
    width = max(len(str(name)) for name in table["source"])
    for target, group in table.groupby("target", sort=False):
        print(f"\n{target}, reliability {group['reliability'].iloc[0]:.2f}")
        ranked = group.sort_values("influence", ascending=False)
        helpful, harmful = ranked[ranked["influence"] > 0].head(top), ranked[ranked["influence"] < 0].tail(top)[::-1]
        for word, rows in (("helps", helpful), ("hurts", harmful)):
            for name, value, error in zip(rows["source"], rows["influence"], rows["stderr"], strict=True):
                print(f"  {word}  {name!s:<{width}}  {value:+8.3f} +- {error:.3f}")
    if out:
        save(out, table)


@app.command()
def export(
    store: StoreOf,
    out: Annotated[Path, typer.Argument(metavar="FILE", help=".nc, .zarr.zip or .csv", show_default=False)],
) -> None:
    """Write what STORE holds to one file for other programs.

    - `FILE.nc`: all results as NetCDF 4
    - `FILE.zarr.zip`: all results as zipped Zarr 2, for `xarray.open_zarr(zarr.storage.ZipStore(FILE))`
    - `FILE.csv`: the influence of each source class on each target class, with standard error and reliability, as
      `influence --by class` has them
    """
    check_file(out, ".nc", ".zarr.zip", ".csv")
    results = open_results(store)
    save(out, results.to_frame() if out.suffix == ".csv" else results.data)


@app.command()
def remove(
    store: StoreOf,
    counts: Annotated[str, flag("--counts", "LIST", "numbers of classes to remove, such as 2,4,8")],
    orders: Annotated[str, typer.Option(metavar="LIST", help="which classes first")] = ",".join(ORDERS),
    seeds: Annotated[int, typer.Option(metavar="N", help="retrainings for each order and count")] = 10,
    keep: Annotated[
        str | None, flag("--store", "FOLDER", "keep the retrained models' outputs there, and resume from it")
    ] = None,
    out: Annotated[Path | None, flag("--out", "FILE.csv", "write the curve to a file, too")] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="of the retrained models; default: the study's plus one")
    ] = None,
    problem: ProblemName = None,
    source: Source = None,
    target: Target = None,
    option: ProblemOption = None,
    method: Method = None,
    output: Output = "margin",
    device: Device = None,
    scheduler: Scheduler = None,
    dry_run: DryRun = False,
) -> None:
    """Retrain without the most harmful (negative), most helpful (positive) or random classes, and transfer again.

    Prints the test accuracy for each count, then the count that is best on validation and what it gains on test.
    """
    names = orders.split(",")
    try:
        numbers = [int(count) for count in counts.split(",")]
    except ValueError:
        raise InputError(f"counts must be whole numbers with commas, such as 2,4,8, not {counts!r}") from None
    if out:
        check_file(out, ".csv")
    device = device or "auto"
    where = device if scheduler else str(resolve_device(device))
    study = stored(store, problem, source, target, option).study()
    influence = study.influence(method, output, by="all")
    if dry_run:
        n_models = seeds * (1 + len(names) * len(set(numbers) - {0}))
        everything = np.ones((n_models, study.n_units), dtype=bool)
        retrained = Study(study.problem, study.recipe, everything, study.transfer[:1], unit=study.unit)
        estimate(retrained, n_models, str(resolve_device(device)))
        return
    with client_of(scheduler) as client:
        curve = removal_curve(
            study, influence, numbers, names, seeds, store=keep, seed=seed, device=where, client=client
        )
    mean, error = curve["test"].mean("seed"), curve["test"].std("seed", ddof=1) / seeds**0.5
    print(f"test accuracy, {curve.attrs['transfer']} transfer, mean +- standard error of {seeds} retrainings")
    print("removed ", *(f"{count:>15}" for count in curve["count"].values))
    for order in names:
        cells = zip(mean.sel(order=order).values, error.sel(order=order).values, strict=True)
        print(f"{order:<8}", *(f"  {m:.3f} +- {e:.3f}" for m, e in cells))
    print("\nnumber chosen on validation, its gain on test")
    for order in names:
        chosen = select(curve, order)
        print(f"{order:<8} {chosen.count:>4}  {chosen.gain:+.3f} +- {chosen.stderr:.3f}")
    if out:
        save(out, curve.to_dataframe().reset_index())


def train(settings: config.Config, start: int, repair: bool, scheduler: str | None, dry_run: bool) -> None:
    """Run a study and say what comes next, or say what that would cost."""
    if settings.store is None:
        raise InputError("give a folder for the results: --store FOLDER, or 'store' in the file")
    if settings.models is None:
        raise InputError("give the number of models: --models N, or 'models' in the file")
    device = settings.device if scheduler else str(resolve_device(settings.device))
    study = settings.study()
    if dry_run:
        wanted = slice(start, settings.models)
        done = np.asarray(read(study.store.open(), "done")[wanted]) if study.store.ready else ()
        estimate(study, settings.models - start - int(np.sum(done)), str(resolve_device(settings.device)))
        return
    store = shlex.quote(os.path.relpath(settings.store))
    with client_of(scheduler) as client:
        try:
            study.run(settings.models, device, client, start=start, repair=repair)
        except KeyboardInterrupt:
            print(f"Stopped. Saved models are safe: python -m dtl resume {store}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
    print(f"{store}: {study.results.sizes['model']} models done. Next: python -m dtl influence {store}")


def estimate(study: Study, n_models: int, device: str) -> None:
    """Print the expected time and bytes of models that are still to be trained."""
    if n_models < 1:
        print("No model is missing.")
        return
    cost = doctor.measure(study, n_models, device)
    time, size = format_time(cost.seconds * n_models), format_bytes(int(cost.bytes * n_models))
    print(f"{n_models} models to train: about {time} on this machine ({device}), {size} to store")


def stored(
    store: Path, problem: str | None, source: Path | None, target: Path | None, options: list[str] | None
) -> config.Config:
    """The settings of the study in a store, with its problem from there or from flags."""
    settings = config.read_store(store)
    settings["problem"] = chosen_problem(settings["problem"], problem, source, target, options)
    if not {"load", "from_folders"} & set(settings["problem"]):
        raise InputError(
            f"{store} does not say how to load its problem: add --problem NAME, or --source FOLDER --target FOLDER"
        )
    return config.Config(**config.checked(settings, config.Config, "setting"))


def chosen_problem(
    spec: dict[str, Any], name: str | None, source: Path | None, target: Path | None, options: list[str] | None
) -> dict[str, Any]:
    """What a file or store says of the problem, changed by the flags."""
    if name and (source or target):
        raise InputError("give --problem, or --source and --target, not both")
    if name:
        spec = {"load": name}
    elif source or target:
        folders = {"source_dir": source, "target_dir": target}
        spec = {"from_folders": spec.get("from_folders", {}) | {k: str(v) for k, v in folders.items() if v}}
    if options:
        key = "from_folders" if "from_folders" in spec else "options"
        spec = spec | {key: spec.get(key, {}) | pairs(options)}
    return config.absolute(spec, Path.cwd())


def pairs(items: list[str] | None) -> dict[str, Any]:
    """["epochs=4", "widths=[8, 16]"] -> {"epochs": 4, "widths": [8, 16]}"""
    found = {}
    for item in items or ():
        name, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"{item!r} must be NAME=VALUE, such as epochs=4")
        try:
            found[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"{item!r} must be NAME=VALUE with a number, a word or a list [8, 16]") from None
    return found


@contextlib.contextmanager
def client_of(scheduler: str | None) -> "Iterator[Client | None]":
    if scheduler is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError:
        raise InputError("--scheduler needs the extra 'cluster': pip install 'dtl[cluster]'") from None
    with Client(scheduler) as client:
        yield client


def save(out: Path, data: pd.DataFrame | xr.Dataset) -> None:
    write(out, data)
    print(f"wrote {out}, {format_bytes(out.stat().st_size)}")


def folder_size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a run may be replacing it
            total += path.stat().st_size if path.is_file() else 0
    return total


def show(topic: str, value: object) -> None:
    if isinstance(value, dict):
        value = ", ".join(f"{key} {of}" for key, of in value.items())
    print(f"{topic:<9} {value}")


if __name__ == "__main__":
    app(prog_name="python -m dtl")
