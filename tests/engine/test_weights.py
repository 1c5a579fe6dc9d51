"""Source weights on disk: used where they are the right ones, and only there."""

import dataclasses
import logging
import shutil

import numpy as np
import pytest
import torch

import dtl
from dtl.data import ImageDataset, TransferProblem
from dtl.engine import weights as weights_module
from dtl.engine.weights import finite, load_tensors, save_tensors, source_nets, zero_diverged
from dtl.models import initialise

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def other_target(problem):
    """The same source with another target: its validation examples to train on, two classes."""

    def two(dataset):
        return ImageDataset(dataset.images, dataset.labels % 2, ("a", "b"))

    train, validation, test = map(two, (problem.target_validation, problem.target_test, problem.target_train))
    return TransferProblem("other", problem.source, train, validation, test)


@pytest.fixture
def no_source_training(monkeypatch):
    def train_sources(*args):
        raise AssertionError("a source model is trained")

    monkeypatch.setattr(weights_module, "train_sources", train_sources)


def same_margins(one, other):
    np.testing.assert_array_equal(one.results.margin, other.results.margin)


def test_a_second_target_trains_no_source_model(problem, other_target, recipe, tmp_path, request):
    regimes = ("fixed", "fixed+bn", "full")
    first = dtl.Study(problem, recipe, transfer=regimes, store=tmp_path / "a", weights=tmp_path / "w")
    first.run(10, progress=False)
    same_margins(first, dtl.Study(problem, recipe, transfer=regimes).run(10, progress=False))
    expected = dtl.Study(other_target, recipe, transfer=regimes).run(10, progress=False)
    assert len([*(tmp_path / "w").iterdir()]) == 10
    request.getfixturevalue("no_source_training")
    second = dtl.Study(other_target, recipe, transfer=regimes, store=tmp_path / "b", weights=tmp_path / "w")
    same_margins(second.run(10, progress=False), expected)
    finer = dataclasses.replace(recipe, probe_l2=1.0, finetune_epochs=1, models_at_once=3)
    dtl.Study(other_target, finer, transfer=regimes, weights=tmp_path / "w").run(10, progress=False)


def test_models_that_are_missing_are_trained(problem, recipe, tmp_path):
    study = dtl.Study(problem, recipe, weights=tmp_path / "w").run(4, progress=False)
    longer = dtl.Study(problem, recipe, weights=tmp_path / "w").run(8, progress=False)
    assert len([*(tmp_path / "w").iterdir()]) == 8
    np.testing.assert_array_equal(longer.results.margin[:, :4], study.results.margin)


@pytest.mark.parametrize("change", [{"epochs": 2}, {"lr": 0.1}, {"widths": (8, 8)}, {"augment": 1}])
def test_other_settings_are_other_models(problem, recipe, tmp_path, change):
    masks, folder = dtl.subset_masks(24, 2), tmp_path / "w"
    source_nets(problem.source, masks, [0, 1], recipe, CPU, "class", folder)
    source_nets(problem.source, masks, [0, 1], dataclasses.replace(recipe, **change), CPU, "class", folder)
    assert len([*folder.iterdir()]) == 4
    source_nets(problem.source, masks, [1, 0], recipe, CPU, "class", folder)
    fewer = problem.source.subset(np.arange(len(problem.source)) != 3)
    source_nets(fewer, masks, [0, 1], recipe, CPU, "class", folder)
    assert len([*folder.iterdir()]) == 8


def test_the_same_images_are_the_same_model(problem, recipe, tmp_path, request):
    """Whether they were chosen by class or one by one."""
    masks = dtl.subset_masks(24, 2)
    nets = source_nets(problem.source, masks, [0, 1], recipe, CPU, "class", tmp_path)
    request.getfixturevalue("no_source_training")
    images = masks[:, problem.source.labels.numpy()]
    again = source_nets(problem.source, images, [0, 1], recipe, CPU, "example", tmp_path)
    for name, value in nets.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]) and value.stride() == again.state_dict()[name].stride()
    assert not again.training


def test_weights_of_version_0_1_are_found(problem, recipe, tmp_path):
    """Files are named by settings; one that was not there yet must not rename them."""
    source_nets(
        problem.source, dtl.subset_masks(24, 2), [0, 1], dtl.Recipe(epochs=1, widths=(8, 16)), CPU, "class", tmp_path
    )
    assert sorted(file.stem for file in tmp_path.iterdir()) == [
        "41dfb723034ae63592a76998e4d30405",
        "71bce1dcd2b7c50ae9710baf42842515",
    ]
    held = dtl.Recipe(epochs=1, widths=(8, 16), steps=2)
    source_nets(problem.source, dtl.subset_masks(24, 2), [0, 1], held, CPU, "class", tmp_path)
    assert len([*tmp_path.iterdir()]) == 4


@pytest.mark.parametrize("how", ["flip", "truncate"])
def test_damaged_weights_are_named_and_trained_again(problem, recipe, tmp_path, caplog, how):
    masks = dtl.subset_masks(24, 2)
    nets = source_nets(problem.source, masks, [0, 1], recipe, CPU, "class", tmp_path)
    file = sorted(tmp_path.iterdir())[0]
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data if how == "flip" else data[:-50])
    with caplog.at_level(logging.WARNING):
        again = source_nets(problem.source, masks, [0, 1], recipe, CPU, "class", tmp_path)
    assert f"{file} is damaged" in caplog.text and "trained again" in caplog.text
    assert torch.equal(nets.weight, again.weight)
    load_tensors(file)


def test_weights_of_another_model_are_not_taken_for_its_own(problem, recipe, tmp_path, caplog):
    masks = dtl.subset_masks(24, 2)
    nets = source_nets(problem.source, masks, [0, 1], recipe, CPU, "class", tmp_path)
    one, other = sorted(tmp_path.iterdir())
    shutil.copy(other, one)
    again = source_nets(problem.source, masks, [0, 1], recipe, CPU, "class", tmp_path)
    assert f"{one} holds the weights of another model, {other.stem}: its models are trained again" in caplog.text
    assert torch.equal(nets.weight, again.weight)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(OSError, match="cannot write .*: free space, or give a folder that you may write to"):
        save_tensors(tmp_path / "none" / "x.safetensors", {"a": torch.ones(3)}, {})
    save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(3)}, {"b": "c"})
    tensors, facts = load_tensors(tmp_path / "x.safetensors")
    assert tensors["a"].tolist() == [1, 1, 1] and facts["b"] == "c"
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("model", ["small", "resnet9"])
def test_nets_that_are_not_finite_are_found_and_zeroedd(model):
    widths = (4, 8) if model == "small" else (4, 8, 8, 16)
    nets = initialise(model, 4, [0, 1, 2], widths).to(memory_format=torch.channels_last)  # pyright: ignore
    assert finite(nets).tolist() == [True] * 3
    before = {name: value.clone() for name, value in nets.state_dict().items()}
    name, value = next((n, v) for n, v in nets.state_dict().items() if n.endswith("running_var"))
    value[len(value) // 3] = torch.inf  # a statistic of the second net
    assert finite(nets).tolist() == [True, False, True], name
    zero_diverged(nets, ~finite(nets))
    assert finite(nets).all()
    for name, value in nets.state_dict().items():
        if value.ndim:
            parts, old = value.unflatten(0, (3, -1)), before[name].unflatten(0, (3, -1))
            assert not parts[1].any() and torch.equal(parts[[0, 2]], old[[0, 2]])
