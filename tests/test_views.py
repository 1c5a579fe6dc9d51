"""Views: changed evaluation images, kept beside a study without touching what was there."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import dtl
import dtl._checks
import dtl.datasets.saved
from dtl.datasets import overlays
from dtl.engine import weights, workers

SQUARE, BLUR = overlays.Square(), overlays.Blur()


def files_of(folder: Path) -> dict[str, bytes]:
    """What is in a store without its views and the records of its runs."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "views" not in path.parts]
    return {str(path): path.read_bytes() for path in paths if path.name != "zarr.json"}


def test_a_view_added_later_trains_no_source_and_touches_nothing(problem, recipe, tmp_path, monkeypatch):
    places = {"store": tmp_path / "s", "weights": tmp_path / "w"}
    regimes = ("fixed", "full", "scratch")
    before = dtl.Study(problem, recipe, transfer=regimes, **places).run(6, "cpu", progress=False)
    old, files = before.results.load(), files_of(tmp_path / "s")
    monkeypatch.setattr(weights, "train_sources", None)
    viewed = problem.with_views({"square": SQUARE})
    study = dtl.Study(viewed, recipe, transfer=regimes, **places).run(6, "cpu", progress=False)
    assert files_of(tmp_path / "s") == files
    for output in ("margin", "correct", "prediction", "probability"):
        np.testing.assert_array_equal(before.results[output], old[output])
        for split in ("validation", "test"):
            np.testing.assert_array_equal(study.outputs(output, split=split), before.outputs(output, split=split))
    later = dtl.Study(viewed.with_views({"blur": BLUR}), recipe, transfer=regimes, **places).run(6, progress=False)
    np.testing.assert_array_equal(
        later.outputs(split="test/square", transfer="full"), study.outputs(split="test/square", transfer="full")
    )
    assert set(later.results.split.values) == {
        f"{split}{view}" for split in ("validation", "test") for view in ("", "/square", "/blur")
    }
    monkeypatch.setattr(workers, "train_batch", None)
    assert later.run(6, progress=False).results.sizes["model"] == 6


def test_views_are_what_models_say_of_the_changed_images(problem, recipe):
    """The changed images as a test split of their own give the same outputs, in every regime."""
    study = dtl.Study(problem.with_views({"square": SQUARE}), recipe, transfer=dtl.transfer.REGIMES)
    study.run(4, "cpu", progress=False)
    test = dataclasses.replace(problem.target_test, images=SQUARE(problem.target_test.images))
    by_hand = dtl.Study(dataclasses.replace(problem, target_test=test), recipe, transfer=dtl.transfer.REGIMES)
    by_hand.run(4, "cpu", progress=False)
    for regime in dtl.transfer.REGIMES:
        for output in ("margin", "probability"):
            ours = study.outputs(output, regime, "test/square")
            np.testing.assert_allclose(ours, by_hand.outputs(output, regime, "test"), rtol=1e-4, atol=1e-4)
        for output in ("correct", "prediction"):
            ours = study.outputs(output, regime, "test/square")
            np.testing.assert_array_equal(ours, by_hand.outputs(output, regime, "test"))
    logits = study.results.logits
    assert logits.dims == ("transfer", "model", "target", "class") and logits.sizes["target"] == 160
    test = study.results.split.values == "test"
    np.testing.assert_array_equal(logits.argmax("class")[..., test], study.results.prediction[..., test])
    assert study.influence(split="test/square", by="class").values.shape == (24, 4)


def test_scratch_is_training_on_the_target_alone(problem, recipe):
    """As a source of its own, with the statistics of the source, and whatever the subsets and the steps are."""
    study = dtl.Study(problem, dataclasses.replace(recipe, steps=3), transfer=("scratch", "fixed"))
    study.run(4, "cpu", progress=False)
    target = dataclasses.replace(problem.target_train, normalisation=problem.source.statistics())
    seeds = study.seeds(4).tolist()
    nets = dtl.training.train_sources(target, np.ones((4, 4), bool), seeds, recipe, "cpu")
    features = dtl.transfer.features(nets, problem.target_test.batches(problem.source, torch.device("cpu")), recipe)
    logits = features @ nets.weight.detach() + nets.bias.detach()
    np.testing.assert_array_equal(study.outputs("prediction", "scratch", "test"), logits.argmax(2))


def test_a_killed_run_of_a_view_resumes(problem, recipe, tmp_path, monkeypatch):
    study = dtl.Study(problem, recipe, store=tmp_path / "s").run(8, "cpu", progress=False)
    viewed = dtl.Study(problem.with_views({"square": SQUARE}), recipe, store=tmp_path / "s")
    real, calls = workers.train_batch, []

    def dying(*args):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(workers.joblib, "cpu_count", lambda: 1)
    monkeypatch.setattr(workers, "train_batch", dying)
    with pytest.raises(KeyboardInterrupt):
        viewed.run(8, "cpu", progress=False)
    assert study.results.sizes["model"] == 8 and viewed.results.sizes["model"] == 4
    monkeypatch.setattr(workers, "train_batch", real)
    whole = dtl.Study(problem.with_views({"square": SQUARE}), recipe).run(8, "cpu", progress=False)
    viewed.run(8, "cpu", progress=False)
    np.testing.assert_array_equal(viewed.outputs(split="test/square"), whole.outputs(split="test/square"))


def test_another_view_of_the_same_name_is_refused(problem, recipe, tmp_path):
    dtl.Study(problem.with_views({"mark": SQUARE}), recipe, store=tmp_path / "s").run(2, "cpu", progress=False)
    other = problem.with_views({"mark": overlays.Square(side=5)})
    with pytest.raises(dtl._checks.InputError, match="another study .*view"):
        dtl.Study(other, recipe, store=tmp_path / "s")


def test_arms_keep_views(problem, recipe):
    study = dtl.Study(problem.with_views({"square": SQUARE}), recipe)
    again = dtl.retrain(study, {"all": study.problem, "few": np.arange(24) < 12}, 2, progress=False)
    assert again.logits.dims == ("arm", "seed", "target", "class") and "test/square" in again.split.values
    with pytest.raises(dtl._checks.InputError, match="arm 'bare' has the views"):
        dtl.retrain(study, {"bare": problem}, 2)


def test_a_problem_with_views_travels(problem, tmp_path):
    import pickle

    viewed = problem.with_views({"square": SQUARE})
    again = pickle.loads(pickle.dumps(viewed))
    assert again.judges["test/square"].fingerprint == viewed.judges["test/square"].fingerprint
    planted, _ = dtl.plant(problem.source, SQUARE, ["star"], 1.0)
    made = dataclasses.replace(problem, source=planted)
    again = dtl.load("file", path=dtl.datasets.saved.save(made, tmp_path / "p.safetensors"))
    assert again.fingerprints == made.fingerprints and again.source.still
    torch.testing.assert_close(again.source.statistics(), problem.source.statistics())


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"a/b": SQUARE}, "a view needs a name"),
        ({"plain": SQUARE}, "not 'plain'"),
        ({"big": overlays.Square(side=17)}, "does not fit into images of 16 x 16"),
        ({"crop": lambda x: x[..., :8]}, "must give the same uint8 images"),
        ({"float": lambda x: x / 2}, "must give the same uint8 images"),
        ({"random": lambda x: torch.randint_like(x, 255)}, "whenever asked"),
    ],
)
def test_bad_views(problem, views, message):
    with pytest.raises(dtl._checks.InputError, match=message):
        problem.with_views(views)
