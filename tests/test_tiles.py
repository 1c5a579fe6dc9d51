"""Tiles against `estimate_influence` in memory, from every kind of array; bad input, and bounded memory."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
import zarr.storage

import dtl
from dtl.design import subset_masks
from dtl.engine.files import influence_to_zarr
from dtl.influence import estimate_influence

N = 13
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(dtl.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
CASES = [  # design, models, units
    ("random", 60, 101),
    ("paired", 60, 104),
    ("paired", 61, 101),  # the last model has no complement
    ("balanced", 58, 101),  # inside a block
    ("balanced", 76, 19),  # whole blocks
    ("balanced", 38, 20),  # one block: errors from sums over pairs
    ("random", 2, 2),  # infinite errors
]


def study(design="random", n_models=60, n_units=101, dtype: Any = np.float32):
    outputs = np.random.default_rng(0).normal(3, 1, size=(n_models, N)).astype(dtype)
    masks = np.array([[1, 0], [0, 1]]) if n_units == 2 else subset_masks(n_units, n_models, design)
    return masks.astype(bool), outputs


def same(found, expected, dtype: Any = np.float32):
    tolerance = 1e-9 if dtype == np.float64 else 2e-6
    np.testing.assert_allclose(found.influence, expected.values, atol=tolerance)
    np.testing.assert_allclose(found.stderr, expected.stderr, rtol=10 * tolerance)
    np.testing.assert_allclose(found.reliability, expected.reliability, atol=10 * tolerance)
    assert found.influence.dtype == found.stderr.dtype == expected.values.dtype
    assert found.attrs["design"] == expected.design and found.attrs["n_models"] == expected.n_models


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("tile", [(24, 5), (24, 13), (4096, 1024)], ids=str)
def test_tiles_equal_what_is_estimated_in_memory(case, tile, tmp_path):
    dtype = np.float64 if tile == (24, 13) else np.float32
    masks, outputs = study(*case, dtype=dtype)
    found = influence_to_zarr(np.packbits(masks, axis=1), outputs, tmp_path / "i", case[0], case[2], tile)
    same(found, estimate_influence(masks, outputs, design=case[0]), dtype)


@pytest.mark.parametrize("case", [case for case in CASES if case[1] in (60, 76)], ids=str)
def test_every_kind_of_array_and_layout_is_read(case, tmp_path):
    masks, outputs = study(*case)
    expected = estimate_influence(masks, outputs)  # the design recognised
    packed = np.packbits(masks, axis=1)
    by_model = zarr.create_array(tmp_path / "by_model", data=packed, chunks=(7, packed.shape[1]))
    by_unit = zarr.create_array(tmp_path / "by_unit", data=packed, chunks=(len(masks), 2))
    y = zarr.create_array(tmp_path / "y", data=outputs, chunks=(7, N))
    arrays: Any = [
        (by_model, y),
        (by_unit, da.from_array(outputs).rechunk({0: 9, 1: 4})),
        (da.from_zarr(by_model), outputs),
    ]
    for number, (z, of) in enumerate(arrays):
        same(influence_to_zarr(z, of, tmp_path / f"{number}", n_units=case[2], tile=(16, 4)), expected)
    for number, z in enumerate([masks, masks.astype(int), da.from_array(masks).rechunk({0: 7, 1: 30})], start=3):
        same(influence_to_zarr(z, y, tmp_path / f"{number}", tile=(16, 4)), expected)


def test_correctness_and_targets_that_never_vary(tmp_path):
    masks, outputs = study()
    correct = outputs > 3
    correct[:, 2] = True
    found = influence_to_zarr(np.packbits(masks, axis=1), correct, tmp_path / "i", n_units=101, tile=(16, 4))
    same(found, estimate_influence(masks, correct))
    assert not found.influence[:, 2].any() and not found.stderr[:, 2].any() and found.reliability[2] == 0


def test_a_folder_appears_when_it_is_complete(tmp_path, monkeypatch):
    masks, outputs = study()
    expected, out = estimate_influence(masks, outputs), tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(
            "dtl.engine.files.xr.Dataset.to_zarr", lambda *_, **__: (tmp_path / "out.partial").mkdir() or 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            influence_to_zarr(masks, outputs, out)
    assert not out.exists() and (tmp_path / "out.partial").is_dir()
    same(influence_to_zarr(masks, outputs, out), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ValueError, match="out exists: open it with xarray.open_zarr, or give a new folder"):
        influence_to_zarr(masks, outputs, out)


def test_a_zarr_store_takes_the_influences(tmp_path):
    masks, outputs = study()
    same(influence_to_zarr(masks, outputs, zarr.storage.MemoryStore()), estimate_influence(masks, outputs))


def _with(array, index, value):
    array = array.copy()
    array[index] = value
    return array


MASKS, OUTPUTS = study()


@pytest.mark.parametrize(
    ("masks", "outputs", "options", "message"),
    [
        (_with(MASKS, (slice(None), [1, 100]), False), OUTPUTS, {}, "classes never in a subset: 1, 100"),
        (_with(MASKS, (slice(None), 64), True), OUTPUTS, {}, "classes always in a subset: 64"),
        (MASKS, _with(OUTPUTS, ([5, 30], [1, 12]), [np.nan, np.inf]), {}, "NaN or infinite for models 5, 30:"),
        (MASKS[:-1], OUTPUTS, {}, r"got \(59, 101\) and \(60, 13\)"),
        (MASKS, OUTPUTS, {"design": "paired"}, "rows of a paired design must be pairs of complements"),
        (MASKS, OUTPUTS, {"design": "latin"}, "unknown design 'latin'"),
        (
            MASKS,
            OUTPUTS,
            {"n_units": 105},
            r"packed masks of 105 units must be uint8 \(models, 14\), got uint8 \(60, 13",
        ),
    ],
)
def test_bad_input_is_refused_as_in_memory(masks, outputs, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        influence_to_zarr(np.packbits(masks, axis=1), outputs, tmp_path / "out", **({"n_units": 101} | options))
    assert not (tmp_path / "out").exists()


BOUNDED = """
import re, sys
import zarr
import dtl

def resident(kind):  # MiB; the peak of getrusage would be that of the parent, if it is larger
    return int(re.search(rf"Vm{kind}:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

group = zarr.open_group(sys.argv[1], mode="r")
solve = dtl.influence_to_zarr  # imported now
before = resident("RSS")
found = solve(group["mask"], group["margin"], sys.argv[2], "random", 40_000, tile=(1024, 500))
print(resident("HWM") - before, found.influence.nbytes / 2**20, float(abs(found.influence[-8:]).max()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded_by_the_tiles(tmp_path):
    """Influences and errors take 305 MiB, the masks 31 once they are float32; a tile in flight 13."""
    rng = np.random.default_rng(0)
    group = zarr.create_group(tmp_path / "study")
    group.create_array("mask", data=rng.integers(0, 256, (200, 5_000), dtype=np.uint8), chunks=(8, 5_000))
    group.create_array("margin", data=rng.normal(size=(200, 1000)).astype(np.float32), chunks=(8, 1000))
    script = [sys.executable, "-c", BOUNDED, tmp_path / "study", tmp_path / "out"]
    done = subprocess.run(script, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    grown, of_influences, largest = map(float, done.stdout.split())
    assert 0 < grown < 150 and of_influences > 150 and 0 < largest < 1
