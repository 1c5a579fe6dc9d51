"""Groups of classes as units: what is trained, stored, read, estimated and removed; coarse to fine."""

from typing import Any

import numpy as np
import pytest

import dtl
from dtl._checks import InputError
from dtl.design import groups_of, open_groups, subset_masks


@pytest.fixture(scope="module")
def groups(problem) -> list[str]:
    """Six groups of different sizes, not in the order of their classes."""
    return [f"group {letter}" for letter in "fedcbaabcdefaaabbcfedcba"][: problem.source.n_classes]


@pytest.fixture(scope="module")
def study(problem, recipe, groups):
    return dtl.Study(problem, recipe, unit=groups, seed=3).run(28, progress=False)


def test_models_train_on_whole_groups(study, groups, problem):
    names = sorted(set(groups))
    assert study.n_units == 6 and study.results.source.values.tolist() == names
    np.testing.assert_array_equal(study.masks, subset_masks(6, 28, seed=3))
    trained = np.asarray(study.store.open()["mask"])  # pyright: ignore[reportArgumentType]
    assert trained.shape == (28, problem.source.n_classes)
    np.testing.assert_array_equal(trained, study.masks[:, [names.index(group) for group in groups]])


def test_models_are_those_of_the_same_classes(study, problem, recipe, groups):
    """A study of the same subsets, given class by class, has the same numbers."""
    masks = study.masks[:, np.unique(groups, return_inverse=True)[1]]
    again = dtl.Study(problem, recipe, masks, seed=3).run(progress=False)
    np.testing.assert_array_equal(study.outputs(), again.outputs())


def test_influences_are_those_of_groups(study, problem, tmp_path):
    found = study.influence("difference", by="class")
    y, masks = study.outputs().astype(float), study.masks
    labels = problem.target_validation.labels.numpy()
    means = np.stack([y[:, labels == g].mean(axis=1) for g in range(4)], axis=1)
    by_hand = np.stack([means[m].mean(axis=0) - means[~m].mean(axis=0) for m in masks.T])
    np.testing.assert_allclose(found.values, by_hand, atol=1e-5)
    assert found.unit == "group" and found.sources == tuple(f"group {c}" for c in "abcdef")
    found.check(problem, "class")
    images = study.influence_to_zarr(tmp_path / "i")
    np.testing.assert_allclose(images["influence"], study.influence("difference").values, atol=1e-5)


def test_a_store_of_groups_goes_on_and_knows_them(problem, recipe, groups, tmp_path):
    dtl.Study(problem, recipe, unit=groups, store=tmp_path / "s").run(4, progress=False)
    mapping = dict(zip(problem.source.classes, groups, strict=True))
    again = dtl.Study(problem, recipe, unit=mapping, store=tmp_path / "s").run(8, progress=False)
    assert dtl.results.open(tmp_path / "s").influence(by="all").values.shape == (6, 1)
    np.testing.assert_array_equal(dtl.results.open(tmp_path / "s").masks, again.masks)
    for other in ("class", groups[::-1]):
        with pytest.raises(InputError, match="holds another study"):
            dtl.Study(problem, recipe, unit=other, store=tmp_path / "s")
    assert "groups" not in dtl.Study(problem, recipe).settings


def test_groups_are_removed_whole(study):
    curve = dtl.removal_curve(study, study.influence(by="all"), [2], ["negative"], seeds=2, progress=False)
    assert curve.sizes["count"] == 2 and curve.attrs["n_source"] == 6


def test_coarse_to_fine(problem, recipe, groups):
    finer = open_groups(problem.source.classes, groups, ["group a"])
    opened = {name for name, group in zip(problem.source.classes, groups, strict=True) if group == "group a"}
    assert set(finer) == {f"group {c}" for c in "bcdef"} | opened
    fine = dtl.Study(problem, recipe, unit=finer).run(4, progress=False)
    assert fine.n_units == 5 + len(opened) and set(fine.results.source.values) == set(finer)


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("classes", "unknown unit 'classes': choose one of class, example"),
        (["a", "b"], "give a group for each of the 24 classes"),
        (["a"] * 24, "two groups or more"),
        ({"unicorn": "animal"}, "groups are given for unicorn, which are no source classes"),
    ],
)
def test_wrong_groups_are_refused(problem, unit, message):
    with pytest.raises(InputError, match=message):
        dtl.Study(problem, unit=unit)


def test_what_stands_alone_and_what_is_no_group():
    assert groups_of(("a", "b", "c"), {"a": "x"}) == ("x", "b", "c")
    with pytest.raises(InputError, match="w, z is none of the groups x, y"):
        open_groups(("a", "b", "c"), ("x", "y", "y"), ["z", "w"])
    with pytest.raises(InputError, match="give a group for each of the 3 classes"):
        open_groups(("a", "b", "c"), ("x", "y"), ["x"])
    wrong: Any = {"classes": (1, "xy", "x"), "unit": ("ab", 1, "x"), "chosen": (["a", "b"], ["x", "y"], 1)}
    for what, given in wrong.items():
        with pytest.raises(InputError, match=f"{what} must be a name or a sequence, not 1"):
            open_groups(*given)


def test_two_groups_leave_one_and_are_refused_where_it_has_one_class(problem, recipe):
    with pytest.raises(InputError, match="fewer than two of the 24 classes"):
        dtl.Study(problem, recipe, unit=["alone"] + ["others"] * 23).run(4, progress=False)
