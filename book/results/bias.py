"""Make the results of bias transfer on real images that the book's pages read.

    python book/results/bias.py squares --data DATA     # and tint and fence; then pack

DATA holds `imagenet200` and `cifar10` (see `dtl.load`). Commands may be stopped and given again: each goes on where it
was. About ten minutes on two cores. Of CIFAR-10 200 test images of each class judge, and 50 validation images.

squares : yellow squares on half of the images of four dogs and cyan ones on those of three vehicles, in one source;
    drop of accuracy on CIFAR-10 with the square, source by source, with the augmentation of the recipe and without;
    40 models on quarters of the classes, to attribute
tint : a warm or a cold tint that goes with animal or machine in 95% or 50% of the source; CIFAR-10 in which it goes
    with neither; gap of the share of right answers and of the probability of the right one. Two tasks: the classes, and
    the kinds (animal or machine) as source and target labels, as Salman et al. 2022 have it: young or old
fence : nothing planted; share of CIFAR-10's images that are called bird behind a chain-link fence, which Salman et al.
    2022 report, transferred and from scratch
"""

import datetime
import json
import platform
import time
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
import xarray as xr
from run import RECIPES, commit

import dtl
from dtl import bias, doctor
from dtl.datasets import overlays
from dtl.datasets.folders import at_most

DOGS = ("golden retriever", "Labrador retriever", "German shepherd", "standard poodle")
VEHICLES = ("sports car", "moving van", "trolleybus")
ANIMALS = (*DOGS, "tabby", "albatross", "goose", "gazelle", "bullfrog", "ox")
MACHINES = (*VEHICLES, "police van", "school bus", "limousine", "lifeboat", "tractor", "freight car", "bullet train")
OPTIONS = {"classes": [*ANIMALS, *MACHINES], "limit": 100, "target_limit": 100}
TINTS = [overlays.Tint(), overlays.Tint(colour=(50, 120, 255))]  # warm with animals, cold with machines
LIVING = np.array([0, 0, 1, 1, 1, 1, 1, 1, 0, 0], dtype=bool)  # of CIFAR-10's classes
NAME, SEEDS, MODELS = "bias20-cifar10", 8, 40


class Sticker(overlays.Square):
    """A square that survives augmentation: shifted by two pixels or mirrored it is a square of its colour still."""

    still = False


SQUARES = {"yellow": Sticker(), "cyan": Sticker(colour=(0, 255, 255), at=(0, 28))}


@dataclass
class Experiment:
    data: Path
    folder: Path
    seeds: int
    models: int

    @cached_property
    def problem(self) -> dtl.TransferProblem:
        whole = dtl.load("imagenet200-cifar10", self.data, **OPTIONS)
        few = {"target_test": 200, "target_validation": 50}  # judges of each class
        parts = {name: whole.parts[name] for name in few}
        judges = {n: part.subset(at_most(few[n], part.labels.numpy(), seed=0)) for n, part in parts.items()}
        return replace(whole, **judges)

    @property
    def recipe(self) -> dtl.Recipe:
        return replace(RECIPES["cpu"], models_at_once=8)

    def squares(self) -> dict[str, xr.Dataset]:
        names = self.problem.source.classes
        clean = self.problem.with_views(SQUARES)
        source, marked = dtl.plant(clean.source, SQUARES["yellow"], DOGS, 0.5, seed=1)
        source, too = dtl.plant(source, SQUARES["cyan"], VEHICLES, 0.5, seed=2)
        planted, target = replace(clean, source=source), clean.target_train
        either = [names.index(name) for name in (*DOGS, *VEHICLES)]
        others = np.setdiff1d(np.arange(len(names)), either)
        control = np.random.default_rng(0).choice(others, len(DOGS), replace=False).tolist()

        def without(classes: Any) -> dtl.Arm:
            return dtl.Arm(planted, ~np.isin(np.array(names), np.array(names)[classes]))

        arms: dict[str, Any] = {"clean": clean, "planted": planted}
        arms |= {"without dogs": without(either[:4]), "without vehicles": without(either[4:])}
        arms["control"] = without(control)
        for name, square in SQUARES.items():
            images, _ = dtl.plant(target, square, target.classes, 0.1, seed=3)
            arms[f"{name} in 10% of the target"] = replace(planted, target_train=images)
        plain = replace(self.recipe, augment=0)
        for name, of in (("clean", clean), ("planted", planted)):
            arms[f"{name}, no augmentation"] = dtl.Arm(of, recipe=plain)
        study = dtl.Study(
            planted, self.recipe, "random", store=self.folder / "quarters", fraction=0.25, weights=self.folder / "w"
        ).run(self.models, "cpu")
        places = {"store": self.folder / "arms", "weights": self.folder / "w", "device": "cpu"}
        measures = {f"{v} {m}": partial(bias.shift, view=v, measure=m) for v in SQUARES for m in ("drop", "changed")}
        found = {n: dtl.bias_transfer(study, arms, m, self.seeds, **places) for n, m in measures.items()}
        results = study.results.isel(transfer=0)
        moved = {v: bias.shift(results, v, split="validation").values for v in SQUARES}
        quarters = xr.Dataset(
            {"mask": (("model", "source"), study.masks)} | {v: ("model", m) for v, m in moved.items()},
            {"source": list(names)},
        )
        compared = xr.Dataset({n: f.bias for n, f in found.items()} | {"accuracy": found["yellow drop"].accuracy})
        shown = [
            int(np.flatnonzero(m & (source.labels.numpy() == k))[0]) for m, k in ((marked, either[0]), (too, either[4]))
        ]
        pictures = xr.Dataset({"image": (("picture", "channel", "y", "x"), source.images[shown].numpy())})
        return {"squares": compared, "quarters": quarters, "pictures": pictures}

    def tint(self) -> dict[str, xr.Dataset]:
        problem = self.problem
        judges, agrees = {}, {}
        for number, part in enumerate(("target_train", "target_validation", "target_test")):
            judges[part], agrees[part] = bias.lean(problem.parts[part], TINTS, 1 - LIVING.astype(int), 0.5, number)
        machine = np.isin(problem.source.classes, MACHINES).astype(int)
        sources = {share: bias.lean(problem.source, TINTS, machine, share, 3)[0] for share in (0.5, 0.95)}
        made = {f"{share:.0%}": replace(problem, source=source, **judges) for share, source in sources.items()}

        def gap(results: xr.Dataset, output: str) -> xr.DataArray:
            return bias.gap(results[output].isel(target=results.split.values == "test"), agrees["target_test"])

        def kinds(data: dtl.ImageDataset, machine: np.ndarray) -> dtl.ImageDataset:
            return replace(data, labels=machine[data.labels.numpy()], classes=("animal", "machine"), paths=None)

        judged = {part: kinds(data, 1 - LIVING.astype(int)) for part, data in judges.items()}
        two = {name: replace(of, source=kinds(of.source, machine), **judged) for name, of in made.items()}
        tasks: list[xr.Dataset] = []
        for task, arms in (("classes", made), ("kinds", two)):
            study = dtl.Study(arms["50%"], self.recipe, np.ones((2, arms["50%"].source.n_classes), dtype=bool))
            places = {"store": self.folder / ("tint" if task == "classes" else task), "device": "cpu"}
            found = {
                output: dtl.bias_transfer(
                    study, arms, partial(gap, output=output), self.seeds, transfer=("fixed", "scratch"), **places
                )
                for output in ("correct", "probability")
            }
            parts = {output: of.bias for output, of in found.items()} | {"accuracy": found["correct"].accuracy}
            tasks.append(xr.Dataset(parts).expand_dims(task=[task]))
        return {"tint": xr.concat(tasks, "task")}

    def fence(self) -> dict[str, xr.Dataset]:
        viewed = self.problem.with_views({"fence": overlays.Fence()})
        pull = partial(bias.shift, view="fence", measure="toward", toward="bird")
        found = dtl.bias_transfer(
            dtl.Study(viewed, self.recipe), {"clean": viewed}, pull, self.seeds, transfer=("fixed", "full", "scratch"),
            store=self.folder / "fence", weights=self.folder / "w", device="cpu",
        )  # fmt: skip
        return {"fence": found[["bias", "accuracy"]]}


def logged(folder: Path, name: str) -> dict[str, Any]:
    """What the certificate says of a run that begins now."""
    return {
        "command": f"python book/results/bias.py {name}",
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": doctor.hardware(),
        "versions": {"python": platform.python_version()} | {n: version(n) for n in ("dtl", "torch", "numpy")},
        "finished": True,
    }


def main(
    command: Literal["squares", "tint", "fence", "pack", "all"],
    data: Annotated[Path, typer.Option(envvar="DTL_DATA", help="folder of the images")],
    studies: Annotated[Path, typer.Option(help="folder of the studies")] = Path("studies/bias"),
    seeds: int = SEEDS,
    models: int = MODELS,
    out: Annotated[Path, typer.Option(help="folder of packed results")] = dtl.results.FOLDER,
) -> None:
    """Make the results of the pages about bias on real images."""
    experiment = Experiment(data, studies, seeds, models)
    for name in ("squares", "tint", "fence") if command == "all" else (command,):
        if name == "pack":
            continue
        piece, start = logged(studies, name), time.perf_counter()
        parts = getattr(experiment, name)()
        studies.mkdir(parents=True, exist_ok=True)
        for part, data_of in parts.items():
            data_of.drop_attrs().to_netcdf(studies / f"{part}.nc", engine="h5netcdf")
        (studies / f"{name}.json").write_text(json.dumps(piece | {"seconds": round(time.perf_counter() - start)}))
    if command in ("pack", "all"):
        made = {"squares": "squares", "quarters": "squares", "pictures": "squares", "tint": "tint", "fence": "fence"}
        parts = {part: xr.load_dataset(studies / f"{part}.nc", engine="h5netcdf") for part in made}
        facts = {
            "problem": {"load": "imagenet200-cifar10", "options": OPTIONS},
            "settings": {"quarters": {"design": "random", "fraction": 0.25, "seed": 0, "unit": "class"}},
            "recipe": experiment.recipe.settings(),
            "runs": {part: [json.loads((studies / f"{run}.json").read_text())] for part, run in made.items()},
        }
        dtl.results.save(out / NAME, parts, facts)


if __name__ == "__main__":
    typer.run(main)
