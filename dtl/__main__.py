"""The command line: python -m dtl doctor|run|status|resume|merge|influence|export|remove|audit|scores|report"""

import logging
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from dask.utils import format_bytes
from jsonargparse import auto_cli

import dtl
from dtl import doctor as health
from dtl._checks import Diverged, InputError, choice, whole
from dtl._commands import client_of, merge, resume, run, status, study_in
from dtl._flags import Parser, read_file
from dtl.datasets.overlays import NAMED
from dtl.engine.files import check_file, write
from dtl.training import resolve_device

BAD_USE, FAILURE, INTERRUPTED = 2, 1, 130


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
    found = dtl.results.open(store).influence(method, output, transfer, split, by)
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
    print_written(dtl.results.open(store).save(out))


def remove(
    study: str,
    counts: str = "",
    orders: str = ",".join(dtl.removal.ORDERS),
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
        curve = dtl.removal_curve(ours, found, numbers, names, seeds, **chosen)
    accuracy = curve["test"].to_series().unstack("seed")
    cells = accuracy.mean(axis=1).map("{:.3f}".format) + accuracy.sem(axis=1).map(" +- {:.3f}".format)
    print(f"test accuracy, {curve.attrs['transfer']} transfer, mean +- standard error of {seeds} retrainings")
    print(cells.unstack("count").loc[names].to_string())
    print("\nnumber chosen on validation; gain on test, of each seed at the number that the others choose")
    for order in names:
        best = dtl.removal.select(curve, order)
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
    settings = (ours.recipe, ours.design or "balanced", ours.transfer, study, ours.seed, ours.fraction)
    viewed = dtl.Study(problem, *settings, ours.groups or ours.unit, weights).run(ours.results.sizes["model"], device)
    found = dtl.audit(viewed, seeds, device=device)
    print(found)
    if out and out.endswith(".html"):
        dtl.report(viewed, out, audit=found)
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
    ours, again = study_in(study, None, weights, **data), dtl.results.open(replicate) if replicate else None
    found = dtl.scores.benchmark(ours, truth=truth, split=split, replicate=again, device=device)
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
    results = study_in(store, None, None, **data) if seeds else dtl.results.open(store)
    advice = dtl.advise(results, seeds, device=device) if isinstance(results, dtl.Study) else None
    print(f"wrote {dtl.report(results, out, advice, pd.read_csv(scores) if scores else None)}")


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
