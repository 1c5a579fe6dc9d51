"""Do influences see through the source? Projection, subpopulations and the flip test, graded on several testbeds.

    python tests/benchmarks/seeing_through.py                  # five testbeds, six minutes or so on two quiet cores

projection : precision@8 and @50 and recall@100 of the eight helpful classes on the symbol that they show, by influence
    and by cosine similarity of features
subpopulations : adjusted Rand index of two groups of each target class, with its symbols (grouped by helpful classes)
    and with whether the cue agrees (by harmful ones)
flips : validation pictures that most models of the study get wrong; share of retrained models that are right with the
    full source, without the first suspect and without a class drawn by lot (mean over three); mistakes that stay wrong
    on the full source, and how many of these flip
leaks : on the testbed of examples (920 models of random halves in pairs, and the first 184 and 368 of them), how often
    a leaked, mislabelled or ambiguous source picture ranks before a clean one: by influence, that of pooled near
    duplicates, similarity of pixels, and the loss of four nets
"""

from pathlib import Path

import numpy as np
import pandas as pd
import typer
from sklearn.metrics import adjusted_rand_score

import dtl


def truth_of(problem: dtl.TransferProblem) -> dtl.Truth:
    assert problem.truth is not None
    return problem.truth


def projection(problem: dtl.TransferProblem, influence: dtl.Influence) -> dict[str, float]:
    symbol = truth_of(problem).subpopulation["validation"]
    found = {}
    for name, scores in (
        ("influence", influence.values),
        ("features", dtl.baselines.feature_similarity(problem)),
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
    wrong, names = dtl.projection.wrong(study), np.array(study.problem.source.classes)
    first = np.array([dtl.suspects(influence, example, 1)[0] for example in wrong])
    lot = np.random.default_rng(0).choice(len(names), 3, replace=False)
    rates = dtl.flip_rate(study, wrong.tolist(), np.union1d(first, lot).tolist(), seeds, store=store)
    right = rates.share.sel(label=rates.true).transpose("example", "arm").to_pandas()
    full, found = right["full"].to_numpy(), {}
    arms = {
        "suspect": [right.loc[e, names[c]] for e, c in zip(wrong, first, strict=True)],
        "class by lot": [right.loc[e, names[lot[lot != c]]].mean() for e, c in zip(wrong, first, strict=True)],
    }
    found |= {"mistakes": len(wrong), "right: full": full.mean(), "still wrong": (full < 0.5).sum()}
    for name, after in arms.items():
        found[f"right: without {name}"] = np.mean(after)
        found[f"flipped: without {name}"] = (np.array(after)[full < 0.5] > 0.5).sum()
    return found


def leaks(seed: int, models: int, store: Path | None) -> dict[str, float]:
    problem = dtl.load("testbed-examples", seed=seed)
    study = dtl.Study(problem, design="paired", unit="example", store=store, seed=seed).run(models)
    groups = dtl.leakage.near_duplicates(problem.source)
    pooled = dtl.estimate_influence(dtl.leakage.pool(study.masks, groups), study.outputs(), design="random")
    z = np.sort(pooled.values / pooled.stderr, axis=1)
    scores = {
        "similarity": dtl.leakage.similarity(problem.source, problem.target_validation).max(axis=1),
        "pooled": (z[:, -1] - z[:, -2])[groups],
        "loss": dtl.baselines.source_loss(problem, dtl.baselines.full_source_nets(problem, seeds=(0, 1, 2, 3))),
    }
    for m in (models // 5, models // 5 * 2, models):
        part = dtl.estimate_influence(study.masks[:m], study.outputs()[:m], design="paired")
        whole = study.outputs()[:m].mean(axis=1, keepdims=True)
        liars = dtl.misleading(dtl.estimate_influence(study.masks[:m], whole, design="paired"), problem.source)
        scores[f"influence, {m} models"] = dtl.leaked(part, problem.source).sort_values("source").lead
        scores[f"harm, {m} models"] = -liars.sort_values("source").z
    flawed = ("mislabelled", "ambiguous")
    return {
        f"{name}: {kind}": value
        for name, score in scores.items()
        for kind, value in dtl.testbed.score_examples(score, problem).items()
        if name == "similarity" or (kind in flawed) == (name.startswith(("harm", "loss")))
    }


def main(testbeds: int = 5, seeds: int = 20, store: Path | None = None) -> None:
    rows = []
    for seed in range(testbeds):
        problem = dtl.load("testbed", seed=seed)
        study = dtl.Study(problem, store=store and store / f"{seed}", seed=seed).run(dtl.book.scale().models)
        influence = study.influence()
        row = {"testbed": seed} | projection(problem, influence) | groups(problem, study)
        rows.append(row | flips(study, influence, seeds, store and store / f"{seed}-flips"))
        rows[-1] |= leaks(seed, 5 * dtl.book.scale().models, store and store / f"{seed}-examples")
        print(pd.Series(rows[-1]).round(3).to_string(), flush=True)
    table = pd.DataFrame(rows).set_index("testbed")
    print(table.agg(["mean", "std", "min", "max"]).round(3).T.to_string())


if __name__ == "__main__":
    typer.run(main)
