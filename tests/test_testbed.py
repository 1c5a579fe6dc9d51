"""The testbed: a function of its seed, with a truth that its pictures bear out."""

import os
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import dtl
from dtl import testbed
from dtl.influence import Influence

TINY = {"per_class": 20, "train": 5, "validation": 5, "test": 5}


@pytest.fixture(scope="module")
def drawn():
    """The default testbed and the attributes that its pictures were drawn from: source, then the target splits."""
    scenes = []

    def draw(table, *args):
        scenes.append(table.reset_index(drop=True))
        return original(table, *args)

    original = testbed._draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testbed, "_draw", draw)
        problem = dtl.load("testbed", seed=0)
    return problem, dict(zip(("source", "train", "validation", "test"), scenes, strict=True))


def test_the_seed_decides_everything_in_any_process(problem):
    code = f"import dtl; print(*dtl.testbed.make(0, **{TINY}).fingerprints.values())"
    env = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert other.stdout.split() == list(problem.fingerprints.values())
    different = testbed.make(1, **TINY).fingerprints
    assert all(different[part] != problem.fingerprints[part] for part in different)


@pytest.mark.parametrize("style", ["dark_background", {"text.color": ".15", "font.size": 20, "axes.facecolor": "red"}])
def test_plot_styles_do_not_change_the_pictures(problem, style):
    with plt.style.context(style):
        assert testbed.make(0, **TINY).fingerprints == problem.fingerprints


def test_shapes_roles_and_splits(drawn):
    problem, _ = drawn
    truth = problem.truth
    roles, counts = np.unique(truth.role, return_counts=True)
    assert dict(zip(roles, counts, strict=True)) == {
        "helpful": 8, "irrelevant": 8, "leaked": 2, "misleading": 4, "mislabelled": 2,
    }  # fmt: skip
    assert problem.source.images.shape == (24 * 60, 3, 16, 16) and (problem.source.counts == 60).all()
    for split, each in {"train": 15, "validation": 50, "test": 100}.items():
        part = problem.parts[f"target_{split}"]
        assert part.counts.tolist() == [2 * each] * 4
        assert np.bincount(truth.subpopulation[split]).tolist() == [each] * 8
        assert (truth.subpopulation[split] // 2 == part.labels.numpy()).all()  # two subpopulations to a class
    assert len(set(problem.source.classes)) == 24 and problem.target_train.classes == (
        "sky",
        "chess",
        "cards",
        "travel",
    )
    assert truth.helps[truth.role == "helpful"].tolist() == list(range(8))
    assert (truth.helps[truth.role != "helpful"] == -1).all()
    assert [problem.source.classes[c] for c in range(8)] == list(truth.subpopulations)


def test_the_cue_is_in_the_training_split_alone(drawn):
    problem, scenes = drawn
    large = dtl.load("testbed", seed=3, train=300).truth
    assert large is not None
    assert large.cue_agrees["train"].mean() == pytest.approx(0.9, abs=0.03)  # 4.9 standard errors of 2400 pictures
    for split in ("validation", "test"):
        assert problem.truth.cue_agrees[split].mean() == pytest.approx(0.25, abs=0.08)
        kind = scenes[split].symbol // 2
        assert ((scenes[split].texture == kind) == problem.truth.cue_agrees[split]).all()


def test_source_classes_are_what_their_roles_say(drawn):
    problem, scenes = drawn
    truth = problem.truth
    by_class = [scenes["source"].iloc[60 * c : 60 * c + 60] for c in range(24)]
    for c, table in enumerate(by_class):
        role, new_symbols = truth.role[c], (table.symbol >= testbed.N_TARGET).all()
        if role == "helpful":
            assert (table.symbol == truth.helps[c]).all() and table.texture.nunique() == 4
        elif role == "misleading":
            assert new_symbols and table.texture.nunique() == 1
        elif role == "irrelevant":
            assert new_symbols and table.texture.nunique() == 4
            assert min(np.ptp((table[column] + 0.5) % 1) for column in ("hue", "paper")) < 0.2  # + 0.5: red is at 0
        elif role == "mislabelled":
            assert (table.symbol < testbed.N_TARGET).all() and table.symbol.nunique() > 4
    textures = [by_class[c].texture.iloc[0] for c in np.flatnonzero(truth.role == "misleading")]
    assert textures == [0, 1, 2, 3]


def test_leaked_pictures_are_near_copies_of_exactly_the_marked_examples(drawn):
    problem, _ = drawn
    truth, splits = problem.truth, ("train", "validation", "test")
    target = torch.cat([problem.parts[f"target_{split}"].images for split in splits]).float().flatten(1)
    leaked_by = np.concatenate([truth.leaked_by[split] for split in splits])
    labels = np.concatenate([problem.parts[f"target_{split}"].labels for split in splits])
    assert (truth.leaked_by["train"] == -1).all()
    albums = np.flatnonzero(truth.role == "leaked")
    kinds = set()
    for c in albums:
        images = problem.source.images[problem.source.labels == int(c)].float().flatten(1)
        nearest, index = torch.cdist(images, target).topk(2, largest=False)
        assert set(index[:, 0].tolist()) == set(np.flatnonzero(leaked_by == c))  # every marked example is copied
        assert (nearest[:, 0] < 0.7 * nearest[:, 1]).all()
        # the difference of two noises of 0.04, in grey levels of 1/255
        assert nearest[:, 0].mean() == pytest.approx(255 * 0.04 * 2**0.5 * (3 * 16 * 16) ** 0.5, rel=0.1)
        kinds |= set(labels[leaked_by == c])
    assert len(kinds) == 2 and np.bincount(truth.leaked_by["test"] + 1)[albums + 1].tolist() == [10, 10]


def test_helpful_pictures_teach_their_subpopulation(drawn):
    """A linear classifier of silhouettes, trained on the helpful classes, tells target subpopulations apart."""
    problem, _ = drawn

    def silhouettes(images):
        x = images.float()
        border = torch.cat([x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]], -1).mean(-1)
        return (x - border[..., None, None]).abs().sum(1).flatten(1).numpy() / 255

    labels = problem.source.labels.numpy()
    helpful = labels < 8
    model = LogisticRegression(C=0.1, max_iter=500).fit(silhouettes(problem.source.images[helpful]), labels[helpful])
    truth = problem.truth.subpopulation["test"]
    assert model.score(silhouettes(problem.target_test.images), truth) > 0.4  # chance is 0.125
    assert model.score(silhouettes(problem.target_test.images), (truth + 1) % 8) < 0.2


def planted(problem, sign=1.0):
    """Influences that are exactly what was planted."""
    truth, n = problem.truth, len(problem.target_validation)
    values = np.zeros((24, n))
    for c, role in enumerate(truth.role):
        if role == "helpful":
            values[c, truth.subpopulation["validation"] == truth.helps[c]] = 1
        elif role == "leaked":
            values[c, truth.leaked_by["validation"] == c] = 1
        elif role != "irrelevant":
            values[c] = -1
    return Influence(sign * values, np.ones_like(values), np.ones(n), "difference", "balanced", 46)


@pytest.mark.parametrize(("sign", "expected"), [(1, 1.0), (-1, 0.0), (0, 0.5)])
def test_score_is_an_auroc(problem, sign, expected):
    scores = testbed.score(planted(problem, sign), problem)
    assert scores == dict.fromkeys(("helpful", "mislabelled", "leaked", "misleading"), expected)


def test_score_takes_a_table_of_anything(problem):
    influence = planted(problem)
    assert testbed.score(influence.values.tolist(), problem) == testbed.score(influence, problem)


def test_a_source_that_leans_shows_the_texture_of_its_kind(problem):
    """Pictures of helpful classes alone change, in the share that was asked for."""
    straight, leaning = (testbed.make(0, per_class=200, lean=lean) for lean in (0.25, 1.0))
    labels = straight.source.labels.numpy()
    texture = straight.source.images.float().mean(1), leaning.source.images.float().mean(1)
    changed = (straight.source.images != leaning.source.images).flatten(1).any(1).numpy()
    assert not changed[labels >= 8].any() and changed[labels < 8].mean() == pytest.approx(0.75, abs=0.06)
    rows = [(x - x.mean(2, keepdim=True)).abs().mean((1, 2)).numpy() for x in texture]  # stripes do not vary in a row
    sky = labels // 2 == 0
    assert rows[1][sky].mean() < 0.8 * rows[0][sky].mean()
    for part in ("target_train", "target_test"):
        assert straight.parts[part].fingerprint == leaning.parts[part].fingerprint
    with pytest.raises(ValueError, match="lean must lie between 0 and 1"):
        testbed.make(0, lean=1.1)


def test_score_refuses_what_it_cannot_score(problem, uneven):
    influence = planted(problem)
    with pytest.raises(ValueError, match="no planted classes to score against"):
        testbed.score(influence, uneven)
    by_class = Influence(influence.values[:, :4], influence.stderr[:, :4], np.ones(4), "difference", "balanced", 46)
    with pytest.raises(ValueError, match="24 classes on 40 examples"):
        testbed.score(by_class, problem)


@pytest.mark.parametrize("bad", [{"size": 0}, {"train": 0}, {"per_class": 19}, {"validation": 4}, {"test": 4}])
def test_sizes_that_cannot_hold_the_truth_are_refused(bad):
    with pytest.raises(ValueError, match="the testbed needs"):
        testbed.make(0, **(TINY | bad))
