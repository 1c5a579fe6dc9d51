"""Training side by side against training alone, and against a plain PyTorch loop."""

import dataclasses
import itertools
import json
import logging
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import dtl
from dtl import _step
from dtl._batches import InMemory
from dtl._checks import InputError
from dtl._streams import STREAMS, stream
from dtl.models import initialise
from dtl.training import (
    Plan,
    check_size,
    draw_order,
    draw_plan,
    fit,
    images_of,
    learning_rates,
    resolve_device,
    schedule,
    train_sources,
)

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
    together = train_sources(problem.source, MASKS[:3], seeds, recipe, "cpu")
    reordered = train_sources(problem.source, MASKS[[2, 0]], [12, 10], recipe, "cpu")
    for m, seed in enumerate(seeds):
        alone = net_of(train_sources(problem.source, MASKS[m : m + 1], [seed], recipe, "cpu"), 0)
        for name, values in net_of(together, m).items():
            torch.testing.assert_close(values, alone[name], rtol=1e-3, atol=1e-4)
    for name, values in net_of(reordered, 1).items():
        torch.testing.assert_close(values, net_of(together, 0)[name], rtol=1e-3, atol=1e-4)
    first, second = net_of(together, 0), net_of(together, 1)
    assert (first["backbone.0.0.weight"] - second["backbone.0.0.weight"]).abs().max() > 0.05


def test_training_is_repeatable_to_the_bit(problem):
    first, again = (train_sources(problem.source, MASKS[:2], [0, 1], LIGHT, "cpu").state_dict() for _ in range(2))
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
    recipe = dataclasses.replace(LIGHT, batch_size=50, momentum=0.8, weight_decay=0.1, warmup=0.3)
    seed, mask = 5, MASKS[0]
    kept = np.flatnonzero(mask)
    net = plain_net(initialise("small", 24, [seed], recipe.widths), kept)
    images = problem.source.images.float() / 255
    images = (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True)
    labels = problem.source.labels.numpy()
    members, rng = np.flatnonzero(np.isin(labels, kept)), np.random.default_rng([seed, 1])
    steps = 2 * (len(members) // 50)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.8, weight_decay=0.1)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 0.05, total_steps=steps + 1, pct_start=0.3, anneal_strategy="linear", cycle_momentum=False
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
    trained = train_sources(problem.source, mask[None], [seed], recipe, "cpu")
    state = trained.state_dict()
    for i in range(2):
        torch.testing.assert_close(state[f"backbone.{i}.0.weight"], net[3 * i].weight.data, rtol=1e-3, atol=2e-4)
        for name in ("weight", "bias", "running_mean", "running_var"):
            expected = getattr(net[3 * i + 1], name).data
            torch.testing.assert_close(state[f"backbone.{i}.1.{name}"], expected, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(state["weight"][0][:, kept], net[-1].weight.data.T, rtol=1e-3, atol=2e-4)
    net.eval()
    batches = problem.target_test.batches(problem.source, CPU)
    x = problem.target_test.images.float() / 255
    raw = problem.source.images.float() / 255
    x = (x - raw.mean((0, 2, 3), keepdim=True)) / raw.std((0, 2, 3), keepdim=True)
    found = trained(next(batches.in_order(len(x))))[0][:, kept]
    torch.testing.assert_close(found, net(x), rtol=1e-3, atol=2e-3)
    moved = (
        state["backbone.0.0.weight"]
        - initialise("small", 24, [seed], recipe.widths).state_dict()["backbone.0.0.weight"]
    ).abs()
    assert moved.max() > 0.02  # a hundred times the tolerance


def test_absent_classes_get_no_gradient(problem):
    recipe = dataclasses.replace(LIGHT, weight_decay=0.0)
    trained = train_sources(problem.source, MASKS[:2], [3, 4], recipe, "cpu")
    new = initialise("small", 24, [3, 4], recipe.widths)
    for m, mask in enumerate(MASKS[:2]):
        moved = (trained.weight[m] - new.weight[m]).abs().amax(0)
        assert (moved[torch.from_numpy(~mask)] == 0).all() and (moved[torch.from_numpy(mask)] > 1e-3).all()
        assert (trained.bias[m, 0, torch.from_numpy(~mask)] == 0).all()


def test_a_model_sees_the_images_of_its_subset(uneven):
    masks, labels = dtl.subset_masks(uneven.source.n_classes, 4, "random"), uneven.source.labels.tolist()
    expected = [[bool(mask[label]) for label in labels] for mask in masks]
    np.testing.assert_array_equal(images_of(masks, uneven.source), expected)
    np.testing.assert_array_equal(images_of(np.array(expected), uneven.source, "example"), expected)
    shape = f"({len(masks)}, {masks.shape[1]})"
    for wrong, unit, columns, kind in (
        (masks.astype(int), "class", masks.shape[1], "int64"),
        (masks, "example", len(labels), "bool"),
    ):
        with pytest.raises(InputError) as refused:
            images_of(wrong, uneven.source, unit)
        assert str(refused.value) == f"masks must be bool, models x {columns}, not {kind} {shape}"


def test_schedule_drops_the_incomplete_batch():
    recipe = dtl.Recipe(epochs=3, batch_size=32)
    assert schedule(70, recipe) == (3 * 2, 32)
    assert schedule(120, recipe) == (3 * 3, 32)
    assert schedule(30, recipe) == (3, 30)  # fewer images than a batch


def test_order_is_a_new_permutation_every_epoch():
    members = np.arange(100, 123)
    order = draw_order(members, steps=9, batch=7, rng=np.random.default_rng(0))
    assert order.shape == (9, 7)
    epochs = order.reshape(3, 21)
    assert all(len(set(epoch)) == 21 and set(epoch) <= set(members) for epoch in epochs)
    assert not (epochs[0] == epochs[1]).all() and set(epochs[0]) != set(epochs[1])
    np.testing.assert_array_equal(draw_order(members, 9, 7, np.random.default_rng(0)), order)
    assert draw_order(members, 10, 7, np.random.default_rng(0)).shape == (10, 7)  # in the middle of an epoch


def test_augmented_images_are_shifted_and_flipped_crops(problem):
    pad, dataset = 2, dataclasses.replace(problem.source, images=problem.source.images[..., 2:14])  # not square
    batches = dataset.batches(dataset, CPU, pad)
    index = torch.arange(60).reshape(2, 30)

    def draw(*seeds):
        own = index[: len(seeds)]
        drawn = [batches.draw(i.numpy()[None], np.random.default_rng(s)) for i, s in zip(own, seeds, strict=True)]
        return batches.images(own, torch.from_numpy(np.concatenate(drawn)))

    batch = draw(0, 1)
    assert batch.shape == (30, 6, 16, 12)
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
                    crop = wide[index[m, b], :, dy : dy + 16, dx : dx + 12]
                    for flip, candidate in enumerate((crop, crop.flip(-1))):
                        if torch.allclose(batch[b, 3 * m : 3 * m + 3], candidate, atol=1e-4):
                            found.append((dy, dx, flip))
            assert len(found) == 1, f"picture {b} of net {m} is {len(found)} crops of its original"
            seen |= set(found)
    assert {flip for *_, flip in seen} == {0, 1} and {dy for dy, *_ in seen} == set(range(5))
    assert {dx for _, dx, _ in seen} == set(range(5))
    assert torch.equal(batch, draw(0, 1)) and not torch.equal(batch, draw(2, 1))
    assert torch.equal(batch[:, :3], draw(0))  # a net's own stream alone
    plain = torch.cat([*dataset.batches(dataset, CPU).in_order(7)])
    torch.testing.assert_close(plain[:60], normal, rtol=1e-4, atol=1e-5)
    assert len(plain) == len(dataset)


def test_a_plan_draws_the_order_of_all_steps_and_then_step_by_step(problem):
    """The numbers of a loop that draws shifts and flips when it needs them, so studies of old go on."""
    batches, examples = problem.source.batches(problem.source, CPU, 2), [np.arange(10, 40), np.arange(50)]
    recipe = dtl.Recipe(lr=0.1, warmup=0.2)
    plan = draw_plan(examples, (5, 8), [np.random.default_rng(s) for s in (3, 4)], batches, recipe)
    for m, seed in enumerate((3, 4)):
        rng = np.random.default_rng(seed)
        np.testing.assert_array_equal(plan.order[:, m], draw_order(examples[m], 5, 8, rng))
        for step in range(5):
            np.testing.assert_array_equal(plan.draws[step, m], rng.integers(0, (5, 5, 2), (8, 3)))
    assert plan.draws.dtype == torch.int32 and plan.lr.tolist() == learning_rates(5, 0.1, 0.2).tolist()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9, 100])
@pytest.mark.parametrize("warmup", [0.05, 0.1, 0.2, 0.25, 0.5, 0.9])
def test_learning_rates_are_those_of_one_cycle(steps, warmup):
    optimiser = torch.optim.SGD([torch.zeros(1)], 0.3)
    total = steps + 1
    share = warmup if warmup * total != 1 else np.nextafter(warmup, 1)  # where torch would divide by zero
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 0.3, total, pct_start=float(share), anneal_strategy="linear", cycle_momentum=False
    )
    expected = []
    for _ in range(steps):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        cycle.step()
    assert learning_rates(steps, 0.3, warmup).tolist() == expected


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.2), (1, 0.5), (2, 0.2), (3, 0.25), (4, 0.2), (9, 0.1)])
def test_any_number_of_steps_can_be_trained(problem, steps, warmup):
    recipe = dtl.Recipe(widths=(4,))
    nets = initialise("small", 24, [0], recipe.widths)
    order = torch.arange(steps * 10).reshape(steps, 1, 10)
    plan = Plan(order, torch.empty(steps, 1, 10, 0), torch.from_numpy(learning_rates(steps, 0.1, warmup)))
    before = nets.weight.clone()
    fit(nets, problem.source.batches(problem.source, CPU), plan, recipe)
    assert torch.isfinite(nets.weight).all() and not torch.equal(nets.weight, before) and not nets.training


def test_steps_replace_epochs_whatever_the_subset(uneven):
    """Subsets of any size train side by side then, and one that asks for the steps of its epochs changes nothing."""
    recipe = dataclasses.replace(LIGHT, batch_size=8)
    masks = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], dtype=bool)
    assert schedule(24, recipe) == (6, 8) and schedule(24, dataclasses.replace(recipe, steps=7)) == (7, 8)
    held = dataclasses.replace(recipe, steps=int(masks[0] @ uneven.source.counts) // 8 * 2)
    of_epochs = train_sources(uneven.source, masks[:1], [3], recipe, "cpu")
    together = train_sources(uneven.source, masks, [3, 4], held, "cpu")
    for name, values in net_of(of_epochs, 0).items():
        torch.testing.assert_close(net_of(together, 0)[name], values, rtol=1e-3, atol=1e-4)


def test_purposes_have_streams_of_their_own():
    assert len(set(STREAMS.values())) == len(STREAMS)
    drawn = {int(stream(purpose, seed).integers(2**62)) for purpose in STREAMS for seed in (0, 1)}
    assert len(drawn) == 2 * len(STREAMS)
    assert int(stream("training", 7).integers(100)) == int(np.random.default_rng([7, 1]).integers(100))
    with pytest.raises(KeyError):
        stream("trainings", 0)


# One step, run as it is or replayed


@pytest.fixture
def replayed(monkeypatch, problem):
    """Training on the CPU as on a GPU: on nets of the step's own, which serve one model after the other."""
    monkeypatch.setattr(_step, "REPLAYED", ("cpu",))
    kept = {}

    def batches(self, like, device, augment=0):
        return kept.setdefault((self, augment), InMemory(self, like, device, augment))

    monkeypatch.setattr(dtl.ImageDataset, "batches", batches)
    _step._replay.cache_clear()
    yield lambda *ways: monkeypatch.setattr(_step, "ATTEMPTS", ways)
    _step._replay.cache_clear()


def trained_twice(problem, recipe, device="cpu"):
    """Two stacks one after the other, the second fine-tuned: every weight and statistic."""
    nets = [train_sources(problem.source, MASKS[i : i + 2], [i, i + 1], recipe, device) for i in (0, 2)]
    states = {f"{i} {k}": v.clone() for i, one in enumerate(nets) for k, v in one.state_dict().items()}
    for regime in ("fixed+bn", "full"):
        dtl.transfer.transfer(nets[1], problem, [5, 6], recipe, regime)
        states |= {f"{regime} {k}": v.clone() for k, v in nets[1].state_dict().items()}
    return {name: value.cpu() for name, value in states.items()}


RECIPES = [
    dataclasses.replace(LIGHT, finetune_epochs=2),
    dtl.Recipe("resnet9", (4, 4, 8, 8), epochs=1, augment=2, finetune_epochs=1, precision="bfloat16"),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=["small", "resnet9"])
def test_a_replayed_step_equals_the_loop(problem, recipe, replayed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(_step, "REPLAYED", ())
        expected = trained_twice(problem, recipe)
    replayed((False, False))
    found = trained_twice(problem, recipe)
    assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in found)
    assert _step._replay.cache_info().misses == 3  # one each for the source, for the head, for the whole net
    again = dataclasses.replace(recipe, lr=0.01, epochs=3, steps=4)
    train_sources(problem.source, MASKS[:2], [0, 1], again, "cpu")
    assert _step._replay.cache_info().misses == 3  # another length and rate are no other step


@pytest.mark.filterwarnings("ignore:Guards may run slower")  # on Python 3.13.0
def test_a_step_can_be_compiled_whole(problem, replayed, monkeypatch):
    """The graph that a GPU would compile, traced here and run by torch."""
    compiled, original = [], torch.compile

    def trace(function, **options):
        compiled.append(options)
        return original(function, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", trace)
    recipe = dtl.Recipe("resnet9", (4, 4, 8, 8), lr=0.05, augment=1, steps=4)
    replayed((True, False))
    found = train_sources(problem.source, MASKS[:2], [0, 1], recipe, "cpu")
    monkeypatch.setattr(_step, "REPLAYED", ())
    expected = train_sources(problem.source, MASKS[:2], [0, 1], recipe, "cpu")
    assert compiled == [{"fullgraph": True, "dynamic": False}]
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_compiled_or_captured_is_logged_and_runs(problem, replayed, monkeypatch, caplog):
    def no_compiler(*args, **options):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    replayed(*_step.ATTEMPTS)
    with caplog.at_level(logging.WARNING):
        found = train_sources(problem.source, MASKS[:2], [0, 1], LIGHT, "cpu")
    assert "cannot be compiled and captured as a CUDA graph, which would be faster: no C compiler" in caplog.text
    assert "cannot be captured as a CUDA graph, which would be faster: Expected a cuda device" in caplog.text
    monkeypatch.setattr(_step, "REPLAYED", ())
    expected = train_sources(problem.source, MASKS[:2], [0, 1], LIGHT, "cpu")
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in found.state_dict().items())


def test_an_error_of_the_step_itself_is_raised(problem, replayed, monkeypatch):
    monkeypatch.setattr(_step.Step, "_loss", lambda *args: 1 / 0)
    replayed((False, False))
    with pytest.raises(ZeroDivisionError):
        train_sources(problem.source, MASKS[:2], [0, 1], LIGHT, "cpu")


def test_too_little_memory_says_what_to_lower(problem, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")

    monkeypatch.setattr(_step.Step, "__call__", full)
    with pytest.raises(InputError, match="lower models_at_once, batch_size or widths .*CUDA out of memory"):
        train_sources(problem.source, MASKS[:2], [0, 1], LIGHT, "cpu")


def test_models_of_different_schedules_cannot_share_a_batch(uneven):
    masks = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], dtype=bool)
    with pytest.raises(ValueError, match="models of different schedules cannot train side by side"):
        train_sources(uneven.source, masks, [0, 1], LIGHT, "cpu")


def test_bfloat16_trains(problem):
    recipe = dataclasses.replace(LIGHT, precision="bfloat16")
    half = train_sources(problem.source, MASKS[:1], [0], recipe, "cpu")
    full = train_sources(problem.source, MASKS[:1], [0], LIGHT, "cpu")
    assert half.weight.dtype == torch.float32 and not torch.equal(half.weight, full.weight)
    torch.testing.assert_close(half.weight, full.weight, rtol=0.2, atol=0.05)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": 0}, "epochs cannot be 0: it should be greater than or equal to 1|greater than 0"),
        ({"batch_size": 1}, "batch_size cannot be 1: it should be greater than or equal to 2"),
        ({"models_at_once": 0}, "models_at_once cannot be 0"),
        ({"steps": 0}, "steps cannot be 0"),
        ({"lr": 0.0}, "lr cannot be 0.0: it should be greater than 0"),
        ({"lr": float("nan")}, "lr cannot be nan: it should be a finite number"),
        ({"finetune_lr": float("inf")}, "finetune_lr cannot be inf"),
        ({"probe_l2": 0.0}, "probe_l2 cannot be 0.0"),
        ({"augment": -1}, "augment cannot be -1"),
        ({"weight_decay": -0.1}, "weight_decay cannot be -0.1"),
        ({"momentum": -0.1}, "momentum cannot be -0.1"),
        ({"epochs": 1.5}, "epochs cannot be 1.5: it should be a valid integer"),
        ({"finetune_epochs": None}, "finetune_epochs cannot be None"),
        ({"lr": "fast"}, "lr cannot be 'fast': it should be a valid number"),
        ({"warmup": 1.0}, "warmup cannot be 1.0: it should be less than 1"),
        ({"warmup": 0}, "warmup cannot be 0: it should be greater than 0"),
        ({"widths": (0,)}, "widths.0 cannot be 0"),
        ({"widths": 16}, "widths cannot be 16: it should be a valid tuple"),
        ({"model": {}}, "model cannot be {}: it should be a valid string"),
        ({"model": "resnet9", "widths": (8, 16)}, "resnet9 has 4 widths to set, not 2: leave them out"),
        ({"model": "resnet9", "widths": (16, 32, 64)}, "resnet9 has 4 widths to set, not 3: leave them out"),
        ({"model": "resnet18", "widths": (8,)}, "resnet18 has 0 widths to set, not 1: leave them out"),
        ({"precision": "float16"}, "precision cannot be 'float16': it should be 'float32' or 'bfloat16'"),
        ({"epoch": 3}, "unknown recipe setting 'epoch': did you mean 'epochs'?"),
        ({"colour": 3}, "unknown recipe setting 'colour': use model, widths, epochs, "),
    ],
)
def test_bad_recipes_are_refused_at_once(setting, message):
    with pytest.raises(InputError, match=message):
        dtl.Recipe(**setting)
    with pytest.raises(InputError, match=message):
        dataclasses.replace(dtl.Recipe(), **setting)


def test_recipes_are_plain_settings():
    recipe = dtl.Recipe(widths=[4, 8])  # type: ignore[arg-type]
    assert dataclasses.replace(dtl.Recipe(), model="resnet18").widths == ()
    assert dataclasses.replace(dtl.Recipe(), model="resnet9") == dtl.Recipe("resnet9")
    assert dtl.Recipe().widths == (16, 32, 64) and dtl.Recipe("resnet9").widths == (64, 128, 256, 512)
    assert recipe == dtl.Recipe(widths=(4, 8)) and recipe.settings()["widths"] == [4, 8]
    of_numpy = dtl.Recipe(epochs=np.int64(3), lr=np.float32(0.5), widths=(np.int32(4),))  # type: ignore[arg-type]
    assert json.loads(json.dumps(of_numpy.settings())) == dtl.Recipe(epochs=3, lr=0.5, widths=(4,)).settings()
    assert dtl.Recipe(lr="1e-3").lr == 1e-3  # type: ignore[arg-type]  # as YAML reads it
    assert pickle.loads(pickle.dumps(of_numpy)) == of_numpy and hash(of_numpy) == hash(dataclasses.replace(of_numpy))
    before_steps = {name: value for name, value in recipe.settings().items() if name != "steps"}
    assert dtl.Recipe(**before_steps) == recipe  # type: ignore[arg-type]  # a store of version 0.1
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "of",
    [
        dtl.Recipe,
        lambda net: pickle.loads(pickle.dumps(dtl.Recipe(net))),
        lambda net: dtl.Recipe(**dtl.Recipe(net).settings()),  # type: ignore[arg-type]
    ],
)
def test_another_net_has_its_own_widths_but_keeps_those_given(of):
    for net, other in itertools.permutations(["small", "resnet9", "resnet18"], 2):
        assert dataclasses.replace(of(net), model=other) == dtl.Recipe(other)
    wide = dtl.Recipe("small", (64, 128, 256, 512))
    assert wide.widths == dataclasses.replace(wide, lr=0.1).widths == dtl.Recipe(**wide.settings()).widths  # type: ignore[arg-type]
    assert wide.widths == (64, 128, 256, 512) == dataclasses.replace(wide, model="resnet9").widths


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


def test_shifts_out_of_the_picture_are_refused():
    check_size(dtl.Recipe(augment=15), 16, 20)
    with pytest.raises(InputError, match="augment=1000 .* takes 15876 times their memory: use at most 15"):
        check_size(dtl.Recipe(augment=1000), 16, 16)
    with pytest.raises(InputError, match="augment=16 "):
        check_size(dtl.Recipe(augment=16), 20, 16)


# On a GPU


@pytest.fixture
def exact():
    """Convolutions in float32 proper, so that two ways of adding the same numbers stay comparable."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    _step._replay.cache_clear()
    yield
    torch.backends.cudnn.allow_tf32 = before
    _step._replay.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("way", [(False, True), (True, True)], ids=["captured", "compiled and captured"])
@pytest.mark.parametrize("model", ["small", "resnet9"])
def test_a_captured_step_equals_an_eager_one(problem, model, way, exact, monkeypatch, caplog):
    widths = (8, 16) if model == "small" else (4, 4, 8, 8)
    recipe = dtl.Recipe(model, widths, steps=8, lr=0.05, augment=2, finetune_epochs=1)
    monkeypatch.setattr(_step, "ATTEMPTS", ((False, False),))
    expected = trained_twice(problem, recipe, "cuda")
    _step._replay.cache_clear()
    monkeypatch.setattr(_step, "ATTEMPTS", (way,))
    found = trained_twice(problem, recipe, "cuda")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-2, atol=2e-3)
    assert not [record for record in caplog.records if record.name.startswith("dtl")]
    if model == "small":  # a maximum over pixels of equal value falls to another of them on another device
        on_cpu = trained_twice(problem, recipe, "cpu")
        for name, value in expected.items():
            torch.testing.assert_close(on_cpu[name], value, rtol=1e-2, atol=2e-3)


@pytest.mark.gpu
def test_bfloat16_on_a_gpu_learns_as_float32_does(problem):
    recipe = dtl.Recipe(epochs=30, lr=0.1, batch_size=32)
    half = dataclasses.replace(recipe, precision="bfloat16")
    nets = [train_sources(problem.source, np.ones((1, 24), bool), [0], r, "cuda") for r in (recipe, half)]
    right = [dtl.transfer.embed(net, problem.source, problem.source).logits.argmax(2) for net in nets]
    accuracy = [(r == problem.source.labels).float().mean().item() for r in right]
    assert min(accuracy) > 0.9


@pytest.mark.gpu
def test_a_gpu_that_is_too_small_says_what_to_lower(problem):
    images = problem.source.images.repeat(4, 1, 1, 1)
    big = dtl.ImageDataset(images, problem.source.labels.repeat(4), problem.source.classes)
    free = torch.cuda.mem_get_info()[0] / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(0.5, 0.01 / free))
    try:
        with pytest.raises(InputError, match="lower models_at_once, batch_size or widths"):
            wide = dtl.Recipe("resnet9", (512, 512, 512, 512), steps=1, batch_size=1024, models_at_once=1)
            train_sources(big, np.ones((8, 24), bool), list(range(8)), wide, "cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    train_sources(problem.source, MASKS[:1], [0], LIGHT, "cuda")  # and there is room again


@pytest.mark.gpu
def test_a_study_on_a_gpu_goes_on_where_it_stopped(problem, tmp_path):
    recipe = dtl.Recipe(widths=(8, 16), steps=8, lr=0.05, models_at_once=2, finetune_epochs=1)
    options = {"recipe": recipe, "transfer": ("fixed", "full")}
    whole = dtl.Study(problem, **options).run(8, "cuda", progress=False)
    dtl.Study(problem, **options, store=tmp_path / "s").run(4, "cuda", progress=False)
    resumed = dtl.Study(problem, **options, store=tmp_path / "s").run(8, "cuda", progress=False)
    on_cpu = dtl.Study(problem, **options).run(8, "cpu", progress=False)
    for other in (resumed, on_cpu):
        np.testing.assert_array_equal(other.results.seed, whole.results.seed)
        assert np.corrcoef(other.outputs().ravel(), whole.outputs().ravel())[0, 1] > 0.98


@pytest.mark.gpu
def test_processes_share_a_gpu(problem, recipe):
    one, two = (dtl.Study(problem, recipe).run(8, "cuda", workers=n, progress=False) for n in (1, 2))
    np.testing.assert_allclose(one.results.margin, two.results.margin, atol=1e-3)
