"""Make the results on transferability scores and the certified bound that the book's pages read.

    python book/results/scores.py all --data DATA

DATA holds `imagenet200` and `cifar10` (see `dtl.load`). Parts that are done are kept; a command given again goes on.
About forty minutes on two cores.

scores : 138 models of the testbed, judged on four targets: kinds of symbol with a cue in the training pictures, the
    same without, twelve other symbols, textures; and the first target on two more testbeds
bound : the certified bound for 60 of those models and for models of 20 ImageNet classes transferred to CIFAR-10
cheap : what two models trained once on everything say of 152 subsets that they are not, on the same images
choose : eight pre-trained nets of several sources, architectures and sizes to start from
"""

import datetime
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
import xarray as xr
from run import TWENTY, commit

import dtl
from dtl import bound, scores, testbed
from dtl.baselines import full_source_nets
from dtl.transfer import embed

NAME, MODELS, CPU = "scores", 138, "cpu"
TARGETS = {"cue": [0, 1, 2], "no cue": [0], "other symbols": [0], "textures": [0]}


def problem_of(target: str, seed: int) -> dtl.TransferProblem:
    """The testbed's source with one of four targets."""
    if target in ("cue", "no cue"):
        return dtl.load("testbed", seed=seed, cue=0.9 if target == "cue" else 0.25)
    rng = np.random.default_rng([seed, 21])

    def split(n: int) -> dtl.ImageDataset:
        if target == "textures":
            labels, names = np.repeat(np.arange(4), 3 * n), testbed.TEXTURES
            drawn = testbed._scenes(rng, len(labels), texture=labels)
        else:
            labels, names = np.repeat(np.arange(12), n), tuple(testbed.GLYPHS)[8:]
            drawn = testbed._scenes(rng, len(labels), symbol=labels + 8)
        return testbed._dataset(testbed._draw(drawn, 16, 0.04, rng), labels, names)

    source = dtl.load("testbed", seed=seed).source
    return dtl.TransferProblem(f"{target}-{seed}", source, split(10), split(40), split(60))


@dataclass
class Experiment:
    data: Path
    folder: Path

    def study(self, target: str, seed: int) -> dtl.Study:
        regimes = ("fixed", "full") if seed == 0 else ("fixed",)
        where = self.folder / f"{target}-{seed}"
        return dtl.Study(
            problem_of(target, seed), store=where, weights=self.folder / f"weights-{seed}", transfer=regimes, seed=seed
        )

    def cifar(self) -> dtl.Study:
        """Twenty ImageNet classes, 200 images each, to CIFAR-10 with 60 images a class to learn from."""
        whole = dtl.load("imagenet200-cifar10", self.data, classes=list(TWENTY), limit=200, target_limit=60)

        def cut(of: dtl.ImageDataset, n: int) -> dtl.ImageDataset:
            rng, y = np.random.default_rng(0), of.labels.numpy()
            return of.subset(np.sort(np.concatenate([rng.permutation(np.flatnonzero(y == k))[:n] for k in range(10)])))

        parts = {"target_validation": cut(whole.target_validation, 60), "target_test": cut(whole.target_test, 100)}
        recipe = dtl.Recipe(widths=(16, 32, 64, 64), epochs=12, augment=2, models_at_once=8)
        where: dict[str, Any] = {"store": self.folder / "cifar", "weights": self.folder / "weights-cifar"}
        return dtl.Study(replace(whole, **parts), recipe, **where)

    def scores(self, target: str, seed: int) -> xr.Dataset:
        """Predictors of each model and its accuracy after fixed and, on the first testbed, full transfer."""
        study = self.study(target, seed).run(MODELS, device=CPU)
        found = scores.benchmark(study, truth="fixed", split="train", device=CPU)
        accuracy = [study.outputs("correct", name, "test").mean(1) for name in study.transfer]
        validation = [study.outputs("correct", name, "validation").mean(1) for name in study.transfer]
        influence = [scores.cross_fitted(study.masks, of) for of in validation]
        return xr.Dataset(
            {
                "value": found.value.drop_sel(predictor=["influence", "images"]).astype(np.float32),
                "seconds": found.seconds.drop_sel(predictor=["influence", "images"]),
                "influence": (("truth", "model"), np.array(influence, np.float32)),
                "accuracy": (("truth", "model"), np.array(accuracy, np.float32)),
            },
            {"truth": list(study.transfer)},
        ).drop_vars("kind")

    def bound(self, study: dtl.Study, models: int, learn: str, per_class: int = 100) -> xr.Dataset:
        """Terms of the bound on training and test images, and on training images with labels at random."""
        problem, rng, rows = study.problem, np.random.default_rng(0), []
        y, y_test = problem.target_train.labels.numpy(), problem.target_test.labels.numpy()
        few = np.concatenate(
            [np.flatnonzero(problem.source.labels == k)[:per_class] for k in range(problem.source.n_classes)]
        )
        source, of_source = problem.source.subset(few), problem.source.labels.numpy()[few]
        for numbers, nets in study.nets(range(models), CPU):
            z, x, test = (
                embed(nets, part, problem.source).features.double().numpy()
                for part in (source, problem.target_train, problem.target_test)
            )
            for i, number in enumerate(numbers):
                there = study.masks[number]
                seen, rename = there[of_source], np.cumsum(there) - 1
                head = (part.detach()[i][..., there].double().numpy() for part in (nets.weight, nets.bias))
                given = z[i][seen], rename[of_source[seen]], (next(head), next(head)[0])
                start = time.process_time()
                found = bound.task_transfer_bound(*given, x[i], y, learn)
                seconds = time.process_time() - start
                control = bound.task_transfer_bound(*given, x[i], rng.permutation(y), learn)
                for case in (found, found.on(test[i], y_test), control):
                    terms = case.source_loss, case.label_mismatch, case.feature_mismatch, case.measured, case.entropy
                    rows.append((*terms, seconds))
        values = np.array(rows, np.float32).reshape(models, 3, 6)
        names = ("source_loss", "label_mismatch", "feature_mismatch", "measured", "entropy", "seconds")
        data = {name: (("model", "case"), values[..., k]) for k, name in enumerate(names)}
        accuracy = study.outputs("correct", "fixed", "test")[:models].mean(1)
        return xr.Dataset(data | {"accuracy": ("model", accuracy)}, {"case": ["training", "held out", "random labels"]})

    def cheap(self) -> xr.Dataset:
        """For each source class: closeness of features to the target, label mapping, similarity, by two full models."""
        study = self.cifar()
        problem, nets = study.problem, full_source_nets(study.problem, study.recipe, (0, 1), CPU)
        few = np.concatenate([np.flatnonzero(problem.source.labels == k)[:60] for k in range(20)])
        z, x = (embed(nets, p, problem.source).features.numpy() for p in (problem.source, problem.target_validation))
        y, near = problem.target_validation.labels.numpy(), np.empty((2, 20, 10))
        for net, k, c in np.ndindex(*near.shape):
            near[net, k, c] = -bures(z[net][few][60 * k : 60 * k + 60], x[net][y == c])
        similarity, mapping = (
            getattr(dtl.baselines, name)(problem, nets, study.recipe)
            for name in ("feature_similarity", "label_mapping")
        )
        by_class = lambda of: np.stack([of[:, y == c].mean(1) for c in range(10)], 1)  # noqa: E731
        values = np.array([near.mean(0), by_class(mapping), by_class(similarity)], np.float32)
        names = ["nearest class", "label mapping", "similarity"]
        return xr.Dataset(
            {"value": (("predictor", "source", "label"), values)},
            {"predictor": names, "source": list(problem.source.classes)},
        )

    def choose(self) -> xr.Dataset:
        """Eight nets for the target with a cue, each fine-tuned three times."""
        problem: Any = problem_of("cue", 0)
        role, source, recipe = problem.truth.role, problem.source, dtl.Recipe()
        found: dict[str, scores.Candidate] = {}

        def add(name: str, keep: np.ndarray, recipe: dtl.Recipe = recipe) -> None:
            classes = np.flatnonzero(keep)
            part = source.subset(np.isin(source.labels.numpy(), classes))
            labels = torch.from_numpy(np.searchsorted(classes, part.labels.numpy()))
            own = dtl.ImageDataset(part.images, labels, tuple(source.classes[c] for c in classes))
            nets = full_source_nets(replace(problem, source=own, truth=None), recipe, [0], CPU)
            found[name] = scores.Candidate(nets, own, recipe)

        whole = np.ones(24, dtype=bool)
        add("small, whole source", whole)
        add("small, helpful classes", role == "helpful")
        add("small, without misleading", role != "misleading")
        add("small, misleading and irrelevant", np.isin(role, ("misleading", "irrelevant")))
        add("small, irrelevant classes", role == "irrelevant")
        add("small, a quarter of the training", whole, replace(recipe, epochs=4))
        add("narrow, whole source", whole, replace(recipe, widths=(8, 16, 32)))
        large = replace(recipe, model="resnet18", widths=(), models_at_once=1, epochs=3, lr=0.1)
        add("resnet18, whole source", whole, large)
        return scores.choose(problem, found, split="train").drop_vars("tau")

    def parts(self) -> dict[str, Callable[[], xr.Dataset]]:
        of_scores = {f"{t} {s}": lambda t=t, s=s: self.scores(t, s) for t, seeds in TARGETS.items() for s in seeds}
        return of_scores | {
            "bound testbed": lambda: self.bound(self.study("cue", 0).run(MODELS, device=CPU), 60, "map"),
            "bound cifar10": lambda: self.bound(self.cifar().run(16, device=CPU), 16, "joint"),
            "cheap": self.cheap,
            "choose": self.choose,
        }


def main(
    what: Annotated[Literal["all", "scores", "bound", "cheap", "choose", "pack"], typer.Argument()] = "all",
    data: Annotated[Path, typer.Option(envvar="DTL_DATA")] = Path("data"),
    folder: Path = Path("studies/scores"),
    out: Path = dtl.results.FOLDER,
) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    todo = Experiment(data, folder).parts()
    for name, work in todo.items():
        kind = "scores" if name.split()[-1].isdigit() else name.split()[0]
        file = folder / f"{name}.nc"
        if file.exists() or what not in ("all", kind):
            continue
        start, found = time.perf_counter(), work()
        run = {
            "command": f"python book/results/scores.py {kind}", "commit": commit(),
            "hardware": f"2 cores, {platform.machine()}",
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {k: version(k) for k in ("dtl", "torch", "numpy", "scikit-learn", "pot")},
            "seconds": round(time.perf_counter() - start), "finished": True,
        }  # fmt: skip
        found.assign_attrs(run=json.dumps(run)).to_netcdf(file, engine="h5netcdf")
        print(f"{name}: {run['seconds']} seconds", flush=True)
    if what in ("all", "pack"):
        parts = {name: xr.load_dataset(folder / f"{name}.nc", engine="h5netcdf") for name in todo}
        runs = {name: [json.loads(part.attrs.pop("run"))] for name, part in parts.items()}
        dtl.results.save(out / NAME, parts, {"problem": {"load": "testbed"}, "runs": runs, "settings": {}})


def bures(a: np.ndarray, b: np.ndarray) -> float:
    """Distance of two classes as Gaussians (Wasserstein 2), from their features (n, d) and (m, d)."""
    one, two = ((part - part.mean(0)) / np.sqrt(len(part) - 1) for part in (a, b))
    square = ((a.mean(0) - b.mean(0)) ** 2).sum() + (one**2).sum() + (two**2).sum()
    return float(np.sqrt(max(square - 2 * np.linalg.norm(one @ two.T, "nuc"), 0)))


if __name__ == "__main__":
    typer.run(main)
