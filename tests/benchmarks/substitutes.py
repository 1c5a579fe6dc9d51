"""What do cheap substitutes of influences cost, how far do they agree, and what does acting on them gain?

    python tests/benchmarks/substitutes.py                     # five testbeds, five minutes or so on two quiet cores

On each testbed, one after the other: influences of 184 models and of the first block of 46, and the scores that four
models on the full source give, by similarity of features, label mapping and TRAK.

seconds : training and scoring on this machine, also as a share of the study's; four models count for each substitute
rho : Spearman correlation with the influence of all 184 models, over classes, of means over the target
gain : test accuracy after removing the classes of the lowest scores, their number chosen among 6, 12 and 16 by the
    other retraining seeds, minus that of the full source
"""

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
import typer
from scipy.stats import spearmanr

import dtl


def timed(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def one_testbed(seed: int, seeds: int, dimension: int) -> pd.DataFrame:
    problem = dtl.load("testbed", seed=seed)
    block = dtl.design.block_length(problem.source.n_classes)
    study = dtl.Study(problem, seed=seed)

    def influence(m: int) -> np.ndarray:
        study.run(m, progress=False)
        return dtl.estimate_influence(study.masks, study.outputs().mean(1, keepdims=True)).values

    start = time.perf_counter()
    nets = dtl.baselines.full_source_nets(problem, seeds=(0, 1, 2, 3), device="cpu")
    four = time.perf_counter() - start
    by_class = {
        "features": lambda: dtl.baselines.feature_similarity(problem, nets),
        "labels": lambda: dtl.baselines.label_mapping(problem, nets),
        "trak": lambda: dtl.baselines.class_sums(
            dtl.baselines.trak(problem, nets, dimension=dimension), problem.source
        ),
    }
    scores, seconds = {}, {}
    scores["one block"], seconds["one block"] = timed(lambda: influence(block))
    scores["four blocks"], rest = timed(lambda: influence(4 * block))
    seconds["four blocks"] = seconds["one block"] + rest
    for name, work in by_class.items():
        scores[name], own = timed(work)
        seconds[name] = four + own
    mean = {name: score.mean(1) for name, score in scores.items()}
    orders = {name: np.argsort(score).tolist() for name, score in mean.items()}
    curve = dtl.removal_curve(study, study.influence(), [6, 12, 16], list(orders), seeds, given=orders, progress=False)
    chosen = {name: dtl.removal.select(curve, name) for name in orders}
    table = pd.DataFrame(
        {
            "seconds": seconds,
            "share of the study": {name: s / seconds["four blocks"] for name, s in seconds.items()},
            "rho": {name: spearmanr(score, mean["four blocks"])[0] for name, score in mean.items()},
            "gain": {name: row.gain for name, row in chosen.items()},
            "stderr": {name: row.stderr for name, row in chosen.items()},
        }
    )
    table["points a second"] = 100 * table["gain"] / table["seconds"]
    return table


def main(testbeds: int = 5, seeds: int = 10, dimension: int = 64) -> None:
    torch.set_num_threads(1)
    tables = {}
    for seed in range(testbeds):
        tables[seed] = one_testbed(seed, seeds, dimension)
        print(f"testbed {seed}\n{tables[seed].round(3).to_string()}", flush=True)
    every = pd.concat(tables, names=["testbed", "method"])
    print(every.groupby("method", sort=False).agg(["mean", "min", "max"]).round(3).T.to_string())


if __name__ == "__main__":
    typer.run(main)
