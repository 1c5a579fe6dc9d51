"""Suspects of a wrong prediction, and the flip test."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

import dtl
from dtl.engine import workers

VALUES = np.array([[0.5, -1.0], [-0.2, 0.3], [-0.9, 0.4], [0.1, -0.1]])
INFLUENCE = dtl.Influence(VALUES, np.full((4, 2), 0.1), np.ones(2), "difference", "balanced", 100)


def test_suspects_are_negative_and_the_worst_come_first():
    assert dtl.suspects(INFLUENCE, 0, k=4).tolist() == [2, 1]
    assert dtl.suspects(INFLUENCE, 1, k=1).tolist() == [0]
    assert dtl.suspects(INFLUENCE, 0, k=4, least=3).tolist() == [2]
    assert dtl.suspects(INFLUENCE, 1, k=4, least=11).tolist() == []


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
        dtl.suspects(INFLUENCE, example, k)


@pytest.fixture
def study(monkeypatch):
    """A study in which models that saw class 5 call the first validation example class 1, and are right otherwise."""
    problem = dtl.load("testbed", per_class=20, train=2, validation=5, test=5)
    labels = np.concatenate([problem.parts[f"target_{split}"].labels.numpy() for split in ("validation", "test")])
    assert labels[0] == 0
    calls = []

    def train_batch(problem, masks, seeds, recipe, regimes, device, unit):
        calls.append(masks)
        prediction = np.tile(labels, (len(masks), 1))
        prediction[masks[:, 5], 0] = 1
        prediction[np.arange(len(masks)) % 4 > 0, 1] = 2  # the second example is wrong in three models of four
        correct = (prediction == labels)[None]
        fields = dict.fromkeys(("margin", "probability"), correct.astype(np.float32))
        return fields | {"correct": correct, "prediction": prediction[None]}

    monkeypatch.setattr(workers, "train_batch", train_batch)
    masks = np.ones((8, 24), dtype=bool)
    masks[:3, 5] = False
    study = dtl.Study(problem, dtl.Recipe(models_at_once=24), masks).run(progress=False)
    calls.clear()
    return study, calls


def test_wrong_predictions_the_most_often_wrong_first(study):
    assert dtl.mistakes.wrong(study[0]).tolist() == [1, 0]


def test_flip_rate_counts_labels_with_wilson_intervals(study):
    study, calls = study
    flips = dtl.flip_rate(study, [0, 1], without=[5, 7], seeds=8, progress=False)
    assert flips.share.dims == ("example", "arm", "label")
    assert flips.arm.values.tolist() == ["full", "club", "anchor"] and flips.true.values.tolist() == ["sky", "sky"]
    of_first = flips["count"].sel(example=0).to_pandas()
    assert of_first.loc["full"].tolist() == [0, 8, 0, 0] == of_first.loc["anchor"].tolist()
    assert of_first.loc["club"].tolist() == [8, 0, 0, 0]
    assert (flips["count"].sum("label") == 8).all() and flips["count"].sel(example=1, arm="full").values[2] == 6
    z, n = norm.isf(0.025), 8  # Wilson's formula
    p = flips.share.values
    middle, half = (p + z**2 / (2 * n)), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose(flips.low, (middle - half) / (1 + z**2 / n), atol=1e-12)
    np.testing.assert_allclose(flips.high, (middle + half) / (1 + z**2 / n), atol=1e-12)
    np.testing.assert_allclose(flips.change, flips.share - flips.share.sel(arm="full"))
    masks = np.concatenate(calls)
    assert masks.shape == (24, 24) and masks[:8].all() and (~masks[8:]).sum() == 16
    assert not masks[8:16, 5].any() and not masks[16:, 7].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"example": 40}, r"each example must be one whole number in 0\.\.39, not 40"),
        ({"example": [0, 0]}, "one or more different example numbers"),
        ({"without": 24}, r"each source class must be one whole number in 0\.\.23, not 24"),
        ({"without": []}, "one or more different source class numbers"),
        ({"example": [0, 3]}, "example 3 is not wrong: 100% of the study's models predict it right"),
        ({"seeds": 1}, "seeds must be one whole number in 2"),
    ],
)
def test_bad_flip_tests_are_refused_before_training(study, options, message):
    study, calls = study
    with pytest.raises(ValueError, match=message):
        dtl.flip_rate(study, **({"example": 0, "without": 5, "progress": False} | options))
    assert not calls


def test_a_study_of_examples_has_no_classes_to_leave_out(study):
    by_example = dtl.Study(study[0].problem, unit="example")
    with pytest.raises(ValueError, match="give a study of unit 'class'"):
        dtl.flip_rate(by_example, 0, 5)


def test_flip_rate_of_real_models_is_that_of_a_study(tmp_path):
    problem = dtl.load("testbed", per_class=20, train=2, validation=5, test=5)
    recipe = dtl.Recipe(epochs=1, widths=(4, 8))
    study = dtl.Study(problem, recipe).run(8, progress=False)
    example = int(dtl.mistakes.wrong(study)[0])
    flips = dtl.flip_rate(study, example, 3, seeds=4, store=tmp_path / "s", progress=False)
    masks = np.ones((8, 24), dtype=bool)
    masks[4:, 3] = False
    said = dtl.Study(problem, recipe, masks, seed=1).run(progress=False).outputs("prediction")[:, example]
    for arm, part in (("full", said[:4]), (problem.source.classes[3], said[4:])):
        counted = np.bincount(part.astype(int), minlength=4)
        np.testing.assert_array_equal(flips["count"].sel(example=example, arm=arm), counted)


def test_the_interval_of_a_change_is_newcombes():
    """56 of 70 against 48 of 80: +0.2, 0.0524 to 0.3339 (Newcombe 1998, table II, example a, method 10)."""
    wilson = [(k / n, *binomtest(k, n).proportion_ci(method="wilson")) for k, n in ((56, 70), (48, 80))]
    low, high = dtl.mistakes.newcombe(*(np.array(arm) for arm in wilson))
    assert (low, high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))
