"""Leaked and misleading source examples."""

import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

import dtl
from dtl._checks import InputError
from dtl.leakage import near_duplicates, pool, similarity


def dataset(n, seed=0):
    pixels = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return dtl.ImageDataset(pixels, torch.arange(n) % 2, ("a", "b"))


def influence(values, stderr=0.1):
    values = np.asarray(values, dtype=float)
    return dtl.Influence(values, np.full(values.shape, stderr), np.ones(values.shape[1]), "difference", "paired", 100)


def test_a_leak_stands_out_on_one_target():
    values = np.zeros((6, 5))
    values[2] = 0.9  # good for all
    values[4, 3] = 0.6  # a copy of one
    values[1, 0] = 0.3
    table = dtl.leaked(influence(values), dataset(6))
    assert table.source[:2].tolist() == [4, 1] and table.target[:2].tolist() == [3, 0]
    assert table.lead[:2].tolist() == pytest.approx([6, 3]) and table.influence[0] == pytest.approx(0.6)
    assert table.q[0] < 1e-4 and table.set_index("source").q[2] < 1e-4 and table.set_index("source").q[0] == 1


def test_near_duplicates_come_first_where_similarity_is_given():
    values = np.zeros((6, 5))
    values[4, 3] = 0.6
    like = np.zeros((6, 5))
    like[0, 2], like[5, 1], like[3, 0] = 0.95, 0.99, 0.5
    table = dtl.leaked(influence(values), dataset(6), like)
    assert table.source[:3].tolist() == [5, 0, 4] and table.nearest[:2].tolist() == [1, 2]


def test_misleading_examples_by_z_score():
    values = np.array([[0.1, -0.2], [-0.5, 0.4], [0.0, 0.0], [-0.1, -0.9]])
    table = dtl.misleading(influence(values), dataset(4))
    assert table.source.tolist() == [3, 1, 0, 2] and table.column[:2].tolist() == [1, 0]
    assert table.z[0] == pytest.approx(-9) and table.label.tolist() == ["b", "b", "a", "a"]
    assert table.q[0] < 1e-10 and table.q[3] == 1


def test_false_discoveries_are_kept_to_their_rate():
    """Of 400 sets of 40 examples that do nothing at most one in twenty or so reports any."""
    rng = np.random.default_rng(0)
    reported = [
        (dtl.misleading(influence(rng.normal(size=(40, 4)), stderr=1.0), dataset(40)).q < 0.05).any()
        for _ in range(400)
    ]
    assert np.mean(reported) < 0.08


def test_similarity_is_the_correlation_of_pixels():
    source, target = dataset(4), dataset(3, seed=1)
    x, y = (d.images.double() - d.images.double().mean((2, 3), keepdim=True) for d in (source, target))
    expected = np.corrcoef(x.flatten(1), y.flatten(1))[:4, 4:]
    np.testing.assert_allclose(similarity(source, target, aligned=False), expected, atol=1e-6)
    np.testing.assert_allclose(similarity(source, target), expected, atol=1e-6)  # none of these is like another
    brighter = dtl.ImageDataset((source.images / 2 + 60).byte(), source.labels, source.classes)
    np.testing.assert_allclose(np.diag(similarity(source, brighter)), 1, atol=1e-3)


def test_copies_are_pooled():
    source = dataset(5)
    images = torch.cat([source.images, source.images[[1, 1]]])
    copied = dtl.ImageDataset(images, torch.zeros(7, dtype=torch.int64), ("a",))
    groups = near_duplicates(copied)
    assert groups.tolist() == [0, 1, 2, 3, 4, 1, 1]
    masks = np.zeros((2, 7), dtype=bool)
    masks[0, 6] = masks[1, 0] = True
    assert pool(masks, groups).tolist() == [[False, True, False, False, False], [True, False, False, False, False]]


def test_copies_hide_each_other_and_pooling_shows_them():
    """The output needs any one of five copies: each alone has little influence, the five together have all of it."""
    masks = dtl.subset_masks(40, 2000, design="random", seed=3)
    outputs = masks[:, :5].any(axis=1) + 0.1 * np.random.default_rng(0).normal(size=2000)
    alone = dtl.estimate_influence(masks, outputs[:, None])
    groups = np.array([0] * 5 + list(range(1, 36)))
    together = dtl.estimate_influence(pool(masks, groups), outputs[:, None], design="random")
    assert (alone.values[:5] < 0.12).all() and together.values[0] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: dtl.leaked(influence(np.zeros((24, 5))), dataset(6)),
            "24 units but the source has 6 examples: .*unit=",
        ),
        (lambda: dtl.misleading(influence(np.zeros((24, 5))), dataset(6)), "need a study of examples"),
        (lambda: dtl.leaked(influence(np.zeros((6, 1))), dataset(6)), "influence on single target examples"),
        (lambda: dtl.leaked(influence(np.zeros((6, 5))), dataset(6), np.zeros((6, 4))), r"source x target .*\(6, 4\)"),
        (lambda: pool(np.ones((2, 6), bool), [0, 1]), "one number for each of 6 examples"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_testbed_of_examples_plants_what_it_says():
    problem = dtl.load("testbed-examples", seed=3)
    truth: Any = problem.truth
    role, copy_of = truth.example_role, truth.copy_of
    assert len(role) == len(copy_of) == len(problem.source) == 336
    assert pd.Series(role).value_counts().to_dict() == {"clean": 240, "leaked": 64, "mislabelled": 16, "ambiguous": 16}
    copies = pd.Series(copy_of[role == "leaked"]).value_counts()
    assert sorted(copies.unique().tolist()) == [1, 2, 5] and (copies.value_counts() == 8).all()
    assert (copy_of[role != "leaked"] == -1).all()
    originals = np.unique(copy_of[role == "leaked"])
    leaked_by, symbol = truth.leaked_by["validation"], truth.subpopulation["validation"]
    np.testing.assert_array_equal(np.flatnonzero(leaked_by >= 0), originals)
    labels = problem.source.labels.numpy()
    assert (labels[role == "leaked"] == symbol[copy_of[role == "leaked"]]).all()
    like = similarity(problem.source, problem.target_validation)
    of_copies = like[np.flatnonzero(role == "leaked"), copy_of[role == "leaked"]]
    assert 15 <= (of_copies > 0.93).sum() < 64  # the plain ones, not those that were moved
    again = dtl.load("testbed-examples", seed=3)
    assert again.source.fingerprint == problem.source.fingerprint
    assert dtl.load("testbed-examples", seed=4).source.fingerprint != problem.source.fingerprint
    with pytest.raises(ValueError, match="leaks in sixes .* and flawed in eights, not 16, 30, 7 and 16"):
        dtl.load("testbed-examples", leaks=7)


@pytest.mark.slow
def test_planted_leaks_and_lies_are_found(kept):
    problem = dtl.load("testbed-examples", seed=0)
    study = dtl.Study(problem, design="paired", unit="example", store=kept("examples")).run(368, progress=False)
    truth: Any = problem.truth
    role, copy_of = truth.example_role, truth.copy_of
    influence = study.influence()
    single = np.flatnonzero(pd.Series(copy_of).map(pd.Series(copy_of).value_counts()).to_numpy() == 1)
    z = influence.values[single, copy_of[single]] / influence.stderr[single, copy_of[single]]
    assert z.mean() > 2  # eight single copies, half of them moved
    worst = dtl.misleading(study.influence(by="all"), problem.source).set_index("source").z.sort_index()
    chosen = np.isin(role, ["clean", "mislabelled"])
    assert roc_auc_score(role[chosen] == "mislabelled", -worst[chosen]) > 0.65


def test_score_examples_counts_pairs_in_the_right_order():
    problem = dtl.load("testbed-examples", seed=0)
    truth = problem.truth
    assert truth is not None and truth.copy_of is not None and truth.moved is not None
    suspicion = np.random.default_rng(0).random(len(problem.source))
    found = dtl.testbed.score_examples(suspicion, problem)
    copies = np.array([(truth.copy_of == of).sum() if of >= 0 else 0 for of in truth.copy_of])
    clean = suspicion[truth.example_role == "clean"]
    for kind, chosen in (
        ("2 moved", (copies == 2) & truth.moved),
        ("5 plain", (copies == 5) & ~truth.moved),
        ("ambiguous", truth.example_role == "ambiguous"),
    ):
        assert chosen.any()
        assert found[kind] == pytest.approx(np.mean([a > b for a in suspicion[chosen] for b in clean]))
    with pytest.raises(ValueError, match="give one suspicion for each of 336 source examples"):
        dtl.testbed.score_examples(suspicion[1:], problem)
    with pytest.raises(ValueError, match="no example is planted in problem testbed-0: use dtl.load"):
        dtl.testbed.score_examples(suspicion, dtl.load("testbed"))


def test_equal_images_without_contrast_are_near_duplicates():
    grey = torch.full((3, 3, 4, 4), 128, dtype=torch.uint8)
    other = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source = dtl.ImageDataset(torch.cat([grey, other]), torch.tensor([0, 1, 0, 1, 0]), ("a", "b"))
    assert dtl.leakage.near_duplicates(source).tolist() == [0, 0, 0, 1, 2]
    for threshold in (0, 1, 93, float("nan")):
        with pytest.raises(ValueError, match="(near|threshold) must lie strictly between 0 and 1"):
            dtl.leakage.near_duplicates(source, threshold)


def test_pool_is_any_member_of_a_group():
    masks, groups = np.random.default_rng(0).random((20, 7)) < 0.5, np.array([2, 0, 1, 0, 2, 2, 1])
    expected = np.stack([masks[:, groups == g].any(1) for g in range(3)], 1)
    np.testing.assert_array_equal(dtl.leakage.pool(masks, groups), expected)
    with pytest.raises(ValueError, match="without gaps"):
        dtl.leakage.pool(masks, groups * 2)


@pytest.mark.parametrize("n", [31, 1025])
def test_any_number_of_likely_pairs_can_be_compared(n):
    """Pairs are compared 1,024 at a time: a last one alone is no scalar."""
    pixels = np.random.default_rng(0).integers(0, 255, (n, 3, 8, 8), dtype=np.uint8)
    source = dtl.ImageDataset(pixels, np.zeros(n, int), ("a", "b"))  # pyright: ignore[reportArgumentType]
    like = similarity(source, source.subset([0]))
    assert like[0, 0] > 0.999 and (like[1:] < 0.93).all()


def test_groups_are_chains_or_pairs(caplog):
    """b is like a and like c, which are not like each other."""
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 3, 32, 32))
    pictures = [one, one + 0.33 * two, one + 0.66 * two, rng.normal(size=(3, 32, 32))]
    images = torch.from_numpy(np.stack(pictures) * 25 + 128).clamp(0, 255).byte()
    source = dtl.ImageDataset(images, torch.zeros(4, dtype=torch.int64), ("a", "b"))
    like = similarity(source, source)
    assert like[0, 1] > 0.93 and like[1, 2] > 0.93 and like[0, 2] < 0.93
    with caplog.at_level(logging.INFO, logger="dtl"):
        chains = near_duplicates(source)
    assert chains[0] == chains[1] == chains[2] != chains[3]
    assert "1 of 2 groups are chains: not any two of their pictures are alike" in caplog.text
    pairs = near_duplicates(source, linked="pairs")
    assert pairs[0] != pairs[2] and pairs[1] in (pairs[0], pairs[2]) and len(set(pairs)) == 3
    with pytest.raises(InputError, match="unknown linked 'rings'"):
        near_duplicates(source, linked="rings")


def test_examples_of_another_source_are_refused(problem):
    other = dtl.load("testbed", seed=3, per_class=20, train=5, validation=5, test=5)
    values = np.random.default_rng(0).normal(size=(len(problem.source), 2))
    data = {"source": problem.source.fingerprint}
    found = dtl.Influence(
        values, np.ones_like(values), np.ones(2), "difference", "paired", 9, problem="mine", data=data
    )
    for function in (dtl.leaked, dtl.misleading):
        assert len(function(found, problem.source)) == len(problem.source)
        with pytest.raises(InputError, match="of problem mine, whose source has other images"):
            function(found, other.source)
