"""One way to train again: whose models, which seeds, and what they are judged on."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import xarray as xr

import dtl
import dtl._checks
import dtl.engine.weights
from dtl.engine import workers


@pytest.fixture(scope="module")
def study(problem, recipe):
    return dtl.Study(problem, recipe, transfer=("fixed", "full"))


@pytest.fixture
def trained(monkeypatch):
    """Real training, with a record of what is trained."""
    calls, real = [], workers.train_batch

    def train_batch(problem, masks, seeds, recipe, regimes, *rest):
        calls.append((problem, masks, seeds, recipe, regimes))
        return real(problem, masks, seeds, recipe, regimes, *rest)

    monkeypatch.setattr(workers, "train_batch", train_batch)
    return calls


SOME = np.arange(24) % 3 > 0


def test_arms_are_the_models_of_a_study_in_their_order(study, trained):
    each = dtl.subset_masks(24, 3, design="random", seed=4)
    again = dtl.retrain(study, {"some": SOME, "all": study.problem, "each": each}, seeds=3, progress=False)
    masks = np.concatenate([np.tile(SOME, (3, 1)), np.ones((3, 24), bool), each])
    by_hand = dtl.Study(study.problem, study.recipe, masks, "fixed", seed=1).run(progress=False)
    assert again.correct.dims == ("arm", "seed", "target") and again.arm.values.tolist() == ["some", "all", "each"]
    for output in ("margin", "correct", "prediction", "probability"):
        for split in ("validation", "test"):
            ours = again[output].isel(target=again.split == split).values.reshape(9, -1)
            np.testing.assert_array_equal(ours, by_hand.outputs(output, split=split))
    labels = study.problem.target_test.labels.numpy()
    np.testing.assert_array_equal(again.label[again.split == "test"], labels)
    assert {regimes for *_, regimes in trained} == {("fixed",)}


def test_other_problems_start_from_the_same_weights_and_orders(study, trained):
    source = study.problem.source
    darker = dataclasses.replace(study.problem, source=dataclasses.replace(source, images=source.images // 2))
    arms = {"dark": darker, "clean": study.problem, "fewer": SOME}
    again = dtl.retrain(study, arms, seeds=2, transfer=("fixed", "full"), progress=False)
    assert again.correct.dims == ("transfer", "arm", "seed", "target")
    assert again.arm.values.tolist() == list(arms) and again["transfer"].values.tolist() == ["fixed", "full"]
    seeds = {}
    for problem, masks, numbers, *_ in trained:
        for mask, number in zip(masks, numbers, strict=True):
            seeds.setdefault((problem.source is source, bool(mask.all())), []).append(int(number))
    dark, clean, fewer = (seeds[key] for key in ((False, True), (True, True), (True, False)))
    assert dark == clean and not set(fewer) & set(clean)
    # the order of the arms must not decide which model is whose
    other = dtl.retrain(study, dict(reversed(arms.items())), seeds=2, transfer="full", progress=False)
    assert other.correct.dims == ("arm", "seed", "target")
    np.testing.assert_array_equal(other.margin.sel(arm="dark"), again.margin.sel(arm="dark", transfer="full"))


def test_the_target_alone_is_another_problem(study):
    alone = dataclasses.replace(study.problem, source=study.problem.target_train)
    again = dtl.retrain(study, {"transfer": study.problem, "alone": alone}, seeds=2, progress=False)
    assert again.correct.sizes["arm"] == 2 and not (again.margin[0] == again.margin[1]).all()
    with pytest.raises(dtl._checks.InputError, match="arm 'short' needs a subset, bool .4,. or .2, 4."):
        dtl.retrain(study, {"short": dtl.Arm(alone, masks=SOME)}, seeds=2)


def test_steps_are_fixed_by_number_or_by_the_whole_source(study, trained):
    few = np.arange(24) < 6
    arms = {"own": few, "full": dtl.Arm(masks=few, steps="full"), "nine": dtl.Arm(masks=few, steps=9)}
    again = dtl.retrain(study, arms, seeds=2, progress=False)
    assert [recipe.steps for *_, recipe, _ in trained] == [None, 7, 9]
    assert dtl.training.schedule(120, dataclasses.replace(study.recipe, steps=9)) == (9, 64)
    assert not (again.margin[0] == again.margin[1]).all() and not (again.margin[1] == again.margin[2]).all()


def test_arms_may_have_settings_of_their_own_and_share_source_weights(study, trained, tmp_path, monkeypatch):
    longer = dataclasses.replace(study.recipe, finetune_epochs=4)
    arms = {"usual": study.problem, "longer": dtl.Arm(recipe=longer)}
    fits = []
    real = dtl.engine.weights.train_sources
    monkeypatch.setattr(dtl.engine.weights, "train_sources", lambda *a: fits.append(1) or real(*a))
    again = dtl.retrain(study, arms, 2, transfer="full", weights=tmp_path / "w", progress=False)
    assert len(fits) == 1 and not (again.margin[0] == again.margin[1]).all()


def test_a_finished_call_trains_nothing(study, tmp_path, monkeypatch):
    alone = dataclasses.replace(study.problem, source=study.problem.target_train)
    arms = {"all": study.problem, "alone": alone}
    first = dtl.retrain(study, arms, 2, store=tmp_path / "s", progress=False).load()
    assert sorted(path.name for path in (tmp_path / "s").glob("[01]")) == ["0", "1"]
    monkeypatch.setattr(workers, "train_batch", None)
    xr.testing.assert_identical(dtl.retrain(study, arms, 2, store=tmp_path / "s", progress=False).load(), first)


def test_studies_of_examples_leave_out_examples(problem, recipe):
    study = dtl.Study(problem, recipe, unit="example", design="random")
    masks = dtl.subset_masks(480, 2, design="random")
    again = dtl.retrain(study, {"half": masks}, seeds=2, progress=False)
    by_hand = dtl.Study(problem, recipe, masks, seed=1, unit="example").run(progress=False)
    np.testing.assert_array_equal(again.margin.isel(target=again.split == "test")[0], by_hand.outputs(split="test"))


@pytest.mark.parametrize(
    ("arms", "options", "message"),
    [
        ({}, {}, "give at least one arm"),
        ([SOME], {}, "give at least one arm: a name with a subset"),
        ({"a": SOME[:5]}, {}, r"arm 'a' needs a subset, bool \(24,\) or \(2, 24\), not bool \(5,\)"),
        ({"a": SOME.astype(int)}, {}, "arm 'a' needs a subset"),
        ({"a": np.zeros(24, bool)}, {}, "fewer than two"),
        ({"a": SOME}, {"seeds": 1}, "seeds, two or more"),
        ({"a": SOME}, {"transfer": "none"}, "unknown transfer"),
        ({"a": dtl.Arm(steps=0)}, {}, "steps cannot be"),
        ({"a": dtl.Arm(steps="half")}, {}, "steps cannot be"),
    ],
)
def test_bad_arms_are_refused_before_training(study, monkeypatch, arms, options, message):
    monkeypatch.setattr(workers, "train_batch", None)
    with pytest.raises(dtl._checks.InputError, match=message):
        dtl.retrain(study, arms, **({"seeds": 2, "progress": False} | options))


def test_all_arms_are_judged_on_the_same_images(study, monkeypatch):
    monkeypatch.setattr(workers, "train_batch", None)
    target = study.problem.target_test
    other = dataclasses.replace(study.problem, target_test=target.subset(np.arange(len(target))[::-1].copy()))
    with pytest.raises(dtl._checks.InputError, match="arm 'b' has test images of other labels"):
        dtl.retrain(study, {"a": study.problem, "b": other}, seeds=2)


ODD: Any = "odd"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: dtl.retrain(p, {"a": SOME}), "study must be a dtl.Study, not testbed"),
        (lambda p: dtl.advise(ODD), "study must be a dtl.Study, not 'odd'"),
        (lambda p: dtl.flip_rate(ODD, 0, 1), "study must be a dtl.Study, not 'odd'"),
        (lambda p: dtl.models_needed(ODD), "influence must be a dtl.Influence, not 'odd'"),
        (lambda p: dtl.leakage.similarity(ODD, p.source), "source must be a dtl.ImageDataset, not 'odd'"),
        (
            lambda p: dtl.leakage.near_duplicates(p.source, ODD),
            "threshold must lie strictly between 0 and 1, not 'odd'",
        ),
        (lambda p: p.with_views(ODD), "views must be a mapping of names to functions of images, not 'odd'"),
        (lambda p: p.with_views({"a": 5}), "views must be a mapping"),
        (lambda p: p.with_views({5: np.copy}), "a view needs a name"),
    ],
)
def test_another_kind_of_thing_is_refused_by_name(problem, call, message):
    with pytest.raises(dtl._checks.InputError, match=message):
        call(problem)
