"""Feature similarity and label mapping, against plain loops."""

import dataclasses

import numpy as np
import pytest
import torch

import dtl
from dtl.substitutes import feature_similarity, full_source_nets, label_mapping

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


def test_nets_are_trained_when_none_are_given(problem):
    recipe = dataclasses.replace(RECIPE, epochs=1)
    scores = label_mapping(problem, recipe=recipe)
    assert scores.shape == (24, 40) and np.allclose(scores.sum(0), 1, atol=1e-5)


def test_unknown_split(problem, nets):
    with pytest.raises(ValueError, match="unknown split 'all': use 'train', 'validation' or 'test'"):
        feature_similarity(problem, nets, RECIPE, split="all")


def test_similarity_finds_helpful_classes_and_not_harm():
    problem = dtl.load("testbed", seed=0)
    scores = feature_similarity(problem, full_source_nets(problem, device="cpu"))
    graded = dtl.testbed.score(dtl.Influence(scores, np.ones_like(scores), np.ones(400), "none", "none", 1), problem)
    assert graded["helpful"] > 0.95 and graded["mislabelled"] < 0.3
