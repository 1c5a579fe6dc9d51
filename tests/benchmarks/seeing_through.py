"""Do influences see through the source? Projection, subpopulations and the flip test, graded on several testbeds.

    python tests/benchmarks/seeing_through.py                  # five testbeds, six minutes or so on two quiet cores

projection : precision@8 and @50 and recall@100 of the eight helpful classes on the symbol that they show, by influence
    and by cosine similarity of features
subpopulations : adjusted Rand index of two groups of each target class, with its symbols (grouped by helpful classes)
    and with whether the cue agrees (by harmful ones)
flips : validation pictures that most models of the study get wrong; share of retrained models that are right with the
    full source, without the first suspect and without a class drawn by lot from those that are nobody's first suspect;
    mistakes that stay wrong on the full source, and how many of these flip
leaks : on the testbed of examples (920 models of random halves in pairs), how often a leaked, mislabelled or ambiguous
    source picture ranks before a clean one, by influence and by similarity of pixels
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import typer
from sklearn.metrics import adjusted_rand_score, roc_auc_score

import dtl


def truth_of(problem: dtl.TransferProblem) -> dtl.Truth:
    assert problem.truth is not None
    return problem.truth


def projection(problem: dtl.TransferProblem, influence: dtl.Influence) -> dict[str, float]:
    symbol = truth_of(problem).subpopulation["validation"]
    found = {}
    for name, scores in (
        ("influence", influence.values),
        ("features", dtl.substitutes.feature_similarity(problem)),
    ):
        hit = symbol[np.argsort(-scores[:8], axis=1)] == np.arange(8)[:, None]
        found |= {f"{name}: precision@8": hit[:, :8].mean(), f"{name}: precision@50": hit[:, :50].mean()}
        found[f"{name}: recall@100"] = hit[:, :100].sum() / hit.sum()
    return found


def groups(problem: dtl.TransferProblem, study: dtl.Study) -> dict[str, float]:
    labels, found = problem.target_validation.labels.numpy(), {}
    truth = truth_of(problem)
    truths = {"helpful": truth.subpopulation, "harmful": truth.cue_agrees}
    for side, truth in truths.items():
        agreement = []
        for k in range(4):
            groups = dtl.subpopulations(study.masks, study.outputs()[:, labels == k], 2, side)
            agreement.append(adjusted_rand_score(truth["validation"][labels == k], groups.group))
        found |= {f"{side}: Rand index": np.mean(agreement), f"{side}: worst class": np.min(agreement)}
    return found


def flips(study: dtl.Study, influence: dtl.Influence, seeds: int, store: Path | None) -> dict[str, float]:
    wrong, sources = dtl.mistakes.wrong(study), np.array(study.problem.source.classes)
    first = np.array([dtl.suspects(influence, example, 1)[0] for example in wrong])
    rng = np.random.default_rng(0)
    others = rng.choice(np.setdiff1d(np.arange(len(sources)), first), 4, replace=False)
    rates = dtl.flip_rate(study, wrong.tolist(), [*np.unique(first), *others], seeds, store=store)
    right = rates.share.sel(label=rates.true)
    arms = {"suspect": sources[first], "other": sources[rng.choice(others, len(wrong))]}
    full = right.sel(arm="full").values
    found = {"mistakes": len(wrong), "right: full": full.mean(), "still wrong": (full < 0.5).sum()}
    for name, left_out in arms.items():
        after = np.array([right.sel(example=e, arm=arm).item() for e, arm in zip(wrong, left_out, strict=True)])
        found[f"right: without {name}"] = after.mean()
        found[f"flipped: without {name}"] = (after[full < 0.5] > 0.5).sum()
    return found


def leaks(seed: int, models: int, store: Path | None) -> dict[str, float]:
    problem = dtl.load("testbed-examples", seed=seed)
    study = dtl.Study(problem, design="paired", unit="example", store=store, seed=seed).run(models)
    truth: Any = truth_of(problem)
    role, copy_of = truth.example_role, truth.copy_of
    times = pd.Series(copy_of).map(pd.Series(copy_of).value_counts()).to_numpy()
    similar = dtl.leakage.similarity(problem.source, problem.target_validation).max(axis=1)
    lead = dtl.leaked(study.influence(), problem.source).set_index("source").lead.sort_index()
    worst = dtl.misleading(study.influence(by="all"), problem.source).set_index("source").z.sort_index()
    found = {}
    for name, score in (("influence", lead), ("similarity", similar)):
        for n in dtl.testbed.COPIES:
            chosen = (role == "leaked") & (times == n)
            both = chosen | (role == "clean")
            found[f"{name}: {n} copies"] = roc_auc_score(chosen[both], score[both])
    for kind in ("mislabelled", "ambiguous"):
        both = (role == kind) | (role == "clean")
        found[f"influence: {kind}"] = roc_auc_score(role[both] == kind, -worst[both])
    return found


def main(testbeds: int = 5, seeds: int = 20, store: Path | None = None) -> None:
    rows = []
    for seed in range(testbeds):
        problem = dtl.load("testbed", seed=seed)
        study = dtl.Study(problem, store=store and store / f"{seed}", seed=seed).run(dtl.scale.current().models)
        influence = study.influence()
        row = {"testbed": seed} | projection(problem, influence) | groups(problem, study)
        rows.append(row | flips(study, influence, seeds, store and store / f"{seed}-flips"))
        rows[-1] |= leaks(seed, 5 * dtl.scale.current().models, store and store / f"{seed}-examples")
        print(pd.Series(rows[-1]).round(3).to_string(), flush=True)
    table = pd.DataFrame(rows).set_index("testbed")
    print(table.agg(["mean", "std", "min", "max"]).round(3).T.to_string())


if __name__ == "__main__":
    typer.run(main)
