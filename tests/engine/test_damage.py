"""Stores that somebody or something has damaged: a right answer or one clear error, and nothing silent."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dtl
from dtl._checks import InputError
from dtl.engine import store as engine
from dtl.results import results_of

N = 10  # models, in three batches, the last not full
OLD = Path(__file__).parents[1] / "golden/store.zip"


@pytest.fixture(scope="module")
def whole(problem, recipe, tmp_path_factory):
    """A sound study, which nobody touches."""
    folder = tmp_path_factory.mktemp("whole") / "s"
    return dtl.Study(problem, recipe, transfer=("fixed", "full"), store=folder).run(N, progress=False)


@pytest.fixture
def study(whole, tmp_path):
    shutil.copytree(whole.store.folder, tmp_path / "s")
    return lambda: dtl.Study(whole.problem, whole.recipe, transfer=("fixed", "full"), store=tmp_path / "s")


HOW = ("delete", "truncate", "empty", "swap", "flip", "byte", "digit", "folder", "duplicate")


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def damage(folder: Path, how: str, one: str, two: str, where: int, by: int) -> None:
    """Do one thing to the files of a store."""
    file, other = folder / one, folder / two
    data = bytearray(file.read_bytes())
    if how == "delete":
        file.unlink()
    elif how == "folder":
        shutil.rmtree(file.parent)
    elif how == "truncate":
        file.write_bytes(data[: where % len(data)])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "duplicate":
        other.write_bytes(data)
    elif how == "swap":
        kept = other.read_bytes()
        other.write_bytes(data)
        file.write_bytes(kept)
    else:
        places = [i for i, byte in enumerate(data) if how != "digit" or 48 <= byte <= 57] or [0]
        place = places[where % len(places)]
        data[place] = {"flip": data[place] ^ (1 << by % 8), "byte": by, "digit": 48 + by % 10}[how]
        file.write_bytes(data)


def answer(folder: Path, expected: xr.Dataset, warned: list[str]) -> str:
    """What a reader of the store gets: "right", "less" (with a warning) or "error"; anything else fails the test."""
    try:
        found = results_of(engine.open_store(folder)).load()
    except (InputError, FileNotFoundError) as error:
        assert str(error)
        return "error"
    models = found.model.values
    assert np.isin(models, expected.model.values).all()
    same = expected.sel(model=models)
    xr.testing.assert_identical(found.drop_attrs(), same.drop_attrs())
    hidden = {"runs"} if "seal" not in expected.attrs else set()  # of dtl 0.1 nobody can say
    for name in expected.attrs.keys() - hidden:
        assert found.attrs.get(name) == expected.attrs[name], name
    if len(models) < expected.sizes["model"]:
        assert warned, "models have gone without a word"
        return "less"
    return "right"


class Warned(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_whatever_happens_to_a_file_is_noticed(whole, tmp_path_factory):
    base, expected = tmp_path_factory.mktemp("fuzz"), whole.results.load()
    seen: dict[str, int] = {}
    handler = Warned()
    logging.getLogger("dtl").addHandler(handler)

    files = st.sampled_from(files_of(whole.store.folder))

    @settings(max_examples=600, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.tuples(st.sampled_from(HOW), files, files, st.integers(0, 5000), st.integers(1, 255)))
    def one(what) -> None:
        folder = base / "s"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole.store.folder, folder)
        handler.lines.clear()
        damage(folder, *what)
        got = answer(folder, expected, handler.lines)
        seen[got] = seen.get(got, 0) + 1

    try:
        one()
    finally:
        logging.getLogger("dtl").removeHandler(handler)
    assert sum(seen.values()) >= 500 and min(seen.get(kind, 0) for kind in ("right", "less", "error")) >= 10, seen
