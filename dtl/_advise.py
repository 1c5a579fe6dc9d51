"""A decision at the end: which source classes to drop, if any, and what that gains on new images."""

from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control
from scipy.stats import t as student

from dtl._checks import check_between, check_kind, check_number
from dtl._retrain import Arm, retrain
from dtl.data import TransferProblem
from dtl.study import Study


@dataclass(frozen=True, eq=False)
class Advice:
    """Which source classes to drop, and what that gains on new images; `print` says it in a sentence.

    Attributes
    ----------
    classes : to drop; none where no gain is established
    gain, stderr, low : accuracy on the test images minus that with the whole source, after as many training steps; its
        standard error counts retrainings and test images, and the true gain is above `low` with probability `level`
    candidates : classes that hurt more than the average class, worst first, at most a share `fdr` of them falsely
    """

    classes: tuple[str, ...]
    gain: float
    stderr: float
    low: float
    candidates: tuple[str, ...]
    fdr: float
    level: float

    def __str__(self) -> str:
        of = f"{len(self.candidates)} candidates at a false discovery rate of {self.fdr:g}"
        if not self.candidates:
            return f"Drop nothing: there are {of}."
        tried = f"{self.gain:+.4f} ± {self.stderr:.4f} on new images, above {self.low:+.4f} at {self.level:.0%}; {of}"
        if not self.classes:
            return f"Drop nothing: the best choice on validation gains {tried}."
        return f"Drop {', '.join(self.classes)}: expected gain {tried}."


def advise(study: Study, seeds: int = 20, *, fdr: float = 0.05, level: float = 0.95, **options: Any) -> Advice:
    """Which source classes to drop, if any: candidates by influence on validation, chosen and judged by retraining.

    Candidates have a negative influence on the whole target, by a one-sided test that counts models and images, at a
    false discovery rate (Benjamini and Hochberg 1995). Influences are relative, so that a candidate may be useless, not
    harmful: the worst 1, 2, 4, ... are left out in fresh retrainings with as many steps as the whole source gets. The
    number is chosen on validation, for each seed by the other seeds, and what that gains is measured on test.

    Parameters
    ----------
    study : finished models, which give the influences
    seeds, options : as in `dtl.retrain`

    Raises
    ------
    InputError : a rate or level outside 0..1, or fewer than three seeds

    >>> print(dtl.advise(study, seeds=3, progress=False))
    Drop nothing: ...
    """
    check_number(seeds, 3, 10**6, "seeds, three or more to choose by the others,")
    check_between(fdr, "fdr")
    check_between(level, "level")
    signature(retrain).bind(study, {}, seeds, **options)  # TypeError for an unknown one, where nothing is tried, too
    overall = check_kind(study, "dtl.Study", "study").influence(by="all")
    found = false_discovery_control(overall.p_values("less")[:, 0]) < fdr
    worst = [int(c) for c in np.argsort(overall.values[:, 0], kind="stable") if found[c]][: study.n_units - 2]
    candidates = tuple(overall.sources[c] for c in worst)
    if not worst:
        return Advice((), 0.0, 0.0, 0.0, candidates, fdr, level)
    counts = sorted({2**i for i in range(len(worst).bit_length())} | {len(worst)})
    masks = {count: ~np.isin(np.arange(study.n_units), worst[:count]) for count in counts}
    arms = {"full": Arm(steps="full")} | {str(n): Arm(masks=mask, steps="full") for n, mask in masks.items()}
    again = retrain(study, arms, seeds, **options)
    correct = {split: again.correct.isel(target=again.split == split) for split in ("validation", "test")}
    weights = {name: _weights(study.problem, of.label.values) for name, of in correct.items()}
    chosen_on = correct["validation"].values @ weights["validation"]  # (arm, seed)
    others = (chosen_on.sum(axis=1, keepdims=True) - chosen_on).argmax(axis=0)
    test = correct["test"].values.astype(float)
    gain, stderr, dof = _gain(test[others, np.arange(seeds)] - test[0], weights["test"])
    low = gain - float(student.isf(1 - level, dof)) * stderr
    count = [0, *counts][int(chosen_on.mean(axis=1).argmax())]
    return Advice(candidates[:count] if low > 0 else (), gain, stderr, low, candidates, fdr, level)


def _weights(problem: TransferProblem, labels: np.ndarray) -> np.ndarray:
    """Of each image in the accuracy that the problem reports, (n,)."""
    counts = np.bincount(labels)[labels] * len(np.unique(labels)) if problem.per_class_accuracy else len(labels)
    return 1 / np.broadcast_to(counts, labels.shape)


def _gain(gains: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """Mean gain (seeds, images), its error over both, and degrees of freedom; as in `dtl._images`."""
    (seeds, n), by_seed, by_image = gains.shape, gains @ weights, gains.mean(axis=0)
    mean, models = float(by_seed.mean()), float(by_seed.var(ddof=1)) / seeds
    scatter = n / (n - 1) * float(weights**2 @ (by_image - mean) ** 2)
    own = float(weights**2 @ gains.var(axis=0, ddof=1)) / seeds - float(weights @ weights) * models
    variance = models + max(scatter - max(own, 0), 0)
    doubt = models**2 / (seeds - 1) + scatter**2 / (n - 1)
    return mean, variance**0.5, variance**2 / doubt if doubt else seeds - 1.0
