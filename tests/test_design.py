"""Designs: exact counts for every K, rows that depend on (seed, j) alone, one clear error per bad argument."""

from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtl._checks import InputError
from dtl.design import DESIGNS, block_length, checked_design, is_balanced, subset_masks


# Each residue of q + 1 - K for small q, the edges where q jumps, and what the literature has.
@pytest.mark.parametrize("n_units", [*range(2, 14), 19, 20, 21, 24, 25, 48, 49, 100, 101, 200, 250, 1000])
def test_balanced_block_has_exact_class_and_pair_counts(n_units):
    length = block_length(n_units)
    masks = subset_masks(n_units, length, seed=3)
    signs = masks.astype(np.float32) * 2 - 1  # exact: all sums are far below 2^24
    gram = signs.T @ signs
    assert (masks.sum(axis=0) == length // 2).all()
    assert (gram[~np.eye(n_units, dtype=bool)] == -2).all()
    # Equal off-diagonal products mean equal pair counts: both in, only one in, both out.
    together = masks.astype(np.float32).T @ masks.astype(np.float32)
    assert (together[~np.eye(n_units, dtype=bool)] == (length - 2) / 4).all()
    assert (masks[1::2] == ~masks[::2]).all()
    sizes = masks.sum(axis=1)
    assert sizes.min() > 0 and sizes.max() < n_units
    if length == 2 * (n_units - 1):
        assert (sizes == n_units // 2).all()


def test_block_lengths_and_subset_sizes_of_the_literature():
    lengths = {10: 22, 20: 38, 50: 118, 64: 134, 100: 206, 200: 398, 365: 734, 1000: 2038}
    assert {k: block_length(k) for k in lengths} == lengths
    sizes = subset_masks(100, 206).sum(axis=1)
    assert (sizes.min(), sizes.max()) == (48, 52)
    sizes = subset_masks(1000, 2038).sum(axis=1)
    assert 485 < sizes.min() < 500 < sizes.max() < 515


@pytest.mark.parametrize("n_units", [2, 3, 20, 37])
def test_every_block_is_balanced_and_permuted_anew(n_units):
    length = block_length(n_units)
    masks = subset_masks(n_units, 3 * length, seed=1).reshape(3, length, n_units)
    for block in masks:
        signs = block.astype(int) * 2 - 1
        assert ((signs.T @ signs)[~np.eye(n_units, dtype=bool)] == -2).all()
    if n_units > 3:
        assert (masks[0] != masks[1]).any() and (masks[1] != masks[2]).any()


@given(
    n_units=st.integers(2, 40),
    n_models=st.integers(2, 120),
    extra=st.integers(0, 120),
    start=st.integers(0, 119),
    design=st.sampled_from(DESIGNS),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_rows_depend_on_seed_and_index_only(n_units, n_models, extra, start, design, seed):
    start = min(start, n_models - 1)
    masks = subset_masks(n_units, n_models, design, seed=seed)
    assert masks.shape == (n_models, n_units) and masks.dtype == bool
    np.testing.assert_array_equal(subset_masks(n_units, n_models + extra, design, seed=seed)[:n_models], masks)
    np.testing.assert_array_equal(subset_masks(n_units, n_models, design, seed=seed, start=start), masks[start:])


@pytest.mark.parametrize("design", DESIGNS)
def test_seeds_and_rows_differ(design):
    masks = subset_masks(20, 38, design, seed=0)
    assert (masks != subset_masks(20, 38, design, seed=1)).any()
    assert len(np.unique(masks, axis=0)) == 38


@pytest.mark.parametrize("n_units", [2, 3, 20, 21])
def test_paired_rows_are_exact_halves_and_complements(n_units):
    masks = subset_masks(n_units, 50, "paired", seed=2)
    assert (masks[1::2] == ~masks[::2]).all()
    assert (masks[::2].sum(axis=1) == n_units // 2).all()


@pytest.mark.parametrize(("n_units", "fraction", "size"), [(20, 0.5, 10), (10, 0.3, 3), (7, 0.9, 6), (1000, 0.001, 1)])
def test_random_rows_have_exactly_the_asked_size(n_units, fraction, size):
    masks = subset_masks(n_units, 40, "random", fraction)
    assert (masks.sum(axis=1) == size).all()


def test_random_subsets_are_uniform():
    """All 6 pairs of 4 classes come up equally often: chi-square with 5 degrees of freedom below its 99.9% point."""
    masks = subset_masks(4, 6000, "random", seed=5)
    counts = np.unique(masks @ [1, 2, 4, 8], return_counts=True)[1]
    assert len(counts) == 6 and ((counts - 1000) ** 2 / 1000).sum() < 20.5


@pytest.mark.parametrize(
    ("design", "fraction", "expected"),
    [("balanced", 0.5, "balanced"), ("paired", 0.5, "paired"), ("random", 0.5, "random"), ("random", 0.3, "random")],
)
def test_masks_show_their_design(design, fraction, expected):
    masks = subset_masks(20, 76, design, fraction)
    assert checked_design(masks, None) == checked_design(da.from_array(masks), None) == expected
    assert is_balanced(masks) == (design == "balanced")
    assert checked_design(masks[:-1], None) == "random", "the last model has no complement"
    if design == "balanced":
        assert checked_design(masks[:74], None) == "paired", "not whole blocks"
        masks[0, [0, 1]] = ~masks[0, [0, 1]]
        masks[1, [0, 1]] = ~masks[1, [0, 1]]
        assert checked_design(masks, None) == "paired", "as long as two blocks, but not balanced"


@pytest.mark.parametrize(
    "arguments",
    [
        dict(n_units=1),
        dict(n_units=2.5),
        dict(n_models=1),
        dict(n_models="9"),
        dict(seed=-1),
        dict(seed=0.5),
        dict(start=8),
        dict(design="latin"),
        dict(fraction=0.0),
        dict(fraction=1),
        dict(fraction=float("nan")),
        dict(fraction="half"),
        dict(fraction=0.3),
        dict(fraction=0.3, design="paired"),
        dict(fraction=0.01, design="random"),
        dict(fraction=0.99, design="random"),
    ],
)
def test_bad_arguments_get_one_clear_error(arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        subset_masks(**(dict(n_units=10, n_models=8) | arguments))


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match='use design="random"'):
        subset_masks(10, 8, fraction=0.3)
    with pytest.raises(InputError, match='use design="random" for these masks'):
        checked_design(subset_masks(10, 8, "random"), "paired")


def test_more_subsets_than_memory_holds_are_refused_with_their_size():
    kinds: list[dict[str, Any]] = [{}, {"design": "random"}, {"design": "paired"}]
    for options in kinds:
        with pytest.raises(ValueError, match="subsets of 12 units for 1000000000 models take 12 GB: ask for fewer"):
            subset_masks(12, 10**9, **options)
    assert subset_masks(12, 10**9, "random", start=10**9 - 2).shape == (2, 12)
