"""What only reads results works where torch is not installed: a machine that draws figures needs no GPU library."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dtl
from dtl.datasets import thumbnails

BLOCKED = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
"""
READING = """
import dtl
results = dtl.results.open("imagenet20-cifar10")
found = results.part("balanced").influence(by="class")
table = found.to_frame()
assert table.shape == (200, 5) and table["influence"].notna().all()
assert dtl.models_needed(found, 0.9) > 0 and found.p_values().shape == (20, 10)
assert dtl.project(results.part("balanced").influence(), 0, k=3).shape == (3,)
assert dtl.design.block_length(20) == 38 and results.certificate("balanced")
"""
WRITING = """
import dtl, sys
results = dtl.results.open(sys.argv[1])
results.save("x.nc"), results.save("x.csv"), results.save("x.zarr.zip")
assert dtl.results.open("x.nc").influence(by="all").values.shape == (24, 1)
assert dtl.influence_to_zarr(results.masks, results.outputs(), "influence.zarr").sizes["source"] == 24
"""
DRAWING = """
import dtl, matplotlib
matplotlib.use("agg")
found = dtl.results.open("imagenet20-cifar10").part("balanced").influence(by="class")
dtl.plots.influence_bars(dtl.results.open("imagenet20-cifar10").part("balanced").influence(by="all"))
dtl.plots.influence_heatmap(found)
dtl.widgets.class_picker(found)
"""
SHOWING = """
import dtl, matplotlib, sys
from dtl.datasets import thumbnails
matplotlib.use("agg")
few = thumbnails.open(sys.argv[1])["source"]
dtl.plots.images(few, few.place([30, 0]))
dtl.plots.image_grid(few, 1, few.classes[:1])
"""
TRAINING = """
import dtl
try:
    dtl.Study
except ModuleNotFoundError as error:
    assert error.name == "torch"
else:
    raise SystemExit("training without torch?")
"""


def without_torch(code: str, folder: Path, *arguments: str | Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(dtl.__file__).parents[1])}
    script = [sys.executable, "-c", BLOCKED + code + "\nassert 'torch' not in sys.modules", *arguments]
    done = subprocess.run(script, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", [READING, DRAWING], ids=["reading", "drawing"])
def test_shipped_results(code: str, tmp_path: Path) -> None:
    without_torch(code, tmp_path)


def test_a_store(problem, recipe, tmp_path: Path) -> None:
    dtl.Study(problem, recipe, store=tmp_path / "s").run(46, progress=False)
    without_torch(WRITING, tmp_path, tmp_path / "s")


def test_thumbnails(problem, tmp_path: Path) -> None:
    thumbnails.pack(tmp_path, {"source": (problem.source, [0, 30])})
    without_torch(SHOWING, tmp_path, tmp_path)


def test_training_says_what_is_missing(tmp_path: Path) -> None:
    without_torch(TRAINING, tmp_path)
