"""Stores that somebody or something has damaged: a right answer or one clear error, and nothing silent."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dtl
from dtl._checks import InputError
from dtl.engine.store import OUTPUTS, open_store
from dtl.results import results_of

N = 6  # models, in two batches, the last not full


@pytest.fixture(scope="module")
def whole(problem, recipe, tmp_path_factory):
    """A sound study, which nobody touches."""
    folder = tmp_path_factory.mktemp("whole") / "s"
    return dtl.Study(problem, recipe, store=folder).run(N, progress=False)


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
        found = results_of(open_store(folder)).load()
    except InputError as error:
        assert str(folder) in str(error), "the error does not say where"
        return "error"
    models = found.model.values
    xr.testing.assert_identical(found.drop_attrs(), expected.sel(model=models).drop_attrs())
    assert found.attrs == expected.attrs
    assert len(models) == expected.sizes["model"] or warned, "models have gone without a word"
    return "right" if len(models) == expected.sizes["model"] else "less"


class Warned(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_whatever_happens_to_a_file_is_noticed_and_can_be_repaired(whole, training, tmp_path_factory):
    folder, expected, handler = tmp_path_factory.mktemp("fuzz") / "s", whole.results.load(), Warned()
    files = st.sampled_from(files_of(whole.store.folder))
    seen: dict[str, int] = dict.fromkeys(("right", "less", "error", "mended"), 0)

    def look_up(problem, masks, seeds, *args):
        models = [int(np.flatnonzero(expected.seed.values == seed)[0]) for seed in seeds]
        return {name: expected[name].values[:, models].astype(np.float32) for name in OUTPUTS}

    training.replace(look_up)
    cases = 520 if os.environ.get("CI") else 60

    @settings(
        max_examples=cases, deadline=None, database=None, derandomize=True, suppress_health_check=list[Any](HealthCheck)
    )
    @given(st.tuples(st.sampled_from(HOW), files, files, st.integers(0, 5000), st.integers(1, 255)), st.integers(0, 4))
    def one(what, lot) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole.store.folder, folder)
        handler.lines.clear()
        damage(folder, *what)
        seen[answer(folder, expected, handler.lines)] += 1
        if lot:  # mending one in five is enough
            return
        try:
            mended = dtl.Study(whole.problem, whole.recipe, store=folder).run(N, progress=False, repair=True)
        except InputError as error:
            assert "json" in str(error) or "holds" in str(error), error
            return
        xr.testing.assert_identical(mended.results.load().drop_attrs(), expected.drop_attrs())
        seen["mended"] += 1

    logging.getLogger("dtl").addHandler(handler)
    try:
        one()
    finally:
        logging.getLogger("dtl").removeHandler(handler)
    assert min(seen.values()) >= 1 and seen["less"] + seen["error"] >= cases * 0.48, seen
