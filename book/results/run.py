"""Make the results that the book's pages about real images read.

    python book/results/run.py all --scale cpu --data DATA

DATA holds `imagenet200` and `cifar10` (see `dtl.load`). Every command may be stopped at any time and given again: it
goes on where it was and loses at most the batch of models in flight. Commands may run in any order, except that
`removal` and `flips` read the influences of `balanced`, and `pack` reads all of them. Where these models are not
at hand, `removal-steps` and `removal-fresh` read what ships of them, and `add` puts the two to what ships.

    scale cpu: 20 source classes, 100 training images of each target class; two cores, about three hours
    (200 source classes on one GPU are the matter of imagenet200.py)
"""

import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
import xarray as xr

import dtl
from dtl import doctor
from dtl.datasets.imagenet200 import CATEGORIES

NEAREST = {  # a class near to each CIFAR-10 class, a second one for birds and for trucks
    "projectile": "airplane",  # missiles and rockets: there is no plane among the 200
    "sports car": "automobile",
    "albatross": "bird",
    "goose": "bird",
    "tabby": "cat",
    "gazelle": "deer",
    "golden retriever": "dog",
    "bullfrog": "frog",
    "ox": "horse",
    "lifeboat": "ship",
    "moving van": "truck",
    "trolleybus": "truck",
}
SCENES = ("alp", "cliff", "lakeside", "seashore")  # backgrounds of several CIFAR-10 classes
UNRELATED = ("abacus", "comic book", "espresso", "pizza")
BITS = 7  # of margins that ship: off by 0.4% at most, far below the luck of a training
TWENTY = (*NEAREST, *SCENES, *UNRELATED)  # chosen before any result was seen
RECIPES = {
    "cpu": dtl.Recipe(widths=(16, 32, 64, 64), epochs=12, augment=2, finetune_epochs=6),
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """One size of the whole experiment."""

    name: str  # of the results
    recipe: dtl.Recipe
    options: dict[str, Any]  # of the problem
    models: int  # whole balanced blocks
    random: int  # models of the random design
    counts: tuple[int, ...]  # classes removed
    seeds: int  # of removal and of baselines
    held: tuple[int, ...]  # classes removed with the steps held
    held_seeds: int
    fresh: tuple[int, ...]  # classes removed with the steps held once more, by nets that chose no number of them
    fresh_seeds: int
    examples: int = 8  # of the flip test
    flips: int = 20  # seeds of it


SIZES = {
    "cpu": Size(
        "imagenet20-cifar10", RECIPES["cpu"], {"classes": list(TWENTY), "target_limit": 100},
        models=152, random=152, counts=(2, 4, 6, 8, 10, 12, 14, 16), seeds=8,
        held=(2, 4, 6, 8, 10, 12), held_seeds=16, fresh=(2, 4), fresh_seeds=40,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    size: Size
    data: Path
    studies: Path
    device: str
    out: Path

    @cached_property
    def problem(self) -> dtl.TransferProblem:
        return dtl.load("imagenet200-cifar10", self.data, **self.size.options)

    @property
    def folder(self) -> Path:
        return self.studies / self.size.name

    def study(self, name: str, design: str | np.ndarray, transfer: tuple[str, ...], **settings: Any) -> dtl.Study:
        problem = settings.pop("problem", self.problem)
        return dtl.Study(problem, self.size.recipe, design, transfer, self.folder / name, **settings)

    @property
    def balanced(self) -> dtl.Study:
        return self.study("balanced", "balanced", ("fixed", "full"))

    @property
    def random(self) -> dtl.Study:
        return self.study("random", "random", ("fixed",), seed=1)

    @property
    def baselines(self) -> dict[str, dtl.Study]:
        """The full source under every transfer, and the target's training images as their own source."""
        source, target = self.problem.source.n_classes, self.problem.target_train
        alone = replace(self.problem, source=target)
        everything = {n: np.ones((self.size.seeds, n), dtype=bool) for n in (source, target.n_classes)}
        return {
            "full-source": self.study("full-source", everything[source], ("fixed", "fixed+bn", "full"), seed=2),
            "scratch": self.study("scratch", everything[target.n_classes], ("fixed",), seed=2, problem=alone),
        }

    def removal(self) -> xr.Dataset:
        """Curves of Jain et al. 2022, Fig. 2, and hand-picked: classes near to no target class first."""
        by_hand = hand_picked(self.problem.source.classes)
        orders = dict.fromkeys(dtl.removal.ORDERS) | {"hand-picked": by_hand}
        return self.curve("removal", self.size.counts, orders, self.size.seeds)

    def removal_steps(self) -> xr.Dataset:
        """Two of these curves with the steps of the full source for every source: a smaller one trains no shorter."""
        return self.curve("removal-steps", self.size.held, ("negative", "random"), self.size.held_seeds, steps="full")

    def removal_fresh(self) -> xr.Dataset:
        """The start of one of them by many nets of other seeds."""
        return self.curve("removal-fresh", self.size.fresh, "negative", self.size.fresh_seeds, 5, steps="full")

    def curve(
        self, name: str, counts: Sequence[int], orders: Any, seeds: int, seed: int = 3, **options: Any
    ) -> xr.Dataset:
        at_hand = finished(self.folder, "balanced")
        study = self.balanced if at_hand else dtl.results.open(self.size.name, self.out).part("balanced")
        influence, store = study.influence(by="all"), self.folder / name
        return dtl.removal_curve(
            self.balanced, influence, counts, orders, seeds, store=store, seed=seed, device=self.device, **options
        )

    def flips(self) -> xr.Dataset:
        return flips_of(self.balanced, self.size.examples, self.size.flips, self.folder / "flips", self.device)

    def need(self, *names: str) -> None:
        """Stop unless these runs have ended: influences of a part of a study order other classes than those of all."""
        cut = [name for name in names if not finished(self.folder, name)]
        if cut:
            raise typer.BadParameter(f"first run {', '.join(cut)} to the end, in {self.folder}")

    def pack(self) -> None:
        """Everything as one file and its birth certificate."""
        runs = {name: read_log(self.folder, name) for name in RUNS}
        runs |= dict.fromkeys(self.baselines, runs.pop("baselines"))
        studies = {"balanced": self.balanced, "random": self.random, **self.baselines}
        parts = {name: compact(study.results) for name, study in studies.items()}
        parts["random"] = parts["random"].isel(target=parts["random"].split == "validation")  # all that pages read
        parts |= {name: run(self) for name, run in CURVES.items()} | {"flips": self.flips()}
        facts = {
            "problem": {"load": "imagenet200-cifar10", "options": self.size.options},
            "settings": {name: study.settings for name, study in studies.items()},
            "rounding": f"margins are float32 with {BITS} bits after the leading one",
            "runs": runs,
        }
        self.save(parts, facts)

    def add(self) -> None:
        """The removals with the steps held, to results that ship without them; nothing else of them changes."""
        shipped, added = dtl.results.open(self.size.name, self.out), ("removal-steps", "removal-fresh")
        facts = {key: value for key, value in shipped.manifest.items() if key != "files"}
        facts["runs"] |= {name: read_log(self.folder, name) for name in added}
        parts = {**shipped.parts, **{name: CURVES[name](self) for name in added}}
        for part in parts.values():
            part.attrs.pop("settings", None)  # which the manifest holds
        self.save(parts, facts)

    def save(self, parts: dict[str, xr.Dataset], facts: dict[str, Any]) -> None:
        folder = dtl.results.save(self.out / self.size.name, parts, facts)
        print(*(f"{path}: {path.stat().st_size / 1e6:.1f} MB" for path in folder.iterdir()), sep="\n")


def flips_of(study: dtl.Study, examples: int, seeds: int, store: Path, device: str) -> xr.Dataset:
    """Wrong test examples with the most negative influence of one unit, retrained without that unit.

    The models of the most harmed examples also judge undecided ones, which a fifth to a half of the study's models get
    right, and of which the same units are suspect.
    """
    influence = study.influence(split="test")
    suspects, harm = influence.values.argmin(axis=0), influence.values.min(axis=0)
    right = study.outputs("correct", split="test").mean(axis=0)
    order = np.argsort(harm, kind="stable")
    harmed = order[right[order] < 0.5][:examples]
    left_out = np.unique(suspects[harmed])
    near = (right >= 0.2) & (right < 0.5) & np.isin(suspects, left_out)
    undecided = [i for i in order[near[order]] if i not in harmed][:examples]
    chosen = np.array([*harmed, *undecided])
    flips = dtl.flip_rate(
        study, chosen.tolist(), left_out.tolist(), seeds, split="test", store=store, seed=4, device=device
    )
    facts = {
        "group": np.repeat(["most harmed", "undecided"], [len(harmed), len(undecided)]),
        "suspect": np.array(influence.sources)[suspects[chosen]],
        "influence": harm[chosen],
        "stderr": influence.stderr[suspects[chosen], chosen],
        "right": right[chosen],  # share of the study's models
    }
    return flips.assign_coords({name: ("example", values) for name, values in facts.items()})


def hand_picked(names: Sequence[str]) -> list[int]:
    """Source classes without a category of a target class, then those with one, each in a random order."""
    mixed = np.random.default_rng(0).permutation(len(names)).tolist()
    return sorted(mixed, key=lambda i: names[i] in CATEGORIES)  # keeps the order of equals


def compact(results: xr.Dataset) -> xr.Dataset:
    """What the pages read; the probability is a function of the margin, predictions are those of `flips`."""
    kept = results[["mask", "seed", "margin", "correct"]].drop_attrs()
    return kept.assign(margin=dtl.results.rounded(kept.margin, BITS)).assign_attrs(
        target_classes=results.target_classes
    )


CURVES: dict[str, Callable[[Experiment], xr.Dataset]] = {
    "removal": Experiment.removal,
    "removal-steps": Experiment.removal_steps,
    "removal-fresh": Experiment.removal_fresh,
}
RUNS: dict[str, Callable[[Experiment], object]] = {
    "balanced": lambda e: e.balanced.run(e.size.models, e.device),
    "random": lambda e: e.random.run(e.size.random, e.device),
    "baselines": lambda e: [study.run(device=e.device) for study in e.baselines.values()],
    **CURVES,
    "flips": Experiment.flips,
}


def read_log(folder: Path, name: str) -> list[dict[str, Any]]:
    log = folder / f"{name}.json"
    return json.loads(log.read_text()) if log.exists() else []


def finished(folder: Path, name: str) -> bool:
    return any(piece["finished"] for piece in read_log(folder, name))


@contextmanager
def logged(folder: Path, name: str, command: str) -> Iterator[None]:
    """Add a piece of a run to its log, when it ends or is stopped; a run that has ended is not logged again."""
    before = read_log(folder, name)
    if finished(folder, name):
        yield
        return
    piece: dict[str, Any] = {
        "command": command,
        "commit": os.environ.get("DTL_COMMIT") or commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": doctor.hardware(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | {n: version(n) for n in ("dtl", "torch", "numpy")},
        "finished": False,
    }
    start = time.perf_counter()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # of `timeout`
    try:
        yield
        piece["finished"] = True
    finally:
        piece["seconds"] = round(time.perf_counter() - start)
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f"{name}.json.new"
        new.write_text(json.dumps([*before, piece]))
        new.replace(folder / f"{name}.json")


def commit() -> str:
    """The commit of this script, or "unknown" outside a clone: there DTL_COMMIT says it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"]).returncode != 0
    return found.stdout.strip() + (" with changes" if changed else "")


def main(
    command: Literal[
        "balanced", "random", "baselines", "removal", "removal-steps", "removal-fresh", "flips", "pack", "add", "all"
    ],
    data: Annotated[Path, typer.Option(envvar="DTL_DATA", help="folder of the images")],
    scale: Literal["cpu"] = "cpu",
    studies: Annotated[Path, typer.Option(help="folder of the studies")] = Path("studies"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    out: Annotated[Path, typer.Option(help="folder of packed results")] = dtl.results.FOLDER,
) -> None:
    """Make the results of the pages about real images."""
    experiment = Experiment(SIZES[scale], data, studies, device, out)
    _ = experiment.problem  # wrong data leave no mark
    for name in RUNS if command == "all" else [command]:
        if name in ("removal", "flips"):
            experiment.need("balanced")
        if name in RUNS:
            with logged(experiment.folder, name, f"python book/results/run.py {name} --scale {scale}"):
                RUNS[name](experiment)
    if command in ("pack", "all"):
        experiment.need(*RUNS)
        experiment.pack()
    if command == "add":
        experiment.need("removal-steps", "removal-fresh")
        experiment.add()


if __name__ == "__main__":
    typer.run(main)
