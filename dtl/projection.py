"""Source labels projected on the target: whom a source class helps, and the groups of target examples that this shows.

Nobody labelled the subpopulations of a target class, but source classes tell them apart: ostriches are the birds that
the source class *ostrich* helps (Jain et al. 2022, section 4.1). The other way round, one wrong prediction leads to the
source classes that push it there (section 4.2).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import normalize

from dtl._checks import InputError, check_kind, check_number, choice, floats, real
from dtl.design import block_length
from dtl.influence import Influence, estimate_influence, group_means

if TYPE_CHECKING:
    from dtl.study import Study

SIDES = {"helpful": 1.0, "harmful": -1.0}
_CLEAR = 3.0  # standard errors from zero at which a class counts as helpful or harmful for the examples as a whole


def project(influence: Influence, source_class: int, k: int = 8, most: str = "helped") -> np.ndarray:
    """Indices of the k target examples that a source class helps (or hurts) most, the strongest first, int (k,).

    Parameters
    ----------
    influence : one column for each target example, as `study.influence()` gives
    most : "helped" or "hurt"

    >>> dtl.project(study.influence(), problem.source.classes.index("rook"), k=3).shape
    (3,)
    """
    check_kind(influence, "dtl.Influence", "influence")
    n_classes, n = influence.values.shape
    check_number(source_class, 0, n_classes - 1, "source_class, one of the classes of the influence,")
    check_number(k, 1, n, "k, of the target examples of the influence,")
    choice(most, ("helped", "hurt"), "side")
    values = influence.values[source_class]
    return np.argsort(-values if most == "helped" else values, kind="stable")[:k]


@dataclass(frozen=True, eq=False)
class Subpopulations:
    """Groups of target examples, and what singles them out.

    Attributes
    ----------
    group : (n,) int, the group of each example, the largest group being 0
    influence : of each source class on the mean output of a group minus that of all other examples, (K, groups);
        estimated from models that had no part in forming the groups, so its errors are honest
    """

    group: np.ndarray
    influence: Influence


def subpopulations(
    masks: ArrayLike, outputs: ArrayLike, n_groups: int | None = None, side: str = "helpful", seed: int = 0
) -> Subpopulations:
    """Group target examples by the source classes that help (or harm) them.

    The first half of the models (whole balanced blocks) gives the influences that k-means groups by; each example's
    row is scaled to length one, because examples differ in how sensitive they are to everything. The second half tells
    what singles each group out.

    Parameters
    ----------
    masks : (m, K) bool
    outputs : (m, n), of the examples of one target class
    n_groups : default is the number from 2 to 6 with the largest silhouette
    side : "helpful" groups by the classes that help these examples as a whole, which are those that show what is on
        them; "harmful" by those that harm, which are those that share a misleading trait with them

    >>> masks = dtl.subset_masks(20, 76)                # classes 0 and 1 help five examples, 2 and 3 the others
    >>> outputs = np.repeat(masks[:, :4] @ [[3.0, 0], [3, 0], [0, 3], [0, 3]], 5, axis=1)
    >>> outputs += np.random.default_rng(0).normal(size=outputs.shape)
    >>> dtl.subpopulations(masks, outputs, n_groups=2).group.tolist()
    [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    """
    included, outputs = floats(masks, "masks").astype(bool), floats(outputs, "outputs")
    choice(side, SIDES, "side")
    check_number(seed, 0, 2**32 - 1, "seed")
    if included.ndim != 2 or outputs.ndim != 2:
        shapes = f"{included.shape} and {outputs.shape}"
        raise InputError(f"masks must be (models, classes) and outputs (models, examples), not {shapes}")
    n = outputs.shape[1]
    if n < 3:
        raise InputError(f"{n} examples are too few to group: give three or more")
    check_number(2 if n_groups is None else n_groups, 2, n - 1, "n_groups, below the number of examples,")
    block = block_length(included.shape[1])
    half = len(included) // (2 * block) * block or len(included) // 4 * 2  # whole blocks, or else whole pairs
    if half < 2:
        raise InputError(f"{len(included)} models are too few to halve: train at least 4, better two balanced blocks")
    first, whole = (
        estimate_influence(included[:half], y[:half]) for y in (outputs, outputs.mean(axis=1, keepdims=True))
    )
    chosen = SIDES[side] * whole.values[:, 0] > _CLEAR * whole.stderr[:, 0]
    if chosen.sum() < 2:
        raise InputError(
            f"{chosen.sum()} source classes are clearly {side} for these examples as a whole and grouping needs two: "
            "train more models, or use the other side"
        )
    rows = np.asarray(normalize(first.values[chosen].T))
    tried = [_groups(rows, g, seed) for g in ([n_groups] if n_groups else range(2, min(6, n - 1) + 1))]
    group = max(tried, key=lambda g: silhouette_score(rows, g)) if len(tried) > 1 else tried[0]
    size = np.bincount(group)
    means = group_means(outputs[half:], group)
    others = (outputs[half:].sum(axis=1, keepdims=True) - size * means) / (n - size)
    return Subpopulations(group, estimate_influence(included[half:], means - others))


def _groups(rows: np.ndarray, n_groups: int, seed: int) -> np.ndarray:
    kmeans = KMeans(n_groups, n_init=10, random_state=seed)  # pyright: ignore[reportArgumentType]
    labels = kmeans.fit_predict(rows)
    by_size = np.argsort(-np.bincount(labels, minlength=n_groups), kind="stable")
    return np.argsort(by_size)[labels]


def wrong(study: "Study", split: str = "validation") -> np.ndarray:
    """Examples that most models of a study predict wrong, the most often wrong first, int indices into the split.

    >>> len(dtl.projection.wrong(study)) < len(problem.target_validation)
    True
    """
    if not hasattr(study, "outputs"):
        raise InputError(f"study must be a dtl.Study or results of one, not {study!r}")
    right = study.outputs("correct", split=split).mean(0)
    order = np.argsort(right, kind="stable")
    return order[right[order] < 0.5]


def suspects(influence: Influence, example: int, k: int = 5, least: float = 0.0) -> np.ndarray:
    """The source classes with the most negative influence on one example, the worst first, int (at most k,).

    Parameters
    ----------
    least : standard errors by which the influence must lie below zero; classes that do not are no suspects, so there
        can be fewer than k, or none

    >>> values = np.array([[0.5], [-0.2], [-0.9]])
    >>> found = dtl.Influence(values, np.full((3, 1), 0.1), np.ones(1), "difference", "paired", 100)
    >>> dtl.suspects(found, example=0, k=2).tolist(), dtl.suspects(found, example=0, k=2, least=3).tolist()
    ([2, 1], [2])
    """
    check_kind(influence, "dtl.Influence", "influence")
    n_classes, n = influence.values.shape
    check_number(example, 0, n - 1, "example, one of those of the influence,")
    check_number(k, 1, n_classes, "k, of the source classes,")
    least = real("least", least)
    worst = np.argsort(influence.values[:, example], kind="stable")[:k]
    values, stderr = influence.values[worst, example], influence.stderr[worst, example]
    return worst[(values < 0) & (values <= -least * stderr)]
