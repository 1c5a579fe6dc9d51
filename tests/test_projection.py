"""Projection of source classes on target examples, and the groups that influences show."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

import dtl

RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(5, 12))
INFLUENCE = dtl.Influence(VALUES, np.full((5, 12), 0.1), np.ones(12), "difference", "balanced", 100)


def test_project_is_a_sort_of_a_row():
    for c in range(5):
        best = sorted(range(12), key=lambda t: -VALUES[c, t])
        assert dtl.project(INFLUENCE, c, k=4).tolist() == best[:4]
        assert dtl.project(INFLUENCE, c, k=12, most="hurt").tolist() == best[::-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source_class": 5}, r"source_class, .* must be one whole number in 0\.\.4, not 5"),
        ({"source_class": -1}, r"one whole number in 0\.\.4, not -1"),
        ({"source_class": "star"}, r"one whole number in 0\.\.4, not 'star'"),
        ({"source_class": np.array([1])}, r"one whole number in 0\.\.4, not array"),
        ({"source_class": True}, r"one whole number in 0\.\.4, not True"),
        ({"source_class": 0, "k": 13}, r"k, of the target examples .* in 1\.\.12, not 13"),
        ({"source_class": 0, "k": 0}, r"whole number in 1\.\.12, not 0"),
        ({"source_class": 0, "most": "loved"}, "unknown side 'loved': choose one of helped, hurt"),
    ],
)
def test_bad_projections(options, message):
    with pytest.raises(ValueError, match=message):
        dtl.project(INFLUENCE, **options)


def world(m=240, n=60, noise=1.0):
    """Three groups of examples; classes 0, 1, 2 help one each, class 3 harms every second example."""
    rng = np.random.default_rng(1)
    masks = dtl.subset_masks(20, m, seed=0)
    group, trait = np.repeat([0, 1, 2], n // 3), np.arange(n) % 2
    effects = rng.normal(0, 0.02, size=(20, n))
    effects[group, np.arange(n)] += 2.0
    effects[3] -= 2.0 * trait
    effects[4] -= 2.0 * (1 - trait)
    return masks, masks @ effects + noise * rng.normal(size=(m, n)), group, trait


def test_subpopulations_are_those_of_the_helpful_classes():
    masks, outputs, group, _ = world()
    found = dtl.subpopulations(masks, outputs)
    assert adjusted_rand_score(group, found.group) == 1  # and three groups, which the silhouette chose
    z = found.influence.values / found.influence.stderr
    assert sorted(z.argmax(axis=0).tolist()) == [0, 1, 2]
    for g in range(3):  # a class helps its own group by 2 and the others by none
        assert found.influence.values[z.argmax(axis=0)[g], g] == pytest.approx(2, abs=0.4)


def test_the_harmful_side_shows_another_trait():
    masks, outputs, group, trait = world()
    found = dtl.subpopulations(masks, outputs, 2, side="harmful")
    assert adjusted_rand_score(trait, found.group) == 1 and abs(adjusted_rand_score(group, found.group)) < 0.1


def test_groups_are_numbered_by_size_and_by_seed_alone():
    masks, outputs, *_ = world()
    first = dtl.subpopulations(masks, outputs[:, :50])
    assert np.diff(np.bincount(first.group)).max() <= 0
    assert np.array_equal(first.group, dtl.subpopulations(masks, outputs[:, :50]).group)


def test_names_come_from_other_models_than_groups():
    """Without any signal between groups the contrasts are as large as their errors say: |z| > 1.96 in one of twenty."""
    rng, beyond = np.random.default_rng(0), []
    masks = dtl.subset_masks(20, 152, seed=0)
    effects = np.zeros(20)
    effects[:3] = 1.0  # they help all examples alike
    for _ in range(30):
        outputs = (masks @ effects)[:, None] + rng.normal(size=(152, 40))
        found = dtl.subpopulations(masks, outputs, 2)
        beyond.append(np.abs(found.influence.values / found.influence.stderr) > 1.96)
    assert 0.03 < np.mean(beyond) < 0.075


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": "left"}, "unknown side 'left': choose one of helpful, harmful"),
        ({"n_groups": 1}, "n_groups, below the number of examples, must be one whole number in 2..59, not 1"),
        ({"n_groups": 60}, "n_groups, below"),
        ({"outputs": np.zeros((240, 60))}, "0 source classes are clearly helpful"),
        ({"masks": dtl.subset_masks(20, 2), "outputs": np.ones((2, 60))}, "2 models are too few to halve"),
        ({"outputs": np.zeros(240)}, r"not \(240, 20\) and \(240,\)"),
    ],
)
def test_bad_groupings(change, message):
    masks, outputs, *_ = world()
    with pytest.raises(ValueError, match=message):
        dtl.subpopulations(**({"masks": masks, "outputs": outputs} | change))


SIGNED = np.array([[0.5, -1.0], [-0.2, 0.3], [-0.9, 0.4], [0.1, -0.1]])
HARM = dtl.Influence(SIGNED, np.full((4, 2), 0.1), np.ones(2), "difference", "balanced", 100)


def test_suspects_are_negative_and_the_worst_come_first():
    assert dtl.suspects(HARM, 0, k=4).tolist() == [2, 1]
    assert dtl.suspects(HARM, 1, k=1).tolist() == [0]
    assert dtl.suspects(HARM, 0, k=4, least=3).tolist() == [2]
    assert dtl.suspects(HARM, 1, k=4, least=11).tolist() == []


@pytest.mark.parametrize(
    ("example", "k", "message"),
    [
        (2, 1, r"example, .* must be one whole number in 0\.\.1, not 2"),
        (-1, 1, "not -1"),
        (0, 5, r"k, of the source classes, must be one whole number in 1\.\.4, not 5"),
        (0, 0, "not 0"),
    ],
)
def test_bad_suspects(example, k, message):
    with pytest.raises(ValueError, match=message):
        dtl.suspects(HARM, example, k)
