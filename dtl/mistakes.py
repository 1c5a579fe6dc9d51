"""From one wrong prediction to the source class that pushes it there, and the experiment that checks it.

After Jain et al. 2022, section 4.2: list the most negative source classes of an example, retrain without the worst one
many times, and see how often the prediction flips.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy.stats import binomtest

from dtl._checks import InputError, check_number
from dtl.influence import Influence
from dtl.study import Study

if TYPE_CHECKING:
    from distributed import Client


def wrong(study: Study, split: str = "validation") -> np.ndarray:
    """Examples that most models of a study predict wrong, the most often wrong first, int indices into the split.

    >>> dtl.mistakes.wrong(study)[:5]
    """
    right = study.outputs("correct", split=split).mean(0)
    order = np.argsort(right, kind="stable")
    return order[right[order] < 0.5]


def suspects(influence: Influence, example: int, k: int = 5, least: float = 0.0) -> np.ndarray:
    """The source classes with the most negative influence on one example, the worst first, int (at most k,).

    Parameters
    ----------
    least : standard errors by which the influence must lie below zero; classes that do not are no suspects, so there
        can be fewer than k, or none

    Raises
    ------
    ValueError : an unknown example, or k is not in 1..K

    >>> [problem.source.classes[c] for c in dtl.suspects(study.influence(), example=17)]
    """
    n_classes, n = influence.values.shape
    check_number(example, 0, n - 1, "example, one of those of the influence,")
    check_number(k, 1, n_classes, "k, of the source classes,")
    worst = np.argsort(influence.values[:, example], kind="stable")[:k]
    values, stderr = influence.values[worst, example], influence.stderr[worst, example]
    return worst[(values < 0) & (values <= -least * stderr)]


def flip_rate(
    study: Study,
    example: int | Sequence[int],
    without: int | Sequence[int],
    seeds: int = 20,
    *,
    split: str = "validation",
    store: str | Path | None = None,
    seed: int | None = None,
    device: str = "auto",
    client: "Client | None" = None,
    progress: bool = True,
) -> xr.Dataset:
    """How often retrained models predict each label, with the whole source and without one class of it.

    The models of one arm are judged on all examples, so many examples cost no more training than one.

    Parameters
    ----------
    study : gives problem, recipe and transfer (its first), and says which predictions are wrong
    example : one or more examples of the split that most models of the study predict wrong (see `wrong`)
    without : one or more source classes, each left out in an arm of its own; a class that nobody suspects is the
        control that tells a flip from luck
    seeds : retrainings of each arm
    store : folder that keeps the retrained models' outputs, so that a killed call resumes
    seed : of the retrainings; the default is one more than the study's, whose models picked the examples
    device, client, progress : as in `Study.run`

    Returns
    -------
    Dataset with dimensions example, arm ("full", then names of classes left out) and label: `count` of retrained models
    that predict the label, `share` of them, and `low` and `high` of its 95% interval (Wilson 1927); `change`, the share
    minus that of the full source, with `change_low` and `change_high` (Newcombe 1998, method 10); coordinate `true`

    Raises
    ------
    ValueError : an unknown example or class, an example that is not wrong, or fewer than two seeds

    >>> flips = dtl.flip_rate(study, example=17, without=dtl.suspects(study.influence(), 17, k=1))
    >>> flips.share.sel(example=17).to_pandas()
    """
    if study.unit != "class":
        raise InputError("flip_rate leaves out source classes: give a study of unit 'class'")
    examples, classes = (np.atleast_1d(np.asarray(index)).tolist() for index in (example, without))
    names = study.problem.source.classes
    right = study.outputs("correct", split=split).mean(0)
    for what, given, n in (("example", examples, len(right)), ("source class", classes, len(names))):
        if not given or len(set(given)) < len(given):
            raise InputError(f"give one or more different {what} numbers in 0..{n - 1}, not {given}")
        for index in given:
            check_number(index, 0, n - 1, f"each {what}")
    fine = [index for index in examples if right[index] >= 0.5]
    if fine:
        raise InputError(
            f"example {fine[0]} is not wrong: {right[fine[0]]:.0%} of the study's models predict it right; choose from "
            "dtl.mistakes.wrong(study)"
        )
    check_number(seeds, 2, 10**6, "seeds")

    masks = np.ones(((1 + len(classes)) * seeds, len(names)), dtype=bool)
    for arm, c in enumerate(classes, 1):
        masks[arm * seeds : (arm + 1) * seeds, c] = False
    seed = study.seed + 1 if seed is None else seed
    retrained = Study(study.problem, study.recipe, masks, study.transfer[:1], store, seed)
    retrained.run(device=device, client=client, progress=progress)
    predicted = retrained.outputs("prediction", split=split)[:, examples]
    labels = study.problem.target_train.classes
    hits = predicted.reshape(1 + len(classes), seeds, len(examples), 1) == np.arange(len(labels))
    count = hits.sum(axis=1).transpose(1, 0, 2)
    interval = np.array([binomtest(int(c), seeds).proportion_ci(method="wilson") for c in count.flat])
    low, high = interval.T.reshape(2, *count.shape)
    share = count / seeds
    shares = np.stack([share, low, high])
    change_low, change_high = newcombe(shares, shares[:, :, :1])
    found = dict(count=count, share=share, low=low, high=high, change=share - share[:, :1])
    found |= dict(change_low=change_low, change_high=change_high)
    dims = ("example", "arm", "label")
    true = study.problem.parts[f"target_{split}"].labels.numpy()[examples]
    return xr.Dataset(
        {name: (dims, values) for name, values in found.items()},
        coords={
            "example": examples,
            "arm": ["full", *(names[c] for c in classes)],
            "label": list(labels),
            "true": ("example", np.array(labels)[true]),
        },
        attrs={"problem": study.problem.name, "split": split, "seeds": seeds, "transfer": study.transfer[0]},
    )


def newcombe(shares: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Interval of a difference of two independent proportions, from the Wilson interval of each (Newcombe 1998).

    shares, reference : proportion, its low and its high, along the first dimension

    >>> low, high = newcombe(np.array([0.8, 0.69, 0.88]), np.array([0.6, 0.49, 0.7]))
    """
    (p, low, high), (p0, low0, high0) = shares, reference
    return p - p0 - np.hypot(p - low, high0 - p0), p - p0 + np.hypot(high - p, p0 - low0)
