"""Advice where the gain is known: retrainings are drawn instead of trained, so that hundreds can be."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

import dtl
from dtl import _advise
from dtl._checks import InputError
from dtl.influence import Influence

K, IMAGES = 12, {"validation": 200, "test": 400}


class Study(SimpleNamespace):
    """What `advise` needs of a study."""


class World:
    """Accuracy with classes removed: each is worth something, seeds and images differ, and so do images' gains."""

    def __init__(self, seed, worth, luck=0.01):
        self.rng, self.worth, self.luck = np.random.default_rng(seed), np.asarray(worth), luck
        self.arms = []

    def retrain(self, study, arms, seeds, **options):
        self.arms.append(arms)
        split = np.repeat(list(IMAGES), list(IMAGES.values()))
        ability = self.rng.beta(2, 2, size=len(split))
        taste = self.rng.normal(0, 0.1, size=(K, len(split)))  # an image's own gain from the loss of a class
        rows = []
        for arm in arms.values():
            gone = np.zeros(K) if arm.masks is None else ~arm.masks
            p = ability + gone @ -self.worth + gone @ taste * (np.abs(self.worth).max() > 0)
            p = np.clip(p + self.rng.normal(0, self.luck, (seeds, 1)), 0, 1)
            rows.append(self.rng.random(p.shape) < p)
        coordinates = {"arm": list(arms), "split": ("target", split), "label": ("target", np.arange(len(split)) % 4)}
        return xr.Dataset({"correct": (("arm", "seed", "target"), np.stack(rows))}, coordinates)

    @property
    def study(self) -> Any:
        """Its influences see the worth of classes, relative to the mean, with an error of 0.01."""
        values = (self.worth - self.worth.mean() + self.rng.normal(0, 0.01, K))[:, None]
        sources = tuple(f"class {c}" for c in range(K))
        found = Influence(values, np.full((K, 1), 0.01), np.ones(1), "difference", "balanced", 92, sources=sources)
        problem = SimpleNamespace(per_class_accuracy=False)
        return Study(influence=lambda by: found, n_units=K, problem=problem, seed=0)


def advice_in(world, monkeypatch, **options):
    monkeypatch.setattr(_advise, "retrain", world.retrain)
    return dtl.advise(world.study, **options)


def test_harmful_classes_are_dropped_and_the_gain_is_right(monkeypatch):
    worth = np.array([-0.03, -0.02, *[0.02] * 10])
    found = [advice_in(World(seed, worth, 0.003), monkeypatch) for seed in range(20)]
    truly = [-sum(worth[int(name.split()[1])] for name in a.classes) for a in found]
    assert np.mean(truly) > 0.8 * 0.05 and min(truly) >= 0
    assert np.mean([a.gain for a in found]) > 0.8 * 0.05
    z = [(a.gain - 0.05) / a.stderr for a, gain in zip(found, truly, strict=True) if gain == 0.05]
    assert len(z) >= 10 and np.sqrt(np.mean(np.square(z))) < 1.4
    assert np.mean([a.low < gain for a, gain in zip(found, truly, strict=True) if gain]) >= 0.85
    assert str(found[0]).startswith("Drop class") and "on new images" in str(found[0])


@pytest.mark.parametrize("worth", [0.02, 0.0])
def test_useless_classes_are_not_said_to_harm(worth, monkeypatch):
    """Some classes help and the others do nothing: these have negative influences, but their loss gains nothing."""
    found = [advice_in(World(seed, [0.0] * 4 + [worth] * 8), monkeypatch, seeds=10) for seed in range(60)]
    assert sum(bool(a.classes) for a in found) <= 6  # 3 expected
    assert all(str(a).startswith("Drop nothing") for a in found if not a.classes)
    if worth:
        assert sum(len(a.candidates) > 0 for a in found) > 15


def test_as_many_steps_as_the_whole_source_and_nested_subsets(monkeypatch):
    world = World(0, np.array([*[-0.05] * 5, *[0.03] * 7]))
    found = advice_in(world, monkeypatch)
    (arms,) = world.arms
    assert list(arms) == ["full", "1", "2", "4", "5"] and all(arm.steps == "full" for arm in arms.values())
    removed = [set(np.flatnonzero(~arm.masks)) for name, arm in arms.items() if name != "full"]
    assert [len(r) for r in removed] == [1, 2, 4, 5] and all(a < b for a, b in zip(removed, removed[1:], strict=False))
    assert set(found.candidates) == {f"class {c}" for c in removed[-1]}


def test_nothing_is_trained_without_candidates(monkeypatch):
    world = World(0, np.zeros(K))
    world.rng = np.random.default_rng(5)
    advice = advice_in(world, monkeypatch, fdr=1e-9)
    assert not world.arms and advice.classes == () and "there are 0 candidates" in str(advice)


def test_errors_count_seeds_and_images():
    """Variance of the mean gain over 2,000 draws of seeds and images, against what one draw states."""
    rng, found = np.random.default_rng(0), []
    for _ in range(2000):
        gains = 0.1 + rng.normal(0, 0.05, (8, 1)) + rng.normal(0, 0.4, (1, 50)) + rng.normal(0, 0.3, (8, 50))
        found.append(_advise._gain(gains, np.full(50, 0.02)))
    means, errors, dof = np.array(found).T
    assert np.mean(errors**2) == pytest.approx(means.var(), rel=0.06) and 10 < np.median(dof) < 60


def test_accuracy_is_that_of_the_problem():
    labels = np.array([0, 0, 0, 1])
    by_class, plain = list[Any](SimpleNamespace(per_class_accuracy=flag) for flag in (True, False))
    np.testing.assert_allclose(_advise._weights(by_class, labels), [1 / 6, 1 / 6, 1 / 6, 1 / 2])
    np.testing.assert_allclose(_advise._weights(plain, labels), 0.25)


def test_advice_on_a_study(problem, recipe, tmp_path):
    """The whole way, trained: classes that planted noise makes worst are candidates; a second call trains nothing."""
    study = dtl.Study(problem, recipe).run(46, progress=False)
    one, two = (dtl.advise(study, 3, fdr=0.9, store=tmp_path / "s", progress=False) for _ in range(2))
    assert one.candidates and str(one) == str(two) and set(one.classes) <= set(one.candidates)


def test_an_unknown_option_is_one_where_nothing_is_tried_too():
    with pytest.raises(TypeError, match="devic"):
        dtl.advise(World(0, np.zeros(K)).study, devic="cpu")


@pytest.mark.parametrize("options", [dict(seeds=2), dict(fdr=0), dict(level=1.0)])
def test_bad_arguments_get_one_clear_error(options):
    with pytest.raises(InputError, match=next(iter(options))):
        dtl.advise(World(0, np.zeros(K)).study, **options)
