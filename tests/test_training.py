"""Training side by side against training alone, and against a plain PyTorch loop."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

import dtl
from dtl.models import initialise
from dtl.training import Pixels, check_size, draw_order, fit, resolve_device, schedule, train_sources

CPU = torch.device("cpu")
LIGHT = dtl.Recipe(epochs=2, lr=0.05, widths=(8, 16))
MASKS = dtl.subset_masks(24, 6, seed=1)


def net_of(nets, m):
    """Weights and statistics of one net of a stack."""
    return {k: v.chunk(nets.n_models)[m] for k, v in nets.state_dict().items() if v.ndim}


@pytest.mark.parametrize("augment", [0, 2])
def test_a_model_does_not_depend_on_its_company(problem, augment):
    recipe = dataclasses.replace(LIGHT, augment=augment)
    seeds = [10, 11, 12]
    together = train_sources(problem.source, MASKS[:3], seeds, recipe, CPU)
    reordered = train_sources(problem.source, MASKS[[2, 0]], [12, 10], recipe, CPU)
    for m, seed in enumerate(seeds):
        alone = net_of(train_sources(problem.source, MASKS[m : m + 1], [seed], recipe, CPU), 0)
        for name, values in net_of(together, m).items():
            torch.testing.assert_close(values, alone[name], rtol=1e-3, atol=1e-4)
    for name, values in net_of(reordered, 1).items():
        torch.testing.assert_close(values, net_of(together, 0)[name], rtol=1e-3, atol=1e-4)
    first, second = net_of(together, 0), net_of(together, 1)
    assert (first["backbone.0.0.weight"] - second["backbone.0.0.weight"]).abs().max() > 0.05


def test_training_is_repeatable_to_the_bit(problem):
    first, again = (train_sources(problem.source, MASKS[:2], [0, 1], LIGHT, CPU).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def plain_net(nets, kept):
    """An ordinary PyTorch net for the classes in `kept`, with the weights of a new dtl net."""
    layers, state, channels = [], nets.state_dict(), (3, 8, 16)
    for i in range(2):
        kernel, padding = ((3, 1), (2, 0))[i]
        conv = nn.Conv2d(channels[i], channels[i + 1], kernel, stride=2, padding=padding, bias=False)
        conv.weight.data.copy_(state[f"backbone.{i}.0.weight"])
        layers += [conv, nn.BatchNorm2d(channels[i + 1]), nn.ReLU()]
    linear = nn.Linear(16, len(kept))
    linear.weight.data.copy_(state["weight"][0, :, kept].T)
    linear.bias.data.zero_()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


def test_training_equals_a_plain_loop(problem):
    """The loop that everybody writes: own net, own normalisation, own batches, cross-entropy over the kept classes."""
    recipe, seed, mask = dataclasses.replace(LIGHT, batch_size=50), 5, MASKS[0]
    kept = np.flatnonzero(mask)
    net = plain_net(initialise("small", 24, [seed], recipe.widths), kept)
    images = problem.source.images.float() / 255
    images = (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True)
    labels = problem.source.labels.numpy()
    members, rng = np.flatnonzero(np.isin(labels, kept)), np.random.default_rng([seed, 1])
    steps = 2 * (len(members) // 50)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 0.05, total_steps=steps + 1, pct_start=0.2, anneal_strategy="linear", cycle_momentum=False
    )
    for _ in range(2):
        order = rng.permutation(members)
        for first in range(0, len(members) - 49, 50):
            batch = order[first : first + 50]
            target = torch.from_numpy(np.searchsorted(kept, labels[batch]))
            optimiser.zero_grad()
            nn.CrossEntropyLoss()(net(images[batch]), target).backward()
            optimiser.step()
            rate.step()
    trained = train_sources(problem.source, mask[None], [seed], recipe, CPU)
    state = trained.state_dict()
    for i in range(2):
        torch.testing.assert_close(state[f"backbone.{i}.0.weight"], net[3 * i].weight.data, rtol=1e-3, atol=2e-4)
        for name in ("weight", "bias", "running_mean", "running_var"):
            expected = getattr(net[3 * i + 1], name).data
            torch.testing.assert_close(state[f"backbone.{i}.1.{name}"], expected, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(state["weight"][0][:, kept], net[-1].weight.data.T, rtol=1e-3, atol=2e-4)
    net.eval()
    pixels = Pixels(problem.target_test, problem.source, CPU)
    x = problem.target_test.images.float() / 255
    raw = problem.source.images.float() / 255
    x = (x - raw.mean((0, 2, 3), keepdim=True)) / raw.std((0, 2, 3), keepdim=True)
    found = trained(pixels.batch(torch.arange(len(x))[None]))[0][:, kept]
    torch.testing.assert_close(found, net(x), rtol=1e-3, atol=2e-3)
    moved = (
        state["backbone.0.0.weight"]
        - initialise("small", 24, [seed], recipe.widths).state_dict()["backbone.0.0.weight"]
    ).abs()
    assert moved.max() > 0.02  # a hundred times the tolerance


def test_absent_classes_get_no_gradient(problem):
    recipe = dataclasses.replace(LIGHT, weight_decay=0.0)
    trained = train_sources(problem.source, MASKS[:2], [3, 4], recipe, CPU)
    new = initialise("small", 24, [3, 4], recipe.widths)
    for m, mask in enumerate(MASKS[:2]):
        moved = (trained.weight[m] - new.weight[m]).abs().amax(0)
        assert (moved[torch.from_numpy(~mask)] == 0).all() and (moved[torch.from_numpy(mask)] > 1e-3).all()
        assert (trained.bias[m, 0, torch.from_numpy(~mask)] == 0).all()


def test_schedule_drops_the_incomplete_batch():
    recipe = dtl.Recipe(epochs=3, batch_size=32)
    assert schedule(70, recipe) == (3 * 2, 32)
    assert schedule(120, recipe) == (3 * 3, 32)
    assert schedule(30, recipe) == (3, 30)  # fewer images than a batch


def test_order_is_a_new_permutation_every_epoch():
    members = np.arange(100, 123)
    order = draw_order(members, steps=9, batch=7, rng=np.random.default_rng(0)).numpy()
    assert order.shape == (9, 7)
    epochs = order.reshape(3, 21)
    assert all(len(set(epoch)) == 21 and set(epoch) <= set(members) for epoch in epochs)
    assert not (epochs[0] == epochs[1]).all() and set(epochs[0]) != set(epochs[1])
    assert (draw_order(members, 9, 7, np.random.default_rng(0)).numpy() == order).all()


def test_augmented_images_are_shifted_and_flipped_crops(problem):
    pad, dataset = 2, problem.source
    pixels = Pixels(dataset, dataset, CPU, pad)
    index = torch.arange(60).reshape(2, 30)
    draw = lambda *seeds: pixels.batch(index[: len(seeds)], [np.random.default_rng(s) for s in seeds])  # noqa: E731
    batch = draw(0, 1)
    assert batch.shape == (30, 6, 16, 16)
    raw = dataset.images.double() / 255
    mean, std = (f((0, 2, 3), keepdim=True) for f in (raw.mean, raw.std))
    normal = ((raw[:60] - mean) / std).float()
    wide = torch.nn.functional.pad(normal, (pad,) * 4, mode="reflect")
    seen = set()
    for m in range(2):
        for b in range(30):
            found = []
            for dy in range(2 * pad + 1):
                for dx in range(2 * pad + 1):
                    crop = wide[index[m, b], :, dy : dy + 16, dx : dx + 16]
                    for flip, candidate in enumerate((crop, crop.flip(-1))):
                        if torch.allclose(batch[b, 3 * m : 3 * m + 3], candidate, atol=1e-4):
                            found.append((dy, dx, flip))
            assert len(found) == 1, f"picture {b} of net {m} is {len(found)} crops of its original"
            seen |= set(found)
    assert {flip for *_, flip in seen} == {0, 1} and {dy for dy, *_ in seen} == set(range(5))
    assert {dx for _, dx, _ in seen} == set(range(5))
    assert torch.equal(batch, draw(0, 1)) and not torch.equal(batch, draw(2, 1))
    assert torch.equal(batch[:, :3], draw(0))  # a net's own stream alone
    plain = Pixels(dataset, dataset, CPU).batch(index)
    torch.testing.assert_close(plain[:, 3:], normal[30:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.2), (1, 0.5), (2, 0.2), (3, 0.25), (4, 0.2), (9, 0.1)])
def test_any_number_of_steps_can_be_trained(problem, steps, warmup):
    recipe = dtl.Recipe(widths=(4,), warmup=warmup)
    nets = initialise("small", 24, [0], recipe.widths)
    pixels = Pixels(problem.source, problem.source, CPU)
    order = torch.arange(steps * 10).reshape(steps, 1, 10)
    before = nets.weight.clone()
    fit(nets, pixels, order, recipe, 0.1, (), nets.parameters())
    assert torch.isfinite(nets.weight).all() and not torch.equal(nets.weight, before) and not nets.training


def test_models_of_different_schedules_cannot_share_a_batch(uneven):
    masks = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], dtype=bool)
    with pytest.raises(ValueError, match="models of different schedules cannot train side by side"):
        train_sources(uneven.source, masks, [0, 1], LIGHT, CPU)


def test_bfloat16_trains(problem):
    recipe = dataclasses.replace(LIGHT, precision="bfloat16")
    half = train_sources(problem.source, MASKS[:1], [0], recipe, CPU)
    full = train_sources(problem.source, MASKS[:1], [0], LIGHT, CPU)
    assert half.weight.dtype == torch.float32 and not torch.equal(half.weight, full.weight)
    torch.testing.assert_close(half.weight, full.weight, rtol=0.2, atol=0.05)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 2"),
        ({"models_at_once": 0}, "models_at_once must be a whole number of at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": float("nan")}, "lr must be a number that is not negative, not nan"),
        ({"probe_l2": 0.0}, "probe_l2 must be positive"),
        ({"augment": -1}, "augment must be a whole number of at least 0"),
        ({"weight_decay": -0.1}, "weight_decay must be a number that is not negative, not -0.1"),
        ({"epochs": 1.5}, "epochs must be a whole number of at least 1, not 1.5"),
        ({"lr": "0.1"}, "lr must be a number that is not negative, not '0.1'"),
        ({"warmup": 1.0}, "warmup is the share of the steps"),
        ({"widths": (0,)}, "widths must be positive numbers of channels"),
        ({"model": "resnet9", "widths": (8, 16)}, "resnet9 has 4 widths to set, not 2: leave them out"),
        ({"model": "resnet18", "widths": (8,)}, "resnet18 has 0 widths to set, not 1: leave them out"),
        ({"precision": "float16"}, "unknown precision 'float16': use 'float32' or 'bfloat16'"),
    ],
)
def test_bad_recipes_are_refused_at_once(setting, message):
    with pytest.raises(ValueError, match=message):
        dtl.Recipe(**setting)


def test_recipes_are_plain_settings():
    recipe = dtl.Recipe(widths=[4, 8])  # type: ignore[arg-type]
    assert dataclasses.replace(dtl.Recipe(), model="resnet18").widths == ()
    assert dataclasses.replace(dtl.Recipe(), model="resnet9") == dtl.Recipe("resnet9")
    assert dtl.Recipe().widths == (16, 32, 64) and dtl.Recipe("resnet9").widths == (64, 128, 256, 512)
    assert recipe == dtl.Recipe(widths=(4, 8)) and recipe.settings()["widths"] == [4, 8]
    of_numpy = dtl.Recipe(epochs=np.int64(3), lr=np.float32(0.5), widths=(np.int32(4),))  # type: ignore[arg-type]
    assert json.loads(json.dumps(of_numpy.settings())) == dtl.Recipe(epochs=3, lr=0.5, widths=(4,)).settings()


@pytest.mark.parametrize("device", ["gpu", "tpu:0", "cuda:x", ""])
def test_unknown_devices(device):
    with pytest.raises(ValueError, match=f"unknown device '{device}': use 'auto', 'cpu', 'cuda' or 'cuda:1'"):
        resolve_device(device)


def test_an_absent_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda") and resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match="device 'cuda:1' was asked for but torch sees 1 CUDA devices: use 'cpu'"):
        resolve_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == CPU
    with pytest.raises(ValueError, match="'cuda' was asked for but torch sees 0"):
        resolve_device("cuda")


@pytest.mark.parametrize(
    ("model", "widths", "side"),
    [("small", (4, 8, 8), 3), ("resnet9", (4, 8, 8, 16), 4), ("alexnet", (), 32), ("vit_b_16", (), 64)],
)
def test_images_that_the_net_cannot_take(model, widths, side):
    recipe = dtl.Recipe(model=model, widths=widths, models_at_once=1)
    large = 224 if model == "vit_b_16" else 64
    check_size(recipe, large, large)
    with pytest.raises(ValueError, match=f"{model}.* cannot take images of {side} x {side} pixels"):
        check_size(recipe, side, side)
