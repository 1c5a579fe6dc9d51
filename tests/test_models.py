"""Backbones: a stack of nets is its nets, and seeds decide their weights."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision
from torch import nn

import dtl
from dtl.models import Nets, initialise, states_of, unstack
from dtl.training import check_size

WIDTHS = {"small": (4, 8), "resnet9": (4, 8, 8, 16)}


def stacked(nets):
    states = [net.state_dict() for net in nets]
    return {k: torch.cat([state[k] for state in states]) if v.ndim else v for k, v in states[0].items()}


def shaken(model, seed, n_classes=5):
    """One net with BatchNorm weights, biases and statistics that are not those of a new one."""
    net = initialise(model, n_classes, [seed], WIDTHS[model])
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, low in {"weight": 0.5, "bias": -0.5, "running_mean": -0.2, "running_var": 0.5}.items():
                values = module.get_parameter(name).data if name in ("weight", "bias") else module.get_buffer(name)
                values.copy_(low + torch.rand(values.shape, generator=generator))
    net.bias.data.uniform_(-1, 1, generator=generator)
    return net


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("model", ["small", "resnet9"])
def test_a_stack_is_its_nets(model, train):
    nets = [shaken(model, seed).train(train) for seed in (3, 4, 5)]
    stack = Nets(model, 5, 3, WIDTHS[model]).train(train)
    stack.load_state_dict(stacked(nets))
    x = torch.randn(4, 9, 16, 16, generator=torch.Generator().manual_seed(0))
    assert [{*one} for one in states_of(stack)] == [{*stack.state_dict()}] * 3
    for one, net in zip(unstack(stack), nets, strict=True):
        assert all(torch.equal(v, net.state_dict()[k]) for k, v in one.state_dict().items()) and not one.training
    shared = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # images that all nets look at need no copies
        once, copied = (copy.deepcopy(stack).features(seen) for seen in (shared, shared.repeat(1, 3, 1, 1)))
    torch.testing.assert_close(once, copied, rtol=1e-5, atol=1e-5)
    together, loss = stack(x), 0
    for m, net in enumerate(nets):
        alone = net(x[:, 3 * m : 3 * m + 3])
        assert together.shape == (3, 4, 5) and alone.shape == (1, 4, 5)
        torch.testing.assert_close(together[m], alone[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(stack.features(x)[m], net.features(x[:, 3 * m : 3 * m + 3])[0], rtol=1e-5, atol=1e-5)
    loss = (together * torch.arange(60).reshape(3, 4, 5) / 60).sum()
    loss.backward()
    loss = (nets[1](x[:, 3:6]) * torch.arange(20, 40).reshape(1, 4, 5) / 60).sum()
    loss.backward()
    own = dict(nets[1].named_parameters())
    for name, parameter in stack.named_parameters():  # one backward pass serves all nets
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.chunk(3)[1], own[name].grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("height", "width"), [(16, 8), (9, 14), (4, 11)])
def test_products_of_matrices_are_torchs_convolutions_and_batchnorm(height, width, train, dtype):
    nets = [shaken("small", seed) for seed in (0, 1)]
    found, wanted = (Nets("small", 5, 2, WIDTHS["small"]).backbone.train(train) for _ in range(2))
    for backbone in (found, wanted):
        backbone.load_state_dict(stacked([net.backbone for net in nets]))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 6, height, width, generator=generator)
    tolerance = 1e-5 if dtype is None else 5e-2
    own, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        y = found(own)
        # as torch has them, and as on a GPU
        z = nn.Sequential.forward(wanted, theirs).mean((2, 3))  # pyright: ignore[reportArgumentType]
    assert y.dtype == z.dtype and y.shape == (6, 2 * 8)
    torch.testing.assert_close(y, z, rtol=tolerance, atol=tolerance)
    up = torch.randn(y.shape, generator=generator).to(y.dtype)
    y.backward(up)
    z.backward(up)
    for (name, mine), other in zip(found.named_parameters(), wanted.parameters(), strict=True):
        assert other.grad is not None and other.grad.abs().sum() > 0
        torch.testing.assert_close(mine.grad, other.grad, rtol=10 * tolerance, atol=10 * tolerance, msg=name)
    torch.testing.assert_close(own.grad, theirs.grad, rtol=10 * tolerance, atol=10 * tolerance)
    before = stacked([net.backbone for net in nets])
    for name, mine in found.named_buffers():
        other = wanted.get_buffer(name)
        assert train != torch.equal(other, before[name])
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance, msg=name)


def test_nets_of_a_stack_see_their_own_channels_alone():
    nets = initialise("small", 5, [0, 1], (4, 8)).eval()
    x = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[:, 3:] += 1
    before, after = nets(x), nets(other)
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


@pytest.mark.parametrize("model", ["small", "resnet9"])
def test_a_seed_gives_the_same_weights_in_any_company(model):
    together = initialise(model, 4, [7, 2, 7], WIDTHS[model]).state_dict()
    alone = initialise(model, 4, [2], WIDTHS[model]).state_dict()
    for name, values in alone.items():
        if values.ndim:
            first, second, third = together[name].chunk(3)
            assert torch.equal(second, values) and torch.equal(first, third)
    conv = together["backbone.0.0.weight"].chunk(3)
    assert not torch.equal(conv[0], conv[1])


def test_seeds_hold_while_other_threads_seed_too():
    expected = [initialise("small", 4, [seed, seed + 1]).state_dict() for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = pool.map(lambda seed: initialise("small", 4, [seed, seed + 1]).state_dict(), range(8))
            for one, other in zip(expected, found, strict=True):
                assert all(torch.equal(one[name], other[name]) for name in one)


def test_initialising_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    unstack(initialise("small", 4, [1, 2]))
    check_size(dtl.Recipe(), 16, 16)
    assert torch.equal(torch.rand(3), expected)


def test_new_heads_come_from_their_seeds():
    nets = initialise("small", 4, [0, 1, 2], (4, 8))
    nets.new_head(7, [5, 6, 5])
    assert nets.weight.shape == (3, 8, 7) and nets.bias.abs().max() == 0
    assert torch.equal(nets.weight[0], nets.weight[2]) and not torch.equal(nets.weight[0], nets.weight[1])
    assert nets.weight.abs().max() <= 8**-0.5 and nets.weight.requires_grad
    assert nets.head[0] is nets.weight


@pytest.mark.parametrize(
    ("model", "n_features"), [("resnet18", 512), ("mobilenet_v2", 1280), ("vgg11", 4096), ("densenet121", 1024)]
)
def test_torchvision_classifiers_lose_their_last_linear_layer(model, n_features):
    with torch.device("meta"):  # shapes without the memory
        nets = Nets(model, 5)
        assert nets.features(torch.zeros(2, 3, 64, 64)).shape == (1, 2, n_features)
        assert nets(torch.zeros(2, 3, 64, 64)).shape == (1, 2, 5)


def test_torchvision_features_are_those_of_torchvision():
    nets = initialise("resnet18", 5, [11]).eval()
    with torch.random.fork_rng():
        torch.manual_seed(11)
        reference = torchvision.models.resnet18(weights=None).eval()
    reference.set_submodule("fc", nn.Identity())
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(nets.features(x)[0], reference(x))


def test_torchvision_models_train_without_dropout():
    """It would draw from the generator of the process, and no model would be a function of its seed."""
    nets = initialise("mobilenet_v2", 5, [0]).train()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(nets(x), nets(x))


@pytest.mark.parametrize("model", ["googlenet", "regnet_y_400mf"])
def test_torchvision_models_with_ways_of_their_own(model):
    check_size(dtl.Recipe(model=model), 64, 64)
    nets = initialise(model, 5, [0]).train()
    assert nets(torch.zeros(2, 3, 64, 64)).shape == (1, 2, 5)


def test_models_that_cannot_be_had():
    with pytest.raises(ValueError, match="unknown model 'resnet': use one of small, resnet9 or a torchvision"):
        dtl.Recipe(model="resnet")
    with pytest.raises(ValueError, match="squeezenet1_0 has no linear layer"):
        check_size(dtl.Recipe(model="squeezenet1_0"), 64, 64)
    with pytest.raises(ValueError, match="resnet18 runs one model at a time: set models_at_once=1"):
        initialise("resnet18", 5, [0, 1])
