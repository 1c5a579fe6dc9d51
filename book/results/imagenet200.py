"""Make the results of the pages about two hundred classes: commands of minutes on one GPU, several side by side.

    python book/results/imagenet200.py groups --data DATA --studies S & ...     # and targets, resnet18, long
    python book/results/imagenet200.py removal --data DATA --studies S & ...    # and flips: they read groups
    python book/results/imagenet200.py pack --data DATA --studies S --block FOLDER
    python book/results/imagenet200.py two-cores --data DATA --studies S            # an hour without a GPU
    python book/results/imagenet200.py add --data DATA --studies S                  # what it found, to what ships

DATA holds `imagenet200` and `cifar10` (see `dtl.load`), or is a file that holds the problem (`dtl.datasets.saved`).
Every command may be stopped at any time and given again: it goes on where it was. `pack` takes what is done, beside the
arrays of an earlier run in FOLDER: a block of 398 models of all classes, and removals. Of the stores it reads masks,
seeds, margins and which answers are right, so the rest of them and the weights need not be carried to where it runs.
`--toy` is for a CPU: few pictures and tiny nets, to see that all commands run, and no more.

groups : two blocks of models on halves of forty groups of classes, to CIFAR-10 with 100 and 4,500 images a class
removal : groups taken out of the source, with the epochs of each training held and with its steps held
flips : single groups left out, and what becomes of pictures that most models get wrong
targets : as many on halves of 120 classes, to animals and to things among the 80 classes that were kept out; removal
resnet18 : the first block of subsets of `groups` again, by a ResNet-18
long : the same, by the small net in eight epochs instead of four
two-cores : groups taken out of the source of animals and things, in the order of the influences that ship, with the
    steps held; trained on few pictures a class, so that two cores do it
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
import xarray as xr
import zarr
from run import flips_of, logged, read_log

import dtl
from dtl.data import ImageDataset, TransferProblem
from dtl.datasets.folders import at_most
from dtl.datasets.imagenet200 import CATEGORIES, GROUPS, NAMES
from dtl.engine import files

PROBLEM = "imagenet200-cifar10"
RECIPE = dtl.Recipe(
    "resnet9", (16, 32, 64, 128), epochs=4, batch_size=512, lr=0.2, augment=2, models_at_once=1, precision="bfloat16",
    finetune_epochs=2,
)  # fmt: skip
TINY = {"widths": (4, 4, 8, 8), "epochs": 1, "lr": 0.05, "batch_size": 32, "precision": "float32", "finetune_epochs": 1}
OF_TARGET = {"small": {"finetune_epochs": 40}, "whole": {}}  # 40 steps and 174
OTHER = {"resnet18": {"model": "resnet18", "widths": (), "lr": 0.1}, "long": {"epochs": 8}}
SMALL = 100  # training images of each class of the small target
KEPT_OUT = {  # groups of which two classes are a target
    "animals": (
        "amphibians and reptiles", "dogs", "furry animals", "cats", "ungulates", "apes, elephant, hog",
        "birds, dugong", "flying insects", "long insects", "shells and slugs",
    ),
    "things": (
        "cars", "vans and buses", "bridges and dams", "tall things", "landscapes", "fruit", "sports", "robes",
        "bottles", "music, sewing",
    ),
}  # fmt: skip
BITS = 4  # of margins that ship: off by 3% at most, far below the luck of a training
FEW = 60  # source images of each class that two cores train on
SPLIT = (100, 100, 300)  # training, validation and test images of each class that is kept out


@dataclass(frozen=True)
class Experiment:
    data: Path
    folder: Path
    device: str
    toy: bool

    @property
    def block(self) -> int:
        return 2 if self.toy else dtl.design.block_length(40)

    @cached_property
    def problems(self) -> dict[str, TransferProblem]:
        """CIFAR-10 as target, small and whole, with one source."""
        saved = self.data.is_file()
        whole = dtl.load("file", path=self.data) if saved else dtl.load(PROBLEM, self.data)
        if self.toy:
            parts = {"source": 12, "target_train": 40, "target_validation": 20, "target_test": 20}
            smaller: Any = {name: few(whole.parts[name], n) for name, n in parts.items()}
            whole = replace(whole, **smaller)
        return {
            "small": replace(whole, target_train=few(whole.target_train, 20 if self.toy else SMALL)),
            "whole": whole,
        }

    @cached_property
    def others(self) -> dict[str, TransferProblem]:
        """Three classes of each group as source; the two others of ten groups are a target."""
        source = self.problems["whole"].source
        groups = [GROUPS[name] for name in source.classes]
        out = [k for k, group in enumerate(groups) if groups[:k].count(group) >= 3]
        kept = of_classes(source, [k for k in range(len(groups)) if k not in out])
        found = {}
        for name, own in KEPT_OUT.items():
            target = of_classes(source, [k for k in out if groups[k] in own])
            train, validation, test = split(target, (4, 4, 4) if self.toy else SPLIT)
            found[name] = TransferProblem(f"imagenet200-{name}", kept, train, validation, test)
        return found

    def study(self, name: str, problem: TransferProblem, settings: Mapping[str, Any], **options: Any) -> dtl.Study:
        both = dict(settings) | (TINY if self.toy else {})
        recipe = replace(RECIPE, **(both | ({"widths": ()} if "model" in settings else {})))
        unit = {name: GROUPS[name] for name in problem.source.classes}
        return dtl.Study(
            problem, recipe, unit=unit, store=self.folder / name, weights=self.folder / "weights", **options
        )

    @cached_property
    def studies(self) -> dict[str, dict[str, dtl.Study]]:
        """Studies of one source by command, then by target."""
        both = ("fixed", "full")
        targets = self.problems.items()
        return {
            "groups": {t: self.study(f"groups-{t}", p, OF_TARGET[t], transfer=both) for t, p in targets},
            "targets": {t: self.study(f"targets-{t}", p, {"epochs": 7}) for t, p in self.others.items()},
        } | {name: {t: self.study(f"{name}-{t}", p, settings) for t, p in targets} for name, settings in OTHER.items()}

    def run(self, command: str) -> None:
        """The models of a command in pieces of a third of a block, each transferred to all targets."""
        studies, n = self.studies[command], self.block * (1 if command in OTHER else 2)
        step, began = max(2, self.block // 3), time.perf_counter()
        for start in range(0, n, step):
            stop = min(n, start + step)
            for study in studies.values():
                study.run(stop, self.device, start=start, progress=False)
            print(f"{command}: {stop} of {n} models, {time.perf_counter() - began:.0f} s", flush=True)

    def curves(self, name: str, study: dtl.Study, kinds: Sequence[str], given: dict[str, list[int]]) -> None:
        """Removal curves, in rounds of two seeds, so that one that is stopped has whole rounds."""
        influence = study.influence(by="all", transfer="fixed")
        alone = dtl.Study(study.problem, study.recipe, unit=study.groups or "class")  # fixed features
        for number in range(1 if self.toy else 3):
            for kind in kinds:
                where = f"removal-{name}-{kind}-{number}"
                curve = dtl.removal_curve(
                    alone, influence, (4,) if self.toy else (4, 8, 16), (*dtl.removal.ORDERS, *given), 2, given=given,
                    steps="full" if kind == "steps" else None, store=self.folder / where, seed=100 + number,
                    device=self.device, progress=False,
                )  # fmt: skip
                curve.to_netcdf(self.folder / f"{where}.nc", engine="h5netcdf")
                print(where, curve.test.mean("seed").round(3).values.tolist(), flush=True)

    def few_pictures(self) -> None:
        """Removal curves of animals and things at a size for two cores, in rounds of two seeds, both of one source."""
        shipped, settings = dtl.results.open(PROBLEM), {"epochs": 7, "batch_size": 128, "precision": "float32"}
        for number in range(1 if self.toy else 5):
            for target, problem in self.others.items():
                influence = shipped.part(f"targets-{target}").influence(by="all", transfer="fixed")
                study = self.study("few", replace(problem, source=few(problem.source, FEW)), settings)
                curve = dtl.removal_curve(
                    study, replace(influence, data={}),  # of the same classes, though not of these pictures alone
                    (4,) if self.toy else (12,), seeds=2, steps="full", seed=100 + number, device=self.device,
                    store=self.folder / f"few-{target}-{number}", progress=False,
                )  # fmt: skip
                curve = curve.assign_attrs(settings=study.settings)
                files.write(self.folder / f"few-{target}-{number}.nc", curve)
                print(target, number, curve.test.mean("seed").round(3).values.tolist(), flush=True)

    def command(self, name: str) -> None:
        if name in self.studies:
            self.run(name)
        study = self.studies["groups"]["small"]
        if name == "removal":
            self.curves("small", study, ("epochs", "steps"), {"hand-picked": hand_picked(study)})
        if name == "flips":
            pictures, seeds = (2, 2) if self.toy else (4, 10)
            flips = flips_of(study, pictures, seeds, self.folder / "flips", self.device)
            flips.to_netcdf(self.folder / "flips.nc", engine="h5netcdf")
        if name == "two-cores":
            self.few_pictures()
        if name == "targets":
            for target, study in self.studies["targets"].items():
                self.curves(target, study, ("steps",), {})

    def pack(self, block: Path, out: Path) -> None:
        """What the pages read, as one file: outputs on validation images, and accuracies on test images."""
        stores = [
            path.parent for name in ("groups", "targets", *OTHER) for path in self.folder.glob(f"{name}-*/zarr.json")
        ]
        parts = {folder.name: validation(folder) for folder in sorted(stores)}
        parts = {name: part for name, part in parts.items() if part.sizes["model"] >= self.block}
        settings = {name: part.attrs.pop("settings") for name, part in parts.items()}
        test = self.problems["whole"].target_test.labels.numpy()
        parts["block"], parts["removal"], facts = of_block(block, parts["groups-whole"], test)
        settings["block"] = facts["settings"]
        runs = {name: read_log(self.folder, name.split("-")[0]) for name in settings}
        runs["block"] = runs["removal"] = facts["runs"]
        about = {
            "problem": {"load": PROBLEM, "options": {}},
            "settings": settings,
            "rounding": f"margins are float32 with {BITS} bits after the leading one",
            "runs": runs,
            # measured by tests/benchmarks/gpu.py on the same machine
            "step": json.loads((self.folder / "step.json").read_text()),
            "cut": cut(runs),
        }
        folder = dtl.results.save(out / PROBLEM, parts, about)
        print(*(f"{path}: {path.stat().st_size / 1e6:.1f} MB" for path in folder.iterdir()), sep="\n")

    def add(self, out: Path) -> None:
        """The curves of `few_pictures`, to what ships already."""
        shipped = dtl.results.open(PROBLEM, out)
        facts = {key: value for key, value in shipped.manifest.items() if key != "files"}
        found: dict[str, xr.Dataset] = {}
        for target in KEPT_OUT:
            curves = [xr.load_dataset(path) for path in sorted(self.folder.glob(f"few-{target}-*.nc"))]
            name = f"removal-{target}"
            facts["settings"][name] = json.loads(curves[0].attrs["settings"]) | {"pictures": FEW}
            facts["runs"][name] = read_log(self.folder, "two-cores")
            found[name] = xr.concat(curves, "seed").assign_coords(seed=range(2 * len(curves)))
        facts["cut"] = cut(facts["runs"])
        for part in (parts := {**shipped.parts, **found}).values():
            part.attrs.pop("settings", None)  # which the manifest holds
        dtl.results.save(out / PROBLEM, parts, facts)


def validation(folder: Path) -> xr.Dataset:
    """A store's finished pairs of models: margins on validation images, accuracy on test images.

    Read array by array, because a store that was carried home has no others than these.
    """
    store: Any = zarr.open_group(folder, mode="r")
    facts: dict[str, Any] = store.attrs.asdict()
    done = np.flatnonzero(np.asarray(store["done"]))
    done = done[np.isin(done ^ 1, done)]
    masks, seed, split, label = (np.asarray(store[name]) for name in ("mask", "seed", "split", "label"))
    groups, first = np.unique(facts["settings"]["groups"], return_index=True)
    found = xr.Dataset(
        {
            "mask": (("model", "source"), masks[done][:, first].astype(bool)),
            "seed": ("model", seed[done]),
            "margin": (("transfer", "model", "target"), store["margin"].oindex[:, done, np.flatnonzero(split == 0)]),
            "accuracy": (("transfer", "model"), store["correct"].oindex[:, done, np.flatnonzero(split == 1)].mean(2)),
        },
        {
            "model": done, "source": groups, "transfer": facts["settings"]["transfer"],
            "split": ("target", np.full((split == 0).sum(), "validation")), "label": ("target", label[split == 0]),
        },
    )  # fmt: skip
    found["margin"] = dtl.results.rounded(found.margin, BITS)
    return found.assign_attrs(
        settings=facts["settings"], target_classes=facts["target_classes"], problem=facts["problem"]
    )


def of_block(folder: Path, like: xr.Dataset, test: np.ndarray) -> tuple[xr.Dataset, xr.Dataset, dict[str, Any]]:
    """A block of 398 models of all classes, and removals, from arrays of an earlier run, and the facts of that run.

    like : another study of this target;  test : labels of its test images, which follow those for validation
    """
    block, again = (np.load(folder / f"{name}.npz") for name in ("block", "removal"))
    facts, labels = json.loads((folder / "facts.json").read_text()), [like.label.values, test]

    def accuracies(predictions: np.ndarray) -> list[np.ndarray]:
        parts = np.split(predictions, [len(labels[0])], axis=1)
        return [(part == own).mean(1) for part, own in zip(parts, labels, strict=True)]

    margin = xr.DataArray(block["margin"][None, :, : len(labels[0])], dims=("transfer", "model", "target"))
    part = xr.Dataset(
        {
            "mask": (("model", "source"), block["mask"]),
            "seed": ("model", block["seed"]),
            "margin": dtl.results.rounded(margin.astype(np.float32), BITS),
            "accuracy": (("transfer", "model"), accuracies(block["prediction"])[1][None]),
        },
        {"model": np.arange(len(block["mask"])), "source": list(NAMES.values()), "transfer": ["fixed"]},
        {"target_classes": like.target_classes, "problem": PROBLEM},
    ).assign_coords(split=like.split, label=like.label)  # fmt: skip
    check, test_accuracy = accuracies(again["prediction"])
    removal = xr.Dataset(
        {"validation": ("retraining", check), "test": ("retraining", test_accuracy)},
        {name: ("retraining", again[name]) for name in ("order", "count", "repeat")},
    )
    run = {
        "command": "a prototype of the training step, equal to train_sources in float32 on a CPU",
        "commit": facts["commit"],
        "date": facts["date"],
        "hardware": facts["gpu"],
        "versions": {name: facts[name] for name in ("python", "torch", "numpy")},
        "finished": True,
        "seconds": round(facts["seconds"]),
    }
    settings = {
        "data": facts["fingerprints"], "recipe": facts["recipe"], "design": "balanced", "unit": "class", "seed": 0,
        "transfer": ["fixed"],
    }  # fmt: skip
    return part, removal, {"runs": [run], "settings": settings}


def cut(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The parts whose run was stopped before its end."""
    return [name for name, pieces in runs.items() if not any(piece["finished"] for piece in pieces)]


def few(dataset: ImageDataset, n: int) -> ImageDataset:
    """At most n images of each class, those of `dtl.load(..., limit=n)`."""
    return dataset.subset(at_most(n, dataset.labels.numpy(), 0))


def of_classes(dataset: ImageDataset, classes: Sequence[int]) -> ImageDataset:
    """The images of some classes, numbered in this order."""
    place = torch.full((dataset.n_classes,), -1)
    place[list(classes)] = torch.arange(len(classes))
    rows = (place[dataset.labels] >= 0).nonzero().flatten()
    names = tuple(dataset.classes[k] for k in classes)
    return ImageDataset(dataset.images[rows], place[dataset.labels[rows]], names)


def split(dataset: ImageDataset, sizes: Sequence[int]) -> list[ImageDataset]:
    """Parts of so many images of each class, drawn at random, none in two of them."""
    rng, labels = np.random.default_rng(22), dataset.labels.numpy()
    rows = np.stack([rng.permutation(np.flatnonzero(labels == k))[: sum(sizes)] for k in range(dataset.n_classes)])
    return [dataset.subset(np.sort(part.ravel())) for part in np.split(rows, np.cumsum(sizes)[:-1], axis=1)]


def hand_picked(study: dtl.Study) -> list[int]:
    """Groups without a class of a target category, then those with one, each in a random order."""
    groups, near = sorted(set(study.groups or ())), {GROUPS[name] for name in CATEGORIES}
    mixed = np.random.default_rng(0).permutation(len(groups)).tolist()
    return sorted(mixed, key=lambda i: groups[i] in near)


COMMANDS = ("groups", "removal", "flips", "targets", "two-cores", *OTHER)


def main(
    command: Literal["groups", "removal", "flips", "targets", "resnet18", "long", "two-cores", "pack", "add", "all"],
    data: Annotated[Path, typer.Option(envvar="DTL_DATA", help="folder of the images")],
    studies: Annotated[Path, typer.Option(help="folder of the studies")] = Path("studies/imagenet200"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    block: Annotated[Path, typer.Option(help="folder of the arrays of the block of 398 models")] = Path("block"),
    out: Annotated[Path, typer.Option(help="folder of packed results")] = dtl.results.FOLDER,
    toy: bool = False,
) -> None:
    """Make the results of the pages about two hundred classes."""
    experiment = Experiment(data, studies, device, toy)
    for name in COMMANDS if command == "all" else [command]:
        if name == "pack":
            experiment.pack(block, out)
            continue
        if name == "add":
            experiment.add(out)
            continue
        with logged(studies, name, f"python book/results/imagenet200.py {name}" + " --toy" * toy):
            experiment.command(name)


if __name__ == "__main__":
    typer.run(main)
