"""Is `dtl.advise` right? On testbeds with harmful classes, and on the same without them.

    python tests/benchmarks/advice.py advice.jsonl --seeds 20      # goes on where it was; hours on two cores
    python tests/benchmarks/advice.py advice.jsonl --show

Each advice is judged by retrainings with seeds of their own: what it gains on the test images, and what leaving out all
planted classes that hurt would gain (their roles are "misleading" and "mislabelled"). Errors count retrainings and test
images. Without those classes a gain may still be real, because a class can be useless: false is an advice whose gain by
the other retrainings is not positive.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

import dtl
from dtl._advise import _gain
from dtl.data import ImageDataset, TransferProblem

HARMFUL = ("misleading", "mislabelled")


def without(problem: TransferProblem, left_out: np.ndarray) -> TransferProblem:
    """The problem with fewer source classes, (K,) bool."""
    labels, number = problem.source.labels.numpy(), np.cumsum(~left_out) - 1
    seen = np.flatnonzero(~left_out[labels])
    names = [name for name, out in zip(problem.source.classes, left_out, strict=True) if not out]
    source = ImageDataset(problem.source.images[seen], torch.from_numpy(number[labels[seen]]), tuple(names))
    return replace(problem, source=source, truth=None, name=f"{problem.name} without")


def gained(study: dtl.Study, masks: dict[str, np.ndarray], seeds: int) -> dict[str, tuple[float, float]]:
    """Gain in test accuracy over the whole source and its error, by retrainings that had no part in the advice."""
    arms = {"full": dtl.Arm(steps="full")} | {name: dtl.Arm(masks=mask, steps="full") for name, mask in masks.items()}
    again = dtl.retrain(study, arms, seeds, seed=study.seed + 100, progress=False)
    correct = again.correct.isel(target=again.split == "test").values.astype(float)
    even = np.full(correct.shape[-1], 1 / correct.shape[-1])
    return {name: _gain(of - correct[0], even)[:2] for name, of in zip(masks, correct[1:], strict=True)}


def one(seed: int, planted: bool, models: int, seeds: int) -> dict[str, object]:
    problem = dtl.load("testbed", seed=seed)
    assert problem.truth is not None
    harmful = np.isin(problem.truth.role, HARMFUL)
    if not planted:
        problem, harmful = without(problem, harmful), harmful[~harmful]
    study = dtl.Study(problem).run(models, progress=False)
    advice = dtl.advise(study, seeds, progress=False)
    masks = {"available": ~harmful} if planted else {}
    if advice.classes:
        masks["advised"] = ~np.isin(problem.source.classes, advice.classes)
    found = gained(study, masks, seeds) if masks else {}
    return {
        "seed": seed, "planted": planted, "models": models, "retrainings": seeds, "dropped": advice.classes,
        "candidates": len(advice.candidates), "stated": [advice.gain, advice.stderr], **found,
    }  # fmt: skip


def show(file: Path) -> None:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for planted in (True, False):
        rows = [line for line in lines if line["planted"] == planted]
        given = [row for row in rows if row["dropped"]]
        gains = np.array([row["advised"] for row in given]).reshape(-1, 2)
        stated = np.array([row["stated"] for row in given]).reshape(-1, 2)
        print(f"{'with' if planted else 'without'} harmful classes: {len(rows)} testbeds, {len(given)} advised to drop")
        if not given:
            continue
        apart = (stated[:, 0] - gains[:, 0]) / np.hypot(stated[:, 1], gains[:, 1])
        print(f"   gain {gains[:, 0].mean():+.4f} (sd {gains[:, 0].std():.4f}, least {gains[:, 0].min():+.4f})")
        print(f"   not positive: {(gains[:, 0] <= 0).sum()}, below by two errors: {(gains @ [1, 2] < 0).sum()}")
        print(
            f"   stated minus found, in errors of both: mean {apart.mean():+.2f}, rms {np.sqrt((apart**2).mean()):.2f}"
        )
        if planted:
            share = gains[:, 0].sum() / sum(row["available"][0] for row in rows)
            print(f"   share of the gain of leaving out all that were planted: {share:.0%}")
    print(pd.DataFrame(lines).drop(columns="dropped").to_string())


def main(
    out: Path,
    seeds: Annotated[int, typer.Option(help="testbeds of either kind")] = 20,
    first: Annotated[int, typer.Option(help="seed of the first testbed")] = 0,
    models: Annotated[int, typer.Option(help="models of a study, in whole blocks")] = 92,
    retrainings: int = 6,
    show_only: Annotated[bool, typer.Option("--show", help="print what the file holds")] = False,
) -> None:
    done = {(r["seed"], r["planted"]) for r in map(json.loads, out.read_text().splitlines())} if out.exists() else set()
    if not show_only:
        for seed in range(first, first + seeds):
            for planted in (True, False):
                if (seed, planted) not in done:
                    # without six of 24 classes a block is shorter
                    whole = models if planted else models // 46 * dtl.design.block_length(18)
                    with open(out, "a") as file:
                        file.write(json.dumps(one(seed, planted, whole, retrainings)) + "\n")
    show(out)


if __name__ == "__main__":
    typer.run(main)
