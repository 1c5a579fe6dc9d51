"""Transferability scores against published vectors and identities, and their benchmark on planted data."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import xarray as xr
from scipy.stats import rankdata

import dtl
from dtl import scores
from dtl._checks import InputError

VECTORS = json.loads((Path(__file__).parent / "golden/transferability.json").read_text())


def inputs(seed, N, D, Ct, Cs, sep):
    """Features, labels and source probabilities of a published case."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, Ct, size=N)
    features = sep * rng.standard_normal((Ct, D))[y] + rng.standard_normal((N, D))
    logits = rng.standard_normal((N, Cs))
    logits[np.arange(N), (2 * y + 1) % Cs] += 2.0
    p = np.exp(logits - logits.max(1, keepdims=True))
    return features, y, p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("case", VECTORS["cases"].values(), ids=VECTORS["cases"])
def test_published_vectors(case):
    x, y, p = inputs(**case["recipe"])
    found = {
        "leep": scores.leep(p, y), "nce": scores.nce(p, y), "h_score": scores.h_score(x, y),
        "h_score_shrunk": scores.h_score(x, y, shrunk=True), "transrate": scores.transrate(x, y),
        "gbc": scores.gbc(x, y), "gbc_spherical": scores.gbc(x, y, spherical=True), "logme": scores.logme(x, y),
        "knn1": scores.knn(x, y, k=1),
    }  # fmt: skip
    expected = {name: case["values"][name] for name in found}
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("case", VECTORS["cases"].values(), ids=VECTORS["cases"])
def test_parc_counts_equal_label_distances_as_equal(case):
    """The published values rank distances of 0 and of 1e-16 apart; two of three change when ties are ties."""
    x, y, _ = inputs(**case["recipe"])
    z = (x - x.mean(0)) / x.std(0)
    upper = np.triu_indices(len(y), 1)
    a, b = (1 - np.corrcoef(z))[upper], np.round(1 - np.corrcoef(np.eye(y.max() + 1)[y]), 9)[upper]
    expected = 100 * np.corrcoef(rankdata(a), rankdata(b))[0, 1]
    assert scores.parc(x, y) == pytest.approx(expected, abs=1e-9)
    assert scores.parc(x, y) == pytest.approx(case["values"]["parc_published"], abs=2)
    assert scores.parc(x * 3 + 1, y) == pytest.approx(expected, abs=1e-6)


def test_published_transport_vectors():
    rng = np.random.default_rng(10)
    z, x = rng.standard_normal((60, 8)), rng.standard_normal((50, 8)) + 0.5
    y_s, y_t = rng.integers(0, 4, size=60), rng.integers(0, 3, size=50)
    assert scores.ot_nce(z, y_s, x, y_t) == pytest.approx(VECTORS["ot_nce"], abs=1e-6)
    rng = np.random.default_rng(20)
    y_s = np.concatenate([np.arange(3), rng.integers(0, 3, 57)])
    y_t = np.concatenate([np.arange(4), rng.integers(0, 4, 46)])
    m_s, m_t = rng.standard_normal((3, 5)) * 2, rng.standard_normal((4, 5)) * 2
    z, x = m_s[y_s] + rng.standard_normal((60, 5)), m_t[y_t] + rng.standard_normal((50, 5))
    assert scores.otdd(z, y_s, x, y_t) == pytest.approx(VECTORS["otdd"], abs=1e-6)
    assert scores.otdd(z, y_s, z, y_s) == pytest.approx(0, abs=1e-5)
    few = np.r_[x[:8], x[:8] + 0.1]  # fewer images than features have singular covariances
    assert np.isfinite(
        scores.otdd(np.c_[few, few, few], np.arange(16) % 4, np.c_[few, few, few] + 1, np.arange(16) % 4)
    )


@pytest.fixture(scope="module")
def case():
    return inputs(0, 200, 16, 5, 8, 0.7)


FEATURES = {
    name: getattr(scores, name)
    for name in ("n_leep", "logme", "h_score", "transrate", "gbc", "parc", "knn", "lda", "probe")
}


@pytest.mark.parametrize("name", FEATURES)
def test_a_score_knows_better_features_and_ignores_order_and_names(name, case):
    x, y, _ = case
    rng = np.random.default_rng(0)
    better = x + 3 * np.eye(16)[y]
    assert FEATURES[name](better, y) > FEATURES[name](x, rng.permutation(y))
    order = rng.permutation(len(y))
    # folds, mixtures and ties go by the order of images or classes, so those scores agree only roughly
    close = 0.1 if name in ("n_leep", "knn", "lda", "probe") else 1e-6
    assert FEATURES[name](x[order], 4 - y[order]) == pytest.approx(FEATURES[name](x, y), abs=close)


def test_identities(case):
    x, y, p = case
    z = p.argmax(1)
    assert scores.leep(np.eye(8)[z], y) == pytest.approx(scores.nce(p, y), abs=1e-12)
    classes = np.bincount(y) / len(y)
    assert scores.leep(np.full((200, 8), 1 / 8), y) == pytest.approx((classes * np.log(classes)).sum(), abs=1e-12)
    assert scores.leep(np.eye(5)[y], y) == pytest.approx(0, abs=1e-12)
    assert scores.leep(np.c_[p, np.zeros(200)], y) == pytest.approx(scores.leep(p, y), abs=1e-12)  # an absent class
    rng = np.random.default_rng(0)
    turned = x @ np.linalg.qr(rng.normal(size=(16, 16)))[0]
    assert scores.h_score(x @ rng.normal(size=(16, 16)) + 1, y) == pytest.approx(scores.h_score(x, y), abs=1e-8)
    assert scores.logme(turned, y) == pytest.approx(scores.logme(x, y), abs=1e-8)
    assert scores.transrate(turned + 2, y) == pytest.approx(scores.transrate(x, y), abs=1e-8)
    assert -20 <= scores.gbc(x, y) <= 0 and scores.gbc(x + 5, y) == pytest.approx(scores.gbc(x, y), abs=1e-9)


def test_logme_is_the_largest_evidence(case):
    x, y, _ = case
    evidence = []
    for target in np.eye(5)[y].T:
        best = max(
            -0.5 * (np.linalg.slogdet(2 * np.pi * c)[1] + target @ np.linalg.solve(c, target))
            for c in (np.eye(200) * b + x @ x.T * a for a in np.logspace(-4, -1, 7) for b in np.logspace(-2, 0, 7))
        )
        evidence.append(best / 200)
    assert np.mean(evidence) <= scores.logme(x, y) < np.mean(evidence) + 0.05


BAD = {
    "NaN": (lambda: scores.logme([[np.nan], [1.0]], [0, 1]), "NaN or infinite"),
    "one class": (lambda: scores.lda([[0.0], [1.0]], [0, 0]), "hold 1 class"),
    "fewer images than classes": (lambda: scores.gbc([[0.0], [1.0]], [0, 5]), "more images than classes"),
    "labels of another length": (lambda: scores.parc([[0.0], [1.0]], [0, 1, 1]), "one label for each row"),
    "labels that are names": (lambda: scores.parc([[0.0], [1.0]], ["a", "b"]), "whole numbers"),
    "negative labels": (lambda: scores.h_score([[0.0], [1.0]], [-1, 1]), "from 0 on"),
    "rows that do not sum to one": (lambda: scores.leep([[0.5, 0.6], [0.5, 0.5]], [0, 1]), "sum to one"),
    "logits": (lambda: scores.nce([[3.0, -2.0], [0.5, 0.5]], [0, 1]), "softmax"),
    "widths": (lambda: scores.ot_nce([[0.0], [1.0]], [0, 1], np.eye(2), [0, 1]), "1 and 2 features"),
    "one image of a class for a covariance": (
        lambda: scores.otdd(np.eye(3), [0, 0, 1], np.eye(3), [0, 0, 1]), "two images of every class"),
    "one image of a class for folds": (lambda: scores.probe(np.eye(5), [0, 0, 0, 0, 1]), "two images of every class"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_agreement_tells_a_real_predictor_from_noise():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=100)
    values = {"good": truth + 0.3 * rng.normal(size=100), "noise": rng.normal(size=100), "constant": np.ones(100)}
    found = scores.agreement(values, truth, against="good")
    good, noise, constant = (found.sel(predictor=name) for name in values)
    assert good.r == pytest.approx(np.corrcoef(values["good"], truth)[0, 1])
    assert good.low < good.r < good.high and good.low > 0.9
    assert noise.low < 0 < noise.high and noise.behind_low > 0.4
    assert good.behind == 0 and np.isnan([constant.r, constant.low, constant.tau]).all()
    # joint intervals are wider than those of one comparison: 2.5% / 2 in each tail
    alone = scores.agreement({k: values[k] for k in ("good", "noise")}, truth, against="good").sel(predictor="noise")
    assert noise.behind_high - noise.behind_low > alone.behind_high - alone.behind_low
    with pytest.raises(InputError, match="four models"):
        scores.agreement({"a": [1, 2, 3]}, [1, 2, 3])


def test_agreement_can_be_saved(tmp_path):
    found = scores.agreement({"a": [1, 2, 3, 5], "beta": [1, 3, 2, 1]}, [1, 2, 3, 4], against="a")
    assert found.predictor.dtype.kind == "U"
    found.to_netcdf(tmp_path / "found.nc", engine="h5netcdf")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "found.nc", engine="h5netcdf"), found)


def test_cross_fitting_never_looks_at_the_model_or_its_complement():
    masks = dtl.subset_masks(6, 44)  # two balanced blocks of 14 and 16 more models
    rng = np.random.default_rng(0)
    effect = rng.normal(size=6)
    clean = masks @ effect
    assert np.corrcoef(scores.cross_fitted(masks, clean), clean)[0, 1] > 0.99
    spoilt = clean.copy()
    spoilt[3] += 100
    assert scores.cross_fitted(masks, spoilt)[2:4] == pytest.approx(scores.cross_fitted(masks, clean)[2:4], abs=1e-9)
    assert np.abs(scores.cross_fitted(masks, spoilt)[20] - scores.cross_fitted(masks, clean)[20]) > 0.1


def test_models_of_one_balanced_block_say_nothing_of_each_other():
    masks = dtl.subset_masks(24, 92)
    with pytest.raises(InputError, match="less than two balanced blocks: give 92 or more, not 46"):
        scores.cross_fitted(masks[:46], masks[:46] @ np.arange(24.0))
    truth = masks @ np.arange(24.0)
    assert np.corrcoef(scores.cross_fitted(masks, truth), truth)[0, 1] > 0.99
    paired = dtl.subset_masks(24, 46, "paired")
    assert np.corrcoef(scores.cross_fitted(paired, paired @ np.arange(24.0)), paired @ np.arange(24.0))[0, 1] > 0.3


def test_a_benchmark_of_few_models_leaves_influence_out(kept, caplog):
    found = scores.benchmark(kept, ["NCE"], device="cpu")
    assert "influence is not compared: that takes two balanced blocks, 92 models, not 12" in caplog.text
    assert np.isnan(found.r.sel(predictor="influence")) and np.isnan(found.behind).all()
    assert np.isfinite(found.r.sel(predictor="NCE"))


def test_scores_that_cannot_judge_so_many_features_are_named(problem, tmp_path, caplog):
    wide = dtl.Recipe(epochs=1, widths=(8, 40), models_at_once=4, finetune_epochs=2)
    study = dtl.Study(problem, wide, weights=tmp_path).run(4, "cpu", progress=False)
    scores.benchmark(study, ["H-score", "shrunk H-score"], device="cpu")
    assert "H-score say little of 40 features of no more than 40 images" in caplog.text and "shrunk" not in caplog.text


@pytest.fixture(scope="module")
def kept(problem, recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return dtl.Study(problem, recipe, transfer=("fixed", "full"), weights=folder).run(12, progress=False)


def test_benchmark_of_a_study(kept, problem, recipe):
    again = dtl.Study(problem, recipe, design=kept.masks, seed=1, transfer=("fixed", "full")).run(progress=False)
    found = scores.benchmark(kept, ["NCE", "LogME", "OTDD"], replicate=again, device="cpu")
    assert found.predictor.values.tolist() == [
        "influence", "NCE", "LogME", "OTDD", "probe on validation", "images", "the same trained again",
    ]  # fmt: skip
    assert found.kind.values.tolist() == ["influence", *["score"] * 3, "baseline", "baseline", "ceiling"]
    np.testing.assert_allclose(found.accuracy, kept.outputs("correct", "full", "test").mean(1))
    by_name = found.value.sel(predictor="probe on validation")
    np.testing.assert_allclose(by_name, kept.outputs("correct", "fixed").mean(1), atol=0.026)  # one picture of 40
    assert (found.value.sel(predictor="images") == 12 * 20).all() and np.isnan(found.r.sel(predictor="images"))
    assert (found.seconds.sel(predictor=["NCE", "LogME", "OTDD"]) > 0).all()
    assert found.value.sel(predictor="the same trained again").values == pytest.approx(
        again.outputs("correct", "full", "test").mean(1)
    )
    # heads of classes that a model has never seen are masked: NCE from the nets by hand
    (rows, nets), *_ = kept.nets([0], "cpu")
    p = dtl.transfer.embed(nets, problem.target_validation, problem.source).logits[0].numpy()
    p[:, ~kept.masks[0]] = -np.inf
    one_hot = np.eye(24)[p.argmax(1)]
    expected = scores.nce(one_hot, problem.target_validation.labels.numpy())
    assert rows.tolist() == [0] and float(found.value.sel(predictor="NCE")[0]) == pytest.approx(expected, abs=1e-9)


def test_benchmark_refuses_what_it_cannot_compare(kept, problem, recipe):
    with pytest.raises(InputError, match="not kept"):
        scores.benchmark(dtl.Study(problem, recipe).run(12, progress=False), ["NCE"], truth="fixed")
    groups = {name: name[0] for name in problem.source.classes}
    with pytest.raises(InputError, match="a benchmark needs a study whose units are classes, not groups"):
        scores.benchmark(dtl.Study(problem, recipe, unit=groups), ["NCE"], truth="fixed")
    for options, message in (
        (dict(truth="fixed+bn"), "truth"),
        (dict(scores=["XYZ"]), "score"),
        (dict(split="all"), "split"),
    ):
        with pytest.raises(InputError, match=message):
            scores.benchmark(kept, **{"scores": ["NCE"], "truth": "fixed", **options})
    other = dtl.Study(problem, recipe, seed=5, transfer="full").run(12, progress=False)
    with pytest.raises(InputError, match="same subsets"):
        scores.benchmark(kept, ["NCE"], replicate=other, device="cpu")


def test_choose_finds_the_trained_net_and_prices_the_choice(problem, recipe):
    trained = dtl.Recipe(epochs=8, widths=(8, 16), finetune_epochs=2)
    nets = {f"untrained {s}": dtl.models.initialise("small", 24, [s], (8, 16)) for s in range(3)}
    nets["trained"] = dtl.baselines.full_source_nets(problem, trained, [0], "cpu")
    candidates = {k: scores.Candidate(n, problem.source, trained) for k, n in nets.items()}
    found = scores.choose(problem, candidates, ["LogME", "k-NN"], truth="fixed", seeds=2)
    assert found.accuracy.dims == ("candidate", "seed") and found.value.sizes["candidate"] == 4
    assert found.accuracy.mean("seed").idxmax() == "trained"
    right = found.chosen == "trained"
    assert right.sel(predictor="LogME") and (found.regret.where(right, 0) <= 1e-9).all()
    wrong = found.regret.where(~right, drop=True)
    best = found.accuracy.sel(candidate="trained").mean()
    for name in wrong.predictor.values:
        other = found.accuracy.sel(candidate=found.chosen.sel(predictor=name).item()).mean()
        assert wrong.sel(predictor=name) == pytest.approx(float(best - other))
    with pytest.raises(InputError, match="four candidates"):
        scores.choose(problem, {"one": candidates["trained"]})


def test_pretrained_weights_of_torchvision(tmp_path):
    net = torchvision.models.resnet18(num_classes=7).eval()
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    x = torch.randn(2, 3, 32, 32)
    found = scores.pretrained("resnet18", tmp_path / "weights.pth").eval()
    with torch.inference_mode():
        torch.testing.assert_close(found(x)[0], net(x), atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="no weights of torchvision's resnet34"):
        scores.pretrained("resnet34", tmp_path / "weights.pth")


def test_a_score_that_cannot_judge_is_named(problem, recipe, tmp_path):
    few = problem.target_validation.subset(
        [int((problem.target_validation.labels == k).nonzero()[0]) for k in range(4)]
    )
    one_each = dataclasses.replace(problem, target_validation=few)
    study = dtl.Study(one_each, recipe, weights=tmp_path).run(4, "cpu", progress=False)
    for name in ("PARC", "LDA", "probe"):
        with pytest.raises(InputError, match=f"{name} cannot judge these 4 target images .*: leave it out of scores="):
            scores.benchmark(study, [name], device="cpu")


def test_files_without_weights_are_refused(tmp_path):
    file = tmp_path / "weights.pth"
    file.write_text("nothing")
    with pytest.raises(InputError, match="no file of weights that torch reads safely"):
        scores.pretrained("resnet18", file)
    for content, message in (
        ([1], "holds no weights, which are tensors"),
        ({"a": torch.zeros(3)}, "no weights of torch"),
    ):
        torch.save(content, file)
        with pytest.raises(InputError, match=message):
            scores.pretrained("resnet18", file)
