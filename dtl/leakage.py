"""Single source examples that leak target pictures or mislead, by influence, by similarity, and by both.

A leak is a near copy of a target example. Its influence is large on that example and not on the next one; that, and not
its size, tells it from a good example, which helps many (Jain et al. 2022, section 4.3).
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.sparse.csgraph import connected_components
from scipy.stats import false_discovery_control
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import radius_neighbors_graph

from dtl._checks import InputError
from dtl.data import ImageDataset
from dtl.influence import Influence


def leaked(
    influence: Influence, source: ImageDataset, similarity: ArrayLike | None = None, near: float = 0.93
) -> pd.DataFrame:
    """Source examples ranked by how far their strongest influence stands out, the most suspicious first.

    Parameters
    ----------
    influence : of source examples on single target examples: `study.influence()` of a study with unit "example"
    source : the source of that study
    similarity : (N, n), such as `dtl.leakage.similarity`; if given, near duplicates of a target example come first, by
        similarity, and all others follow, by influence
    near : similarity from which two images are near duplicates

    Returns
    -------
    DataFrame, one row for each source example: `source` its number, `target` the example it helps most, `influence` and
    `stderr` there, `lead` (z-score there minus the next largest, in standard errors), `q` (false discovery rate at
    which it helps there, the choice of the largest of n being paid for), and with a similarity
    `nearest` and `similarity`, the most similar target example

    Raises
    ------
    ValueError : the influence is not of the source's examples, is on fewer than two targets, or shapes disagree

    >>> values = np.zeros((6, 5))
    >>> values[4, 3] = 0.6                                  # example 4 helps target 3 alone
    >>> found = dtl.Influence(values, np.full((6, 5), 0.1), np.ones(5), "difference", "paired", 100)
    >>> dtl.leaked(found, problem.source.subset(range(6)))[["source", "target"]].values[0].tolist()
    [4, 3]
    """
    _check_examples(influence, source)
    _check_threshold(near)
    n = influence.values.shape[1]
    if n < 2:
        raise InputError("leaks need the influence on single target examples: estimate it with study.influence()")
    z = influence.z
    target = z.argmax(axis=1)
    rows = np.arange(len(z))
    p = influence.p_values("greater")[rows, target]
    top = np.partition(z, -2, axis=1)
    table = pd.DataFrame(
        {
            "source": rows,
            "target": target,
            "influence": influence.values[rows, target],
            "stderr": influence.stderr[rows, target],
            "lead": top[:, -1] - top[:, -2],
            "q": false_discovery_control(np.minimum(1, n * p)),
        }
    )
    if similarity is not None:
        similarity = np.asarray(similarity)
        if similarity.shape != z.shape or not np.isfinite(similarity).all():
            raise InputError(f"similarity must be finite, source x target examples, {z.shape}, not {similarity.shape}")
        table["nearest"], table["similarity"] = similarity.argmax(axis=1), similarity.max(axis=1)
        close = table["similarity"].where(table["similarity"] > near, 0.0)
        return table.iloc[np.lexsort((-table["lead"], -close))].reset_index(drop=True)
    return table.sort_values("lead", ascending=False, kind="stable", ignore_index=True)


def misleading(influence: Influence, source: ImageDataset) -> pd.DataFrame:
    """Source examples ranked by their most negative influence in standard errors, the most harmful first.

    Parameters
    ----------
    influence : of source examples, on the whole target (`study.influence(by="all")` of a study with unit "example") or
        on each target class (`by="class"`)
    source : the source of that study

    Returns
    -------
    DataFrame, one row for each source example: `source` its number, `label` its class, `column` of the influence where
    it hurts most, `influence`, `stderr` and `z` there, and `q`, the false discovery rate at which it hurts

    Raises
    ------
    ValueError : the influence is not of the source's examples

    >>> values = np.array([[0.1], [-0.5], [0.0]])
    >>> found = dtl.Influence(values, np.full((3, 1), 0.1), np.ones(1), "difference", "paired", 100)
    >>> dtl.misleading(found, problem.source.subset(range(3)))[["source", "z"]].values[0].tolist()
    [1.0, -5.0]
    """
    _check_examples(influence, source)
    z = influence.z
    column, rows = z.argmin(axis=1), np.arange(len(z))
    p = influence.p_values("less")[rows, column]
    table = pd.DataFrame(
        {
            "source": rows,
            "label": np.array(source.classes)[source.labels.numpy()],
            "column": column,
            "influence": influence.values[rows, column],
            "stderr": influence.stderr[rows, column],
            "z": z[rows, column],
            "q": false_discovery_control(np.minimum(1, z.shape[1] * p)),
        }
    )
    return table.sort_values("z", kind="stable", ignore_index=True)


def similarity(source: ImageDataset, target: ImageDataset) -> np.ndarray:
    """Correlation of the pixels of every source and target image, (N, n): the usual test for near duplicates.

    >>> dtl.leakage.similarity(problem.source, problem.target_test).shape
    (480, 40)
    """
    if source.images.shape[1:] != target.images.shape[1:]:
        raise InputError(f"images must have one size, not {source.images.shape[2:]} and {target.images.shape[2:]}")
    return cosine_similarity(_centred(source), _centred(target))


def _centred(dataset: ImageDataset) -> np.ndarray:
    flat = dataset.images.flatten(1).float().numpy()
    return flat - flat.mean(axis=1, keepdims=True)


def near_duplicates(source: ImageDataset, threshold: float = 0.93) -> np.ndarray:
    """Group of each source example, int (N,): examples whose pixels correlate above the threshold share one.

    >>> int(dtl.leakage.near_duplicates(problem.source.subset([0, 1, 0])).max()) + 1  # groups
    2
    """
    _check_threshold(threshold)
    near = radius_neighbors_graph(_centred(source), 1 - threshold, metric="cosine", n_jobs=-1).tolil()
    _, first, same = np.unique(source.images.flatten(1).numpy(), axis=0, return_index=True, return_inverse=True)
    near[np.arange(len(source)), first[same]] = 1  # equal images without contrast have no correlation
    return connected_components(near, directed=False)[1]


def pool(masks: ArrayLike, groups: ArrayLike) -> np.ndarray:
    """Which groups a model saw at least one member of, bool (models, groups), from masks of examples (models, N).

    Copies stand in for each other, so each has little influence of its own; the group has all of it. A group so large
    that every model saw some of it has no influence to estimate: `estimate_influence` names it.

    Parameters
    ----------
    groups : (N,) int without gaps, such as `near_duplicates`

    >>> dtl.leakage.pool([[True, False, False], [False, False, True]], [0, 1, 0]).astype(int).tolist()
    [[1, 0], [1, 0]]
    """
    included, groups = np.asarray(masks, dtype=bool), np.asarray(groups)
    if groups.shape != included.shape[1:]:
        raise InputError(f"groups must hold one number for each of {included.shape[1]} examples, not {groups.shape}")
    numbers, starts = np.unique(np.sort(groups), return_index=True)
    if not np.array_equal(numbers, np.arange(len(numbers))):
        raise InputError(f"groups must be numbered 0, 1, ... without gaps, not {numbers.tolist()}")
    return np.logical_or.reduceat(included[:, np.argsort(groups, kind="stable")], starts, axis=1)


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < 1:
        raise InputError(f"near duplicates correlate above a threshold between 0 and 1, not {threshold}")


def _check_examples(influence: Influence, source: ImageDataset) -> None:
    if len(influence.values) != len(source):
        raise InputError(
            f"the influence is of {len(influence.values)} units but the source has {len(source)} examples: leaks and "
            'misleading examples need a study of examples, dtl.Study(problem, unit="example")'
        )
