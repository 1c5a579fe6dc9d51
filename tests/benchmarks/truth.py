"""What `dtl` finds of the truth that the testbed holds, and whether retraining agrees.

    python tests/benchmarks/truth.py --testbeds 5 --store studies/truth      # about 10 minutes on two cores; resumes

Prints, for each testbed seed at the scale that DTL_SCALE asks for: AUROC of each planted role against irrelevant
classes, reliability by target class, removal gains on test, and the rank correlation of the influences with
leave-one-class-out retraining.
"""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import typer

import dtl


def leave_one_out(problem: dtl.TransferProblem, retrainings: int, store: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Effect of every class on the mean validation margin: full source minus the source without it, and its error."""
    n = problem.source.n_classes
    subsets = np.concatenate([np.ones((1, n), dtype=bool), ~np.eye(n, dtype=bool)]).repeat(retrainings, axis=0)
    study = dtl.Study(problem, design=subsets, store=store, seed=11).run()
    margin = study.outputs("margin").mean(axis=1).reshape(n + 1, retrainings)
    means, errors = margin.mean(axis=1), margin.std(axis=1, ddof=1) / np.sqrt(retrainings)
    return means[0] - means[1:], np.hypot(errors[0], errors[1:])


def main(testbeds: int = 5, retrainings: int = 24, loo_testbeds: int = 1, store: Path | None = None) -> None:
    scale = dtl.book.scale()
    rows = []
    for seed in range(testbeds):
        folder = (lambda name, seed=seed: store / f"{seed}-{name}") if store else (lambda name: None)
        problem = dtl.load("testbed", seed=seed)
        start = time.perf_counter()
        study = dtl.Study(problem, transfer=("fixed", "full"), store=folder("study"), seed=seed).run(scale.models)
        influence, overall = study.influence(), study.influence(by="all")
        seconds = time.perf_counter() - start
        row = {"testbed": seed, "models": len(study.masks), "seconds": round(seconds)}
        row |= dtl.testbed.score(influence, problem)
        row["reliability by class (min)"] = study.influence(by="class").reliability.min()
        curve = dtl.removal_curve(study, overall, [2, 4, 6, 8, 12], seeds=scale.seeds, store=folder("removal"))
        choice = dtl.removal.select(curve)
        row |= {"removed": choice.count, "gain": choice.gain, "gain error": choice.stderr}
        at = curve.test.sel(count=choice.count).mean("seed") - curve.test.sel(count=0).mean("seed")
        row |= {f"{order} at that count": float(at.sel(order=order)) for order in ("positive", "random")}
        if seed < loo_testbeds:
            effect, error = leave_one_out(problem, retrainings, folder("loo"))
            row["rank correlation with leave-one-out"] = pd.Series(effect).corr(
                pd.Series(overall.values[:, 0]), method="spearman"
            )
            row["leave-one-out reliability"] = max(0.0, 1 - (error**2).mean() / effect.var())
        rows.append(row)
        print(pd.Series(row).round(3).to_string(), flush=True)
    table = pd.DataFrame(rows).set_index("testbed")
    print(table.round(3).T.to_string())
    print("mean", table.mean().round(3).to_dict(), "worst", table.min().round(3).to_dict(), sep="\n")


if __name__ == "__main__":
    typer.run(main)
