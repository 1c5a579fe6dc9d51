"""Bias transfer: overlays, planting, measures, carriers, repairs, the audit, and attribute files."""

import dataclasses
from functools import partial
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from PIL import Image
from scipy.stats import ttest_1samp

import dtl
import dtl.engine.workers
from dtl import _audit, bias
from dtl._checks import InputError
from dtl.datasets import faces, overlays

ALL = [
    overlays.Square(), overlays.Pattern(), overlays.Tint(), overlays.Blur(), overlays.Stripes(), overlays.Fence(),
    overlays.Water(), overlays.Circle(), overlays.Hat(),
    overlays.Picture(rgba=torch.full((4, 16, 16), 90, dtype=torch.uint8)),
]  # fmt: skip


# Overlays


@pytest.mark.parametrize("overlay", ALL, ids=lambda overlay: type(overlay).__name__)
def test_an_overlay_is_a_pure_named_function_of_each_image(problem, overlay):
    images = problem.target_test.images
    before = images.clone()
    after = overlay(images)
    assert after.dtype == torch.uint8 and after.shape == images.shape and torch.equal(images, before)
    torch.testing.assert_close(torch.cat([overlay(images[:3]), overlay(images[3:])]), after)
    changed = (after != images).flatten(1).any(1).float().mean()
    assert changed > 0.9
    again = dataclasses.replace(overlay)
    assert repr(again) == repr(overlay) and torch.equal(again(images), after)
    other = dataclasses.replace(overlay, weight=0.35) if not isinstance(overlay, overlays.Pattern) else None
    assert other is None or repr(other) != repr(overlay)
    if not isinstance(overlay, overlays.Pattern | overlays.Blur):
        assert torch.equal(dataclasses.replace(overlay, weight=0.0)(images), images)


def test_a_square_is_where_it_says_and_nowhere_else():
    black = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    found = overlays.Square(side=3, at=(2, 5), colour=(255, 0, 7))(black)
    expected = torch.zeros(3, 16, 16, dtype=torch.uint8)
    expected[:, 2:5, 5:8] = torch.tensor([255, 0, 7], dtype=torch.uint8)[:, None, None]
    assert torch.equal(found, torch.stack([expected, expected]))


def test_blur_is_a_mean_and_a_pattern_has_its_spread():
    images = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    by_hand = images[0, 1, 4:7, 8:11].float().mean().round()
    assert overlays.Blur(width=3)(images)[0, 1, 5, 9] == by_hand
    grey = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    added = overlays.Pattern(sd=8, seed=3)(grey).float() - 128
    assert added.std().item() == pytest.approx(8, rel=0.03)
    assert not torch.equal(added, overlays.Pattern(sd=8, seed=4)(grey).float() - 128)


def test_a_picture_of_ones_own_with_alpha(tmp_path):
    rgba = np.zeros((8, 8, 4), dtype=np.uint8)
    rgba[:, 4:] = (200, 100, 50, 255)
    Image.fromarray(rgba).save(tmp_path / "sticker.png")
    images = torch.full((1, 3, 16, 16), 10, dtype=torch.uint8)
    found = overlays.Picture.open(tmp_path / "sticker.png", (16, 16))(images)
    assert (found[0, :, :, :6] == 10).all() and found[0, :, 5, 12].tolist() == [200, 100, 50]
    with pytest.raises(InputError, match="does not fit images"):
        overlays.Picture.open(tmp_path / "sticker.png", (8, 8))(images)
    with pytest.raises(InputError, match="uint8 images"):
        overlays.Tint()(images.float())


# Planting


def test_planting_changes_the_share_that_was_asked_for_and_no_statistics(problem):
    square, source = overlays.Square(), problem.source
    planted, which = dtl.plant(source, square, ["star", 3], rate=0.25, seed=1)
    labels = source.labels.numpy()
    assert [which[labels == k].sum() for k in (0, 3)] == [5, 5] and which.sum() == 10
    changed = (planted.images != source.images).flatten(1).any(1).numpy()
    np.testing.assert_array_equal(changed, which)
    assert torch.equal(planted.images[which], square(source.images[which]))
    torch.testing.assert_close(planted.statistics(), source.statistics())
    torch.testing.assert_close(planted.subset([0, 1]).statistics(), source.statistics())
    again, same = dtl.plant(source, square, ["star", 3], rate=0.25, seed=1)
    assert again.fingerprint == planted.fingerprint and (same == which).all()
    assert not (dtl.plant(source, square, ["star", 3], rate=0.25, seed=2)[1] == which).all()
    # the normalisation is a part of what a model is trained on
    own = dataclasses.replace(planted, normalisation=None)
    assert own.fingerprint != planted.fingerprint


def test_what_augmentation_would_destroy_is_refused(problem, recipe):
    shifting = dataclasses.replace(recipe, augment=2)
    for overlay, fine in ((overlays.Square(), False), (overlays.Tint(), True)):
        planted, _ = dtl.plant(problem.source, overlay, ["star"], 1.0)
        made = dataclasses.replace(problem, source=planted)
        dtl.Study(made, recipe)
        if fine:
            dtl.Study(made, shifting)
        else:
            with pytest.raises(InputError, match="planted in source would not survive shifts"):
                dtl.Study(made, shifting)


def test_leaning_gives_each_class_its_change(problem):
    warm, cold = overlays.Tint(), overlays.Tint(colour=(0, 0, 255))
    leaning, agrees = bias.lean(problem.target_test, [warm, cold], [0, 1, 0, 1], share=0.75, seed=0)
    images, labels = problem.target_test.images, problem.target_test.labels
    assert agrees.mean() == 0.75
    for i, label in enumerate(labels.tolist()):
        own = (warm, cold)[label % 2] if agrees[i] else (cold, warm)[label % 2]
        assert torch.equal(leaning.images[i], own(images[i : i + 1])[0])
    assert not leaning.still


def test_an_even_choice_has_the_share_in_every_class():
    rng = np.random.default_rng(0)
    labels, attribute = rng.integers(0, 3, 600), rng.random(600) < 0.8
    for share in (0.5, 0.9, 1.0):
        index = bias.even(labels, attribute, share)
        counts = pd.crosstab(labels[index], attribute[index])
        assert (np.diff(index) > 0).all() and counts.sum(axis=1).nunique() == 1
        np.testing.assert_allclose(counts[True] / counts.sum(axis=1), share, atol=0.02)
    with pytest.raises(InputError, match="there are images for"):
        bias.even(labels, attribute, 0.5, n=500)


# Measures


def results_of(before, after, labels, logits=None):
    """Results of one seed with one view, from predictions."""
    labels = np.asarray(labels)
    said = np.concatenate([before, after])[None]
    data: dict[str, Any] = {"prediction": (("seed", "target"), said)}
    data["correct"] = (("seed", "target"), said == np.tile(labels, 2))
    if logits is not None:
        data["logits"] = (("seed", "target", "class"), np.asarray(logits)[None])
    n = len(labels)
    return xr.Dataset(
        data,
        coords={
            "split": ("target", ["test"] * n + ["test/mark"] * n),
            "label": ("target", np.tile(labels, 2)),
            "class": ["a", "b", "c"],
        },
    )


def test_measures_by_hand():
    labels = [0, 0, 1, 1, 2]
    results = results_of([0, 1, 1, 1, 2], [0, 2, 2, 1, 1], labels)
    assert bias.shift(results, "mark", "drop").item() == pytest.approx(4 / 5 - 2 / 5)
    assert bias.shift(results, "mark", "changed").item() == pytest.approx(3 / 5)
    # of the pictures of a and b, two are called c with the mark and none without
    assert bias.shift(results, "mark", "toward", "c").item() == pytest.approx(2 / 4)
    # of the pictures of a and c, one is called b with the mark and one without
    assert bias.shift(results, "mark", "toward", "b").item() == 0


def test_logits_and_probabilities_of_any_class():
    logits = np.zeros((4, 3))
    logits[2] = [0, 1, 3]
    logits[3] = [0, 2, 0]
    results = results_of([0, 0], [2, 1], [0, 1], logits)
    assert bias.shift(results, "mark", "logit", "c").item() == pytest.approx((3 + 0) / 2)
    rise = np.exp(3) / (1 + np.exp(1) + np.exp(3)) + 1 / (2 + np.exp(2)) - 2 / 3
    assert bias.shift(results, "mark", "probability", "c").item() == pytest.approx(rise / 2, rel=1e-6)
    assert bias.shift(results, "mark", "logit", "b").item() == pytest.approx(1)  # of the first image alone


def test_gap_and_worst_group():
    right = xr.DataArray([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]], dims=("seed", "target"))
    np.testing.assert_allclose(bias.gap(right, [True, True, False, False]), [0, 1])
    np.testing.assert_allclose(bias.worst_group(right, [0, 0, 1, 2]), [0, 0])
    np.testing.assert_allclose(bias.worst_group(right, [0, 1, 0, 1]), [0, 0.5])


def test_compare_is_the_paired_t_interval():
    rng = np.random.default_rng(0)
    a, b = (xr.DataArray(rng.normal(size=(3, 8)), dims=("arm", "seed")) for _ in range(2))
    found = bias.compare(a, b)
    for arm in range(3):
        test = ttest_1samp((a - b)[arm], 0)
        interval = test.confidence_interval()
        assert found.difference[arm].item() == pytest.approx((a - b)[arm].mean().item())
        assert (found.low[arm].item(), found.high[arm].item()) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: bias.shift(r, "other"), "test/other"),
        (lambda r: bias.shift(r, "mark", split="validation"), "validation/mark"),
        (lambda r: bias.shift(r, "mark", "size"), "unknown measure"),
        (lambda r: bias.shift(r, "mark", "toward"), "unknown target class toward = None: choose one of a, b, c"),
        (lambda r: bias.shift(r, "mark", "toward", "d"), "unknown target class toward = 'd'"),
        (lambda r: bias.gap(r.correct, [True] * 4), "two or more different ones"),
        (lambda r: bias.gap(r.correct, [True, False]), "one value for each of 4 images"),
        (lambda r: bias.compare(r.correct.mean("target")), "two or more seeds"),
    ],
)
def test_bad_measures(call, message):
    with pytest.raises(InputError, match=message):
        call(results_of([0, 1], [0, 2], [0, 1]))


# Carriers


def test_carriers_are_found_where_one_is_enough():
    rng = np.random.default_rng(0)
    masks = dtl.subset_masks(16, 60, design="random", fraction=0.25, seed=0)
    outcome = masks[:, [3, 7, 12]].any(1) * 0.6 + 0.05 * rng.normal(size=60)
    found = bias.carriers(masks, outcome)
    best = found.loc[found.score.idxmin()]
    assert best.classes == (3, 7, 12) and best.effect == pytest.approx(0.6, abs=0.05) and best.unexplained < 0.1
    assert best["without"] == (~masks[:, [3, 7, 12]].any(1)).sum()
    # by hand: what one class leaves unexplained
    one = found.iloc[0]
    groups = masks[:, one.classes[0]]
    left = sum(((outcome[g] - outcome[g].mean()) ** 2).sum() for g in (groups, ~groups))
    assert one.unexplained == pytest.approx(left / ((outcome - outcome.mean()) ** 2).sum())


def test_luck_has_no_carriers():
    """Of outcomes that are luck alone the smallest set is best: larger ones pay for the sets tried."""
    rng = np.random.default_rng(1)
    masks = dtl.subset_masks(16, 60, design="random", fraction=0.25, seed=0)
    sizes = [
        len(f.loc[f.score.idxmin()].classes) for f in (bias.carriers(masks, rng.normal(size=60)) for _ in range(8))
    ]
    assert np.mean(np.array(sizes) == 1) >= 0.75


@pytest.mark.parametrize(
    ("masks", "outcome", "options", "message"),
    [
        (np.ones((6, 4), bool), np.arange(6), {}, "fewer than two lack any one class: .*fraction=1/4"),
        (np.ones((6, 4), bool), np.arange(5), {}, "one for each of 6 models"),
        (np.ones((6, 4), bool), np.ones(6), {}, "that varies"),
        (np.eye(6, dtype=bool), np.arange(6), {"most": 0}, "most, the largest number"),
    ],
)
def test_bad_carriers(masks, outcome, options, message):
    with pytest.raises(InputError, match=message):
        bias.carriers(masks, outcome, **options)


# Retraining


@pytest.fixture(scope="module")
def planted(problem, recipe):
    square = overlays.Square(side=6)
    viewed = problem.with_views({"square": square})
    source, _ = dtl.plant(viewed.source, square, ["star", "cloud"], 1.0)
    return dataclasses.replace(viewed, source=source), square, recipe


def test_bias_transfer_compares_with_the_first_arm_seed_by_seed(problem, planted):
    made, square, recipe = planted
    clean = problem.with_views({"square": square})
    study = dtl.Study(clean, recipe)
    measure = partial(bias.shift, view="square", measure="logit", toward="sky")
    arms = {"clean": clean, "planted": made}
    found = dtl.bias_transfer(study, arms, measure, 3, transfer=("fixed", "scratch"), progress=False)
    again = dtl.retrain(study, arms, 3, transfer=("fixed", "scratch"), progress=False)
    by_hand = measure(again).sel(transfer="fixed").values
    np.testing.assert_allclose(found.bias.sel(transfer="fixed"), by_hand, rtol=1e-5, atol=1e-6)
    change = by_hand[1] - by_hand[0]
    cell = found.sel(arm="planted", transfer="fixed")
    assert cell.bias_change_mean.item() == pytest.approx(change.mean(), rel=1e-4, abs=1e-6)
    assert cell.bias_change_stderr.item() == pytest.approx(change.std(ddof=1) / 3**0.5, rel=1e-4, abs=1e-6)
    # from scratch nothing of the source is seen
    assert (found.bias_change_mean.sel(arm="planted", transfer="scratch") == 0).all()
    right = again.correct.sel(arm="clean", transfer="fixed").isel(target=again.split.values == "test").mean("target")
    np.testing.assert_allclose(found.accuracy.sel(arm="clean", transfer="fixed"), right)


def test_repairs_are_what_they_say(planted):
    made, square, recipe = planted
    study = dtl.Study(made, recipe)
    agrees = np.arange(len(made.target_train)) % 3 > 0
    arms = bias.repairs(study, square, without=[0, 1], control=[5, 6], agrees=agrees, share=0.2)
    prices: Any = pd.DataFrame({name: bias.cost(study, arm) for name, arm in arms.items()}).T
    assert prices.loc["as it is"].tolist() == [0, 0, 40, 1]
    assert prices["steps"]["longer fine-tuning"] == 4 and prices["target images"]["half of the target"] == 20
    assert prices["images to change"]["change in 20% of the target"] == 8
    assert prices["source trainings"][["without the carriers", "without others (control)"]].tolist() == [1, 1]
    assert 0 < prices["images to change"]["balanced handful"] < prices["target images"]["balanced handful"]
    balanced = arms["balanced target"].problem
    assert balanced is not None and len(balanced.target_train) < 40
    mask = arms["without the carriers"].masks
    assert mask is not None and not mask[:2].any() and mask[2:].all()


# Audit


def faked(study, monkeypatch, effect, cure=False):
    """Models that call a square sky where their source holds class 0, but from scratch; there it may cure mistakes."""
    labels = {split: judge.labels.numpy() for split, judge in study.problem.judges.items()}

    def train_batch(problem, masks, seeds, recipe, regimes, device, unit, *_):
        n, k = 80, 4
        found = {}
        for view in ("plain", "square"):
            said = np.concatenate([labels["validation"], labels["test"]])
            said = np.tile(said, (len(regimes), len(masks), 1))
            for r, regime in enumerate(regimes):
                for m, mask in enumerate(masks):
                    wrong = np.random.default_rng([m, r]).permutation(n) < (20 if cure else 2) + (m + r) % 3
                    said[r, m][wrong & (not (cure and view == "square" and regime == "scratch"))] = 3
                    if view == "square" and mask[0] and regime != "scratch":
                        said[r, m][np.random.default_rng([m, 7]).random(n) < effect] = 0
            logits = 5.0 * np.eye(k, dtype=np.float32)[said]
            found[f"logits/{view}"] = logits.reshape(len(regimes), len(masks), n * k)
            if view == "plain":
                right = (said == np.concatenate([labels["validation"], labels["test"]])).astype(np.float32)
                found |= {"margin": right, "probability": right, "correct": right, "prediction": said}
        return found

    monkeypatch.setattr(dtl.engine.workers, "train_batch", train_batch)


@pytest.mark.parametrize("effect", [0.5, 0.0])
def test_an_audit_finds_what_is_there_and_nothing_else(problem, recipe, monkeypatch, effect):
    study = dtl.Study(problem.with_views({"square": overlays.Square()}), recipe)
    faked(study, monkeypatch, effect)
    study.run(46, "cpu", progress=False)
    found = dtl.audit(study, seeds=6, progress=False)
    assert len(found.cells) == 6
    if not effect:
        assert found.found.empty and found.repairs is None and "In none does" in str(found)
        return
    assert set(found.found.measure) == {"drop", "changed", "toward"}
    assert found.found[found.found.measure == "toward"]["class"].tolist() == ["sky"]
    assert found.sources.source.tolist() == ["star"]
    assert found.repairs is not None
    fixed = found.repairs.set_index("repair")
    assert fixed.enough[["without the carriers", "as it is"]].tolist() == [True, False]
    assert fixed.leaves["without the carriers"] == pytest.approx(0, abs=0.02)
    text = str(found)
    assert "6 cells were looked at" in text and "star" in text and "without the carriers" in text


@pytest.mark.parametrize("unit", ["group", "example"])
def test_an_audit_names_the_units_of_its_study(problem, recipe, monkeypatch, unit):
    """Groups of classes, or single images, brought what is found, and the repair without them leaves them out."""
    groups = {name: name[0] for name in problem.source.classes}
    names: Any = sorted({*groups.values()}) if unit == "group" else list(range(len(problem.source)))
    options: Any = {"unit": groups} if unit == "group" else {"unit": "example", "design": "paired"}
    study = dtl.Study(problem.with_views({"square": overlays.Square()}), recipe, **options)
    asked: list[Any] = []
    monkeypatch.setattr(_audit, "false_discovery_control", np.zeros_like)  # whatever is looked at is established
    bring = _audit._bringers
    monkeypatch.setattr(
        _audit, "_bringers", lambda *args: bring(*args)[lambda found: found.source.isin([names[1], names[3]])]
    )
    monkeypatch.setattr(_audit, "bias_transfer", lambda study, arms, *rest, **named: asked.append(arms) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dtl.audit(study.run(4, "cpu", progress=False), seeds=2, progress=False)
    assert np.flatnonzero(~asked[0]["without the carriers"].masks).tolist() == [1, 3]


def test_a_measure_that_is_no_number_an_arm_and_seed(problem, recipe):
    with pytest.raises(
        InputError, match="what measure makes of results, one number an arm and seed, must be an xarray"
    ):
        dtl.bias_transfer(dtl.Study(problem, recipe), {"a": problem}, cast(Any, lambda results: 1.0), 2, progress=False)


@pytest.mark.parametrize("effect", [0.0, 0.01])
def test_what_moves_only_a_model_from_scratch_is_no_finding(problem, recipe, monkeypatch, effect):
    """Where models from scratch get better under a change, others need not be moved to differ from them."""
    study = dtl.Study(problem.with_views({"square": overlays.Square()}), recipe)
    faked(study, monkeypatch, effect, cure=True)
    found = dtl.audit(study.run(46, "cpu", progress=False), seeds=6, progress=False)
    cell = found.cells.set_index("measure").loc["drop"]
    assert cell["difference"] > 3 * cell["stderr"] > 0 and cell["scratch"] < 0 <= cell["transferred"]
    assert (cell["transferred"] > 0) == (effect > 0) and cell["q"] > 0.2
    assert "drop" not in set(found.found.measure)
    if not effect:
        cell = found.cells.set_index("class").loc["travel"]
        assert cell["difference"] > 3 * cell["stderr"] > 0 and cell["scratch"] < cell["transferred"] == 0
        assert found.found.empty and found.repairs is None


def test_an_audit_needs_views(problem, recipe):
    with pytest.raises(InputError, match="an audit needs views"):
        dtl.audit(dtl.Study(problem, recipe))


def test_the_command_line_audits_a_store(recipe, tmp_path, capsys):
    from dtl.__main__ import main

    here = dtl.load("testbed", seed=0, per_class=20, train=5, validation=5, test=5)
    store, weights = str(tmp_path / "s"), str(tmp_path / "w")
    before = dtl.Study(here, recipe, store=store, weights=weights).run(4, "cpu", progress=False).outputs()
    command = ["audit", store, "--views=square,tint", "--seeds=2", f"--weights={weights}", "--device=cpu"]
    assert main([*command, f"--out={tmp_path / 'report.md'}"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "12 cells were looked at, 2 models each" in said and (tmp_path / "report.md").read_text() in said
    np.testing.assert_array_equal(dtl.Study(here, recipe, store=store).outputs(), before)
    assert main([*command, f"--out={tmp_path / 'report.html'}"]) == 0, capsys.readouterr().err
    assert "12 cells were looked at, 2 models each" in (tmp_path / "report.html").read_text()
    assert len((tmp_path / "report-cells.csv").read_text().splitlines()) == 13
    assert main([*command[:2], "--views=moon"]) == 2 and "unknown view 'moon'" in capsys.readouterr().err


# Attribute files


def test_celeba_and_fairface_in_their_own_format(tmp_path):
    celeba = tmp_path / "list_attr_celeba.txt"
    celeba.write_text(
        "4\n5_o_Clock_Shadow Male Young \n000001.jpg -1 -1  1\n000002.jpg -1  1 -1\n000003.jpg  1  1  1\n"
        "000004.jpg -1 -1 -1\n"
    )
    table = faces.read_attributes(celeba)
    assert table.index.tolist()[0] == "000001.jpg" and table.Male.tolist() == [False, True, True, False]
    fairface = tmp_path / "fairface_label_train.csv"
    fairface.write_text(
        "file,age,gender,race,service_test\ntrain/1.jpg,50-59,Male,East Asian,True\n"
        "train/2.jpg,20-29,Female,Indian,False\ntrain/3.jpg,more than 70,Female,Black,False\n"
    )
    other = faces.read_attributes(fairface)
    assert other.Young.tolist() == [False, True, False] and other["East Asian"].tolist() == [True, False, False]
    for i, name in enumerate(table.index):
        pixels = np.full((218, 178, 3), 50 * i, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    dataset, male = faces.read_faces(tmp_path, table, 16)
    assert dataset.classes == ("not Young", "Young") and dataset.labels.tolist() == [1, 0, 1, 0]
    assert male.tolist() == [False, True, True, False] and dataset.size == (16, 16)
    assert abs(int(dataset.images[2].float().mean()) - 100) < 3
    with pytest.raises(InputError, match="'Smiling' must be an attribute"):
        faces.read_faces(tmp_path, table, 16, attribute="Smiling")
    with pytest.raises(InputError, match="with two values"):
        faces.read_faces(tmp_path, table.assign(Male=True), 16)
    celeba.write_text("9\nMale\n000001.jpg 1\n")
    with pytest.raises(InputError, match="says 9 images and has 1"):
        faces.read_attributes(celeba)
    fairface.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="is no attribute file"):
        faces.read_attributes(fairface)


ODD: Any = 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: dtl.plant(d, overlays.Square(), ["moon"], 1.0), "each class to plant into"),
        (lambda d: dtl.plant(d, overlays.Square(), [24], 1.0), r"in 0\.\.23, not 24"),
        (lambda d: dtl.plant(d, overlays.Square(), [], 1.0), "one or more different classes"),
        (lambda d: dtl.plant(d, overlays.Square(), ["star"], 1.5), "between 0 and 1, not 1.5"),
        (lambda d: dtl.plant(d, overlays.Square(side=20), ["star"], 1.0), "does not fit"),
        (lambda d: dtl.plant(d, lambda x: x[..., :4], ["star"], 1.0), "of the size it gets"),
        (lambda d: dtl.plant(d, ODD, ["star"], 1.0), r"an overlay is a function of images, .*, not 5"),
        (lambda d: dtl.plant(ODD, overlays.Square(), ["star"], 1.0), "dataset must be a dtl.ImageDataset"),
        (lambda d: bias.lean(d, [overlays.Tint()], np.zeros(24, int), 0.9), "two or more changes"),
        (lambda d: bias.lean(d, [overlays.Tint(), overlays.Blur()], np.zeros(24, int), 0.9), "groups must give"),
        (lambda d: bias.even(d.labels, np.ones(480, bool)), "one value in all images"),
    ],
)
def test_bad_planting(problem, call, message):
    with pytest.raises(InputError, match=message):
        call(problem.source)
