"""Transfer: probes against scikit-learn, outputs against softmax by hand, and what each regime may change."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

import dtl
from dtl import __main__, transfer
from dtl._checks import InputError
from dtl.models import unstack
from dtl.training import draw_order, learning_rates, train_sources
from dtl.transfer import embed, outputs, solve_probes

CPU = torch.device("cpu")
RECIPE = dtl.Recipe(epochs=2, widths=(8, 16), finetune_epochs=2, probe_l2=1e-2)


@pytest.fixture(scope="module")
def nets(problem):
    return train_sources(problem.source, dtl.subset_masks(24, 3), [0, 1, 2], RECIPE, "cpu")


def blobs(models=3, n=90, d=12, n_classes=4, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    scale = np.geomspace(0.1, 10, d)
    x = (rng.normal(size=(models, n, d)) + spread * rng.normal(size=(models, n_classes, d))[:, labels]) * scale + 3
    return torch.tensor(x, dtype=torch.float32), torch.from_numpy(labels)


@pytest.mark.parametrize("l2", [1e-3, 1e-2, 1.0])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_probes_are_those_of_scikit_learn(l2, n_classes):
    x, labels = blobs(n_classes=n_classes)
    weight, bias = solve_probes(x, labels, n_classes, l2)
    assert weight.shape == (3, 12, n_classes) and bias.shape == (3, 1, n_classes)
    found = torch.softmax(x @ weight + bias, -1).numpy()
    for m, own in enumerate(x.double().numpy()):
        mean, std = own.mean(0), own.std(0)
        # scikit-learn sums the loss: C multiplies it, so 1 / (n l2) is our mean loss + l2/2 |W|^2
        reference = LogisticRegression(C=1 / (len(own) * l2), tol=1e-10, max_iter=10_000)
        if n_classes == 2:  # its binary form has one weight vector, which is the difference of two of half the norm
            reference.C = 2 / (len(own) * l2)
        reference.fit((own - mean) / std, labels.numpy())
        expected = reference.predict_proba((own - mean) / std)
        np.testing.assert_allclose(found[m], expected, atol=1e-3)
        if n_classes > 2:
            centred = weight[m].numpy() * std[:, None]
            # the penalty makes the loss l2-strongly convex: a gradient of 1e-5 is at most so far from the solution
            np.testing.assert_allclose(
                centred - centred.mean(1, keepdims=True), reference.coef_.T, atol=1e-5 / l2 + 1e-5
            )


def test_a_probe_does_not_depend_on_its_company():
    """The others may take longer to converge, which must not go on improving this one."""
    easy, labels = blobs(models=1, spread=0.1)
    hard, _ = blobs(models=2, spread=5.0, seed=1)
    alone = solve_probes(easy, labels, 4, 1e-3)
    together = solve_probes(torch.cat([hard, easy]), labels, 4, 1e-3)
    for own, shared in zip(alone, together, strict=True):
        torch.testing.assert_close(shared[2:], own, rtol=1e-5, atol=1e-6)


def test_dead_features_are_left_out():
    x, labels = blobs()
    dead = x.clone()
    dead[:, :, 3] = 7.0
    dead[1, :, 5] = 0.0
    weight, bias = solve_probes(dead, labels, 4, 1e-2)
    assert torch.isfinite(weight).all() and (weight[:, 3] == 0).all() and (weight[1, 5] == 0).all()
    assert (weight[0, 5] != 0).all()
    keep = [i for i in range(12) if i != 3]
    without, bias_without = solve_probes(dead[:1, :, keep], labels, 4, 1e-2)
    torch.testing.assert_close(weight[:1, keep], without, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(bias[:1], bias_without, rtol=1e-3, atol=1e-4)
    weight, bias = solve_probes(torch.ones(2, 8, 3), torch.arange(8) % 4, 4, 1e-2)  # nothing lives: class shares
    torch.testing.assert_close(torch.softmax(bias, -1), torch.full((2, 1, 4), 0.25))


def test_probes_converge_or_say_so():
    x, labels = blobs(spread=5.0)
    with pytest.raises(RuntimeError, match="did not converge in 3 steps .*raise probe_l2"):
        solve_probes(x, labels, 4, 1e-3, max_steps=3)
    x[1, 2, 3] = torch.nan
    with pytest.raises(RuntimeError, match=r"features of nets \[1\] are not finite: training diverged"):
        solve_probes(x, labels, 4, 1e-3)


def test_outputs_are_softmax_by_hand():
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(0, 3, (2, 50, 5)))
    labels = torch.from_numpy(rng.integers(0, 5, 50))
    found = outputs(logits, labels)
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(-1, keepdims=True)
    p_true = p[:, np.arange(50), labels]
    np.testing.assert_allclose(found.probability, p_true, rtol=1e-5)
    np.testing.assert_allclose(found.margin, np.log(p_true) - np.log(1 - p_true), rtol=1e-4, atol=1e-5)
    assert (found.correct.numpy() == (p.argmax(-1) == labels.numpy())).all()
    assert found.margin.dtype == found.probability.dtype == torch.float32


def test_outputs_of_extreme_logits_stay_finite():
    logits = torch.tensor([[[1e4, 0.0, -1e4], [-1e4, 0.0, 0.0], [300.0, 0.0, 0.0]]])
    found = outputs(logits, torch.tensor([0, 0, 0]))
    log2 = np.log(2)
    np.testing.assert_allclose(found.margin[0], [1e4, -1e4 - log2, 300 - log2], rtol=1e-6)
    assert found.probability[0].tolist() == [1, 0, 1] and found.correct[0].tolist() == [True, False, True]
    assert not outputs(torch.zeros(1, 2, 3), torch.tensor([0, 2])).correct.any()  # a tie is no answer


def test_fixed_changes_nothing_and_computes_features_once(problem, nets, monkeypatch):
    before, calls = copy.deepcopy(nets.state_dict()), []
    original = transfer.features

    def features(nets, batches, recipe):
        calls.append(len(batches.labels))
        found = original(nets, batches, recipe)
        assert not nets.training
        return found

    monkeypatch.setattr(transfer, "features", features)
    nets.train()
    found = transfer.transfer(nets, problem, [0, 1, 2], RECIPE, "fixed")
    assert all(torch.equal(before[name], values) for name, values in nets.state_dict().items())
    assert calls == [40, 40, 40]  # train, validation, test
    # by hand: features of one net on its own, its probe, its outputs
    x = {}
    for part in ("train", "test"):
        images = next(problem.parts[f"target_{part}"].batches(problem.source, CPU).in_order(40))
        x[part] = nets.eval().features(images.repeat(1, 3, 1, 1)).detach()[1:2]
    weight, bias = solve_probes(x["train"], problem.target_train.labels, 4, RECIPE.probe_l2)
    expected = outputs(x["test"] @ weight + bias, problem.target_test.labels)
    torch.testing.assert_close(found["test"].margin[1:2], expected.margin, rtol=1e-2, atol=1e-3)
    assert found["validation"].correct.shape == (3, 40)


@pytest.mark.parametrize("regime", ["fixed+bn", "full"])
def test_what_the_other_regimes_change(problem, nets, regime):
    copied = copy.deepcopy(nets)
    transfer.transfer(copied, problem, [0, 1, 2], RECIPE, regime)
    buffers = {name for name, _ in nets.named_buffers()}
    changed = {
        name for name, values in nets.backbone.state_dict(prefix="backbone.").items()
        if not torch.equal(values, copied.state_dict()[name])
    }  # fmt: skip
    everything = set(nets.backbone.state_dict(prefix="backbone."))
    assert changed == (everything if regime == "full" else everything & buffers)
    assert copied.weight.shape == (3, 16, 4)


def test_fine_tuning_moves_a_model_the_same_in_any_company(problem, nets):
    together = transfer.transfer(copy.deepcopy(nets), problem, [0, 1, 2], RECIPE, "full")["test"].margin
    alone = train_sources(problem.source, dtl.subset_masks(24, 3)[1:2], [1], RECIPE, "cpu")
    margin = transfer.transfer(alone, problem, [1], RECIPE, "full")["test"].margin
    torch.testing.assert_close(margin[0], together[1], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("decay", [{"weight_decay": 0.1}, {"weight_decay": 0.9, "finetune_weight_decay": 0.1}])
@pytest.mark.parametrize(("regime", "augment"), [("full", 0), ("full", 2), ("fixed+bn", 2)])
def test_fine_tuning_equals_a_plain_loop(problem, nets, regime, augment, decay):
    """Own padding, crops, optimiser and rates; order and shifts from the model's own stream for transfer."""
    recipe = dataclasses.replace(
        RECIPE, augment=augment, batch_size=16, finetune_lr=0.03, finetune_epochs=3, momentum=0.8, **decay
    )
    seed, target = 9, problem.target_train
    net, changed = unstack(nets)[1], unstack(nets)[1]
    for each in (net, changed):
        each.new_head(4, [seed])
    raw = problem.source.images.float() / 255
    x = (target.images.float() / 255 - raw.mean((0, 2, 3), keepdim=True)) / raw.std((0, 2, 3), keepdim=True)
    wide = F.pad(x, (augment,) * 4, mode="reflect")
    rng = np.random.default_rng([seed, 2])
    order = draw_order(np.arange(40), 6, 16, rng)
    trained = [net.weight, net.bias] if regime == "fixed+bn" else list(net.parameters())
    optimiser = torch.optim.SGD(trained, 0.03, 0.8, weight_decay=0.1)
    net.train()
    for index, lr in zip(order, learning_rates(6, 0.03, recipe.warmup), strict=True):
        batch = x[index]
        if augment:
            draws = rng.integers(0, (5, 5, 2), (16, 3))
            crops = [wide[i, :, dy : dy + 16, dx : dx + 16] for i, (dy, dx, _) in zip(index, draws, strict=True)]
            batch = torch.stack([c.flip(-1) if f else c for c, (*_, f) in zip(crops, draws, strict=True)])
        optimiser.param_groups[0]["lr"] = float(lr)
        optimiser.zero_grad()
        F.cross_entropy(net(batch)[0], target.labels[index]).backward()
        optimiser.step()
    transfer.transfer(changed, problem, [seed], recipe, regime)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(changed.state_dict()[name], value, rtol=1e-3, atol=2e-4, msg=name)
    moved = (net.weight - unstack(nets)[1].weight[..., :4]).abs().max()
    assert moved > 0.02  # a hundred times the tolerance


def test_from_scratch_is_to_train_on_the_target_as_on_a_source(problem, nets):
    parts = problem.target_train, problem.target_train, problem.target_validation, problem.target_test
    own = dtl.TransferProblem("own", *parts)
    alone = train_sources(own.source, np.ones((3, 4), bool), [5, 6, 7], RECIPE, "cpu")
    said = transfer.target_logits(nets, own, [5, 6, 7], dataclasses.replace(RECIPE, finetune_lr=1e-9), "scratch")
    for name, images in own.judges.items():
        torch.testing.assert_close(said[name], embed(alone, images, own.source).logits)


def test_embeddings_are_features_and_logits_of_each_net(problem, nets):
    found = embed(nets, problem.target_test, problem.source)
    images = next(problem.target_test.batches(problem.source, CPU).in_order(40))
    for m, net in enumerate(unstack(nets)):
        with torch.inference_mode():
            torch.testing.assert_close(found.features[m], net.features(images)[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.logits[m], net(images)[0], rtol=1e-4, atol=1e-4)
    assert found.features.dtype == found.logits.dtype == torch.float32
    torch.testing.assert_close(found.probabilities.sum(2), torch.ones(3, 40))
    half = embed(nets, problem.target_test, problem.source, dataclasses.replace(RECIPE, precision="bfloat16"))
    assert not torch.equal(half.features, found.features) and half.features.dtype == torch.float32
    torch.testing.assert_close(half.features, found.features, rtol=0.1, atol=0.1)


def test_embeddings_of_classes_that_a_net_has_not_seen(problem, nets):
    present = dtl.subset_masks(24, 3)
    found = embed(nets, problem.target_test, problem.source, present=present)
    everything = embed(nets, problem.target_test, problem.source)
    absent = torch.from_numpy(~present)[:, None].expand(-1, 40, -1)
    assert (found.probabilities[absent] == 0).all() and torch.isneginf(found.logits[absent]).all()
    assert torch.equal(found.logits[~absent], everything.logits[~absent])
    torch.testing.assert_close(found.probabilities.sum(2), torch.ones(3, 40))
    with pytest.raises(InputError, match="the nets have 24 source classes, not the 4 of this source"):
        embed(nets, problem.target_test, problem.target_train)


def test_looking_changes_no_net_even_in_other_threads(problem, nets):
    """Each thread looks while another trains or looks: nothing of a net in use is written."""
    before = copy.deepcopy(nets.state_dict())
    convolutions = [m for m in nets.modules() if isinstance(m, nn.Conv2d)]
    groups, seen = [m.groups for m in convolutions], []
    norms = [m for m in nets.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [m.register_forward_hook(lambda *_: seen.extend(c.groups for c in convolutions)) for m in norms]
    embed(nets, problem.target_test, problem.source)
    for hook in hooks:
        hook.remove()
    assert seen and set(seen) == set(groups) == {3}
    assert all(torch.equal(before[name], value) for name, value in nets.state_dict().items())


def test_more_fine_tuning_fits_the_target_better(problem, nets):
    def loss(epochs):
        recipe = dataclasses.replace(RECIPE, finetune_epochs=epochs)
        own = dataclasses.replace(problem, target_test=problem.target_train)
        probability = transfer.transfer(copy.deepcopy(nets), own, [0, 1, 2], recipe, "full")["test"].probability
        return -probability.log().mean()

    assert loss(30) < 0.75 * loss(1)


def test_unknown_regimes(problem, nets):
    with pytest.raises(ValueError, match="unknown transfer 'linear': use one of fixed, fixed\\+bn, full"):
        transfer.transfer(nets, problem, [0, 1, 2], RECIPE, "linear")


def test_a_regime_without_a_branch_is_not_run_as_another(problem, nets, monkeypatch):
    monkeypatch.setattr(transfer, "REGIMES", (*transfer.REGIMES, "linear"))
    with pytest.raises(InputError, match="unknown transfer 'linear'"):
        transfer.transfer(copy.deepcopy(nets), problem, [0, 1, 2], RECIPE, "linear")


def test_every_regime_is_documented_where_it_is_asked_for():
    for text in (transfer.transfer.__doc__, dtl.Study.__doc__, __main__.run.__doc__):
        said = str(text).replace('"', "").replace(",", " ").split()
        assert set(transfer.REGIMES) <= set(said)
