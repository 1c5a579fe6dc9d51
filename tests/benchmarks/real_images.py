"""Which of twenty ImageNet classes help or hurt each CIFAR-10 class: a study of real images on a CPU.

    python tests/benchmarks/real_images.py DATA --store studies/real > table.md

DATA holds ImageFolder trees `imagenet200/train/<wnid>/` and `cifar10/{train,test}/<class>/`. The study is kept in the
store: a stopped run goes on where it was, and more `--models` extend it.

The rule for the source, written before any result was seen: the nearest class that ImageNet-200 has for each of the ten
CIFAR-10 classes, a second one for birds and for trucks, four scenes (backgrounds of several CIFAR-10 classes), and four
classes that have nothing to do with any of them.
"""

import os
import platform
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

import dtl

NEAREST = {  # source class -> (wnid, the CIFAR-10 class that it is nearest to)
    "projectile": ("n04008634", "airplane"),  # missiles and rockets; there is no plane among the 200
    "sports car": ("n04285008", "automobile"),
    "albatross": ("n02058221", "bird"),
    "goose": ("n01855672", "bird"),
    "tabby": ("n02123045", "cat"),
    "gazelle": ("n02423022", "deer"),
    "golden retriever": ("n02099601", "dog"),
    "bullfrog": ("n01641577", "frog"),
    "ox": ("n02403003", "horse"),
    "lifeboat": ("n03662601", "ship"),
    "moving van": ("n03796401", "truck"),
    "trolleybus": ("n04487081", "truck"),
}
SCENES = {"alp": "n09193705", "cliff": "n09246464", "lakeside": "n09332890", "seashore": "n09428293"}
UNRELATED = {"abacus": "n02666196", "comic book": "n06596364", "espresso": "n07920052", "pizza": "n07873807"}
WNIDS = {name: wnid for name, (wnid, _) in NEAREST.items()} | SCENES | UNRELATED

RECIPE = dtl.Recipe(widths=(16, 32, 64, 64), epochs=12, augment=2)


def named_source(data: Path, folder: Path, names: list[str]) -> Path:
    """A folder of links to the chosen classes, under names that a reader knows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        link = folder / name
        if not link.is_symlink():
            link.symlink_to((data / "imagenet200/train" / WNIDS[name]).resolve(), target_is_directory=True)
    return folder


def effects_table(influence: dtl.Influence, source: list[str], target: list[str], top: int = 5) -> str:
    """Markdown: the most helpful and most harmful source classes of each target class, ± standard error."""
    lines = [
        f"| target class | {top} most helpful | {top} most harmful | reliability |",
        "|---|---|---|---|",
    ]
    for t, name in enumerate(target):
        order = np.argsort(influence.values[:, t])

        def cells(classes: np.ndarray, t: int = t) -> str:
            return ", ".join(
                f"{source[c]} {influence.values[c, t]:+.3f} ± {influence.stderr[c, t]:.3f}" for c in classes
            )

        lines.append(f"| {name} | {cells(order[::-1][:top])} | {cells(order[:top])} | {influence.reliability[t]:.2f} |")
    return "\n".join(lines)


def nearest_ranks(influence: dtl.Influence, source: list[str], target: list[str]) -> dict[str, int]:
    """Place of each source class by its influence on the target class that it is nearest to; 1 is best."""
    ranks = (-influence.values).argsort(0).argsort(0) + 1
    return {
        f"{name} → {near}": int(ranks[source.index(name), target.index(near)]) for name, (_, near) in NEAREST.items()
    }


def main(
    data: Annotated[Path, typer.Argument(help="folder that holds imagenet200 and cifar10 as ImageFolder trees")],
    store: Annotated[Path, typer.Option(help="folder of the study")] = Path("studies/real-images"),
    models: Annotated[int, typer.Option(min=2, help="one balanced block is 38")] = 114,
    size: Annotated[int, typer.Option(min=8, help="pixels a side")] = 32,
    limit: Annotated[int, typer.Option(min=8, help="images of each class")] = 500,
    holdout: Annotated[float, typer.Option(help="share of the target's training images for validation")] = 0.4,
) -> None:
    """Run or resume the study and print its tables as markdown."""
    start, cpu = time.perf_counter(), time.process_time()
    names = list(WNIDS)
    source = named_source(data, store / "source", names)
    problem = dtl.from_folders(source, data / "cifar10", size, holdout=holdout, limit=limit)
    study = dtl.Study(problem, RECIPE, store=store / "results")
    before = study.results.sizes["model"] if study.store.exists else 0
    study.run(models, device="cpu")
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu

    classes, targets = list(problem.source.classes), list(problem.target_train.classes)
    by_class, overall = study.influence(by="class"), study.influence(by="all")
    accuracy = {split: study.outputs("correct", split=split).mean(1) for split in ("validation", "test")}
    test_labels = problem.target_test.labels.numpy()
    per_class = [study.outputs("correct", split="test")[:, test_labels == t].mean() for t in range(len(targets))]

    sizes = ", ".join(f"{part} {len(dataset)}" for part, dataset in problem.parts.items())
    print(f"\n{len(study.masks)} models ({before} of them from the store), {size} pixels, images: {sizes}")
    print(
        f"{seconds:.0f} s, {cpu:.0f} CPU s with loading; {os.cpu_count()} cores, {platform.machine()}, "
        f"torch {torch.__version__}"
    )
    print(f"Recipe: {RECIPE}")
    for split, values in accuracy.items():
        print(f"Accuracy, {split}: {values.mean():.3f}, standard deviation over models {values.std(ddof=1):.3f}")
    print("Test accuracy by class: " + ", ".join(f"{t} {a:.2f}" for t, a in zip(targets, per_class, strict=True)))
    print("\nInfluence on the mean margin of each target class, validation images, in nats:\n")
    print(effects_table(by_class, classes, targets))
    print("\nInfluence on all ten together (relative: they sum to zero over source classes):\n")
    print(effects_table(overall, classes, ["all"], len(classes) // 2))
    ranks = nearest_ranks(by_class, classes, targets)
    print(f"\nPlace of the nearest class among {len(classes)}: " + ", ".join(f"{k} {v}" for k, v in ranks.items()))
    print(f"Median place {np.median(list(ranks.values())):.1f}; by chance {(len(classes) + 1) / 2:.1f}")
    for wanted in (0.8, 0.9):
        print(f"Models needed for reliability {wanted}: {dtl.models_needed(by_class, wanted)}")


if __name__ == "__main__":
    typer.run(main)
