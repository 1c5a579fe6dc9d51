"""Removal curves: who is left out, what is measured where, and the honest choice of a count."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from scipy.stats import binomtest, norm

import dtl
from dtl._checks import InputError
from dtl.engine import workers
from dtl.influence import Influence
from dtl.removal import newcombe, removal_curve, select

COUNTS = [1, 3]


def influence_of(mean, n=3):
    """Influences whose mean over targets is `mean`, though no single target's order is."""
    mean = np.asarray(mean, dtype=float)
    spread = np.stack([np.zeros(len(mean)), np.arange(len(mean)), -np.arange(len(mean))], 1)[:, :n] * 10.0
    return Influence(mean[:, None] + spread, np.ones((len(mean), n)), np.ones(n), "difference", "balanced", 46)


MEAN = np.random.default_rng(0).permutation(24) - 10.0
WORST, BEST = np.argsort(MEAN), np.argsort(-MEAN)


@pytest.fixture
def study(problem, recipe):
    return dtl.Study(problem, recipe, transfer=("full", "fixed"))


@pytest.fixture
def no_training(monkeypatch):
    """Models whose share of correct answers is their share of classes, more on test than on validation."""
    calls = []

    def train_batch(problem, masks, seeds, recipe, regimes, device, unit, weights=None):
        calls.append((masks, regimes))
        correct = np.zeros((len(regimes), len(masks), 80), dtype=np.float32)
        for row, mask in zip(correct[0], masks, strict=True):
            row[: int(mask.sum())] = 1
            row[40 : 40 + int(mask.sum()) + 5] = 1
        return dict.fromkeys(dtl.transfer.Outputs._fields, correct)

    monkeypatch.setattr(workers, "train_batch", train_batch)
    return calls


def masks_of(store):
    return np.asarray(zarr.open_array(store, path="mask", mode="r"))


def without(mask):
    return set(np.flatnonzero(~mask))


def test_models_lack_the_first_classes_of_their_order(study, no_training, tmp_path):
    picked = [5, 2, 9, 11]
    orders = ("negative", "positive", "random", "mine")
    options = {"given": {"mine": picked}, "store": tmp_path / "s", "progress": False}
    curve = removal_curve(study, influence_of(MEAN), COUNTS, orders, seeds=3, **options)
    removed = [without(mask) for mask in masks_of(tmp_path / "s")]
    assert len(removed) == 3 + 2 * 4 * 3 and sum(not gone for gone in removed) == 3  # the full source once a seed
    for k in COUNTS:
        for order in (WORST, BEST, picked):
            assert sum(gone == set(order[:k]) for gone in removed) >= 3
    fixed = [set(order[:k]) for k in COUNTS for order in (WORST, BEST, picked)]
    random = {k: [g for g in removed if len(g) == k and g not in fixed] for k in COUNTS}
    assert len({frozenset(gone) for gone in random[3]}) == 3, "a new order for each retraining"
    assert all(any(one < three for three in random[3]) for one in random[1]), "and the same one for every count"
    assert all(regimes == ("full",) for _, regimes in no_training)
    assert curve.sizes == {"order": 4, "count": 3, "seed": 3} and curve["count"].values.tolist() == [0, 1, 3]
    assert curve.order.values.tolist() == list(orders) and curve.attrs["transfer"] == "full"
    # the fake accuracies say which cell of the curve holds which model
    for k in (0, 1, 3):
        np.testing.assert_allclose(curve.validation.sel(count=k), (24 - k) / 40)
        np.testing.assert_allclose(curve.test.sel(count=k), (29 - k) / 40)


def test_accuracy_is_that_of_the_problem_or_ones_own(study, no_training):
    """By class or by example: classes of unequal size tell them apart."""
    labels = np.repeat([0, 1, 2, 3], [4, 4, 4, 28])  # the fake models are right on the first of the 40 examples
    part = dataclasses.replace(study.problem.target_test, labels=torch.from_numpy(labels))
    for per_class, expected in ((True, (3 + (np.array([29, 25]) - 12) / 28) / 4), (False, np.array([29, 25]) / 40)):
        problem = dataclasses.replace(study.problem, target_test=part, per_class_accuracy=per_class, name="any")
        new = dtl.Study(problem, study.recipe)
        curve = removal_curve(new, influence_of(MEAN), [4], ["negative"], 2, progress=False)
        np.testing.assert_allclose(curve.test.isel(order=0, seed=0), expected, rtol=1e-6)
    seen = []

    def of_class_two(correct, labels):
        seen.append((correct.shape, labels.tolist()))
        return correct[:, labels == 2].mean(1)

    own = removal_curve(new, influence_of(MEAN), [4], ["negative"], 2, accuracy=of_class_two, progress=False)
    assert (own.test == 1).all() and seen[-1] == ((4, 40), labels.tolist())


def test_orders_of_ones_own_as_a_mapping_or_as_before(study, no_training, tmp_path):
    picked = [5, 2, 9]
    new = {"negative": None, "mine": picked}
    cases: dict[str, Any] = {"a": {"orders": new}, "b": {"orders": ["negative", "mine"], "given": {"mine": picked}}}
    for name, options in cases.items():
        removal_curve(study, influence_of(MEAN), [3], seeds=2, store=tmp_path / name, progress=False, **options)
    np.testing.assert_array_equal(masks_of(tmp_path / "a"), masks_of(tmp_path / "b"))
    assert without(masks_of(tmp_path / "a")[-1]) == set(picked)


def test_steps_can_be_held_fixed(study, monkeypatch):
    steps = []

    def train_batch(problem, masks, seeds, recipe, regimes, device, unit, weights=None):
        steps.append(recipe.steps)
        return dict.fromkeys(dtl.transfer.Outputs._fields, np.zeros((1, len(masks), 80), dtype=np.float32))

    monkeypatch.setattr(workers, "train_batch", train_batch)
    for given in (None, "full", 3):
        removal_curve(study, influence_of(MEAN), [12], ["negative"], 2, steps=given, progress=False)
    assert steps == [None, 480 // 64, 3]


def test_random_orders_come_from_the_seed(study, no_training, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        removal_curve(
            study, influence_of(MEAN), [4], ["random"], seeds=2, store=tmp_path / name, seed=seed, progress=False
        )
    a, b, c = (masks_of(tmp_path / name) for name in "abc")
    assert (a == b).all() and (a[:2] == c[:2]).all() and (a[2:] != c[2:]).any(1).all()


def test_every_retraining_has_a_seed_of_its_own(study, no_training, tmp_path):
    removal_curve(study, influence_of(MEAN), COUNTS, ["negative"], seeds=4, store=tmp_path / "s", progress=False)
    seeds = np.asarray(zarr.open_array(tmp_path / "s", path="seed", mode="r"))
    assert len(set(seeds.tolist())) == 12


def test_a_finished_curve_trains_nothing(problem, recipe, tmp_path, monkeypatch):
    """Real training, once."""
    study = dtl.Study(problem, recipe)
    arguments = (study, influence_of(MEAN), [6], ["negative", "random"], 2)
    curve = removal_curve(*arguments, store=tmp_path / "s", progress=False)
    assert ((curve.test > 0.1) & (curve.test < 1)).all() and curve.test.values.std() > 0
    # full source by hand: the mean correctness of models of all classes, with this study's seeds
    own = dtl.Study(problem, recipe, seed=1).seeds(2)
    full = workers.train_batch(problem, np.ones((2, 24), bool), own, recipe, ("fixed",), "cpu")
    np.testing.assert_allclose(
        curve.test.sel(order="negative", count=0), full["correct"][0, :, 40:].mean(1), atol=0.051
    )
    monkeypatch.setattr(workers, "train_batch", None)
    xr.testing.assert_identical(removal_curve(*arguments, store=tmp_path / "s", progress=False), curve)
    with pytest.raises(ValueError, match="holds another study .*design is"):
        removal_curve(study, influence_of(-MEAN), [6], ["negative"], 2, store=tmp_path / "s", progress=False)


def test_studies_of_given_subsets_give_curves_too(problem, recipe, no_training):
    study = dtl.Study(problem, dataclasses.replace(recipe, models_at_once=1), np.ones((4, 24), bool))
    assert removal_curve(study, influence_of(MEAN), [2], ["negative"], 2, progress=False).sizes["count"] == 2


# Selection


def curve_of(validation, test):
    """order "negative"; lists of counts 0, 2, 4 x seeds"""
    arm = {"validation": (("order", "count", "seed"), [validation]), "test": (("order", "count", "seed"), [test])}
    return xr.Dataset(arm, coords={"order": ["negative"], "count": [0, 2, 4], "seed": range(len(test[0]))})


VALIDATION = [[0.5, 0.5, 0.5], [0.7, 0.6, 0.65], [0.6, 0.6, 0.6]]
TEST = [[0.40, 0.50, 0.45], [0.50, 0.56, 0.59], [0.90, 0.95, 0.99]]


def test_the_count_is_chosen_on_validation_and_the_gain_is_on_test():
    found = select(curve_of(VALIDATION, TEST))
    assert found.count == 2 and found.n_seeds == 3 and found.order == "negative"  # test alone would say 4
    gains = np.array(TEST[1]) - np.array(TEST[0])
    assert found.gain == pytest.approx(gains.mean())
    assert found.stderr == pytest.approx(gains.std(ddof=1) / np.sqrt(3))


def test_each_seed_is_judged_at_the_count_that_the_others_choose():
    """Seed 2 is lucky at count 4, on both splits: the others choose 2 for it, and it alone makes 4 their best."""
    validation = [[0.5, 0.5, 0.5], [0.6, 0.6, 0.6], [0.55, 0.55, 0.9]]
    found = select(curve_of(validation, TEST))
    gains = np.array([TEST[2][0] - TEST[0][0], TEST[2][1] - TEST[0][1], TEST[1][2] - TEST[0][2]])
    assert found.count == 4 and found.gain == pytest.approx(gains.mean())
    assert found.stderr == pytest.approx(gains.std(ddof=1) / np.sqrt(3))


def test_selection_gains_nothing_where_nothing_is_to_gain():
    """Luck that validation and test share, and no effect: the mean gain is zero within its error."""
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(400):
        luck = rng.normal(0, 0.04, (3, 8))
        noise = rng.normal(0, 0.02, (2, 3, 8))
        gains.append(select(curve_of((0.8 + luck + noise[0]).tolist(), (0.8 + luck + noise[1]).tolist())).gain)
    assert abs(np.mean(gains)) < 3 * np.std(gains) / 20  # choosing and judging on the same models: + 9 errors


def test_removing_nothing_gains_nothing():
    found = select(curve_of(VALIDATION[::-1][:1] + VALIDATION[:1] * 2, TEST))
    assert (found.count, found.gain, found.stderr) == (0, 0.0, 0.0)
    assert select(curve_of([[0.5] * 3] * 3, TEST)).count == 0  # as good as: the fewest


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"orders": ("worst",)},
            r"orders must be different, out of negative, positive, random and names .*, not \['worst'\]",
        ),
        ({"orders": ()}, "orders must be different"),
        ({"orders": ("negative", "negative")}, "orders must be different"),
        ({"given": {"negative": [0, 1, 2]}}, "orders must be different, .* with classes for .'negative'."),
        ({"influence": influence_of(MEAN * np.nan)}, "the influence is not finite, so it orders nothing"),
        ({"counts": [1.5]}, r"each of counts .* in 0\.\.22, not 1.5"),
        ({"given": {"mine": [0.0, 1.0, 2.0]}, "orders": ("mine",)}, "different class indices"),
        ({"counts": []}, r"counts must lie in 1\.\.22"),
        ({"counts": [0]}, r"counts must lie in 1\.\.22 .*, not \[0\]"),
        ({"counts": [-1, 3]}, r"each of counts .* whole number in 0\.\.22, not -1"),
        ({"counts": [23]}, r"each of counts \(a source model needs two classes\) must .*, not 23"),
        ({"seeds": 1}, "seeds, two or more for a standard error, must be one whole number"),
        ({"influence": influence_of(MEAN[:5])}, "influence is of 5 classes but the source of .* has 24"),
        ({"given": {"mine": [1, 2]}, "orders": ("mine",)}, "order 'mine' must list at least 3 different class indices"),
        ({"given": {"mine": [1, 1, 2]}, "orders": ("mine",)}, "order 'mine' must list"),
        ({"given": {"mine": [1, 2, 24]}, "orders": ("mine",)}, r"different class indices in 0\.\.23"),
        ({"given": {"mine": [1, 2, -1]}, "orders": ("mine",)}, r"different class indices in 0\.\.23"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
    ],
)
def test_bad_input_is_refused_before_training(study, no_training, options, message):
    arguments = {"study": study, "influence": influence_of(MEAN), "counts": COUNTS, "progress": False} | options
    with pytest.raises(ValueError, match=message):
        removal_curve(**arguments)
    assert no_training == []


def test_select_names_the_orders_there_are():
    with pytest.raises(ValueError, match="the curve has no order 'positive': it has negative"):
        select(curve_of(VALIDATION, TEST), "positive")


# Flips


@pytest.fixture
def judged(monkeypatch):
    """A study in which models that saw class 5 call the first validation example class 1, and are right otherwise."""
    problem = dtl.load("testbed", per_class=20, train=2, validation=5, test=5)
    labels = np.concatenate([problem.parts[f"target_{split}"].labels.numpy() for split in ("validation", "test")])
    assert labels[0] == 0
    calls = []

    def train_batch(problem, masks, seeds, recipe, regimes, device, unit, weights=None):
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


def test_wrong_predictions_the_most_often_wrong_first(judged):
    assert dtl.projection.wrong(judged[0]).tolist() == [1, 0]


def test_flip_rate_counts_labels_with_wilson_intervals(judged):
    study, calls = judged
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
        ({"seeds": 1}, "seeds, two or more .* must be one whole number in 2"),
    ],
)
def test_bad_flip_tests_are_refused_before_training(judged, options, message):
    study, calls = judged
    with pytest.raises(ValueError, match=message):
        dtl.flip_rate(study, **({"example": 0, "without": 5, "progress": False} | options))
    assert not calls


def test_a_study_of_examples_has_no_classes_to_leave_out(judged):
    by_example = dtl.Study(judged[0].problem, unit="example")
    with pytest.raises(ValueError, match="give a study of unit 'class'"):
        dtl.flip_rate(by_example, 0, 5)


def test_groups_can_be_left_out_too(judged):
    study = judged[0]
    groups = [f"group {k // 6}" for k in range(24)]
    grouped = dtl.Study(study.problem, unit=groups).run(4, progress=False)
    grouped.outputs = study.outputs  # which say that example 0 is wrong
    flips = dtl.flip_rate(grouped, 0, [1, 3], seeds=2, progress=False)
    assert flips.arm.values.tolist() == ["full", "group 1", "group 3"]
    with pytest.raises(ValueError, match=r"each source class must be one whole number in 0\.\.3, not 4"):
        dtl.flip_rate(grouped, 0, 4, progress=False)


def test_flip_rate_of_real_models_is_that_of_a_study(tmp_path):
    problem = dtl.load("testbed", per_class=20, train=2, validation=5, test=5)
    recipe = dtl.Recipe(epochs=1, widths=(4, 8))
    study = dtl.Study(problem, recipe).run(8, progress=False)
    example = int(dtl.projection.wrong(study)[0])
    flips = dtl.flip_rate(study, example, 3, seeds=4, store=tmp_path / "s", progress=False)
    assert not flips.chunks and flips["count"].sel(example=example, arm="full").sum().item() == 4  # read, not lazy
    masks = np.ones((8, 24), dtype=bool)
    masks[4:, 3] = False
    said = dtl.Study(problem, recipe, masks, seed=1).run(progress=False).outputs("prediction")[:, example]
    for arm, part in (("full", said[:4]), (problem.source.classes[3], said[4:])):
        counted = np.bincount(part.astype(int), minlength=4)
        np.testing.assert_array_equal(flips["count"].sel(example=example, arm=arm), counted)


def test_the_interval_of_a_change_is_newcombes():
    """56 of 70 against 48 of 80: +0.2, 0.0524 to 0.3339 (Newcombe 1998, table II, example a, method 10)."""
    wilson = [(k / n, *binomtest(k, n).proportion_ci(method="wilson")) for k, n in ((56, 70), (48, 80))]
    low, high = newcombe(*(np.array(arm) for arm in wilson))
    assert (low, high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_what_does_not_fit_the_study_is_refused_before_training(study, no_training, problem):
    estimated = dataclasses.replace(influence_of(MEAN), data={"source": "of other images"}, problem="other")
    with pytest.raises(ValueError, match=f"are of problem other, whose source.* differ .* {problem.name}"):
        removal_curve(study, estimated, COUNTS, progress=False)
    with pytest.raises(ValueError, match="influence must be a dtl.Influence, not 5"):
        removal_curve(study, 5, COUNTS, progress=False)  # pyright: ignore
    with pytest.raises(ValueError, match="study must be a dtl.Study, not 'testbed'"):
        removal_curve("testbed", estimated, COUNTS, progress=False)  # pyright: ignore
    with pytest.raises(ValueError, match="orders must be a name or a sequence, not 5"):
        removal_curve(study, influence_of(MEAN), COUNTS, 5, progress=False)  # pyright: ignore
    with pytest.raises(ValueError, match=r"each of counts .* not '2'"):
        removal_curve(study, influence_of(MEAN), "2", progress=False)  # pyright: ignore
    assert no_training == []
    assert removal_curve(study, influence_of(MEAN), 2, ["negative"], 2, progress=False).sizes["count"] == 2  # pyright: ignore


def test_an_accuracy_of_another_shape_is_refused_before_training(problem, recipe, training):
    training.forbid()
    study = dtl.Study(problem, recipe)
    found = dtl.Influence(np.arange(24.0)[:, None], np.ones((24, 1)), np.ones(1), "difference", "paired", 9)
    with pytest.raises(InputError, match="accuracy must give one number for each row of correct"):
        dtl.removal_curve(study, found, [3], seeds=2, accuracy=lambda correct, labels: correct.mean())


def test_what_is_no_curve_is_refused():
    with pytest.raises(InputError, match="curve must be what dtl.removal_curve returns"):
        dtl.removal.select(xr.Dataset({"n": 1}))
