"""The runs behind the pages about real images, from packed photographs to shipped results."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from results import run

import dtl
import dtl.datasets.imagenet200
import dtl.datasets.targets

SHARED = Path(__file__).parents[2] / "shared"
CLASSES = {"bullfrog": "frog", "moving van": "truck", "sports car": "automobile", "tabby": "cat"}
WNIDS = [wnid for wnid, name in dtl.datasets.imagenet200.NAMES.items() if name in CLASSES]
TOY = run.Size(
    "toy", dtl.Recipe(widths=(8, 16, 32), epochs=6, batch_size=16, augment=2, finetune_epochs=3, models_at_once=4),
    {"classes": list(CLASSES), "target_limit": 40, "holdout": 0.3},
    models=dtl.design.block_length(4), random=6, counts=(1, 2), seeds=2, held=(1, 2), held_seeds=3,
    fresh=(1,), fresh_seeds=4, examples=2, flips=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageFolder trees of four classes of each set, 100 images a class, unpacked by the script beside the data."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"{SHARED / 'data'} is absent: no real images to test with")
    folder = tmp_path_factory.mktemp("real")
    (folder / "tools").mkdir()
    script = shutil.copy(SHARED / "tools/unpack_images.py", folder / "tools")  # it reads the data folder beside its own
    for name, classes in {"imagenet200": WNIDS, "cifar10": list(CLASSES.values())}.items():
        for packed in (SHARED / "data" / name).glob("*/*.avif"):
            if packed.stem.removesuffix("-0") in classes:
                there = folder / "data" / name / packed.parent.name / packed.name
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(packed, there)
        command = [sys.executable, script, name, folder, "--limit", "100"]
        subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def experiment(trees: Path) -> run.Experiment:
    return run.Experiment(TOY, trees, trees / "studies", "cpu", trees / "out")


def test_photographs_are_read(experiment: run.Experiment) -> None:
    parts = {part: dataset.counts.tolist() for part, dataset in experiment.problem.parts.items()}
    assert parts == {
        "source": [100] * 4, "target_train": [40] * 4, "target_validation": [30] * 4, "target_test": [100] * 4,
    }  # fmt: skip
    assert experiment.problem.target_test.classes == ("automobile", "cat", "frog", "truck")
    assert set(experiment.problem.source.classes) == set(CLASSES)


def test_every_run_and_the_results(
    trees: Path, experiment: run.Experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(run.SIZES, "cpu", TOY)
    run.main("all", trees, "cpu", experiment.studies, "cpu", experiment.out)
    results = dtl.results.open("toy", experiment.out)
    assert results["full-source"].correct.mean(("model", "target")).values.min() > 0.3  # of 4 classes
    assert dict(results["balanced"].sizes) == {"model": TOY.models, "source": 4, "transfer": 2, "target": 520}
    assert dict(results["random"].sizes) == {"model": 6, "source": 4, "transfer": 1, "target": 120}
    assert results["removal"].order.values.tolist() == ["negative", "positive", "random", "hand-picked"]
    assert set(results["flips"].group.values) >= {"most harmed"} and (results["flips"].influence < 0).all()
    assert results.certificate("flips").startswith("python book/results/run.py flips --scale cpu\ncommit ")

    influence = dtl.results.influence_of(results["balanced"], by="class")
    np.testing.assert_allclose(influence.values, experiment.balanced.influence(by="class").values, atol=0.02)

    capsys.readouterr()
    run.main("all", trees, "cpu", experiment.studies, "cpu", experiment.out)  # as after a kill
    assert "training" not in capsys.readouterr().err
    again = dtl.results.open("toy", experiment.out)
    for name, part in results.parts.items():
        assert part.equals(again[name]), name
    assert again.manifest["runs"] == results.manifest["runs"]


def test_removals_with_the_steps_held_are_added_to_what_ships(
    trees: Path, experiment: run.Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where neither models nor the new parts are at hand, all comes out as if they had been."""
    monkeypatch.setitem(run.SIZES, "cpu", TOY)
    run.main("all", trees, "cpu", experiment.studies, "cpu", experiment.out)
    whole, added = dtl.results.open("toy", experiment.out), ("removal-steps", "removal-fresh")
    old = {name: part.drop_attrs(deep=False) for name, part in whole.parts.items() if name not in added}
    runs = {name: run for name, run in whole.manifest["runs"].items() if name not in added}
    dtl.results.save(tmp_path / "toy", old, whole.manifest | {"runs": runs})
    with pytest.raises(typer.BadParameter, match="first run removal-steps, removal-fresh to the end"):
        run.main("add", trees, "cpu", tmp_path / "new", "cpu", tmp_path)
    for command in ("removal-steps", "removal-fresh", "add"):
        run.main(command, trees, "cpu", tmp_path / "new", "cpu", tmp_path)
    after = dtl.results.open("toy", tmp_path)
    assert after.parts.keys() == whole.parts.keys() and after.manifest["settings"] == whole.manifest["settings"]
    for name, part in whole.parts.items():
        assert part.equals(after[name]), name
    assert after["removal-steps"].order.values.tolist() == ["negative", "random"]
    assert after["removal-fresh"].sizes == {"order": 1, "count": 2, "seed": 4}


def test_runs_in_the_wrong_order_are_refused(trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run.SIZES, "cpu", TOY)
    with pytest.raises(typer.BadParameter, match="first run balanced to the end"):
        run.main("removal", trees, "cpu", tmp_path, "cpu", tmp_path)
    with pytest.raises(typer.BadParameter, match="first run balanced, random, baselines, removal, removal-steps,"):
        run.main("pack", trees, "cpu", tmp_path, "cpu", tmp_path)
    monkeypatch.setattr(dtl.Study, "run", lambda *_, **__: sys.exit(143))
    with pytest.raises(SystemExit):
        run.main("balanced", trees, "cpu", tmp_path, "cpu", tmp_path)
    (piece,) = run.read_log(tmp_path / "toy", "balanced")
    assert not piece["finished"] and piece["seconds"] >= 0
    with pytest.raises(typer.BadParameter, match="first run balanced"):
        run.main("flips", trees, "cpu", tmp_path, "cpu", tmp_path)
    with pytest.raises(FileNotFoundError, match="ImageNet-200 is missing"):
        run.main("random", tmp_path, "cpu", tmp_path, "cpu", tmp_path)
    assert not (tmp_path / "toy/random.json").exists()


def test_hand_picked_order_keeps_the_near_classes_longest(experiment: run.Experiment) -> None:
    order = run.hand_picked(experiment.problem.source.classes)
    names = np.array(experiment.problem.source.classes)[order]
    near = [name in dtl.datasets.imagenet200.CATEGORIES for name in names]
    assert sorted(order) == list(range(4)) and near == sorted(near) and sum(near) == 4

    assert run.hand_picked(["goose", "abacus", "alp", "tabby"])[:2] in ([1, 2], [2, 1])


def test_a_batch_of_the_shipped_study_comes_out_again() -> None:
    """Sums in another order change a model's margins, so models are compared in distribution and over subsets."""
    try:
        (data, *_) = dtl.datasets.targets.data_folders(None, "ImageNet-200")
        problem = run.Experiment(run.SIZES["cpu"], data, Path(), "cpu", Path()).problem
    except (ValueError, FileNotFoundError) as missing:
        pytest.skip(f"no images to train on: {missing}")
    shipped = dtl.results.open("imagenet20-cifar10")["balanced"].isel(model=slice(16))
    study = dtl.Study(problem, run.SIZES["cpu"].recipe).run(16, "cpu", progress=False)
    np.testing.assert_array_equal(study.masks, shipped["mask"])
    labels = problem.target_validation.labels.numpy()
    validation = shipped.sel(transfer="fixed").isel(target=(shipped.split == "validation").values)
    accuracy = study.outputs("correct").mean(1) - validation.correct.mean("target").values
    assert abs(accuracy.mean()) < 0.005 and np.abs(accuracy).max() < 0.03
    mine, theirs = (dtl.influence.group_means(y, labels) for y in (study.outputs(), validation.margin.values))
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(mine.T, theirs.T, strict=True)]
    assert min(r) > 0.6, r
