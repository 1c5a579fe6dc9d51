"""Scores of attributions against exact influences, noise, the study's own, and rows that went astray."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

import dtl
from dtl._checks import InputError
from dtl._evaluate import evaluate
from dtl.design import subset_masks
from dtl.influence import estimate_influence

K, N = 20, 40


def measured(seed=0, m=152, noise=2.0, shuffled=False):
    """Results of a study of additive effects, and these effects."""
    rng = np.random.default_rng(seed)
    effects, masks = rng.normal(size=(K, N)), subset_masks(K, m, seed=seed)
    margin = masks @ effects + rng.normal(0, noise, (m, N))
    if shuffled:
        margin = rng.permutation(margin)
    data = {"mask": (("model", "source"), masks), "margin": (("transfer", "model", "target"), margin[None])}
    coordinates = {
        "model": np.arange(m),
        "transfer": ["fixed"],
        "split": ("target", ["validation"] * N),
        "label": ("target", np.arange(N) % 4),
    }
    return xr.Dataset(
        data, coordinates, attrs={"settings": {"design": "balanced", "unit": "class", "data": {}}}
    ), effects


def test_exact_effects_reach_the_ceiling_and_noise_nothing():
    inside, widths = [], []
    for seed in range(10):
        results, effects = measured(seed)
        found = evaluate(effects, results)
        inside.append(found.low <= 1 <= found.high)
        widths.append(found.high - found.low)
        assert found.share == pytest.approx(1, abs=0.05) and found.share == pytest.approx(found.score / found.ceiling)
        nothing = evaluate(np.random.default_rng([seed, 9]).normal(size=(K, N)), results)
        assert nothing.low < 0.1 and nothing.high > -0.1 and nothing.ceiling == pytest.approx(found.ceiling)
    assert sum(inside) >= 8 and max(widths) < 0.3


def test_interval_holds_what_more_models_would_say():
    """An attribution of middling worth, scored by 152 models and by 1,140."""
    inside = 0
    for seed in range(6):
        results, effects = measured(seed)
        values = effects + np.random.default_rng([seed, 9]).normal(size=(K, N))
        truth = evaluate(values, measured(seed, m=1140)[0]).share
        assert 0.6 < truth < 0.8
        found = evaluate(values, results)
        inside += found.low <= truth <= found.high
    assert inside >= 5


def test_influences_of_classes_are_scored():
    results, _ = measured()
    own = estimate_influence(
        measured(0, m=304)[0]["mask"].values[152:], measured(0, m=304)[0]["margin"].values[0, 152:]
    )
    assert evaluate(own, results).share > 0.9
    assert evaluate(own.values.mean(axis=1, keepdims=True).repeat(4, axis=1), results, by="class").score < 0.9


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros((K, 3)), {}, r"values must be finite, \(sources, targets\) \(20, 40\), not \(20, 3\)"),
        (np.full((K, N), np.nan), {}, "values must be finite"),
        (np.zeros((K, N)), {"by": "images"}, "unknown by 'images'"),
        (np.zeros((K, N)), {"level": 95}, "level must lie strictly between 0 and 1"),
    ],
)
def test_bad_arguments_get_one_clear_error(values, options, message):
    with pytest.raises(InputError, match=message):
        evaluate(values, measured()[0], **options)


def test_rows_that_are_not_those_of_their_models():
    results, effects = measured()
    with pytest.raises(InputError, match="row i"):
        evaluate(effects, measured(shuffled=True)[0])
    with pytest.raises(InputError, match="subsets of models .* are not those of their design"):
        evaluate(effects, _astray(results))
    with pytest.raises(InputError, match="OLS needs more than 40 models"):
        evaluate(effects, results.isel(model=slice(20)))


def test_models_that_are_too_few_to_leave_some_out_are_counted():
    results, effects = measured(m=42)
    with pytest.raises(InputError, match="42 models are too few to leave out one in 20 of them .*: train more"):
        evaluate(effects, results)


def _astray(results):
    """Rows of the subsets in another order than their models, as when a store was sorted by hand."""
    settings = results.attrs["settings"] | {"seed": 0, "fraction": 0.5}
    turned = results["mask"].copy(data=np.roll(results["mask"].values, 2, axis=0))
    return results.assign(mask=turned).assign_attrs(settings=settings)


def test_influences_of_other_images_are_refused_and_those_of_the_same_models_noticed(problem, recipe, caplog):
    study = dtl.Study(problem, recipe, "random", unit=["a", "b", "c", "d"] * 6).run(16, "cpu", progress=False)
    own = study.influence()
    with pytest.raises(InputError, match="of the validation images of problem testbed-0: give results of these"):
        dtl.evaluate(own, study.results, split="test")
    strange = dataclasses.replace(own, data={**own.data, "target_validation": "0"})
    with pytest.raises(InputError, match="the influence is of the validation images"):
        dtl.evaluate(strange, study.results)
    assert dtl.evaluate(own, study.results).low > 1
    assert "are the values made from these very models?" in caplog.text
