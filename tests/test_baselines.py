"""Feature similarity and label mapping, against plain loops."""

import dataclasses
import sys
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import dtl
from dtl.baselines import feature_similarity, full_source_nets, label_mapping

RECIPE = dtl.Recipe(epochs=2, widths=(8, 16), lr=0.1)


@pytest.fixture(scope="module")
def problem():
    return dtl.load("testbed", per_class=20, train=2, validation=5, test=5)


@pytest.fixture(scope="module")
def nets(problem):
    return full_source_nets(problem, RECIPE, seeds=(0, 1), device="cpu")


def loop(problem, nets, dataset):
    """Features and logits, (nets, n, ...), with own normalisation."""
    images = problem.source.images.float() / 255
    mean, std = images.mean((0, 2, 3))[:, None, None], images.std((0, 2, 3))[:, None, None]
    x = (dataset.images.float() / 255 - mean) / std
    with torch.inference_mode():
        nets.eval()
        return nets.features(x.repeat(1, 2, 1, 1)).numpy(), nets(x.repeat(1, 2, 1, 1)).numpy()


def test_feature_similarity_is_the_cosine_with_class_means(problem, nets):
    source, _ = loop(problem, nets, problem.source)
    target, _ = loop(problem, nets, problem.target_validation)
    expected, labels = np.zeros((24, 40)), problem.source.labels.numpy()
    for m in range(2):
        centre, spread = source[m].mean(0), source[m].std(0, ddof=1)
        for c in range(24):
            a = ((source[m] - centre) / spread)[labels == c].mean(0)
            for t in range(40):
                b = (target[m, t] - centre) / spread
                expected[c, t] += a @ b / np.linalg.norm(a) / np.linalg.norm(b) / 2
    np.testing.assert_allclose(feature_similarity(problem, nets, RECIPE), expected, atol=1e-4)


def test_label_mapping_is_the_softmax_of_the_source_head(problem, nets):
    _, logits = loop(problem, nets, problem.target_test)
    e = np.exp(logits - logits.max(2, keepdims=True))
    expected = (e / e.sum(2, keepdims=True)).mean(0).T
    np.testing.assert_allclose(label_mapping(problem, nets, RECIPE, split="test"), expected, atol=1e-5)


def test_source_loss_is_the_cross_entropy(problem, nets):
    _, logits = loop(problem, nets, problem.source)
    labels = problem.source.labels
    expected = np.mean([F.cross_entropy(torch.tensor(x), labels, reduction="none").numpy() for x in logits], 0)
    np.testing.assert_allclose(dtl.baselines.source_loss(problem, nets, RECIPE), expected, atol=1e-4)


def test_source_loss_finds_false_labels():
    problem = dtl.load("testbed-examples", seed=1)
    found = dtl.testbed.score_examples(dtl.baselines.source_loss(problem), problem)
    assert found["mislabelled"] > 0.8 and found["1 plain"] < 0.8


def test_nets_are_trained_when_none_are_given(problem):
    recipe = dataclasses.replace(RECIPE, epochs=1)
    scores = label_mapping(problem, recipe=recipe)
    assert scores.shape == (24, 40) and np.allclose(scores.sum(0), 1, atol=1e-5)


def test_unknown_split(problem, nets):
    with pytest.raises(ValueError, match="unknown split 'all': choose one of train, validation, test"):
        feature_similarity(problem, nets, RECIPE, split="all")


def test_similarity_finds_helpful_classes_and_not_harm():
    problem = dtl.load("testbed", seed=0)
    scores = feature_similarity(problem, full_source_nets(problem, device="cpu"))
    graded = dtl.testbed.score(dtl.Influence(scores, np.ones_like(scores), np.ones(400), "none", "none", 1), problem)
    assert graded["helpful"] > 0.95 and graded["mislabelled"] < 0.3


def margin(logits, label):
    return logits[label] - torch.cat([logits[:label], logits[label + 1 :]]).logsumexp(0)


def test_trak_is_its_formula_on_gradients_of_a_loop(problem, nets):
    from trak.projectors import BasicProjector

    source, target, train = problem.source, problem.target_validation, problem.target_train
    dimension, scores, weights = 8, torch.zeros(480, 40), torch.zeros(480, 1)
    images = source.images.float() / 255
    mean, std = images.mean((0, 2, 3))[:, None, None], images.std((0, 2, 3))[:, None, None]
    for number, net in enumerate(dtl.models.unstack(nets)):
        with torch.no_grad():
            x = net.features((train.images.float() / 255 - mean) / std)
        (head,), (bias,) = dtl.transfer.solve_probes(x, train.labels, 4, RECIPE.probe_l2)
        parameters, rows, one_minus_p = list(net.backbone.parameters()), {}, []
        for name, data in (("source", source), ("target", target)):
            rows[name] = []
            for image, label in zip(data.images, data.labels.tolist(), strict=True):
                z = net.features(((image.float() / 255 - mean) / std)[None])[0, 0]
                m = margin(*((net.weight[0].T @ z + net.bias[0, 0] if name == "source" else z @ head + bias[0]), label))
                one_minus_p += [1 - m.sigmoid().item()] if name == "source" else []
                gradient = torch.autograd.grad(m, parameters)
                rows[name].append(torch.cat([g.flatten() for g in gradient]))
        size = sum(p.numel() for p in parameters)
        projector = BasicProjector(size, dimension, 0, cast(Any, "normal"), torch.device("cpu"), dtype=torch.float32)
        of_source, of_target = (projector.project(torch.stack(rows[n]), number) / size**0.5 for n in rows)
        inverse = torch.linalg.inv(of_source.T @ of_source)
        scores = scores + of_source @ (inverse / inverse.abs().mean()) @ of_target.T / 2
        weights = weights + torch.tensor(one_minus_p)[:, None] / 2
    expected = (scores * weights).numpy()
    found = dtl.baselines.trak(problem, nets, RECIPE, dimension=dimension)
    assert found.shape == (480, 40)
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_trak_ranks_the_original_of_a_copy_high():
    problem = dtl.load("testbed-examples", seed=0)
    assert problem.truth is not None
    copy_of = problem.truth.copy_of
    assert copy_of is not None
    scores = dtl.baselines.trak(problem, full_source_nets(problem, seeds=(0, 1, 2, 3), device="cpu"))
    copies = np.flatnonzero(copy_of >= 0)
    before = [(scores[c] > scores[c, copy_of[c]]).sum() for c in copies]
    assert np.mean(before) < 100  # of 400 target pictures; chance has 200


def test_sums_of_classes(problem):
    by_example = np.arange(2 * 480.0).reshape(480, 2)
    expected = [by_example[problem.source.labels.numpy() == c].sum(0) for c in range(24)]
    np.testing.assert_array_equal(dtl.baselines.class_sums(by_example, problem.source), expected)
    with pytest.raises(ValueError, match="3 rows of scores for 480 source examples: give one row for each"):
        dtl.baselines.class_sums(by_example[:3], problem.source)


def test_trak_refuses_bad_input_before_it_trains(problem, monkeypatch):
    with pytest.raises(
        ValueError, match="dimension, at most the source examples, must be one whole number in 1..480, not 481"
    ):
        dtl.baselines.trak(problem, dimension=481)
    with pytest.raises(ValueError, match="unknown split 'all'"):
        dtl.baselines.trak(problem, split="all")
    monkeypatch.setitem(sys.modules, "trak", None)
    with pytest.raises(ModuleNotFoundError, match=r"install it with pip install 'dtl\[trak\]'"):
        dtl.baselines.trak(problem)


def test_trak_of_one_net(problem, nets):
    one = dtl.models.unstack(nets)[0]
    assert np.isfinite(dtl.baselines.trak(problem, one, RECIPE, dimension=4)).all()


def test_nets_of_another_problem_and_of_a_diverged_training(problem):
    others = full_source_nets(dtl.load("testbed-examples", per_class=2), RECIPE)
    for score in (feature_similarity, label_mapping, dtl.baselines.source_loss, dtl.baselines.trak):
        with pytest.raises(ValueError, match="the nets have 8 source classes, not the 24 of this source"):
            score(problem, others, RECIPE)
    with pytest.raises(RuntimeError, match=r"features of nets \[0\] are not finite: training diverged"):
        label_mapping(problem, recipe=dataclasses.replace(RECIPE, lr=1e8))
    with pytest.raises(ValueError, match="seeds is empty"):
        full_source_nets(problem, RECIPE, seeds=())
