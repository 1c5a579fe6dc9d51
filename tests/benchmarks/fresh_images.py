"""Do intervals hold for target images that were not drawn yet? python tests/benchmarks/fresh_images.py [options]

- simulated: `--repetitions` studies a row, designs x methods x images a class x parts of the influence
- real images, from the shipped results: classes from a few validation images and two balanced blocks, against the two
  other blocks on all other images
- the testbed: `--studies` pairs of studies with other seeds, the second judged on fresh images of the generator;
  each pair is kept in `--out`, which a later call goes on from

Differences are in stated errors of both sides: their root mean square should be 1, and 95% of them inside Student's.
"""

import json
import logging
import sys
import time
from dataclasses import replace
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
        with out.open("a") as file:
            file.write(json.dumps(one_pair(seed)) + "\n")
    found = pd.DataFrame([row for line in out.read_text().splitlines() for row in json.loads(line)])
    found = found[found.seed.isin(seeds)]
    print(f"\nTestbed, 92 + 92 models, {found.seed.nunique()} pairs of studies a row; leaked classes left out\n")
    print(HEAD)
    groups: Any = found.groupby(["n", "target"])
    for (n, target), of in groups:
        row = of[["square", "inside", "stated", "true"]].mean()
        error = of.inside.std() / len(of) ** 0.5
        inside = f"{row.inside:.3f} ({error:.3f})"
        print(f"| {n} | {target} | {row.square**0.5:.2f} | {inside} | {row.stated:.2f} | {row.true:.2f} |")


def one_pair(seed: int) -> list[dict[str, object]]:
    problem, rows = dtl.load("testbed", seed=seed, test=300), []
    assert problem.truth is not None
    kept = problem.truth.role != "leaked"
    one, other = (dtl.Study(problem, seed=s).run(92, "cpu", progress=False) for s in (0, 1))
    labels = problem.target_validation.labels.numpy()
    many = _rows(other.influence("difference", split="test", by="class"), kept)
    for n in (8, 20, int(np.bincount(labels).min())):
        order = np.random.default_rng(seed).permutation(len(labels))  # images of one symbol follow each other
        chosen = np.concatenate([order[labels[order] == g][:n] for g in range(labels.max() + 1)])
        for target in ("new", "these"):
            few = estimate_influence(one.masks, one.outputs()[:, chosen], groups=labels[chosen], target=target)
            found = dict(zip(("square", "inside", "stated", "true"), compared(_rows(few, kept), many), strict=True))
            rows.append({"seed": seed, "n": n, "target": target, **found})
    return rows


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
