"""Single source examples that leak target pictures or mislead, by influence, by similarity, and by both.

A leak is a near copy of a target example. Its influence is large on that example and not on the next one; that, and not
its size, tells it from a good example, which helps many (Jain et al. 2022, section 4.3).
"""

import logging
from collections.abc import Iterator
from itertools import product

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.cluster.hierarchy import complete, fcluster
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from scipy.stats import false_discovery_control
from torch.nn import functional as F

from dtl._checks import InputError, check_between, check_kind, choice
from dtl.data import ImageDataset
from dtl.influence import Influence

logger = logging.getLogger(__name__)

ROUGHLY = 0.8  # similarity of small grey versions from which two pictures may be near duplicates


def leaked(
    influence: Influence, source: ImageDataset, similarity: ArrayLike | None = None, near: float = 0.93
) -> pd.DataFrame:
    """Source examples ranked by how far their strongest influence stands out, the most suspicious first.

    Parameters
    ----------
    influence : of source examples on single target examples: `study.influence()` of a study with unit "example"
    similarity : (N, n), such as `dtl.leakage.similarity`; if given, near duplicates of a target example come first, by
        similarity, and all others follow, by influence
    near : similarity from which two images are near duplicates

    Returns
    -------
    DataFrame, one row for each source example: `source` its number, `target` the example it helps most, `influence` and
    `stderr` there, `q` (false discovery rate at which it helps there, the choice of the largest of n being paid for),
    `lead` (z-score there minus the next largest), and with a similarity `nearest` and `similarity`, the most similar
    target example. InputError if the influence is not of the source's examples on at least two targets

    >>> values = np.zeros((6, 5))
    >>> values[4, 3] = 0.6                                  # example 4 helps target 3 alone
    >>> found = dtl.Influence(values, np.full((6, 5), 0.1), np.ones(5), "difference", "paired", 100)
    >>> dtl.leaked(found, problem.source.subset(range(6)))[["source", "target"]].values[0].tolist()
    [4, 3]
    """
    check_between(near, "near")
    table = _strongest(influence, source, "target", "greater")
    z = influence.z
    if z.shape[1] < 2:
        raise InputError("leaks need the influence on single target examples: estimate it with study.influence()")
    top = np.partition(z, -2, axis=1)
    table["lead"] = top[:, -1] - top[:, -2]
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

    Returns
    -------
    DataFrame, a row for each source example: `source` its number, `label` its class, `column` of the influence where
    it hurts most, `influence` and `stderr` there, `q`, the false discovery rate at which it hurts, and `z`

    >>> values = np.array([[0.1], [-0.5], [0.0]])
    >>> found = dtl.Influence(values, np.full((3, 1), 0.1), np.ones(1), "difference", "paired", 100)
    >>> dtl.misleading(found, problem.source.subset(range(3)))[["source", "z"]].values[0].tolist()
    [1.0, -5.0]
    """
    table = _strongest(influence, source, "column", "less")
    table.insert(1, "label", np.array(source.classes)[source.labels.numpy()])
    return table.assign(z=influence.z.min(axis=1)).sort_values("z", kind="stable", ignore_index=True)


def _strongest(influence: Influence, source: ImageDataset, name: str, alternative: str) -> pd.DataFrame:
    """Influence of each source example in its strongest column, at a false discovery rate that pays for the choice."""
    check_kind(influence, "dtl.Influence", "influence")
    check_kind(source, "dtl.ImageDataset", "source")
    z, (n_rows, n) = influence.z, influence.values.shape
    if n_rows != len(source):
        raise InputError(
            f"the influence is of {n_rows} units but the source has {len(source)} examples: leaks and misleading "
            'examples need a study of examples, dtl.Study(problem, unit="example")'
        )
    if influence.data.get("source", source.fingerprint) != source.fingerprint:
        raise InputError(f"the influence is of problem {influence.problem}, whose source has other images: give those")
    at = np.arange(n_rows), z.argmax(axis=1) if alternative == "greater" else z.argmin(axis=1)
    table = {"source": at[0], name: at[1], "influence": influence.values[at], "stderr": influence.stderr[at]}
    return pd.DataFrame(table | {"q": false_discovery_control(np.minimum(1, n * influence.p_values(alternative)[at]))})


def similarity(source: ImageDataset, target: ImageDataset, aligned: bool = True) -> np.ndarray:
    """Correlation of the pixels of every source and target image, (N, n): the usual test for near duplicates.

    Every channel is measured from its own mean, so that a cast in common is no likeness; images of more than 32 pixels
    a side are reduced to that.

    Parameters
    ----------
    aligned : also try quarter turns, mirror images, shifts of up to a sixteenth of the side and magnification by 8/7,
        and keep the best (registration by normalised cross-correlation, Lewis 1995); a picture without colour is
        compared in grey. Tried on pairs that are among the eight likeliest of either picture in small grey versions

    >>> like = similarity(problem.source, problem.target_test)
    >>> like.shape
    (480, 40)
    """
    if check_kind(source, "dtl.ImageDataset", "source").size != check_kind(target, "dtl.ImageDataset", "target").size:
        raise InputError(f"images must have one size, not {source.size} and {target.size}")
    a, b = (_reduced(dataset.images, 32) for dataset in (source, target))
    like = (_unit(a) @ _unit(b).T).numpy()
    if not aligned:
        return like
    rough = np.full_like(like, -1)
    for x, y in _alignments(*(_reduced(z.mean(1, keepdim=True), 16) for z in (a, b)), magnify=False):
        np.maximum(rough, (x @ y.T).numpy(), out=rough)
    likely = np.zeros(rough.shape, dtype=bool)
    for axis, k in enumerate(min(8, n) for n in rough.shape):
        np.put_along_axis(likely, np.argpartition(-rough, k - 1, axis).take(range(k), axis), True, axis)
    pairs = np.stack(np.nonzero(likely & (rough > ROUGHLY)))
    for i, j in np.split(pairs, range(1024, pairs.shape[1], 1024), axis=1):
        one, other = a[i], b[j]
        grey = (_colourless(one) | _colourless(other))[:, None, None, None]
        one, other = (torch.where(grey, z.mean(1, keepdim=True), z) for z in (one, other))
        best = torch.stack([(x * y).sum(1) for x, y in _alignments(one, other)]).amax(0)
        like[i, j] = np.maximum(like[i, j], best.numpy())
    return like


def _reduced(images: torch.Tensor, side: int) -> torch.Tensor:
    height, width = images.shape[2:]
    return F.adaptive_avg_pool2d(images.float(), (min(height, side), min(width, side)))


def _unit(images: torch.Tensor) -> torch.Tensor:
    """Each channel from its mean, each image to length 1: (n, channels * height * width); zero without contrast."""
    flat = (images - images.mean((2, 3), keepdim=True)).flatten(1)
    return flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-3)


def _colourless(images: torch.Tensor) -> torch.Tensor:
    return (images.amax(1) - images.amin(1)).amax((1, 2)) < 8


def _alignments(a: torch.Tensor, b: torch.Tensor, magnify: bool = True) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Two sets of images, each cut to where they overlap, by `_unit`, for every way to lay one on the other."""
    height, width = a.shape[2:]
    reach = range(-(max(height, width) // 16 or 1), (max(height, width) // 16 or 1) + 1)
    turns = range(4) if height == width else (0, 2)

    def overlap(images: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
        return images[:, :, max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]

    def closer(images: torch.Tensor) -> torch.Tensor:
        top, left = height // 16, width // 16
        return F.interpolate(images[:, :, top : height - top, left : width - left], (height, width), mode="bicubic")

    for one, other in [(a, b), (closer(a), b), (a, closer(b))] if magnify else [(a, b)]:
        for dy, dx in product(reach, reach):
            y = _unit(overlap(other, -dy, -dx))
            for turned in (one.rot90(k, (2, 3)) for k in turns):
                for seen in (turned, turned.flip(3)):
                    yield _unit(overlap(seen, dy, dx)), y


def near_duplicates(source: ImageDataset, threshold: float = 0.93, linked: str = "chains") -> np.ndarray:
    """Group of each source example, int (N,), of which a group is copies of one picture, as `similarity` finds them.

    Parameters
    ----------
    threshold : of near duplicates; above it are, of 20 million pairs of unrelated 32-pixel photographs none (25 at .9);
        among far more pairs two empty landscapes can reach .96, so look at what is found
    linked : "chains": examples are in one group if a chain of near duplicates links them, so that the ends of a chain
        may differ (the log says in how many groups); "pairs": any two of a group are near duplicates (complete linkage)

    >>> groups = near_duplicates(problem.source)
    >>> groups.shape
    (480,)
    """
    check_kind(source, "dtl.ImageDataset", "source")
    check_between(threshold, "threshold")
    choice(linked, ("chains", "pairs"), "linked")
    n, (_, first, same) = len(source), np.unique(source.digests, return_index=True, return_inverse=True)
    # equal images without contrast correlate with none
    rows, columns, values = [np.arange(n)], [first[same]], [np.ones(n)]
    for block in np.array_split(np.arange(n), -(-n // 2048)):
        like = similarity(source.subset(block), source)
        i, j = np.nonzero(like > threshold)
        rows, columns, values = [*rows, block[i]], [*columns, j], [*values, like[i, j]]
    near = coo_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(n, n)).tocsr()
    near = near.maximum(near.T).tocsr()
    groups, chains = connected_components(near, directed=False)[1], 0
    for group in np.flatnonzero(np.bincount(groups) > 2):
        members = np.flatnonzero(groups == group)
        apart = 1 - np.minimum(near[members][:, members].toarray(), 1)
        np.fill_diagonal(apart, 0)
        if (apart > 1 - threshold).any():
            chains += 1
            if linked == "pairs":
                parts = fcluster(complete(squareform(apart, checks=False)), 1 - threshold, "distance")
                groups[members] = groups.max() + parts
    if chains and linked == "chains":
        logger.info("%d of %d groups are chains: not any two of their pictures are alike", chains, groups.max() + 1)
    return np.unique(groups, return_inverse=True)[1]


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
    if included.ndim != 2:
        raise InputError(f"masks must be bool, models x examples, not {included.shape}")
    if groups.shape != included.shape[1:]:
        raise InputError(f"groups must hold one number for each of {included.shape[1]} examples, not {groups.shape}")
    numbers, starts = np.unique(np.sort(groups), return_index=True)
    if not np.array_equal(numbers, np.arange(len(numbers))):
        raise InputError(f"groups must be numbered 0, 1, ... without gaps, not {numbers.tolist()}")
    return np.logical_or.reduceat(included[:, np.argsort(groups, kind="stable")], starts, axis=1)
