"""The whole way on photographs: unpack, read, train a block, estimate, print."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.real_images import NEAREST, WNIDS, effects_table, named_source, nearest_ranks
from PIL import Image

import dtl

SHARED = Path(__file__).parents[2] / "shared"
SOURCE = ["bullfrog", "moving van", "sports car", "tabby"]
TARGET = ["automobile", "cat", "frog", "truck"]
RECIPE = dtl.Recipe(widths=(8, 16, 32), epochs=6, batch_size=16, augment=2)

pytestmark = pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason=f"{SHARED / 'data'} is absent: no real images to test with"
)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageFolder trees of four classes of each set, 100 images a class, unpacked by the script beside the data."""
    folder = tmp_path_factory.mktemp("real")
    wanted = {"imagenet200": [WNIDS[name] for name in SOURCE], "cifar10": TARGET}
    (folder / "tools").mkdir()
    script = shutil.copy(SHARED / "tools/unpack_images.py", folder / "tools")  # it reads the data folder beside its own
    for name, classes in wanted.items():
        for packed in (SHARED / "data" / name).glob("*/*.avif"):
            if packed.stem.removesuffix("-0") in classes:
                there = folder / "data" / name / packed.parent.name / packed.name
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(packed, there)
        command = [sys.executable, script, name, folder, "--limit", "100"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    return folder


@pytest.fixture(scope="module")
def problem(trees: Path) -> dtl.TransferProblem:
    source = named_source(trees, trees / "named", SOURCE)
    return dtl.from_folders(source, trees / "cifar10", 16, holdout=0.4, cache=trees / "cache", show_progress=False)


def test_folders_are_read_as_they_are(trees: Path, problem: dtl.TransferProblem) -> None:
    assert problem.source.classes == tuple(SOURCE)
    assert problem.target_test.classes == tuple(TARGET)
    sizes = {part: dataset.counts.tolist() for part, dataset in problem.parts.items()}
    assert sizes == {
        "source": [100] * 4,
        "target_train": [60] * 4,
        "target_validation": [40] * 4,
        "target_test": [100] * 4,
    }
    whole = dtl.from_folders(trees / "named", trees / "cifar10", 32, cache=trees / "cache", show_progress=False)
    first = sorted((trees / "cifar10/test/automobile").iterdir())[0]
    np.testing.assert_array_equal(whole.target_test.images[0].permute(1, 2, 0).numpy(), np.asarray(Image.open(first)))


def test_a_balanced_block_gives_influences_and_resumes(trees: Path, problem: dtl.TransferProblem) -> None:
    block = dtl.design.block_length(len(SOURCE))
    study = dtl.Study(problem, RECIPE, store=trees / "study").run(block, device="cpu", progress=False)
    assert study.outputs("correct", split="test").mean() > 0.35  # chance is 0.25

    influence = study.influence(by="class")
    assert influence.values.shape == (len(SOURCE), len(TARGET))
    np.testing.assert_allclose(influence.values.sum(0), 0, atol=1e-4)
    assert np.isfinite(influence.values).all() and (influence.stderr > 0).all()
    assert ((influence.reliability >= 0) & (influence.reliability <= 1)).all()

    table = effects_table(influence, SOURCE, TARGET, top=2)
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [f"| {name}" for name in TARGET]

    again = dtl.Study(problem, RECIPE, store=trees / "study")
    np.testing.assert_array_equal(again.run(block, device="cpu", progress=False).outputs(), study.outputs())
    assert len(again.results.model) == block


def test_place_of_the_nearest_class() -> None:
    source, target = list(WNIDS), sorted({near for _, near in NEAREST.values()})
    values = np.array([[1.0 if name in NEAREST and NEAREST[name][1] == t else 0.0 for t in target] for name in source])
    influence = dtl.Influence(values, np.ones_like(values), np.ones(len(target)), "difference", "balanced", 38)
    assert set(nearest_ranks(influence, source, target).values()) == {1, 2}  # birds have two
