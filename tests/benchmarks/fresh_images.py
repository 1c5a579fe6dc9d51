"""Do intervals hold for target images that were not drawn yet? python tests/benchmarks/fresh_images.py [options]

- simulated: `--repetitions` studies a row, designs x methods x images a class x parts of the influence
- real images, from the shipped results: classes from a few validation images and two balanced blocks, against the two
  other blocks on all other images
- the testbed: `--studies` testbeds, a study of each design against another one on fresh images of the generator;
  each testbed is kept in `--out`, which a later call goes on from, and the outputs in a folder beside it

Differences are in stated errors of both sides: their root mean square should be 1, and 95% of them inside Student's.
"""

import json
import logging
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_images import METHODS, coverage, estimate  # noqa: E402

import dtl  # noqa: E402
from dtl.design import DESIGNS  # noqa: E402
from dtl.influence import Influence, estimate_influence  # noqa: E402

HEAD = (
    "| n a class | errors of | rms difference | inside 95% | reliability | corr^2 with the truth |\n"
    "|---|---|---|---|---|---|"
)


def simulated(repetitions: int) -> None:
    print(f"Simulated, 114 models, {repetitions} studies of 20 x 4 influences a row\n")
    print("| part | n | design | method | coverage (standard error) | models only | reliability | corr^2 |")
    print("|---|---|---|---|---|---|---|---|")
    for part in ("whole", "common", "specific"):
        weights = {"whole": np.eye(4), "common": np.full((4, 1), 0.25)}
        weights["specific"] = weights["whole"] - weights["common"]
        for n in (8, 20, 100):
            for design in DESIGNS:
                for method in METHODS:
                    rows = []
                    for seed in range(repetitions):
                        found, truth = estimate(seed, n, design=design, method=method, part=part)
                        these, _ = estimate(seed, n, design=design, method=method, part=part, target="these")
                        truth = truth @ weights[part]
                        pairs = zip(found.values.T, truth.T, strict=True)
                        squared = np.mean([np.corrcoef(a, b)[0, 1] ** 2 for a, b in pairs])
                        rows.append((coverage(found, truth), coverage(these, truth), found.reliability.mean(), squared))
                    inside, old, stated, true = np.mean(rows, axis=0)
                    error = np.std(rows, axis=0)[0] / repetitions**0.5
                    print(
                        f"| {part} | {n} | {design} | {method} | {inside:.3f} ({error:.3f}) | {old:.3f} | "
                        f"{stated:.2f} | {true:.2f} |",
                        flush=True,
                    )


def compared(few: Influence, many: Influence) -> tuple[float, float, float, float]:
    """Mean square of the difference in stated errors, share inside 95%, stated reliability, corr^2 with the truth."""
    z = (few.values - many.values) / np.hypot(few.stderr, many.stderr)
    wide = np.abs(z) <= (few.interval()[1] - few.values) / few.stderr
    pairs = zip(few.values.T, many.values.T, many.reliability, strict=True)
    squared = [np.corrcoef(a, b)[0, 1] ** 2 / max(r, 0.1) for a, b, r in pairs]
    return float((z**2).mean()), float(wide.mean()), float(few.reliability.mean()), float(np.mean(squared))


def real(draws: int) -> None:
    results = dtl.results.open("imagenet20-cifar10").part("balanced")
    outputs = np.hstack([results.outputs(split=split) for split in ("validation", "test")])
    labels, half = results.data["label"].values, 76
    print(f"\nReal images, 20 classes to CIFAR-10, 2 + 2 blocks of 38 models, {draws} draws of the images a row\n")
    print(HEAD)
    for n in (8, 20, 100):
        for target in ("new", "these"):
            rows = []
            for draw in range(draws):
                rng, masks = np.random.default_rng(draw), results.masks
                order = rng.permutation(len(labels))
                chosen = np.concatenate([order[labels[order] == g][:n] for g in range(10)])
                others = np.setdiff1d(order, chosen)
                first, second = (slice(half), slice(half, None))[:: 1 if draw % 2 else -1]
                few = estimate_influence(masks[first], outputs[first][:, chosen], groups=labels[chosen], target=target)
                many = estimate_influence(masks[second], outputs[second][:, others], groups=labels[others])
                rows.append(compared(few, many))
            square, inside, stated, true = np.mean(rows, axis=0)
            print(f"| {n} | {target} | {square**0.5:.2f} | {inside:.3f} | {stated:.2f} | {true:.2f} |", flush=True)


def testbed(studies: int, out: Path) -> None:
    seeds = range(5301, 5301 + studies)
    done = {json.loads(line)[0]["seed"] for line in out.read_text().splitlines()} if out.exists() else set()
    for seed in sorted({*seeds} - done):
        rows = one_testbed(seed, out.with_suffix(""))
        with out.open("a") as file:
            file.write(json.dumps(rows) + "\n")
    found = pd.DataFrame([row for line in out.read_text().splitlines() for row in json.loads(line)])
    found = found[found.seed.isin(seeds)]
    print(f"\nTestbed, 92 + 92 models, {found.seed.nunique()} pairs of studies a row; leaked classes left out\n")
    print(HEAD.replace("| n", "| design | method | n").replace("|---", "|---|---|---", 1))
    groups: Any = found.groupby(["design", "method", "n", "target"], sort=False)
    for (design, method, n, target), of in groups:
        row = of[["square", "inside", "stated", "true"]].mean()
        error = of.inside.std() / len(of) ** 0.5
        inside = f"{row.inside:.3f} ({error:.3f})"
        print(
            f"| {design} | {method} | {n} | {target} | {row.square**0.5:.2f} | {inside} | {row.stated:.2f} | "
            f"{row.true:.2f} |"
        )


def one_testbed(seed: int, folder: Path) -> list[dict[str, object]]:
    """A study of each design on few images a class, judged by another, of balanced blocks, on 300 fresh ones.

    Each testbed has masks of its own: where they are not balanced, their chance correlations are a part of the error.
    """
    problem, rows = dtl.load("testbed", seed=seed, test=300), []
    assert problem.truth is not None
    kept, labels = problem.truth.role != "leaked", problem.target_validation.labels.numpy()
    masks, outputs = trained(problem, "balanced", 1, "test", folder / f"{seed}-truth.npz")
    many = _rows(estimate_influence(masks, outputs, groups=problem.target_test.labels.numpy()), kept)
    for design in DESIGNS:
        masks, outputs = trained(problem, design, seed, "validation", folder / f"{seed}-{design}.npz")
        for n in (8, 20, int(np.bincount(labels).min())):
            order = np.random.default_rng(seed).permutation(len(labels))  # images of one symbol follow each other
            chosen = np.concatenate([order[labels[order] == g][:n] for g in range(labels.max() + 1)])
            for method, target in product(METHODS, ("new", "these")):
                few = estimate_influence(
                    masks, outputs[:, chosen], method, design, groups=labels[chosen], target=target
                )
                found = dict(zip(("square", "inside", "stated", "true"), compared(_rows(few, kept), many), strict=True))
                rows.append({"seed": seed, "n": n, "design": design, "method": method, "target": target} | found)
    return rows


def trained(
    problem: dtl.TransferProblem, design: str, seed: int, split: str, file: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Masks and outputs of 92 models, from a file where they are there."""
    if not file.exists():
        study = dtl.Study(problem, design=design, seed=seed).run(92, "cpu", progress=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, masks=study.masks, outputs=study.outputs(split=split))
    found = np.load(file)
    return found["masks"], found["outputs"]


def _rows(found: Influence, kept: np.ndarray) -> Influence:
    changes = {name: getattr(found, name)[kept] for name in ("values", "stderr")}
    if isinstance(found.dof, np.ndarray):
        changes["dof"] = found.dof[kept]
    return replace(found, **changes)


def main(repetitions: int = 20, draws: int = 40, studies: int = 0, out: Path = Path("fresh_images.jsonl")) -> None:
    start = time.process_time()
    if repetitions:
        simulated(repetitions)
    if draws:
        real(draws)
    if studies:
        testbed(studies, out)
    print(f"\n{time.process_time() - start:.0f} CPU seconds")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    typer.run(main)
