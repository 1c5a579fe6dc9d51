"""Errors that count target images too: by hand, by drawing models and images anew, and by coverage for fresh images."""

import logging
import re

import numpy as np
import pytest

from dtl._checks import InputError
from dtl.design import DESIGNS, subset_masks
from dtl.influence import Influence, estimate_influence, group_means, models_needed

METHODS = ("difference", "ols", "ridge")
K, G = 20, 4


class World:
    """Additive effects on four target classes, on each image of them, and luck shared by all, by a class, by none."""

    def __init__(self, seed, between=0.6, noise=1.0, common=0.2):
        rng = np.random.default_rng([seed, 1])
        self.effects = rng.normal(0, 0.3, (K, G)) + rng.normal(0, common, (K, 1))
        self.between, self.noise = between, noise

    @property
    def influence(self):
        """On the classes, over all images that could be drawn."""
        return K / (K - 1) * (self.effects - self.effects.mean(axis=0))

    def outputs(self, masks, sizes, rng):
        """Of models on new images, `sizes` of each class."""
        labels = np.repeat(np.arange(G), sizes)
        n, m = len(labels), len(masks)
        effects = self.effects[:, labels] + rng.normal(0, self.between, (K, n))
        luck = rng.normal(0, 0.5, (m, 1)) + rng.normal(0, 0.3, (m, G))[:, labels]
        return masks @ effects + luck + rng.normal(0, self.noise, (m, n)), labels


def estimate(seed, n=8, m=114, design="balanced", method="difference", between=0.6, **options):
    world, rng = World(seed, between), np.random.default_rng([seed, 2])
    masks = subset_masks(K, m, design, seed=seed)
    outputs, labels = world.outputs(masks, n, rng)
    return estimate_influence(masks, outputs, method, design, groups=labels, **options), world.influence


def coverage(found, truth):
    low, high = found.interval()
    return ((low <= truth) & (truth <= high)).mean()


@pytest.mark.parametrize("n", [8, 20, 100])
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("method", METHODS)
def test_intervals_cover_the_influence_on_fresh_images(n, design, method):
    trials = [estimate(seed, n, design=design, method=method) for seed in range(12)]
    assert 0.93 <= np.mean([coverage(*trial) for trial in trials]) <= 0.975
    errors = [((found.values - truth) / found.stderr) ** 2 for found, truth in trials]
    assert 0.9 < np.mean(errors) ** 0.5 < 1.2
    stated = np.mean([found.reliability for found, _ in trials])
    true = [np.corrcoef(found.values[:, g], truth[:, g])[0, 1] ** 2 for found, truth in trials for g in range(G)]
    assert stated == pytest.approx(np.mean(true), abs=0.05)


def test_errors_of_models_alone_would_not():
    trials = [estimate(seed, target="these") for seed in range(12)]
    assert np.mean([coverage(*trial) for trial in trials]) < 0.8


def test_the_formula_by_hand():
    masks, sizes = subset_masks(K, 60, "random", seed=1), [3, 5, 9, 4]
    outputs, labels = World(1).outputs(masks, sizes, np.random.default_rng(0))
    single = estimate_influence(masks, outputs, design="random")
    means = estimate_influence(masks, group_means(outputs, labels), design="random")
    found = estimate_influence(masks, outputs, design="random", groups=labels)
    these = estimate_influence(masks, outputs, design="random", groups=labels, target="these")
    np.testing.assert_allclose(these.values, means.values)
    np.testing.assert_allclose(these.stderr, means.stderr)
    np.testing.assert_allclose(found.values, means.values)
    assert isinstance(found.image_stderr, np.ndarray) and isinstance(found.dof, np.ndarray)
    assert isinstance(found.own_stderr, np.ndarray)
    for g, n in enumerate(sizes):
        for c in range(K):
            at = labels == g
            own = max((single.stderr[c, at] ** 2).mean() - means.stderr[c, g] ** 2, 0) * n / (n - 1)
            scatter = single.values[c, at].var(ddof=1)
            images = max(scatter - own, 0) / n
            assert found.image_stderr[c, g] ** 2 == pytest.approx(images, abs=1e-12)
            assert found.own_stderr[c, g] ** 2 == pytest.approx(own / n, abs=1e-12)
            assert found.stderr[c, g] ** 2 == pytest.approx(means.stderr[c, g] ** 2 + images)
            dof = found.stderr[c, g] ** 4 / (means.stderr[c, g] ** 4 / means.dof + (scatter / n) ** 2 / (n - 1))
            assert found.dof[c, g] == pytest.approx(dof)
    assert (found.image_stderr == 0).any(), "some variances would be negative"


def test_ridge_shrinks_what_the_images_add_as_it_shrinks_the_values():
    plainly, ridge = (estimate(0, method=method)[0] for method in ("difference", "ridge"))
    these, _ = estimate(0, method="ridge", target="these")
    kept = 1 / (1 + (these.stderr**2).mean(axis=0) / these.values.var(axis=0))
    np.testing.assert_allclose(ridge.image_stderr, kept * plainly.image_stderr)
    np.testing.assert_allclose(ridge.own_stderr, kept * plainly.own_stderr)
    assert kept.max() < 0.99


@pytest.mark.parametrize("part", ["whole", "common", "specific"])
def test_drawing_models_and_images_anew(part):
    """The variance of estimates over 300 draws of both is what is stated; no formula of ours enters the first."""
    world, sizes, values, stated = World(3), np.array([6, 10, 10, 14]), [], []
    for seed in range(300):
        rng = np.random.default_rng([3, seed])
        masks = subset_masks(K, 76, seed=seed)
        outputs, labels = world.outputs(masks, sizes, rng)
        found = estimate_influence(masks, outputs, groups=labels, part=part)
        values.append(found.values)
        stated.append(found.stderr**2)
    weights = {"common": np.tile(sizes[:, None] / 40, 1), "whole": np.eye(G)}
    weights["specific"] = weights["whole"] - weights["common"]
    np.testing.assert_allclose(np.mean(values, axis=0), world.influence @ weights[part], atol=0.12)
    np.testing.assert_allclose(np.mean(stated, axis=(0, 1)), np.var(values, axis=0, ddof=1).mean(axis=0), rtol=0.09)


def test_parts_add_up():
    whole, common, specific = (estimate(0, part=part)[0] for part in ("whole", "common", "specific"))
    assert common.values.shape == (K, 1) and specific.part == "specific"
    np.testing.assert_allclose(common.values + specific.values, whole.values)
    np.testing.assert_allclose(specific.values.mean(axis=1), 0, atol=1e-12)
    assert specific.stderr.mean() < whole.stderr.mean(), "luck that moves all targets is gone"


def test_the_reliabilities_of_the_parts_tell_what_a_study_is_about():
    rng, masks = np.random.default_rng(0), subset_masks(K, 114)
    for common, better in ((3.0, "common"), (0.0, "specific")):
        outputs, labels = World(5, common=common).outputs(masks, 20, rng)
        parts = {
            p: estimate_influence(masks, outputs, groups=labels, part=p).reliability.mean()
            for p in ("common", "specific")
        }
        assert max(parts, key=lambda p: parts[p]) == better


@pytest.mark.parametrize("part", ["whole", "common", "specific"])
def test_advice_on_twice_the_images_comes_true(part):
    promised, errors = [], []
    for seed in range(12):
        masks = subset_masks(K, 114, seed=seed)
        outputs, labels = World(seed, between=0.3, noise=3.0).outputs(masks, 20, np.random.default_rng([seed, 2]))
        half = np.s_[::2]  # of the images of each class, under the same models
        few = estimate_influence(masks, outputs[:, half], groups=labels[half], part=part)
        many = estimate_influence(masks, outputs, groups=labels, part=part)
        promised.append(int(re.findall(r"by (\d+)%", few.advice)[1]) / 100)
        errors.append([(found.stderr**2).mean() for found in (few, many)])
    of_few, of_many = np.mean(errors, axis=0)
    assert np.mean(promised) == pytest.approx(1 - np.sqrt(of_many / of_few), abs=0.03)


def test_images_dominate_or_models():
    many, few = estimate(0, n=8, m=1900, between=2.0)[0], estimate(0, n=100, m=38, between=0.1)[0]
    assert np.median(many.dof) == pytest.approx(7, abs=1) and np.median(few.dof) > 17
    for found, larger in ((many, 1), (few, 0)):
        of_models, of_images = (int(percent) for percent in re.findall(r"by (\d+)%", found.advice))
        assert (of_models, of_images)[larger] > (of_models, of_images)[1 - larger]
        assert 26 <= of_models + of_images <= 30, "half of the variance each: 13% and 13%; all of one: 29% and none"
    assert "twice the models would lower them by 29%" in estimate(0, target="these")[0].advice
    two = estimate_influence([[1, 0], [0, 1]], [[1.0, 2.0], [3.0, 5.0]], groups=[0, 0])
    assert np.isinf(two.stderr).all() and "train more models" in two.advice


def test_more_images_are_asked_for_where_models_cannot_help():
    found, _ = estimate(0, n=8, m=1900, between=1.5)
    with pytest.raises(
        InputError, match=r"no number of models reaches reliability 0.95 .* at most 0\.\d\d: take more target"
    ):
        models_needed(found, 0.95)
    pilot = [estimate(seed, n=40, m=114, between=0.6)[0] for seed in range(6)]
    needed = int(np.quantile([models_needed(found, 0.85) for found in pilot], 0.5, method="higher"))  # whole blocks
    assert needed < np.median([models_needed(found, 0.9) for found in pilot])
    assert needed > np.median([models_needed(estimate(s, n=40, target="these")[0], 0.85) for s in range(6)])
    reached = np.mean([estimate(seed, n=40, m=needed)[0].reliability for seed in range(6)])
    assert reached == pytest.approx(0.85, abs=0.05)


@pytest.mark.parametrize("part", ["whole", "common", "specific"])
@pytest.mark.parametrize("method", METHODS)
def test_images_that_feel_all_classes_more_or_less_do_not_change_the_order(method, part):
    """Their drawing makes all influences larger or smaller together: large errors, and no loss of correlation."""
    stated, of_variances, true = [], [], []
    weights = {"whole": np.eye(G), "common": np.full((G, 1), 1 / G)}
    weights["specific"] = weights["whole"] - weights["common"]
    for seed in range(24):
        world, rng, masks = World(seed, common=0.0), np.random.default_rng([seed, 2]), subset_masks(K, 114, seed=seed)
        labels = np.repeat(np.arange(G), 8)
        felt = rng.gamma(1.0, 1.0, len(labels))  # by how much an image feels the effects on its class
        outputs = masks @ (world.effects[:, labels] * felt) + rng.normal(0, 1, (len(masks), len(labels)))
        found = estimate_influence(masks, outputs, method, groups=labels, part=part)
        truth = world.influence @ weights[part]
        stated.append(found.reliability.mean())
        of_variances.append((1 - (found.stderr**2).mean(axis=0) / found.values.var(axis=0)).mean())
        true += [np.corrcoef(found.values[:, t], truth[:, t])[0, 1] ** 2 for t in range(truth.shape[1])]
    assert np.mean(stated) == pytest.approx(np.mean(true), abs=0.05)
    assert np.mean(of_variances) < np.mean(true) - 0.04


def test_a_single_image_says_nothing_of_others():
    masks = subset_masks(K, 76)
    outputs, labels = World(0).outputs(masks, [1, 5, 5, 5], np.random.default_rng(0))
    found = estimate_influence(masks, outputs, groups=labels)
    assert np.isinf(found.stderr[:, 0]).all() and np.isfinite(found.stderr[:, 1:]).all()
    assert found.reliability[0] == 0 and (found.p_values()[:, 0] == 1).all()
    overall = estimate_influence(masks, outputs, groups=labels, part="common")
    assert np.isfinite(overall.stderr).all(), "all images then are one group"
    np.testing.assert_allclose(overall.values[:, 0], estimate_influence(masks, outputs).values.mean(axis=1))


def test_targets_that_never_vary():
    found = estimate_influence(subset_masks(K, 76), np.ones((76, 6)), groups=[0, 0, 0, 1, 1, 1])
    assert not found.values.any() and not found.stderr.any() and not found.reliability.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(part="specific"), "the specific part is that of groups of images"),
        (dict(groups=[0, 1], part="own"), "unknown part 'own': choose one of whole, common, specific"),
        (dict(groups=[0, 1], target="all"), "unknown target 'all': choose one of new, these"),
        (dict(groups=[0, 2]), "no target in 1"),
        (dict(groups=[0]), "disagree"),
    ],
)
def test_bad_arguments_get_one_clear_error(options, message):
    with pytest.raises(InputError, match=message):
        estimate_influence(subset_masks(K, 38), np.random.default_rng(0).normal(size=(38, 2)), **options)


def test_intervals_have_their_level():
    values = np.zeros((3, 1))
    low, high = Influence(values, values + 2, np.zeros(1), "ols", "random", 9, dof=5.0).interval(0.9)
    np.testing.assert_allclose([low[0], high[0]], [[-2 * 2.015048], [2 * 2.015048]], rtol=1e-6)
    with pytest.raises(InputError, match="level must lie strictly between 0 and 1"):
        Influence(values, values, np.zeros(1), "ols", "random", 9).interval(95)


def test_few_images_are_said(problem, recipe, caplog):
    import dtl

    study = dtl.Study(problem, recipe, "paired").run(8, progress=False)
    with caplog.at_level(logging.WARNING):
        study.influence(by=problem.truth.subpopulation["test"], split="test")
    assert "5 test images are few for a target" in caplog.text
    caplog.clear()
    study.influence(by=problem.truth.subpopulation["test"], split="test", target="these")
    study.influence(by="class")
    assert "images are few" not in caplog.text
    assert study.influence(by="all").targets == study.influence(by="class", part="common").targets == ("whole target",)
    np.testing.assert_allclose(study.influence(by="all").stderr, study.influence(by="class", part="common").stderr)
