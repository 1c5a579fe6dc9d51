"""Which classes (or examples) each source model sees: the subset masks of a study.

Three designs, all of them with every class in half of the subsets (``random``: in a chosen fraction):

``balanced``
    Fold-over of a Paley-Hadamard matrix. Within a block of `block_length` models every class is in exactly half of the
    subsets, every two classes meet equally often, and each subset is followed by its complement.
``paired``
    A random exact half, then its complement, and so on.
``random``
    Independent random subsets of one exact size: Algorithm 1 of Jain et al. 2022 as published.

Row j depends on ``(n_units, design, fraction, seed, j)`` only, so a study can be resumed, extended or shared out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dtl._checks import InputError, check_between, choice, several, some, whole

DESIGNS = ("balanced", "random", "paired")
MOST = 2**32  # bytes of masks, which take one a unit


def subset_masks(
    n_units: int, n_models: int, design: str = "balanced", fraction: float = 0.5, seed: int = 0, start: int = 0
) -> np.ndarray:
    """Subset masks of models ``start`` to ``n_models - 1`` of a study, bool (n_models - start, n_units).

    Parameters
    ----------
    n_units : source classes (or examples) to include or leave out, at least 2.
    n_models : models in the study, at least 2. More models never change the earlier rows.
    design : "balanced", "random" or "paired".
    fraction : share of the units in each subset, in (0, 1). Other values than 0.5 need ``design="random"``.
    start : first row to make: ``subset_masks(K, m, start=s)`` equals ``subset_masks(K, m)[s:]``.

    >>> masks = subset_masks(20, 38)                    # one balanced block
    >>> masks.sum(axis=0).tolist() == [19] * 20         # every class in half of the 38 subsets
    True
    """
    n_units, n_models = whole("n_units", n_units, 2), whole("n_models", n_models, 2)
    seed, start = whole("seed", seed, 0), whole("start", start, 0)
    if start >= n_models:
        raise InputError(f"start must be below n_models = {n_models}, got {start}.")
    if (size := (n_models - start) * n_units) > MOST:
        raise InputError(f"subsets of {n_units} units for {n_models} models take {size / 1e9:.0f} GB: ask for fewer")
    choice(design, DESIGNS, "design")
    check_between(fraction, "fraction")
    if design == "random":
        size = round(fraction * n_units)
        if not 0 < size < n_units:
            raise InputError(f"fraction {fraction} of {n_units} units is {size}: a subset must keep some and drop some")
        return _random_subsets(n_units, size, (seed, 2), range(start, n_models))
    if fraction != 0.5:
        raise InputError(f'The {design} design has fraction 0.5 only, got {fraction}: use design="random".')
    pairs = range(start // 2, (n_models + 1) // 2)
    if design == "balanced":
        halves = _balanced_halves(n_units, pairs.start, pairs.stop, seed)
    else:
        halves = _random_subsets(n_units, n_units // 2, (seed, 1), pairs)
    masks = np.stack([halves, ~halves], axis=1).reshape(-1, n_units)
    return masks[start % 2 : start % 2 + n_models - start]


def block_length(n_units: int) -> int:
    """Number of models 2q in one balanced block for ``n_units`` classes.

    q is the smallest prime with q = 3 (mod 4) and q + 1 >= K. For K = 2, q is 1 (the Hadamard matrix of order 2),
    because q = 3 would draw the empty subset.

    >>> block_length(200)
    398
    """
    return 2 * _paley_prime(whole("n_units", n_units, 2))


def checked_design(included: Any, design: str | None) -> str:
    """The design that masks (models, units) show, or the given one, which they must not contradict.

    "balanced" if they are whole balanced blocks, else "paired" if every odd row is the complement of the row before
    it, else "random". The masks may be a dask array.

    >>> checked_design(subset_masks(20, 76), None), checked_design(subset_masks(20, 75), None)
    ('balanced', 'random')
    """
    if design is None:
        if _shape(included)[0] % 2 or not _are_complements(included):
            return "random"
        return "balanced" if is_balanced(included) else "paired"
    choice(design, DESIGNS, "design")
    if design != "random" and not _are_complements(included):
        raise InputError(f'rows of a {design} design must be pairs of complements: use design="random" for these masks')
    return design


def is_balanced(included: Any) -> bool:
    """Whether complementary pairs form whole balanced blocks: as many models, and all pairs of classes meet equally.

    >>> is_balanced(subset_masks(20, 38)), is_balanced(subset_masks(20, 40))
    (True, False)
    """
    m, n_units = _shape(included)
    length = block_length(n_units)
    if m % length:
        return False
    signs = 2 * np.asarray(included[::2], dtype=np.float32) - 1
    gram = signs.T @ signs + m // length
    return not gram[~np.eye(n_units, dtype=bool)].any()


def _shape(included: Any) -> tuple[int, int]:
    if len(np.shape(included)) != 2:
        raise InputError(f"included must be an array of masks, models x units, not {included!r}"[:300])
    return included.shape


def _are_complements(included: Any) -> bool:
    last = _shape(included)[0] // 2 * 2
    return bool((included[0:last:2] != included[1:last:2]).all())


def groups_of(classes: Sequence[str], groups: Sequence[str] | Mapping[str, str]) -> tuple[str, ...]:
    """The group of each class, from a list or from a mapping of class names; a class without one stands alone.

    >>> groups_of(("cat", "dog", "car"), {"cat": "animal", "dog": "animal"})
    ('animal', 'animal', 'car')
    """
    classes = several(classes, "classes")
    if isinstance(groups, Mapping):
        unknown = [name for name in groups if name not in classes]
        if unknown:
            raise InputError(f"groups are given for {some(unknown)}, which are no source classes")
        groups = [groups.get(name, name) for name in classes]
    groups = several(groups, "unit")
    if len(groups) != len(classes) or len(set(groups)) < 2:
        raise InputError(f"give a group for each of the {len(classes)} classes, two groups or more, not {list(groups)}")
    return tuple(map(str, groups))


def open_groups(classes: Sequence[str], groups: Sequence[str], chosen: Iterable[str]) -> tuple[str, ...]:
    """The groups with the chosen ones opened: each of their classes a unit of its own, coarse to fine.

    >>> open_groups(("cat", "dog", "car", "bus"), ("animal", "animal", "vehicle", "vehicle"), ["animal"])
    ('cat', 'dog', 'vehicle', 'vehicle')
    """
    classes, groups, chosen = several(classes, "classes"), groups_of(classes, groups), several(chosen, "chosen")
    unknown = set(chosen) - set(groups)
    if unknown:
        raise InputError(f"{', '.join(sorted(unknown))} is none of the groups {', '.join(dict.fromkeys(groups))}")
    return tuple(name if group in chosen else group for name, group in zip(classes, groups, strict=True))


def _balanced_halves(n_units: int, first: int, last: int, seed: int) -> np.ndarray:
    """Rows ``first`` to ``last - 1`` of the Hadamard blocks, without complements, shape (last - first, n_units)."""
    q = _paley_prime(n_units)
    blocks = range(first // q, (last - 1) // q + 1)
    rows = [_hadamard_block(n_units, q, seed, b, max(first - b * q, 0), min(last - b * q, q)) for b in blocks]
    return np.concatenate(rows)


def _hadamard_block(n_units: int, q: int, seed: int, block: int, first: int, last: int) -> np.ndarray:
    """Rows ``first`` to ``last - 1`` of one block, shape (last - first, n_units).

    Paley's construction I: H = [[1, 1'], [-1, Q + I]], Q[i, j] = chi(j - i) with chi the quadratic character mod q.
    Row 0, all ones, is dropped; rows and columns are permuted by (seed, block) and the first ``n_units`` columns kept.
    """
    draws = _draws(seed, (0, block), 2 * q + 1)
    rows = np.argsort(draws[:q], kind="stable")[first:last]
    columns = np.argsort(draws[q:], kind="stable")[:n_units]
    is_plus = np.zeros(q, dtype=bool)  # True at 0 (the diagonal of Q + I) and at the quadratic residues
    is_plus[np.arange(q, dtype=np.int64) ** 2 % q] = True
    # Column q stands for the border column of -1; its lookup below is overwritten.
    return is_plus[(columns[None, :] - rows[:, None]) % q] & (columns < q)


def _random_subsets(n_units: int, size: int, key: tuple[int, int], rows: range) -> np.ndarray:
    """Independent subsets of one exact size, each from the seed and the stream of `key`, and its number."""
    masks = np.zeros((len(rows), n_units), dtype=bool)
    for mask, row in zip(masks, rows, strict=True):
        mask[np.argsort(_draws(key[0], (key[1], row), n_units), kind="stable")[:size]] = True
    return masks


def _draws(seed: int, key: tuple[int, int], size: int) -> np.ndarray:
    """Raw 64-bit draws: NumPy fixes this stream for good, but not that of ``Generator.permutation``."""
    return np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)).random_raw(size)


def _paley_prime(n_units: int) -> int:
    if n_units == 2:
        return 1
    q = 3
    while q + 1 < n_units or any(q % d == 0 for d in range(3, math.isqrt(q) + 1, 2)):
        q += 4
    return q
