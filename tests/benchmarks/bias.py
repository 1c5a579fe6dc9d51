"""What `dtl.bias` finds, against bars set before: planted and natural bias, on the testbed and on real images.

    python tests/benchmarks/bias.py A --seed 0 --out bias.jsonl     # one line for each experiment and problem
    python tests/benchmarks/bias.py --show bias.jsonl               # table of all lines

A  nothing planted: influence on the gap between pictures whose texture agrees with their label and others names the
   classes that bring it; retraining without them, beside a control
B  a fixed pattern on two source classes: pull to the class they go with, attribution, removal
C  natural bias: texture follows the kind in 95% of the source pictures; target correlated at .25 and .9
real  D and E, on photographs: squares planted on half of the images of four dogs and of three vehicles; a tint that
   goes with animal or machine in 95% or 50% of the source; read from the results that ship

± are standard errors over n retrainings, seed by seed.
"""

import argparse
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

import dtl
from dtl import bias
from dtl.datasets import overlays

QUIET = {"device": "cpu", "progress": False}
DOGS = ("golden retriever", "Labrador retriever", "German shepherd", "standard poodle")
VEHICLES = ("sports car", "moving van", "trolleybus")


def pm(found, name, **cell):
    of = found.sel(cell)
    return [round(float(of[f"{name}_mean"]), 4), round(float(of[f"{name}_stderr"]), 4)]


def gap_of(results, agrees, split="test"):
    return bias.gap(results.probability.isel(target=results.split.values == split), agrees)


def top(study, outcome, k):
    found = dtl.estimate_influence(study.masks, np.asarray(outcome)[:, None])
    order = np.argsort(-found.values[:, 0], kind="stable")
    return found, set(order[:k].tolist())


def experiment_a(seed, n):
    problem = dtl.load("testbed", seed=seed)
    assert problem.truth is not None
    study = dtl.Study(problem).run(46, **QUIET)
    outcome = gap_of(study.results.isel(transfer=0), problem.truth.cue_agrees["validation"], "validation")
    role = problem.truth.role
    guilty, k = set(np.flatnonzero(role == "misleading").tolist()), 4
    influence, named = top(study, outcome, k)
    control = np.random.default_rng(seed).choice(np.flatnonzero(role == "irrelevant"), k, replace=False)
    everything = np.arange(len(role))
    arms = {"full": problem, "without": ~np.isin(everything, list(named)), "control": ~np.isin(everything, control)}
    found = dtl.bias_transfer(study, arms, partial(gap_of, agrees=problem.truth.cue_agrees["test"]), n, **QUIET)
    line = {"misleading in top 4": len(guilty & named), "reliability": float(influence.reliability[0])}
    for arm in arms:
        line |= {f"gap {arm}": pm(found, "bias", arm=arm), f"accuracy {arm}": pm(found, "accuracy", arm=arm)}
    changes = {"gap falls": ("bias", "without"), "accuracy rises": ("accuracy", "without")}
    changes |= {"control changes gap": ("bias", "control")}
    return line | {name: pm(found, f"{of}_change", arm=arm) for name, (of, arm) in changes.items()}


def planted_problem(seed, rate=1.0):
    """The pattern is on star and cloud, whose kind is the target class sky."""
    problem, pattern = dtl.load("testbed", seed=seed), overlays.Pattern(sd=8, seed=seed)
    clean = problem.with_views({"pattern": pattern})
    return clean, replace(clean, source=dtl.plant(clean.source, pattern, ["star", "cloud"], rate, seed)[0])


def experiment_b(seed, n):
    clean, planted = planted_problem(seed)
    assert planted.truth is not None
    study = dtl.Study(planted).run(46, **QUIET)
    outcome = bias.shift(study.results, "pattern", "probability", "sky", "validation").isel(transfer=0)
    influence, named = top(study, outcome, 2)
    pair = np.isin(np.arange(24), [0, 1])
    irrelevant = np.flatnonzero(planted.truth.role == "irrelevant")
    control = np.isin(np.arange(24), np.random.default_rng(seed).choice(irrelevant, 2, replace=False))
    pull = partial(bias.shift, view="pattern", measure="toward", toward="sky")
    arms = {"clean": clean, "planted": planted}
    arms |= {"without": dtl.Arm(planted, ~pair), "control": dtl.Arm(planted, ~control)}
    regimes = ("fixed", "fixed+bn", "full", "scratch") if seed == 0 else ("fixed",)
    found = dtl.bias_transfer(study, arms, pull, n, transfer=regimes, **QUIET)
    line = {"planted in top 2": len(named & {0, 1}), "reliability": float(influence.reliability[0])}
    for regime in regimes:
        for arm in ("clean", "planted"):
            line[f"pull {arm} {regime}"] = pm(found, "bias", arm=arm, transfer=regime)
    line["planted minus clean"] = pm(found, "bias_change", arm="planted", transfer="fixed")
    for arm in ("without", "control"):
        line[f"pull {arm}"] = pm(found, "bias", arm=arm, transfer="fixed")
    return line


def experiment_c(seed, n):
    line = {}
    for share in (0.25, 0.9):
        problems = {lean: dtl.load("testbed", seed=seed, lean=lean, cue=share) for lean in (0.25, 0.95)}
        unbiased = problems[0.25]
        assert unbiased.truth is not None
        leaning = replace(problems[0.95].source, normalisation=unbiased.source.statistics())
        keep = np.isin(unbiased.truth.role, ["helpful", "irrelevant"])
        arms = {
            "unbiased": dtl.Arm(masks=keep),
            "biased": dtl.Arm(replace(unbiased, source=leaning), keep),
        }
        agrees = unbiased.truth.cue_agrees["test"]
        study = dtl.Study(unbiased)
        gap = partial(gap_of, agrees=agrees)
        found = dtl.bias_transfer(study, arms, gap, n, **QUIET)
        # so few target images are one step an epoch, and those of the recipe no training
        long = dtl.Study(unbiased, dtl.Recipe(epochs=60))
        alone = dtl.bias_transfer(long, {"alone": keep}, gap, n, transfer=("scratch",), **QUIET)
        alone = alone.bias.sel(arm="alone", transfer="scratch")
        for arm in arms:
            line[f"gap {arm} at {share}"] = pm(found, "bias", arm=arm)
        line[f"gap scratch at {share}"] = [round(float(alone.mean()), 4), round(float(alone.std(ddof=1)) / n**0.5, 4)]
        line[f"biased minus unbiased at {share}"] = pm(found, "bias_change", arm="biased")
        apart = bias.compare(alone, found.bias.sel(arm="unbiased"))
        line[f"scratch minus unbiased at {share}"] = [round(float(apart.difference), 4), round(float(apart.stderr), 4)]
    return line


def experiment_real(_, __):
    """D and E, from the results that ship with the book (`book/results/bias.py`)."""
    results = dtl.results.open("bias20-cifar10")
    squares, quarters, tint = results["squares"], results["quarters"], results["tint"]
    groups = {"yellow": ("dogs", DOGS), "cyan": ("vehicles", VEHICLES)}
    line: dict[str, Any] = {"n": squares.sizes["seed"]}
    for colour, (left_out, classes) in groups.items():
        drop, carrier = squares[f"{colour} drop"], np.isin(quarters.source.values, classes)
        more = bias.compare(drop.sel(arm="planted"), drop.sel(arm="clean"))
        line[f"{colour}: planted minus clean"] = [round(float(more.difference), 4), round(float(more.stderr), 4)]
        influence = dtl.estimate_influence(quarters["mask"].values, quarters[colour].values[:, None])
        line[f"{colour}: AUROC"] = roc_auc_score(carrier, influence.values[:, 0])
        for arm in (f"without {left_out}", "control", f"{colour} in 10% of the target"):
            own = bias.compare(drop.sel(arm=arm))
            line[f"{colour}: {arm}"] = [round(float(own.difference), 4), round(float(own.stderr), 4)]
    for task in tint.task.values:
        for output in ("correct", "probability"):
            gap = tint[output].sel(task=task, transfer="fixed")
            more = bias.compare(gap.sel(arm="95%"), gap.sel(arm="50%"))
            name = f"tint, {task}, {output}: 95% minus 50%"
            line[name] = [round(float(more.difference), 4), round(float(more.stderr), 4)]
    return line


EXPERIMENTS = {"A": experiment_a, "B": experiment_b, "C": experiment_c, "real": experiment_real}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="?", choices=[*EXPERIMENTS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=8, help="retrainings of each arm")
    parser.add_argument("--out", type=Path, help="append the line to a file")
    parser.add_argument("--show", type=Path)
    given = parser.parse_args()
    if given.show:
        lines = [json.loads(line) for line in given.show.read_text().splitlines()]
        for which, part in pd.DataFrame(lines).groupby("experiment"):
            print(which, part.dropna(axis=1, how="all").drop(columns="experiment").T.to_string(), sep="\n")
        return
    began = time.process_time()
    line = {"experiment": given.which, "seed": given.seed, "n": given.n}
    line |= EXPERIMENTS[given.which](given.seed, given.n)
    line["cpu seconds"] = round(time.process_time() - began)
    print(json.dumps(line, indent=1))
    if given.out:
        with given.out.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
