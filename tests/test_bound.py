"""The certified bound: published vectors, inequalities on random problems, and where the released objective fails."""

import json
from pathlib import Path

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax

from dtl import _scores, bound
from dtl._checks import InputError
from dtl.bound import Side, released_objective, task_transfer_bound

VECTORS = json.loads((Path(__file__).parent / "golden/transferability.json").read_text())["bound"]
NO_MAP = np.eye(1), np.zeros(1)  # for terms of given logits


def vector_problem():
    """Inputs of the vectors: recipe `bound` of golden/transferability.json."""
    rng = np.random.default_rng(30)
    y_s = np.concatenate([np.arange(4), rng.integers(0, 4, 76)])
    y_t = np.concatenate([np.arange(3), rng.integers(0, 3, 67)])
    m_s, m_t = 2 * rng.standard_normal((4, 5)), 2 * rng.standard_normal((3, 5))
    z_s, z_t = m_s[y_s] + rng.standard_normal((80, 5)), m_t[y_t] + rng.standard_normal((70, 5))
    weight, bias = rng.standard_normal((4, 5)), rng.standard_normal(4)
    a, b = np.eye(5) + 0.3 * rng.standard_normal((5, 5)), rng.standard_normal(5)
    rows = rng.dirichlet(0.5 * np.ones(4), 3)
    back = weight @ np.linalg.inv(a)
    source = Side(z_s @ weight.T + bias, y_s)
    return source, Side((z_t - b) @ back.T + bias, y_t), rows, np.bincount(y_t) / 70


def test_soft_terms_are_the_published_vectors():
    source, target, rows, classes = vector_problem()
    found = bound._terms(source, target, classes[:, None] * rows, 1.0, np.zeros(4), *NO_MAP)
    terms = found.source_loss, found.label_mismatch, found.feature_mismatch, found.rhs, found.measured
    np.testing.assert_allclose(terms, VECTORS["soft"], atol=1e-6)
    assert not found.linear


def test_hard_terms_are_the_published_vectors():
    source, target, _, classes = vector_problem()
    joint = classes[:, None] * np.eye(4)[[2, 0, 0]]
    rows = np.isin(source.labels, [0, 2])
    near = Side(source.logits[rows][:, [0, 2]], source.labels[rows] // 2)
    there = Side(target.logits[:, [0, 2]], target.labels)
    found = bound._terms(near, there, joint, 1.0, np.zeros(2), *NO_MAP)
    np.testing.assert_allclose((found.label_mismatch, found.measured), VECTORS["hard"][:2], atol=1e-6)
    # the published cost looks both ways, and its source loss is that of the whole head: neither is ever less than ours
    whole, two_ways = log_softmax(source.logits, 1), 0.0
    needed = joint.sum(0)
    loss = -sum(needed[j] * whole[source.labels == j, j].mean() for j in (0, 2))
    for i, j in enumerate([1, 0, 0]):
        a, v = near.logits[near.labels == j], there.logits[there.labels == i]
        own = np.arange(2) == j
        two_ways += classes[i] * ot.emd2([], [], np.maximum(bound.cost(a, v, own), bound.cost(v, a, own).T))
    np.testing.assert_allclose((loss, two_ways), VECTORS["hard"][2:], atol=1e-6)
    assert found.source_loss < loss and found.feature_mismatch < two_ways
    assert found.linear


def gaussians(seed: int, n_source: int, n_target: int, d: int = 6):
    """Source features with a fitted-ish head, and target features that are harder, all from a seed."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(max(n_source, n_target), d))
    y_s, y_t = np.arange(15 * n_source) % n_source, rng.permutation(np.arange(12 * n_target) % n_target)
    z, x = (centres[y] + rng.normal(size=(len(y), d)) for y in (y_s, y_t))
    head = centres[:n_source].T, -(centres[:n_source] ** 2).sum(1) / 2
    return z, y_s, head, x + rng.normal(scale=0.5, size=x.shape), y_t


SIZES = {"fewer": (3, 5), "as many": (4, 4), "more": (6, 3)}


@pytest.mark.parametrize("learn", bound.LEARN)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_no_bound_is_ever_violated(sizes, learn):
    """Hard and soft, train and held-out: 216 bounds in all, of which 54 must never exceed the class entropy."""
    rng = np.random.default_rng(sum(sizes))
    for seed in range(12 if learn == "none" else 3):
        z, y_s, head, x, y = gaussians(seed, *sizes)
        held = gaussians(seed + 100, *sizes)[3:]
        hard = task_transfer_bound(z, y_s, head, x, y, learn=learn, steps=10)
        mixed = rng.dirichlet(np.ones(sizes[0]), sizes[1])
        soft = task_transfer_bound(z, y_s, head, x, y, learn=learn, steps=10, assignment=mixed)
        for found in (hard, soft, hard.on(*held), soft.on(*held)):
            assert found.measured <= found.rhs + 1e-9
            assert min(found.source_loss, found.label_mismatch, found.feature_mismatch) >= -1e-12
        assert hard.rhs <= hard.entropy + 1e-9
        assert hard.linear and not soft.linear


def test_the_bounded_classifier_is_a_linear_head_and_no_better_than_the_best():
    z, y_s, head, x, y = gaussians(1, 4, 4)
    found = task_transfer_bound(z, y_s, head, x, y, learn="map")
    ones = np.c_[x, np.ones(len(x))]

    def loss(w):
        p = log_softmax(ones @ w.reshape(-1, 4), 1)
        off = np.exp(p) - np.eye(4)[y]
        return -p[np.arange(len(y)), y].mean(), (ones.T @ off).ravel() / len(y)

    # the weights of the bounded head, read off at the origin and at unit vectors; the best head is at least as good
    logits = found.temperature * found.to_logits(np.r_[np.zeros((1, 6)), np.eye(6)]) + found.offsets
    order = np.searchsorted(np.flatnonzero(found.joint.any(0)), found.assignment)
    own = np.r_[logits[1:] - logits[:1], logits[:1]][:, order]
    assert loss(own.ravel())[0] == pytest.approx(found.measured, abs=1e-9)
    best = minimize(loss, np.ascontiguousarray(own).ravel(), jac=True, method="L-BFGS-B").fun
    assert best <= found.measured <= found.rhs


def test_temperature_is_the_minimum_of_a_convex_function():
    source, target, rows, _ = vector_problem()
    prior, share = np.array([0.1, 0.2, 0.3, 0.4]), rows / rows.sum(1, keepdims=True)

    def total(s, offsets, unseen):
        p = log_softmax(s * source.logits + offsets, 1)
        *_, mass, far = bound._plans(source, Side(unseen, target.labels), share)
        return -sum(prior[j] * p[source.labels == j, j].mean() for j in range(4)) + s * (mass @ far)

    mix, offsets = bound._temper(source, target.logits / 9, target.labels, share, prior)
    np.testing.assert_allclose(mix, mix[0, 0] * np.eye(4), atol=1e-12)
    s, rng = mix[0, 0], np.random.default_rng(0)
    best = total(s, offsets, target.logits / 9)
    for _ in range(50):
        near = max(1e-9, s + rng.normal(scale=0.01)), offsets + rng.normal(scale=0.01, size=4)
        assert best <= total(*near, target.logits / 9) + 1e-9
    (s, *_), offsets = bound._temper(source, 1e6 * target.logits, target.labels, share, prior)
    assert s[0] < 1e-8 and total(0, offsets, target.logits) == pytest.approx(-(prior * np.log(prior)).sum(), abs=1e-6)


def test_a_joint_head_keeps_the_directions_that_a_map_finds_again():
    """Only the first two of five directions of the source are found in the target."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(6), 20)
    centres = 3 * rng.normal(size=(6, 5))
    z, x, held = (centres[y] + rng.normal(size=(120, 5)) for _ in range(3))
    for part in (x, held):
        part[:, 2:] = 4 * rng.normal(size=(120, 3))
    head = centres.T, -(centres**2).sum(1) / 2
    one, joint = (task_transfer_bound(z, y, head, x, y, learn) for learn in ("map", "joint"))
    assert joint.certified > one.certified + 0.05
    assert joint.on(held, y).certified > max(0, one.on(held, y).certified)
    assert task_transfer_bound(z, y, head, x, rng.permutation(y), "joint").certified < 0.02


def test_random_labels_certify_nothing_and_separated_classes_nearly_all():
    z, y_s, head, x, y = gaussians(0, 4, 4)
    rng = np.random.default_rng(0)
    assert task_transfer_bound(z, y_s, head, x, rng.permutation(y), learn="map").certified < 0.02
    far = np.repeat(np.eye(4) * 20, 15, 0)
    found = task_transfer_bound(far, np.repeat(range(4), 15), (np.eye(4), np.zeros(4)), far, np.repeat(range(4), 15))
    assert found.certified > 0.99 * found.entropy
    assert found.assignment.tolist() == [0, 1, 2, 3]


def test_encoders_may_differ_and_scale_changes_nothing():
    z, y_s, head, x, y = gaussians(2, 5, 3)
    other = np.c_[x, x[:, :2] ** 2]
    found = task_transfer_bound(z, y_s, head, other, y, learn="map")
    assert found.measured <= found.rhs <= found.entropy
    a = task_transfer_bound(z, y_s, head, x, y)
    b = task_transfer_bound(3 * z, y_s, (head[0] / 3, head[1]), 3 * x, y)
    assert a.rhs == pytest.approx(b.rhs, abs=1e-9)


def test_merging_source_classes_does_not_bound_a_linear_head():
    """XOR: two classes of opposite corners each. The mixture of source heads solves it; no linear head can."""
    rng = np.random.default_rng(0)
    corners = np.array([[3, 3], [-3, 3], [-3, -3], [3, -3.0]])
    y4 = np.arange(200) % 4
    z = corners[y4] + rng.normal(scale=0.3, size=(200, 2))
    merged = task_transfer_bound(
        z, y4, (3 * corners.T, np.zeros(4)), z, y4 % 2, assignment=[[1, 0, 1, 0], [0, 1, 0, 1]]
    )
    assert merged.measured <= merged.rhs
    assert merged.rhs < 1e-3 and not merged.linear
    assert _scores.probe(z, y4 % 2) < 0.7
    assert task_transfer_bound(z, y4, (3 * corners.T, np.zeros(4)), z, y4 % 2, learn="map").certified < 1e-6


def test_released_lipschitz_constant_is_of_the_wrong_space():
    """Published counterexample: the reported bound is below the loss it should bound; ours is not."""
    eye, half = torch.eye(2, dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    z, w, labels = eye * 0 + torch.tensor([[1.0, 0], [-1, 0]]), torch.tensor([[3.0, -3], [0, 0]]).double(), np.arange(2)
    zero = torch.zeros(2, dtype=torch.float64)
    x = torch.tensor([[-0.1, 0], [0.1, 0]], dtype=torch.float64)
    released = bound.released_terms(z, labels, (w, zero), x, labels, 0.1 * eye, 10 * eye, zero, eye, half)
    np.testing.assert_allclose((released.rhs, released.measured, released.lipschitz), VECTORS["released"], atol=1e-6)
    assert released.rhs < released.measured
    ours = bound._terms(
        Side((z @ w).numpy(), labels),
        Side((10 * x @ w).numpy(), labels),
        np.eye(2) / 2,
        1.0,
        np.zeros(2),
        *NO_MAP,
    )
    assert (ours.rhs, ours.measured) == pytest.approx(VECTORS["correct"], abs=1e-6)


@pytest.mark.parametrize("learn", ["none", "map", "joint"])
def test_all_target_classes_may_be_made_from_one(learn):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), np.arange(40) % 2
    found = task_transfer_bound(x, y, (np.eye(3, 2), np.zeros(2)), x, y, learn=learn, steps=20, assignment=[1, 1])
    assert found.assignment.tolist() == [1, 1] and found.measured <= found.rhs


def test_a_large_weight_of_labels_lets_the_seed_choose_the_assignment():
    """Source and target have the same classes: with weight 1 every seed finds that, with the published 1e6 not."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 20)
    z, x = (3 * np.eye(4)[y] + rng.normal(scale=0.5, size=(80, 4)) for _ in range(2))
    head = 2 * np.eye(4), np.zeros(4)
    maps = {
        w: [released_objective(z, y, head, x, y, w, 60, 60, s).assignment.tolist() for s in range(3)] for w in (1, 1e6)
    }
    assert maps[1] == [[0, 1, 2, 3]] * 3
    assert len({tuple(m) for m in maps[1e6]}) > 1


BAD = {
    "NaN": (dict(target=[[np.nan], [1.0], [2.0]]), "NaN"),
    "one class": (dict(labels=[0, 0, 0]), "1 class"),
    "too few": (dict(labels=[0, 1, 3]), "more images than classes"),
    "a gap": (dict(target=[[0.0]] * 5, labels=[0, 0, 2, 2, 2]), "class 1 has no image"),
    "width of the source": (dict(source=[[0.0, 1.0]] * 4), "the head takes 1 features"),
    "width of the target": (dict(target=[[0.0, 1.0]] * 3), "another encoder"),
    "source labels": (dict(source_labels=[0, 1, 0, 3]), "labels up to 3"),
    "head": (dict(head=([[1.0, np.inf]], [0.0, 0.0])), "finite"),
    "a bias that is no number": (dict(head=([[1.0, 2.0]], [0.0, np.nan])), "finite"),
    "no pair": (dict(head=[[1.0, 2.0]]), "two arrays"),
    "head's shape": (dict(head=([[1.0, 2.0]], [0.0])), r"\(d, K\)"),
    "learn": (dict(learn="all"), "learn"),
    "an unknown class": (dict(assignment=[0, 2]), "no source class without images"),
    "a share that is no number": (dict(assignment=[[1.0, np.nan], [0.0, 1.0]]), "not negative"),
    "a negative share": (dict(assignment=[[1.0, -1.0], [0.0, 1.0]]), "not negative"),
    "one image to learn from": (dict(learn="map"), "two images of every class for a map"),
}


@pytest.mark.parametrize(("changed", "message"), BAD.values(), ids=BAD)
def test_bad_input(changed, message):
    good = dict(
        source=[[0.0], [1.0], [0.1], [0.9]], source_labels=[0, 1, 0, 1], head=([[-1.0, 1.0]], [0.0, 0.0]),
        target=[[0.0], [1.0], [0.8]], labels=[0, 1, 1],
    )  # fmt: skip
    with pytest.raises(InputError, match=message):
        task_transfer_bound(**{**good, **changed})


def test_bad_held_out_labels():
    found = task_transfer_bound([[0.0], [1.0]], [0, 1], ([[-1.0, 1.0]], [0.0, 0.0]), [[0.0], [1.0]], [0, 1])
    with pytest.raises(InputError, match="2 target classes"):
        found.on([[0.0], [1.0], [2.0]], [0, 1, 2])
    with pytest.raises(InputError, match="not 2 and 2"):
        found.on([[0.0, 1.0], [1.0, 1.0]], [0, 1])
