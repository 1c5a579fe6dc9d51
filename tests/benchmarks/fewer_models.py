"""Do other ways to spend the same models make class influences more reliable? A retest, which no stated error enters.

    python tests/benchmarks/fewer_models.py testbed --seeds 5 --out fewer.jsonl
    python tests/benchmarks/fewer_models.py real --data DATA --out fewer.jsonl     # 20 classes to CIFAR-10
    python tests/benchmarks/fewer_models.py --show --out fewer.jsonl
    python tests/benchmarks/fewer_models.py added --seeds 5 --out added.jsonl

plain    balanced subsets, every model with a seed of its own: what `dtl.Study` does
paired   a subset and its complement share a seed: equal initial weights, and equal luck where they see the same
twice    half as many balanced subsets, each trained from two seeds
groups   balanced subsets of groups of classes that look alike (`groups_of`), influences of groups: a coarser question
similar  plain, each influence moved towards those of its three most similar classes (cosine of mean features), by the
         share, of 0 to .5, that agrees best with the *other* study: what no user could know, so an upper bound

Every way is run twice, with other subsets and other seeds. r is the correlation over classes of the two studies' means,
averaged over questions; the number of models for a reliability of .8 is 4 (1 - r) / r times those of a study
(Spearman-Brown). A line of the file is one way on one problem, and what is in it is not run again.

`added`: the last class of a testbed comes when a study of 92 models without it is done. 36 of them are trained again
with it, and a new study of 92 with all classes tells the size of its errors.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import typer

import dtl
from dtl.data import ImageDataset
from dtl.engine.workers import train_batch

sys.path.insert(0, str(Path(__file__).parents[2] / "book/results"))

from run import SIZES  # noqa: E402

TESTBED = "sky 2, chess 2, cards 2, travel 2, patterns 4, bags 2, coloured symbols 4, coloured papers 4, albums 2"
IMAGENET = {
    "road": ["sports car", "moving van", "trolleybus"],
    "things": ["projectile", "lifeboat"],
    "birds": ["albatross", "goose"],
    "pets": ["tabby", "golden retriever"],
    "hoofed": ["gazelle", "ox"],
    "frogs": ["bullfrog"],
    "heights": ["alp", "cliff"],
    "shores": ["lakeside", "seashore"],
    "print": ["abacus", "comic book"],
    "food": ["espresso", "pizza"],
}


def groups_of(problem: dtl.TransferProblem) -> np.ndarray:
    """Number of the group of each source class: those that look alike."""
    if problem.name.startswith("testbed"):
        parts = [part.rsplit(" ", 1) for part in TESTBED.split(", ")]
        names = [name for name, times in parts for _ in range(int(times))]
    else:
        names = [next(g for g, of in IMAGENET.items() if name in of) for name in problem.source.classes]
    return np.unique(names, return_inverse=True)[1]


def subsets_and_seeds(way: str, units: int, models: int, replica: int) -> tuple[np.ndarray, np.ndarray]:
    own = 100_000 * (1 + replica) + np.arange(models)
    if way == "twice":
        return dtl.subset_masks(units, models // 2, seed=50 + replica).repeat(2, axis=0), own
    masks = dtl.subset_masks(units, models, seed=50 + replica)
    return masks, own[::2].repeat(2) if way == "paired" else own


def question(values: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Means over the target and over each class, (models or source classes, questions)."""
    classes = np.stack([values[:, labels == g].mean(1) for g in np.unique(labels)], 1)
    return {"task": values.mean(1, keepdims=True), "class": classes, "specific": classes - classes.mean(1)[:, None]}


def influence(masks: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean with a class minus mean without it; balance makes that the least-squares estimate."""
    return np.stack([y[of].mean(0) - y[~of].mean(0) for of in masks.T])


def retest(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)]))


def similar(problem: dtl.TransferProblem, recipe: dtl.Recipe) -> np.ndarray:
    """(K, K): each row holds a third at the three classes whose mean features are nearest in angle."""
    nets = dtl.baselines.full_source_nets(problem, recipe, seeds=(0, 1), device="cpu")
    features = dtl.transfer.embed(nets, problem.source, problem.source).features.numpy()
    labels = problem.source.labels.numpy()
    means = np.stack([features[:, labels == c].mean(1) for c in range(problem.source.n_classes)], 1)
    means = means - means.mean(1, keepdims=True)
    means /= np.linalg.norm(means, axis=2, keepdims=True)
    cosine = np.einsum("mkf,mlf->kl", means, means)
    np.fill_diagonal(cosine, -np.inf)
    near = np.zeros_like(cosine)
    np.put_along_axis(near, np.argsort(-cosine)[:, :3], 1 / 3, 1)
    return near


def study(
    problem: dtl.TransferProblem, recipe: dtl.Recipe, way: str, models: int, replica: int
) -> dict[str, np.ndarray]:
    groups = groups_of(problem) if way == "groups" else np.arange(problem.source.n_classes)
    units, seeds = subsets_and_seeds(way, groups.max() + 1, models, replica)
    masks, margins = units[:, groups], []
    for rows in np.array_split(np.arange(models), -(-models // recipe.models_at_once)):
        found = train_batch(problem, masks[rows], seeds[rows], recipe, ("fixed",), "cpu")
        margins.append(found["margin"][0])
    labels = np.concatenate([problem.target_validation.labels.numpy(), problem.target_test.labels.numpy()])
    y = question(np.concatenate(margins).astype(float), labels)
    return {name: influence(units, of) for name, of in y.items()}


def compare(problem: dtl.TransferProblem, recipe: dtl.Recipe, models: int, kept: np.ndarray, out: Path) -> None:
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(line["problem"], line["way"]) for line in done}
    classes = kept
    for way in ("plain", "paired", "twice", "groups"):
        if (problem.name, way) in done:
            continue
        if way == "groups":
            groups = groups_of(problem)
            kept = np.array([classes[groups == g].all() for g in range(groups.max() + 1)])
        start = time.process_time()
        a, b = (study(problem, recipe, way, models, replica) for replica in (0, 1))
        seconds = time.process_time() - start
        lines = [{"way": way} | {name: retest(a[name][kept], b[name][kept]) for name in a}]
        if way == "plain":
            near = similar(problem, recipe)
            best: dict[str, Any] = {"way": "similar"}
            for name in a:
                both = (a[name], b[name]), (b[name], a[name])
                moved = {
                    s: float(np.mean([retest(((1 - s) * x + s * near @ x)[kept], y[kept]) for x, y in both]))
                    for s in np.linspace(0, 0.5, 11).tolist()
                }
                share = max(moved, key=lambda s: moved[s])
                best |= {name: moved[share], f"{name} share": share}
            lines.append(best)
        with out.open("a") as file:
            for line in lines:
                facts = {"problem": problem.name, "models": models, "cpu seconds": round(seconds)}
                file.write(json.dumps(facts | line) + "\n")


def added(seed: int) -> dict[str, object]:
    problem, recipe, again = dtl.load("testbed", seed=seed, per_class=20), dtl.Recipe(epochs=4), 36
    labels, late = problem.source.labels, problem.source.n_classes - 1
    known = labels < late
    source = ImageDataset(problem.source.images[known], labels[known], problem.source.classes[:late])
    before = dtl.Study(replace(problem, source=source, truth=None), recipe).run(92, "cpu", progress=False)
    masks = np.column_stack([before.masks[:again], np.ones(again, dtype=bool)])
    after = dtl.Study(problem, recipe, design=masks).run(device="cpu", progress=False)
    pairs = after.outputs() - before.outputs()[:again]
    pairs = dtl.influence.group_means(pairs, problem.target_validation.labels.numpy())
    new = dtl.Study(problem, recipe, seed=1).run(92, "cpu", progress=False)
    stderr = new.influence(by="class", target="these").stderr[late]
    ratio = (pairs.std(axis=0, ddof=1) / again**0.5 / stderr).mean()
    return {"seed": seed, "trained again": again, "new study": 92, "error over that of the new study": float(ratio)}


def show(out: Path) -> None:
    found = pd.DataFrame([json.loads(line) for line in out.read_text().splitlines()])
    found["on"] = found.problem.str.replace(r"-\d+$", "", regex=True)
    for on, of in found.groupby("on"):
        print(f"\n{on}, {of.models.iloc[0]} models a study, n {of.problem.nunique()}; r, and models for .8")
        plain = of[of.way == "plain"].set_index("problem")
        for way, rows in of.groupby("way", sort=False):
            cells = []
            for name in ("task", "class", "specific"):
                r = rows[name]
                less = r.to_numpy() - plain.loc[rows.problem, name].to_numpy()
                spread = less.std(ddof=1) / len(less) ** 0.5 if len(less) > 1 else np.nan
                needed = 4 * (1 - r.mean()) / r.mean() * rows.models.iloc[0]
                cells.append(f"{name} {r.mean():.3f} ({less.mean():+.3f} ± {spread:.3f}), {needed:.0f}")
            print(f"   {way:8}", "; ".join(cells))


def main(
    where: Annotated[Literal["testbed", "real", "added", "nowhere"], typer.Argument()] = "nowhere",
    out: Path = Path("fewer.jsonl"),
    seeds: Annotated[int, typer.Option(help="testbeds")] = 5,
    data: Annotated[Path | None, typer.Option(help="folder of imagenet200 and cifar10")] = None,
    shown: Annotated[bool, typer.Option("--show")] = False,
) -> None:
    if where == "testbed":
        for seed in range(seeds):
            problem = dtl.load("testbed", seed=seed)
            assert problem.truth is not None
            compare(problem, dtl.Recipe(), 92, problem.truth.role != "leaked", out)
    elif where == "real":
        size = SIZES["cpu"]  # with a third of its images and half of its epochs: twenty minutes of a core, not hours
        problem = dtl.load("imagenet200-cifar10", data, **size.options, limit=150)
        rng, few = np.random.default_rng(0), {}
        for part, n in (("target_validation", 1000), ("target_test", 2000)):
            images = getattr(problem, part)
            few[part] = images.subset(np.sort(rng.permutation(len(images))[:n]))
        problem = replace(problem, **few)
        compare(problem, replace(size.recipe, epochs=6), 76, np.ones(problem.source.n_classes, bool), out)
    elif where == "added":
        done = {json.loads(line)["seed"] for line in out.read_text().splitlines()} if out.exists() else set()
        for seed in sorted({*range(seeds)} - done):
            with out.open("a") as file:
                file.write(json.dumps(added(seed)) + "\n")
        print(pd.read_json(out, lines=True).describe().loc[["count", "mean", "std", "min", "max"]])
    if shown or where in ("testbed", "real"):
        show(out)


if __name__ == "__main__":
    typer.run(main)
