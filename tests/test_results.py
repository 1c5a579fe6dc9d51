"""Results that ship with the book: what is written is read, what was changed is refused, what is there adds up."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import dtl
from dtl import results
from dtl._checks import InputError

RUNS = {path.parent.name: set(json.loads(path.read_text())["runs"]) for path in results.FOLDER.glob("*/manifest.json")}
SHIPPED = sorted(RUNS)
STUDIES = [name for name in SHIPPED if {"balanced", "random"} <= RUNS[name]]
RUN = {
    "command": "python run.py a", "commit": "abc1234", "date": "2026-01-02T03:04:05+00:00",
    "hardware": "2 cores, Abacus", "versions": {"torch": "2.11.0"}, "seconds": 90,
}  # fmt: skip


@pytest.fixture
def parts() -> dict[str, xr.Dataset]:
    rng = np.random.default_rng(0)
    data = {"margin": (("model", "target"), rng.normal(size=(6, 50)).astype(np.float32))}
    split = ("target", np.repeat(["validation", "test"], 25))
    a = xr.Dataset(data, coords={"split": split, "source_name": ("source", ["goose", "äöü"])})
    return {"a": a, "b": xr.Dataset({"n": 3})}


def write(tmp_path: Path, parts: dict[str, xr.Dataset]) -> Path:
    facts = {"runs": {"a": [RUN | {"commit": "fff0000"}, RUN]}, "settings": {"b": {"seed": 1}}}
    return results.save(tmp_path / "mine", parts, facts)


def test_what_is_saved_is_opened(tmp_path: Path, parts: dict[str, xr.Dataset]) -> None:
    write(tmp_path, parts)
    found = results.open("mine", tmp_path)
    xr.testing.assert_identical(found["a"], parts["a"])
    assert int(found["b"]["n"]) == 3 and found["b"].attrs["settings"] == {"seed": 1}
    assert found.manifest["runs"]["a"][1] == RUN
    with pytest.raises(KeyError, match="no 'c' among these results: they hold a, b"):
        found["c"]


@pytest.mark.parametrize("text", [b'{"files": {', b"\xff\xfe\0", b"[1]", b"{}"])
def test_a_manifest_that_is_damaged_is_named(tmp_path: Path, parts: dict[str, xr.Dataset], text: bytes) -> None:
    (dtl.results.save(tmp_path / "mine", parts, {"runs": {}, "settings": {}}) / "manifest.json").write_bytes(text)
    with pytest.raises(InputError, match=r"mine/manifest.json is damaged \(.*\): get it again"):
        dtl.results.open("mine", tmp_path)


def test_certificate(tmp_path: Path, parts: dict[str, xr.Dataset]) -> None:
    write(tmp_path, parts)
    found = results.open("mine", tmp_path)
    digest = found.manifest["files"]["results.nc"]
    assert found.certificate("a") == (
        "python run.py a\ncommit fff0000, abc1234, 2026-01-02, 3 minutes in 2 pieces on 2 cores, Abacus\n"
        f"torch 2.11.0\nresults.nc sha256 {digest[:16]}"
    )


def test_changed_results_are_refused(tmp_path: Path, parts: dict[str, xr.Dataset]) -> None:
    file = write(tmp_path, parts) / "results.nc"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"results.nc is not what was measured: SHA-256 \w{12}, not \w{12}; get it again"
    ):
        results.open("mine", tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="is not what was measured: SHA-256 nothing"):
        results.open("mine", tmp_path)


def test_unknown_results(tmp_path: Path, parts: dict[str, xr.Dataset]) -> None:
    write(tmp_path, parts)
    with pytest.raises(FileNotFoundError, match="no results 'yours' in .*: give a store, a .nc file, or one of mine"):
        results.open("yours", tmp_path)
    with pytest.raises(FileNotFoundError, match="no results 'yours.nc' in .*: give a store, a .nc file, or one of"):
        results.open("yours.nc")


def test_one_noun_for_a_store_and_a_file(problem, recipe, tmp_path: Path) -> None:
    study = dtl.Study(problem, recipe, store=tmp_path / "s").run(8, progress=False)
    results.Results(study.results).save(tmp_path / "s.nc")
    expected = study.influence(by="class")
    assert expected.sources == problem.source.classes and expected.targets == problem.target_test.classes
    assert (expected.by, expected.split, expected.output, expected.transfer) == (
        "class",
        "validation",
        "margin",
        "fixed",
    )
    assert expected.problem == problem.name and expected.data == problem.fingerprints
    for where in (tmp_path / "s", tmp_path / "s.nc"):
        found = results.open(where)
        np.testing.assert_array_equal(found.masks, study.masks)
        np.testing.assert_array_equal(found.outputs("correct", split="test"), study.outputs("correct", split="test"))
        pd.testing.assert_frame_equal(found.to_frame(), expected.to_frame())
        assert found.influence().targets == tuple(map(str, range(40))) and found.influence().by == "image"
    table = results.Results(study.results).save(tmp_path / "s.csv")
    rows = pd.read_csv(table).query("target == 'chess' and source == @problem.source.classes[3]")
    np.testing.assert_allclose(rows[["influence", "stderr"]], [[expected.values[3, 1], expected.stderr[3, 1]]])
    with pytest.raises(InputError, match="end it with .nc or .zarr.zip"):
        results.Results(study.results).save(tmp_path / "s.txt")


def test_what_is_no_study_says_so(tmp_path: Path, parts: dict[str, xr.Dataset]) -> None:
    write(tmp_path, parts)
    found = results.open("mine", tmp_path)
    for ask in (lambda: found.masks, found.influence, found.part("b").outputs):
        with pytest.raises(InputError, match="no models with their subsets"):
            ask()
    with pytest.raises(InputError, match="holds no study"):
        results.open(tmp_path / "mine")


def test_rounding_is_as_small_as_it_says() -> None:
    values = xr.DataArray(np.random.default_rng(0).normal(size=(4, 1000)).astype(np.float32), dims=("a", "b"))
    for bits in (5, 8):
        off = np.abs(results.rounded(values, bits).to_numpy() / values.to_numpy() - 1)
        assert 0.5 * 2 ** -(bits + 1) < off.max() <= 2 ** -(bits + 1)
    assert results.rounded(values).dims == values.dims


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_results_are_small_and_say_where_they_come_from(name: str) -> None:
    found = results.open(name)
    folder = results.FOLDER / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6
    pictures = {"pictures.avif", "pictures.json", "PICTURES.md"}  # see tests/datasets/test_thumbnails.py
    assert {path.name for path in folder.iterdir()} - pictures == {"manifest.json", *found.manifest["files"]}
    assert "/" not in json.dumps(found.manifest["problem"])  # no place on the machine that made them
    for part, runs in found.manifest["runs"].items():
        assert any(run["finished"] for run in runs) != (part in found.manifest.get("cut", ()))  # by the clock
        assert not any("/dev" in run["command"] or "/tmp" in run["command"] for run in runs)
        assert all(run["hardware"] and not {"with", "unknown"} & set(run["commit"].split()) for run in runs)


@pytest.mark.parametrize("name", STUDIES)
def test_shipped_subsets_are_those_of_their_design(name: str) -> None:
    found = results.open(name)
    for part in ("balanced", "random"):
        settings, node = found.manifest["settings"][part], found[part]
        masks = dtl.subset_masks(node.sizes["source"], node.sizes["model"], settings["design"], seed=settings["seed"])
        np.testing.assert_array_equal(node["mask"].values, masks)
        right, margin = node["correct"].values, node["margin"].values
        assert right[margin > 0].all()  # more than half of the probability
        assert 0 < right[margin < 0].mean() < right.mean()


def test_blocks_that_are_cut_are_read_by_least_squares() -> None:
    """Where the others' presence is chance, a difference holds it; with two models a unit it need not."""
    rng, effects = np.random.default_rng(0), np.random.default_rng(1).normal(size=20)
    off = {}
    for m in (38, 50, 30):  # a whole block, one and a part, less than two models a unit
        masks = dtl.subset_masks(20, m)
        outputs = masks @ effects + rng.normal(scale=0.3, size=m)
        settings = {"design": "balanced", "unit": "class", "data": {}, "transfer": ["fixed"]}
        said = {
            "mask": (("model", "source"), masks),
            "margin": (("transfer", "model", "target"), outputs[None, :, None]),
        }
        of = {"split": ("target", ["validation"]), "label": ("target", [0]), "transfer": ["fixed"]}
        data = xr.Dataset(said, of | {"model": np.arange(m), "source": np.arange(20)}, {"settings": settings})
        found, difference = results.Results(data).influence(), results.Results(data).influence("difference")
        centred = effects - effects.mean()
        off[m] = found.method, np.abs(found.values[:, 0] - centred * 20 / 19).max()
        assert off[m][1] <= np.abs(difference.values[:, 0] - centred * 20 / 19).max() + 1e-9
    assert [method for method, _ in off.values()] == ["difference", "ols", "difference"]
    assert off[50][1] < 0.4


def test_a_file_that_is_no_netcdf_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.nc").write_text("no")
    with pytest.raises(InputError, match=r"bad.nc is no NetCDF file that can be read"):
        results.open(tmp_path / "bad.nc")
