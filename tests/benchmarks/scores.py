"""How long do scores and the bound take, is the bound ever violated, and which scores agree with accuracy?

    python tests/benchmarks/scores.py                     # bound and seconds; two minutes on a quiet core
    python tests/benchmarks/scores.py --models 138        # and the benchmark of scores on three testbeds

bound : random problems of every kind (classes fewer, as many, more; hard, soft; training, held out; none, map, joint):
    how often rhs lies below the measured loss, or, one source class for each target class, above the class entropy
seconds : processor time of each score (N images, 64 features) and of the bound
agreement : correlation with test accuracy after fixed transfer, and the least difference of influence to a score
"""

import itertools
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
import typer

import dtl
from dtl import bound, scores


def problem(seed: int, n_source: int, n_target: int, each: int, d: int) -> tuple[np.ndarray, ...]:
    """Source features and labels, head weight and bias, target features and labels."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(n_source, n_target), d)) * 4 / np.sqrt(d)
    y_s, y_t = np.arange(each * n_source) % n_source, rng.permutation(np.arange(each * n_target) % n_target)
    z, x = (centres[y] + rng.normal(size=(len(y), d)) for y in (y_s, y_t))
    head = centres[:n_source]
    return z, y_s, head.T, -(head**2).sum(1) / 2, x + rng.normal(size=x.shape) / 2, y_t


def violations(problems: int) -> None:
    worst, beyond, n = -np.inf, -np.inf, 0
    sizes, learn = ((3, 5), (4, 4), (6, 3)), ("none", "map", "joint")
    for seed, (k_s, k_t), how in itertools.product(range(problems), sizes, learn):
        z, y_s, weight, bias, x, y = problem(seed, k_s, k_t, 15, 6)
        *_, test, y_test = problem(seed + 1000, k_s, k_t, 15, 6)
        shares = np.random.default_rng(seed).dirichlet(np.ones(k_s), k_t)
        for assignment in (None, shares):
            found = bound.task_transfer_bound(z, y_s, (weight, bias), x, y, how, assignment, steps=20)
            for one in (found, found.on(test, y_test)):
                worst, n = max(worst, one.measured - one.rhs), n + 1
            if assignment is None:
                beyond = max(beyond, found.rhs - found.entropy)
    print(f"{n} bounds: largest measured - rhs {worst:.1e}; largest rhs - entropy {beyond:.1e}")


def seconds(work: Callable[[], object], times: int = 3) -> float:
    taken = []
    for _ in range(times):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


def speed() -> None:
    for n, classes in ((120, 4), (1000, 10)):
        z, y_s, weight, bias, x, y = problem(0, 20, classes, n // classes, 64)
        p = np.exp(x @ weight + bias - (x @ weight + bias).max(1, keepdims=True))
        view = scores.View(x, p / p.sum(1, keepdims=True), y, z[:400], y_s[:400])
        for name, score in scores.SCORES.items():
            print(f"N {n} {name:15} {seconds(lambda score=score, view=view: score(view)):.4f} s")
        few = np.concatenate([np.flatnonzero(y_s == k)[:100] for k in range(20)])
        for how in ("none", "map", "joint"):
            given = z[few], y_s[few], (weight, bias), x, y, how
            print(f"N {n} bound, {how:7} {seconds(lambda given=given: bound.task_transfer_bound(*given), 1):.2f} s")


def agreement(models: int, testbeds: int) -> None:
    for seed in range(testbeds):
        with tempfile.TemporaryDirectory() as folder:
            study = dtl.Study(dtl.load("testbed", seed=seed), seed=seed, weights=folder).run(models, progress=False)
            found = scores.benchmark(study, truth="fixed", split="train")
        table = found.drop_dims("model").to_dataframe()
        rest = table[table.kind == "score"]
        print(f"testbed {seed}, {models} models\n{table.round(3).to_string()}")
        print(f"influence {table.r['influence']:.3f}; least difference, lower end {rest.behind_low.min():.3f}")


def main(problems: int = 8, models: int = 0, testbeds: int = 3) -> None:
    torch.set_num_threads(1)
    violations(problems)
    speed()
    if models:
        agreement(models, testbeds)


if __name__ == "__main__":
    typer.run(main)
