"""Designs: exact counts for every K, rows that depend on (seed, j) alone, one clear error per bad argument."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtl.design import DESIGNS, block_length, subset_masks


@pytest.mark.parametrize("n_units", [*range(2, 251), 1000])
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
    ("arguments", "message"),
    [
        (dict(n_units=1), "n_units must be at least 2, got 1"),
        (dict(n_units=2.5), "n_units must be an integer, got 2.5"),
        (dict(n_models=1), "n_models must be at least 2, got 1"),
        (dict(n_models="9"), "n_models must be an integer, got '9'"),
        (dict(seed=-1), "seed must be at least 0"),
        (dict(seed=0.5), "seed must be an integer"),
        (dict(start=8), "start must be below n_models = 8"),
        (dict(design="latin"), "Unknown design 'latin': choose one of balanced, random, paired"),
        (dict(fraction=0.0), "fraction must lie strictly between 0 and 1"),
        (dict(fraction=1), "fraction must lie strictly between 0 and 1"),
        (dict(fraction=float("nan")), "fraction must lie strictly between 0 and 1"),
        (dict(fraction=0.3), 'use design="random"'),
        (dict(fraction=0.3, design="paired"), 'use design="random"'),
        (dict(fraction=0.01, design="random"), "fraction 0.01 of 10 units is 0"),
        (dict(fraction=0.99, design="random"), "fraction 0.99 of 10 units is 10"),
    ],
)
def test_bad_arguments_get_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        subset_masks(**(dict(n_units=10, n_models=8) | arguments))
