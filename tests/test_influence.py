"""Influences against a brute-force Algorithm 1, the known truth of simulated worlds, symmetries, and bad input."""

import dataclasses
import logging
import math
import re
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dtl._checks import InputError
from dtl._estimators import SOLVERS
from dtl._evaluate import linear_datamodeling_score
from dtl.design import DESIGNS, block_length, subset_masks
from dtl.influence import Influence, estimate_influence, group_means, models_needed

METHODS = ("difference", "ols", "ridge")
K = 20  # q + 1 for the prime q = 19: balanced blocks of 38 models with subsets of exactly 10 classes


class World:
    """Outputs with known influences: additive + pairwise + third-order effects of the classes + training noise.

    ``shares`` are the variances of these four parts over random halves, for each of ``n`` targets.
    """

    def __init__(self, shares, n=16, n_classes=K, seed=0):
        rng = np.random.default_rng([seed, 1])
        additive, even, odd, noise = shares
        self.n_classes, self.rng, self.noise = n_classes, np.random.default_rng([seed, 2]), np.sqrt(noise)
        beta = rng.normal(size=(n_classes, n))
        beta -= beta.mean(axis=0)
        # Over halves of fixed size, Var(sum z_c beta_c) = K/(K-1) sum(beta^2) / 4 for centred beta.
        self.beta = beta * np.sqrt(4 * additive * (n_classes - 1) / n_classes / (beta**2).sum(axis=0))
        self.pairs = np.array(list(combinations(range(n_classes), 2)))
        triples = np.array(list(combinations(range(n_classes), 3)))
        self.triples = triples[rng.choice(len(triples), size=min(len(triples), 100), replace=False)]
        self.pair_effects = rng.normal(size=(len(self.pairs), n)) * np.sqrt(even / len(self.pairs))
        self.triple_effects = rng.normal(size=(len(self.triples), n)) * np.sqrt(odd / len(self.triples))

    @property
    def influence(self):
        """Algorithm 1's expectation over exact halves, shape (K, n); pairwise effects do not enter it."""
        k = self.n_classes
        member = (self.triples[:, :, None] == np.arange(k)).any(axis=1)
        # E[s_a s_b s_c s_e] over halves: 3/((K-1)(K-3)) for four classes; E[s_b s_c] = -1/(K-1) where e is one of them.
        product = np.where(member, -1 / (k - 1), 3 / ((k - 1) * max(k - 3, 1)))
        return k / (k - 1) * (self.beta - self.beta.mean(axis=0)) + 2 * product.T @ self.triple_effects

    def outputs(self, masks):
        signs = masks * 2.0 - 1
        effects = masks @ self.beta
        effects += (signs[:, self.pairs[:, 0]] * signs[:, self.pairs[:, 1]]) @ self.pair_effects
        effects += signs[:, self.triples].prod(axis=2) @ self.triple_effects
        return effects + self.noise * self.rng.normal(size=effects.shape)


class Trial(NamedTuple):
    coverage: float  # share of the 95% intervals that hold the truth
    stated_error: float  # root mean square over classes, targets and repetitions
    actual_error: float
    correlation: float  # mean squared correlation with the truth over classes


def trial(method, design, n_models, shares, repetitions, n_classes=K):
    """Repeats a whole study on new worlds, designs and noise."""
    inside, stated, actual, correlation = [], [], [], []
    for seed in range(repetitions):
        world = World(shares, n_classes=n_classes, seed=seed)
        masks, truth = subset_masks(n_classes, n_models, design, seed=seed), world.influence
        estimate = estimate_influence(masks, world.outputs(masks), method, design)
        error = estimate.values - truth
        inside.append(np.abs(error) <= 1.96 * estimate.stderr)
        stated.append(estimate.stderr**2)
        actual.append(error**2)
        correlation.append([np.corrcoef(e, t)[0, 1] ** 2 for e, t in zip(estimate.values.T, truth.T, strict=True)])
    means = [float(np.mean(x)) for x in (inside, stated, actual, correlation)]
    return Trial(means[0], means[1] ** 0.5, means[2] ** 0.5, means[3])


def algorithm_1(masks, outputs):
    """Step 3 of Algorithm 1 (Jain et al. 2022) as printed: a loop over classes and targets."""
    influence = np.zeros((masks.shape[1], outputs.shape[1]))
    for k in range(masks.shape[1]):
        for j in range(outputs.shape[1]):
            with_class = [outputs[i, j] for i in range(len(masks)) if masks[i, k]]
            without = [outputs[i, j] for i in range(len(masks)) if not masks[i, k]]
            influence[k, j] = sum(with_class) / len(with_class) - sum(without) / len(without)
    return influence


@given(
    n_classes=st.integers(2, 12),
    n_models=st.integers(12, 60),
    design=st.sampled_from(DESIGNS),
    dtype=st.sampled_from([np.float32, np.float64, bool]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_difference_is_algorithm_1(n_classes, n_models, design, dtype, seed):
    masks = subset_masks(n_classes, n_models, design, seed=seed)
    if masks.all(axis=0).any() or not masks.any(axis=0).all():
        return
    outputs = np.random.default_rng(seed).normal(3, 1, size=(n_models, 4)).astype(dtype)
    expected = algorithm_1(masks, outputs.astype(float))
    for given_design in (None, design):
        values = estimate_influence(masks, outputs, design=given_design).values
        np.testing.assert_allclose(values, expected, atol=1e-9 if dtype == np.float64 else 2e-6)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shares", [(0.4, 0.3, 0.0, 0.3), (0.3, 0.2, 0.1, 0.4), (0.6, 0.0, 0.0, 0.4)])
def test_intervals_cover_the_truth(method, design, shares):
    result = trial(method, design, 152, shares, repetitions=40)
    assert 0.93 <= result.coverage <= 0.97
    assert 0.9 <= result.stated_error / result.actual_error <= 1.15


@pytest.mark.parametrize("design", DESIGNS)
def test_ridge_intervals_cover_where_signal_is_weak_or_models_are_few(design):
    assert 0.93 <= trial("ridge", design, 152, (0.1, 0.1, 0.0, 0.8), repetitions=40).coverage <= 0.97
    assert 0.93 <= trial("ridge", design, 76, (0.4, 0.3, 0.0, 0.3), repetitions=40).coverage <= 0.97


@pytest.mark.parametrize(("design", "n_models", "k"), [("random", 60, 20), ("paired", 80, 20), ("random", 30, 40)])
def test_ridge_is_least_squares_with_the_penalty_of_cross_validation(design, n_models, k):
    """By hat matrices, one for each penalty; the errors are those of the smallest penalty that fits about as well."""
    world = World((0.4, 0.2, 0.0, 0.4), n=3, n_classes=k)
    masks = subset_masks(k, n_models, design)
    y = world.outputs(masks)
    x, d, nuisance = 1.0 * masks, y, np.ones((n_models, 1))
    if design == "paired":
        x, d, nuisance = 2.0 * masks[::2] - 1, y[::2] - y[1::2], np.zeros((n_models // 2, 0))
    nuisance = np.hstack([nuisance, x.sum(axis=1, keepdims=True)])
    contrasts, rest = np.eye(k) - 1 / k, np.eye(len(x)) - nuisance @ np.linalg.pinv(nuisance)
    x, d, dof = rest @ x @ contrasts, rest @ d, len(x) - np.linalg.matrix_rank(nuisance)
    fits = []
    for penalty in np.logspace(-4, 2, 49) * np.linalg.eigvalsh(x.T @ x).max():
        inverse = np.linalg.inv(x.T @ x + penalty * np.eye(k))
        hat = x @ inverse @ x.T
        left = dof - np.trace(hat)
        if left >= dof / 3:
            squares = ((d - hat @ d) ** 2).sum(axis=0)
            fits.append((len(x) * np.log(squares / left**2), inverse, squares / left))
    found = estimate_influence(masks, y, "ridge", design)
    for j in range(3):
        scores = [score[j] for score, *_ in fits]
        _, inverse, _ = fits[int(np.argmin(scores))]
        np.testing.assert_allclose(found.values[:, j], k / (k - 1) * inverse @ x.T @ d[:, j], rtol=1e-5, atol=1e-8)
        _, inverse, variance = next(fit for fit, score in zip(fits, scores, strict=True) if score <= min(scores) + 2)
        spread = np.diag(contrasts @ inverse @ contrasts) * variance[j]
        np.testing.assert_allclose(found.stderr[:, j], k / (k - 1) * np.sqrt(spread), rtol=1e-5)


def test_ridge_beats_the_difference_with_fewer_models_than_classes(caplog):
    shares = (0.4, 0.3, 0.0, 0.3)
    ridge, difference = (trial(method, "random", 30, shares, 20, n_classes=40) for method in ("ridge", "difference"))
    assert ridge.actual_error < 0.7 * difference.actual_error and ridge.coverage > 0.9
    assert "Few models for ridge" in caplog.text


@pytest.mark.parametrize("method", METHODS)
def test_intervals_cover_where_balanced_subsets_differ_in_size(method):
    """19 of 20 columns. The worlds have no common level, so the difference in means keeps its estimand but for 0.3%."""
    assert 0.93 <= trial(method, "balanced", 152, (0.4, 0.3, 0.0, 0.3), repetitions=40, n_classes=19).coverage <= 0.97


def test_welch_errors_agree_with_scipy():
    masks = subset_masks(K, 50, "random")
    outputs = World((0.4, 0.3, 0, 0.3)).outputs(masks)
    estimate = estimate_influence(masks, outputs)
    for c in range(0, K, 5):
        statistic: Any = scipy.stats.ttest_ind(outputs[masks[:, c]], outputs[~masks[:, c]], equal_var=False)[0]
        np.testing.assert_allclose(estimate.values[c] / estimate.stderr[c], statistic)
    assert estimate.dof == 50 - 2


@pytest.mark.parametrize("n_classes", [18, 20])
def test_block_residuals_agree_with_a_general_least_squares(n_classes):
    n_models = 3 * block_length(n_classes)
    masks = subset_masks(n_classes, n_models)
    outputs = World((0.4, 0.2, 0.1, 0.3), n_classes=n_classes).outputs(masks)
    signs, d = masks[::2] * 2.0 - 1, outputs[::2] - outputs[1::2]
    fitted = signs @ np.linalg.lstsq(signs, d, rcond=None)[0]
    dof = len(d) - np.linalg.matrix_rank(signs)
    expected = np.sqrt(((d - fitted) ** 2).sum(axis=0) / dof / len(d))
    np.testing.assert_allclose(estimate_influence(masks, outputs).stderr, np.tile(expected, (n_classes, 1)))


@pytest.mark.parametrize(
    ("method", "design", "variance"),
    [  # a quarter of Var(estimate), from m models and the shares a (additive), e (even), o (odd), n (noise)
        ("difference", "random", lambda m, a, e, o, n: (a + e + o + n) / m),
        ("ols", "random", lambda m, a, e, o, n: (e + o + n) / (m - K)),
        ("difference", "paired", lambda m, a, e, o, n: (2 * a + 2 * o + n) / m),
        ("ols", "paired", lambda m, a, e, o, n: (2 * o + n) / (m - 2 * K)),
        ("difference", "balanced", lambda m, a, e, o, n: (2 * o + n) / m),
        ("ols", "balanced", lambda m, a, e, o, n: (2 * o + n) / m),
    ],
)
@pytest.mark.parametrize("shares", [(0.3, 0.3, 0.1, 0.3), (0.3, 0.55, 0.0, 0.15)])
def test_errors_follow_the_closed_forms(method, design, variance, shares):
    result = trial(method, design, 190, shares, repetitions=30)
    expected = 4 * variance(190, *shares)
    assert result.actual_error**2 == pytest.approx(expected, rel=0.06)
    # Var(influence) over classes is 4a/(K-1): 1/(1+q) up to the upward bias of a squared correlation over 20 classes.
    assert result.correlation == pytest.approx(1 / (1 + expected * (K - 1) / (4 * shares[0])), abs=0.025)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("method", METHODS)
def test_reliability_estimates_the_squared_correlation_with_the_truth(method, design):
    stated, actual = [], []
    for seed in range(20):
        world = World((0.4, 0.2, 0.0, 0.4), seed=seed)
        masks = subset_masks(K, 190, design, seed=seed)
        estimate = estimate_influence(masks, world.outputs(masks), method)
        stated.append(estimate.reliability.mean())
        actual.append(np.corrcoef(estimate.values[:, 0], world.influence[:, 0])[0, 1] ** 2)
        assert estimate.reliability.shape == (16,) and (0 <= estimate.reliability).all()
    assert np.mean(stated) == pytest.approx(np.mean(actual), abs=0.04)


@pytest.mark.parametrize(("signal", "most"), [(0.0, 0.18), (0.3, 0.015), (0.5, 0.015), (0.8, 0.01)])
def test_few_classes_do_not_lower_the_reliability(signal, most):
    """Of 800 columns, each a signal of 24 classes under noise of a known share; two blocks of models."""
    rng, masks = np.random.default_rng(1), subset_masks(24, 92)
    truth = rng.normal(size=(24, 800)) * (signal / 92) ** 0.5
    noise = rng.normal(size=(92, 800)) * ((1 - signal) / 4 * 23 / 24) ** 0.5
    found = estimate_influence(masks, masks @ truth + noise)
    if not signal:
        assert found.reliability.mean() < most
    else:
        true = [np.corrcoef(a, b)[0, 1] ** 2 for a, b in zip(found.values.T, truth.T, strict=True)]
        assert found.reliability.mean() == pytest.approx(np.mean(true), abs=most)


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_ols_and_difference_estimate_the_same_for_any_subset_size(fraction):
    rng = np.random.default_rng(0)
    beta = rng.normal(2, 1, size=(10, 3))
    truth = 10 / 9 * (beta - beta.mean(axis=0))
    masks = subset_masks(10, 40, "random", fraction)
    np.testing.assert_allclose(estimate_influence(masks, masks @ beta, "ols").values, truth, atol=1e-9)
    masks = subset_masks(10, 20_000, "random", fraction)
    np.testing.assert_allclose(estimate_influence(masks, masks @ beta).values, truth, atol=0.15)


def test_ols_removes_the_effect_of_subset_sizes():
    masks = subset_masks(13, 2 * block_length(13))  # 13 of 20 columns: subset sizes differ
    assert len(set(masks.sum(axis=1))) > 1
    beta = np.random.default_rng(0).normal(5, 1, size=(13, 2))
    for method in ("ols", "ridge"):
        values = estimate_influence(masks, masks @ beta, method).values
        np.testing.assert_allclose(values, 13 / 12 * (beta - beta.mean(axis=0)), rtol=1e-3)


@pytest.mark.parametrize("blocks", [1, 3])
def test_difference_equals_ols_in_whole_balanced_blocks(blocks):
    masks = subset_masks(K, blocks * 38)
    outputs = World((0.4, 0.2, 0.1, 0.3)).outputs(masks)
    difference, ols = estimate_influence(masks, outputs), estimate_influence(masks, outputs, "ols")
    np.testing.assert_allclose(ols.values, difference.values, atol=1e-12)
    np.testing.assert_allclose(ols.stderr, difference.stderr)


@pytest.mark.parametrize(
    ("n_models", "message"), [(38, "sums over pairs"), (57, "inside a block"), (58, "inside a block")]
)
def test_balanced_designs_without_residuals_have_conservative_errors(n_models, message, caplog):
    with caplog.at_level(logging.WARNING):
        result = trial("difference", "balanced", n_models, (0.4, 0.2, 0.0, 0.4), repetitions=30)
    assert result.coverage >= 0.945 and 1 <= result.stated_error / result.actual_error < 2
    assert message in caplog.text


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("level", [0, 1000])
def test_float32_outputs_lose_nothing_that_matters(design, level):
    masks = subset_masks(K, 3800, design)
    outputs = (World((0.4, 0.2, 0.1, 0.3)).outputs(masks) + level).astype(np.float32)
    single, double = estimate_influence(masks, outputs), estimate_influence(masks, outputs.astype(np.float64))
    assert single.values.dtype == single.stderr.dtype == np.float32
    assert (np.abs(single.values - double.values) < 1e-4 * double.stderr).all()
    np.testing.assert_allclose(single.stderr, double.stderr, rtol=1e-4)
    np.testing.assert_allclose(single.reliability, double.reliability, atol=1e-6)


def test_design_is_recognised_from_the_masks():
    outputs = np.random.default_rng(0).normal(size=(80, 2))

    def recognised(masks):
        return estimate_influence(masks, outputs[: len(masks)]).design

    assert recognised(subset_masks(K, 76)) == "balanced"
    assert recognised(subset_masks(K, 78)) == "paired"  # not whole blocks
    assert recognised(subset_masks(K, 80, "paired")) == "paired"
    assert recognised(subset_masks(K, 76, "paired")) == "paired"
    assert recognised(subset_masks(K, 80, "random")) == "random"
    assert recognised(subset_masks(K, 75)) == "random"  # an odd number of models: the last has no complement


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("method", METHODS)
def test_equivariance(method, design):
    """Order of classes, models (pairs) and targets, level and scale of outputs, tiles: nothing else changes."""
    rng = np.random.default_rng(1)
    masks = subset_masks(K, 114, design)
    outputs = World((0.4, 0.2, 0.1, 0.3), n=5).outputs(masks)
    reference = estimate_influence(masks, outputs, method, design)

    def same(masks, outputs, classes: Any = slice(None), targets: Any = slice(None), scale=1.0):
        other = estimate_influence(masks, outputs, method, design)
        np.testing.assert_allclose(other.values, scale * reference.values[classes][:, targets], atol=1e-10)
        np.testing.assert_allclose(other.stderr, abs(scale) * reference.stderr[classes][:, targets], rtol=1e-6)
        np.testing.assert_allclose(other.reliability, reference.reliability[targets], rtol=1e-6)

    classes, targets = rng.permutation(K), rng.permutation(5)
    models = rng.permutation(57).repeat(2) * 2 + np.tile([0, 1], 57)
    if design == "random":
        models = rng.permutation(114)
    same(masks[:, classes], outputs, classes=classes)
    same(masks, outputs[:, targets], targets=targets)
    same(masks, outputs[:, :1], targets=[0])
    same(masks[models], outputs[models])
    same(masks, outputs + [1e3, -7.0, 0.0, 1.0, 50.0])
    same(masks, -3 * outputs, scale=-3.0)
    same(masks.astype(int), outputs)
    if design != "random":  # the two models of a pair swap places
        swapped = np.arange(114) ^ 1
        same(masks[swapped], outputs[swapped])


def test_tiles_give_the_same_result(monkeypatch):
    masks = subset_masks(K, 76)
    outputs = World((0.4, 0.2, 0.1, 0.3)).outputs(masks).astype(np.float32)
    whole = estimate_influence(masks, outputs, "ridge")
    monkeypatch.setattr("dtl.influence._TILE", 76 * 3)
    tiled = estimate_influence(masks, outputs, "ridge")
    np.testing.assert_allclose(tiled.values, whole.values)
    np.testing.assert_allclose(tiled.stderr, whole.stderr)


@pytest.mark.parametrize("method", METHODS)
def test_a_target_that_never_varies_has_no_influence(method):
    outputs = np.full((76, 1), 0.1)
    for design in DESIGNS:
        estimate = estimate_influence(subset_masks(K, 76, design), outputs, method)
        assert (estimate.values == 0).all() and (estimate.stderr == 0).all() and estimate.reliability.tolist() == [0]


def test_two_models_have_values_and_infinite_errors(caplog):
    masks = np.array([[1, 0], [0, 1]])
    for design in DESIGNS:
        estimate = estimate_influence(masks, [[2.0], [1.0]], design=design)
        assert estimate.values.ravel().tolist() == [1, -1] and np.isinf(estimate.stderr).all()
        assert estimate.reliability.tolist() == [0]
    assert "too few for standard errors" in caplog.text


def test_a_class_in_one_subset_only_gets_the_pooled_variance(caplog):
    """As scipy's test of equal variances does; from two subsets on, and where all but two hold a class, Welch's."""
    masks = np.array(
        [[1, 0, 0, 0, 1], [0, 1, 0, 1, 1], [0, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 0, 0, 1, 0]]
    )
    y = np.array([[2.0], [1.0], [4.0], [3.0], [7.0], [5.0]])
    estimate = estimate_influence(masks, y, design="random")
    for c, pooled in enumerate([True, False, False, True, False]):
        with_it, without = y[masks[:, c] == 1], y[masks[:, c] == 0]
        statistic: Any = scipy.stats.ttest_ind(with_it, without, equal_var=pooled)[0]
        np.testing.assert_allclose(estimate.values[c] / estimate.stderr[c], statistic, rtol=1e-6)
    message = "A class is in, or left out of, one subset only: its standard errors use the pooled variance."
    assert caplog.messages.count(message) == 1


@pytest.mark.parametrize(
    ("method", "design", "pilot"),
    [("difference", "random", 400), ("ols", "random", 200), ("ols", "paired", 200), ("ridge", "paired", 200)]
    + [("difference", "balanced", 190)],
)
def test_models_needed_predicts_the_reliability_reached(method, design, pilot):
    world = World((0.4, 0.2, 0.0, 0.4), n=100)
    masks = subset_masks(K, pilot, design)
    needed = models_needed(estimate_influence(masks, world.outputs(masks), method), 0.9)
    assert needed % {"random": 1, "paired": 2, "balanced": 38}[design] == 0
    masks = subset_masks(K, needed, design, seed=1)
    reached = estimate_influence(masks, world.outputs(masks), method)
    truth = world.influence
    actual = np.mean([np.corrcoef(reached.values[:, j], truth[:, j])[0, 1] ** 2 for j in range(100)])
    assert actual == pytest.approx(0.9, abs=0.03) or (design == "balanced" and actual > 0.9)


@pytest.mark.parametrize("n_models", [30, 400])
@pytest.mark.parametrize(
    ("method", "design", "lost", "step"),
    [("difference", "random", 0, 1), ("ols", "random", 12, 1), ("ols", "paired", 24, 2), ("ridge", "paired", 0, 2)]
    + [("ols", "balanced", 0, 22)],
)
def test_models_needed_is_the_first_number_that_reaches_it(method, design, lost, step, n_models):
    rng, images = np.random.default_rng(0), 0.2
    values, stderr = rng.normal(size=(12, 5)), rng.uniform(0.3, 0.6, size=(12, 5))
    noise = (stderr**2 - images**2).mean(axis=0)
    spread = values.var(axis=0) + (noise if method == "ridge" else 0)

    def corrected(noise, spread, dof):
        plain = 1 - noise / spread
        return plain + 2 / dof * (1 - plain) * plain / (plain + 2 / dof)

    now, most = corrected(noise.sum(), spread.sum(), 55), 0.9
    found = Influence(values, stderr, most * corrected(noise, spread, 11), method, design, n_models)
    found = dataclasses.replace(found, image_stderr=images)
    for wanted in (0.01, 0.5, 0.7, 0.85):
        models = step * math.ceil(2 / step)
        while models <= lost or most / (1 + (1 - now) / now * (n_models - lost) / (models - lost)) < wanted:
            models += step
        assert models_needed(found, wanted) == models
    with pytest.raises(InputError, match=r"at most 0\.90: take more target images"):
        models_needed(found, most + 1e-9)
    with pytest.raises(InputError, match=r"at most 0\.00: take more"):
        models_needed(dataclasses.replace(found, reliability=np.full(5, -1e-9)), 0.5)


@pytest.mark.parametrize(("design", "n_models"), [("random", 61), ("paired", 80), ("balanced", 76)])
def test_the_reliability_that_there_is_needs_the_models_that_there_are(design, n_models):
    masks = subset_masks(K, n_models, design)
    y = masks @ np.arange(float(K))[:, None] / 10 + np.random.default_rng(0).normal(size=(n_models, 1))
    found = estimate_influence(masks, y, design=design)
    assert models_needed(found, float(found.reliability[0])) == n_models


def test_models_needed_refuses_what_it_cannot_know():
    masks = subset_masks(K, 76)
    noise = estimate_influence(masks, np.random.default_rng(0).normal(size=(76, 400)))
    with pytest.raises(ValueError, match="No measurable signal with 76 models: .* train more models first"):
        models_needed(Influence(noise.values / 2, noise.stderr, noise.reliability, "difference", "balanced", 76))
    for reliability in (0, 1, 80, float("nan")):
        with pytest.raises(ValueError, match="reliability must lie strictly between 0 and 1"):
            models_needed(noise, reliability)


def test_whole_blocks_leave_these_degrees_of_freedom(caplog):
    """Pairs less contrasts of classes, less one for sizes that differ; below ten, those of sums over pairs."""
    y = np.random.default_rng(0).normal(size=(200, 1))
    for k, m, dof in ((24, 92, 46 - 23), (11, 44, 22 - 10 - 1), (11, 22, 11 - 1), (10, 44, 22 - 9 - 1)):
        caplog.clear()
        assert estimate_influence(subset_masks(k, m), y[:m]).dof == dof, (k, m)
        assert ("sums over pairs" in caplog.text) == (m == 22)


def test_a_single_block_takes_its_errors_from_the_sums_over_pairs(caplog):
    masks, y = subset_masks(8, 14), np.random.default_rng(0).normal(size=(14, 3))
    found, sums = estimate_influence(masks, y), y[0::2] + y[1::2]
    np.testing.assert_allclose(found.stderr, np.tile(sums.std(axis=0, ddof=1) / np.sqrt(7), (8, 1)), rtol=1e-6)
    assert found.dof == 6
    assert "Only 0 residual degrees of freedom: standard errors come from the sums over pairs." in caplog.messages


@pytest.mark.parametrize(("design", "n"), [("random", 2), ("paired", 3)])
def test_models_too_few_for_errors_still_have_values(design, n, caplog):
    masks, y = np.array([[1, 0, 0, 1], [0, 1, 1, 0], [1, 0, 1, 0]], bool)[:n], np.array([[1.0], [4.0], [11.0]])[:n]
    found = estimate_influence(masks, y, design=design)
    means = [y[masks[:, c]].mean() - y[~masks[:, c]].mean() for c in range(4)]
    np.testing.assert_allclose(found.values[:, 0], means, rtol=1e-6)
    assert found.dof == 1
    assert np.isinf(found.stderr).all() and f"{n} models are too few for standard errors of a {design}" in caplog.text


def test_datamodeling_score_is_the_mean_spearman_correlation():
    world = World((0.4, 0.2, 0.0, 0.4))
    train, held_out = subset_masks(K, 114), subset_masks(K, 50, "random", seed=1)
    influence, outputs = estimate_influence(train, world.outputs(train)), world.outputs(held_out)
    outputs[:, 3] = np.round(outputs[:, 3])  # ties
    loop: Any = [scipy.stats.spearmanr(outputs[:, j], held_out @ influence.values[:, j])[0] for j in range(16)]
    score, ceiling = linear_datamodeling_score(influence, held_out, outputs)
    assert score == pytest.approx(np.mean(loop)) and 0 < ceiling < 1


@pytest.mark.parametrize("shares", [(0.6, 0.1, 0.0, 0.3), (0.2, 0.2, 0.0, 0.6)])
def test_ceiling_is_what_exact_influences_score(shares):
    world = World(shares, n=200)
    held_out = subset_masks(K, 400, "random", seed=1)
    outputs = world.outputs(held_out)
    formula = 6 / np.pi * np.arcsin(np.sqrt(shares[0]) / 2)
    exact = Influence(world.influence, np.zeros((K, 200)), np.ones(200), "difference", "balanced", 10**9)
    score, ceiling = linear_datamodeling_score(exact, held_out, outputs)
    assert score == pytest.approx(formula, abs=0.015) and ceiling == pytest.approx(formula, abs=0.015)
    # A noisy estimate scores less but knows the ceiling just as well.
    for method in METHODS:
        train = subset_masks(K, 190, seed=2)
        estimate = estimate_influence(train, world.outputs(train), method)
        lower, ceiling = linear_datamodeling_score(estimate, held_out, outputs)
        assert lower < score and ceiling == pytest.approx(formula, abs=0.03)


def test_targets_that_do_not_vary_are_left_out_of_the_score(caplog):
    world = World((0.4, 0.2, 0.0, 0.4))
    masks = subset_masks(K, 76)
    influence, outputs = estimate_influence(masks, world.outputs(masks)), world.outputs(masks)
    outputs[:, 1:] = 1.0
    score, _ = linear_datamodeling_score(influence, masks, outputs)
    assert score == pytest.approx(scipy.stats.spearmanr(outputs[:, 0], masks @ influence.values[:, 0])[0])
    assert "15 of 16 targets do not vary" in caplog.text
    with pytest.raises(ValueError, match="No target's outputs and predictions vary"):
        linear_datamodeling_score(influence, masks, np.ones((76, 16)))
    with pytest.raises(ValueError, match="20 classes on 16 targets.*20 classes and 3 targets"):
        linear_datamodeling_score(influence, masks, outputs[:, :3])


def test_group_means_and_their_errors():
    world = World((0.4, 0.2, 0.0, 0.4), n=6)
    masks = subset_masks(K, 114)
    outputs, groups = world.outputs(masks).astype(np.float32), np.array([0, 1, 1, 0, 2, 2])
    means = group_means(outputs, groups)
    expected = np.stack([outputs[:, groups == g].mean(axis=1) for g in range(3)], axis=1)
    np.testing.assert_allclose(means, expected, rtol=1e-5)
    by_group = estimate_influence(masks, means).values
    np.testing.assert_allclose(by_group, group_means(estimate_influence(masks, outputs).values, groups), atol=1e-6)
    for bad, message in [([0, 1], "disagree"), ([0, 0, 0, 0, 2, 2], "no target in 1"), ([-1] * 6, "non-negative")]:
        with pytest.raises(ValueError, match=message):
            group_means(outputs, bad)


def _with(array, index, value):
    array = array.copy()
    array[index] = value
    return array


MASKS, OUTPUTS = subset_masks(6, 40, "random"), np.random.default_rng(0).normal(size=(40, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(masks=MASKS * 2), "masks must be boolean or 0/1"),
        (dict(masks=MASKS * np.nan), "masks must be boolean or 0/1"),
        (dict(masks=MASKS[:-1]), r"got \(39, 6\) and \(40, 3\)"),
        (dict(outputs=OUTPUTS[:, 0]), r"got \(40, 6\) and \(40,\)"),
        (dict(masks=MASKS[:1], outputs=OUTPUTS[:1]), "at least two models, two classes and a target are needed"),
        (dict(masks=MASKS[:, :1]), "at least two models, two classes and a target are needed"),
        (dict(outputs=OUTPUTS[:, :0]), "at least two models, two classes and a target are needed"),
        (dict(outputs=OUTPUTS.astype(str)), "outputs must be real numbers"),
        (dict(masks=_with(MASKS, (slice(None), [1, 4]), False)), "classes never in a subset: 1, 4"),
        (dict(masks=_with(MASKS, (slice(None), 3), True)), "classes always in a subset: 3"),
        (dict(outputs=_with(OUTPUTS, ([5, 30], 1), [np.nan, np.inf])), "NaN or infinite for models 5, 30:"),
        (dict(outputs=OUTPUTS * np.nan), r"models 0, 1, 2, 3, 4, ... \(40 in all\)"),
        (dict(outputs=np.ma.masked_greater(OUTPUTS, 1)), "outputs have masked entries"),
        (dict(masks=MASKS.repeat(2, axis=0), outputs=OUTPUTS.repeat(2, axis=0)), "each model is there 2 times"),
        (dict(masks=np.tile(MASKS, (3, 1)), outputs=np.tile(OUTPUTS, (3, 1))), "each model is there 3 times"),
        (dict(outputs=[[1.0], [2.0, 3.0]]), "outputs are no array"),
        (dict(method="lasso"), "unknown method 'lasso': choose one of difference, ols, ridge"),
        (dict(design="latin"), "unknown design 'latin': choose one of balanced, random, paired"),
        (dict(design="paired"), "rows of a paired design must be pairs of complements"),
        (dict(design="balanced"), "rows of a balanced design must be pairs of complements"),
        (dict(masks=MASKS[:6], outputs=OUTPUTS[:6], method="ols"), "OLS needs more than 6 models for 6 classes"),
        (dict(masks=MASKS[:9], outputs=OUTPUTS[:9], method="ridge"), "Ridge needs at least 11 models"),
        (dict(masks=MASKS[:4].repeat(10, axis=0), method="ols"), "too few distinct subsets for OLS"),
    ],
)
def test_bad_arguments_get_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        estimate_influence(**(dict(masks=MASKS, outputs=OUTPUTS) | arguments))


@pytest.mark.parametrize("method", SOLVERS)
def test_no_solver_takes_an_unknown_design_for_pairs(method):
    with pytest.raises(InputError, match="unknown design 'latin': choose one of balanced, random, paired"):
        SOLVERS[method](MASKS.astype(float), "latin")


def test_a_cut_block_is_told_once(caplog):
    outputs = np.random.default_rng(0).normal(size=(42, 8))
    estimate_influence(subset_masks(K, 42), outputs, design="balanced", groups=np.arange(8) // 4)
    assert [record.message for record in caplog.records if "inside a block" in record.message] == [
        "The balanced design stops inside a block: standard errors are conservative, those of pairs."
    ]


def test_regressions_say_how_many_models_pairs_and_blocks_they_need():
    outputs = np.random.default_rng(0).normal(size=(40, 2))
    with pytest.raises(ValueError, match="OLS needs more than 40 models for 20 classes in a paired design, got 40"):
        estimate_influence(subset_masks(K, 40, "paired"), outputs, "ols")
    with pytest.raises(ValueError, match='within one balanced block: train more than 38 models, or use method="diff'):
        estimate_influence(subset_masks(K, 38), outputs[:38], "ridge")


@pytest.mark.parametrize(("design", "needed"), [("random", 11), ("paired", 20)])
def test_ridge_is_content_with_the_models_that_it_says_it_needs(design, needed):
    """Ten degrees of freedom are left: of models less one for the mean, or of pairs."""
    masks, outputs = subset_masks(4, needed, design), np.random.default_rng(0).normal(size=(needed, 2))
    less = needed - (1 if design == "random" else 2)
    with pytest.raises(ValueError, match=f"Ridge needs at least {needed} models for its penalty, got {less}"):
        estimate_influence(masks[:less], outputs[:less], "ridge", design=design)
    assert estimate_influence(masks, outputs, "ridge", design=design).dof == 10


def test_ridge_says_when_its_intervals_are_too_narrow(caplog):
    masks, outputs = subset_masks(8, 12, "random"), np.random.default_rng(0).normal(size=(12, 2))
    estimate_influence(masks, outputs, "ridge", design="random")
    assert not caplog.messages
    estimate_influence(masks[:11], outputs[:11], "ridge", design="random")
    assert caplog.messages == ["Few models for ridge, 11 rows for 8 classes: its 95% intervals cover about 90%."]


def test_p_values_are_those_of_a_t_test_on_pair_differences():
    rng = np.random.default_rng(0)
    masks, outputs = subset_masks(9, 30, "paired", seed=0), rng.normal(size=(30, 4))
    influence = estimate_influence(masks, outputs)
    assert influence.design == "paired" and influence.dof == 14
    signed = (2 * masks[0::2, 2] - 1)[:, None] * (outputs[0::2] - outputs[1::2])
    for alternative in ("two-sided", "greater", "less"):
        expected = scipy.stats.ttest_1samp(signed, 0, alternative=alternative).pvalue  # pyright: ignore[reportAttributeAccessIssue]
        np.testing.assert_allclose(influence.p_values(alternative)[2], expected)
    with pytest.raises(ValueError, match="unknown alternative 'more'"):
        influence.p_values("more")


def test_a_target_that_never_varies_has_z_zero():
    influence = estimate_influence(subset_masks(6, 12, "random"), np.ones((12, 2)))
    assert (influence.z == 0).all() and (influence.p_values() == 1).all()


def test_noise_alone_gives_no_false_discoveries():
    """The largest of many: with normal tails half of such studies would have one."""
    rng, found = np.random.default_rng(0), 0
    masks = subset_masks(100, 40, "paired", seed=0)
    for _ in range(40):
        influence = estimate_influence(masks, rng.normal(size=(40, 50)))
        p = np.minimum(1, 50 * influence.p_values("greater").min(axis=1))
        found += (scipy.stats.false_discovery_control(p) < 0.05).any()
    assert found <= 7  # 2 expected; 30 or so with normal tails


def test_equal_subsets_and_chance_are_no_twins():
    masks = subset_masks(4, 24)  # six subsets, four times each
    assert estimate_influence(masks, np.random.default_rng(0).normal(size=(24, 2))).n_models == 24
    assert estimate_influence(masks, np.ones((24, 2))).n_models == 24
    outputs = (np.arange(24) % 5 > 2).astype(float)[:, None]
    assert estimate_influence(masks, outputs).n_models == 24
    assert (
        estimate_influence(np.tile(MASKS, (2, 1)), np.tile(OUTPUTS, (2, 1)) + np.arange(80)[:, None] // 40).n_models
        == 80
    )


def _of(truly, by, n, **changes):
    names: dict[str, Any] = dict(by=by, problem=truly.name, data=truly.fingerprints, split="validation")
    values = np.zeros((truly.source.n_classes, n))
    return Influence(values, values, np.zeros(n), "difference", "paired", 8, **(names | changes))


def test_an_influence_knows_its_problem(problem):
    other = dataclasses.replace(problem, target_train=problem.target_test)
    _of(problem, "class", 4).check(problem, "class")
    _of(problem, "image", 40).check(problem, "image")
    _of(problem, "image", 40).check(dataclasses.replace(problem, name="renamed"))
    _of(problem, "group", 7).check(problem)
    _of(problem, "", 4, data={}, problem="").check(other, "class")  # of arrays: by the numbers of rows and columns
    with pytest.raises(InputError, match=f"are of problem {problem.name}, whose target_train differ"):
        _of(problem, "class", 4).check(other)
    for influence, by in (
        (_of(problem, "class", 4), "image"),
        (_of(problem, "group", 40), "image"),
        (_of(problem, "", 4), "image"),
    ):
        with pytest.raises(
            InputError, match=r"a column for each target image is needed, 40 in all, as study.influence\(\)"
        ):
            influence.check(problem, by)
    with pytest.raises(InputError, match="influence is of 23 classes but the source of .* has 24"):
        dataclasses.replace(_of(problem, "class", 4, data={}), values=np.zeros((23, 4))).check(problem)
    with pytest.raises(InputError, match="influence is of 24 images but the source of .* has 480"):
        _of(problem, "class", 4, unit="example").check(problem)


def test_advice_promises_no_more_than_twice_the_images_can_do():
    """Seeds at which the estimate of what is each image's own exceeds the whole of which it is a part."""
    for seed in range(20):
        outputs = np.random.default_rng(seed).normal(size=(8, 6))
        found = estimate_influence(subset_masks(6, 8, seed=seed), outputs, groups=np.zeros(6, int))
        percents = [int(number) for number in re.findall(r"by (\d+)%", found.advice)]
        assert len(percents) == 2 and max(percents) <= 29, found.advice


def test_a_table_has_a_row_for_each_target_and_source():
    values = np.arange(6.0).reshape(3, 2)
    named = Influence(
        values, values / 10, np.array([0.5, 0.7]), "ols", "random", 9, sources=("a", "b", "c"), targets=("x", "y")
    )
    table = named.to_frame().set_index(["target", "source"])
    assert table.index.tolist() == [("x", "a"), ("x", "b"), ("x", "c"), ("y", "a"), ("y", "b"), ("y", "c")]
    assert table.columns.tolist() == ["influence", "stderr", "reliability"]
    assert table["influence"].tolist() == [0, 2, 4, 1, 3, 5] and table.loc[("y", "c")].tolist() == [5, 0.5, 0.7]
    bare = Influence(values, values, np.zeros(2), "ols", "random", 9).to_frame()
    assert bare["target"].tolist() == list("000111") and bare["source"].tolist() == list("012012")


def test_check_says_what_is_needed(problem):
    def of(n, **names):
        return Influence(np.zeros((24, n)), np.ones((24, n)), np.zeros(n), "ols", "random", 9, **names)

    of(40).check(problem, by="image")
    of(4, by="class", split="test").check(problem, by="class")
    class_needed = (
        r'a column for each target class is needed, 4 in all, as study.influence\(by="class"\) gives: these are '
    )
    image_needed = r"a column for each target image is needed, 40 in all, as study.influence\(\) gives: these are "
    for influence, by, message in (
        (of(5, by="class"), "class", class_needed + "class$"),
        (of(4, by="group"), "class", class_needed + "group$"),
        (of(4), "image", image_needed + "other$"),
        (
            of(40, data=problem.fingerprints | {"source": "", "target_test": ""}),
            "image",
            "the influences are of problem arrays, whose source, target_test differ from those of testbed-0: "
            "estimate them from a study of this problem",
        ),
    ):
        with pytest.raises(InputError, match=message):
            influence.check(problem, by)
    name: Any = "testbed"
    with pytest.raises(InputError, match="problem must be a dtl.TransferProblem"):
        of(4).check(name)


def test_tensors_with_gradients_are_arrays():
    outputs = torch.tensor(OUTPUTS, requires_grad=True)
    found, expected = (estimate_influence(MASKS, y).values for y in (outputs, OUTPUTS))
    np.testing.assert_array_equal(found, expected)
