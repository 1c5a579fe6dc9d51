"""The one knob."""

import re
from pathlib import Path

import pytest

import dtl
from dtl.design import block_length


def test_ci_is_the_default(monkeypatch):
    monkeypatch.delenv("DTL_SCALE", raising=False)
    monkeypatch.delenv("DTL_STUDIES", raising=False)
    scale = dtl.book.scale()
    assert scale.name == "ci" and scale.store("testbed") == Path("studies/testbed")


def test_scales_grow_in_whole_balanced_blocks_of_the_testbed(monkeypatch, tmp_path):
    monkeypatch.setenv("DTL_STUDIES", str(tmp_path))
    scales = []
    for name in ("ci", "laptop", "gpu"):
        monkeypatch.setenv("DTL_SCALE", name)
        scales.append(dtl.book.scale())
    assert [scale.name for scale in scales] == ["ci", "laptop", "gpu"]
    assert all(scale.models % block_length(24) == 0 and scale.folder == tmp_path for scale in scales)
    assert scales[0].models < scales[1].models < scales[2].models and 10 <= scales[0].seeds < scales[2].seeds


def test_other_scales_are_refused(monkeypatch):
    monkeypatch.setenv("DTL_SCALE", "huge")
    with pytest.raises(ValueError, match="DTL_SCALE is 'huge': set it to one of ci, laptop, gpu"):
        dtl.book.scale()


def test_the_knob_is_read_in_one_place():
    modules = Path(dtl.__file__).parent.glob("*.py")
    assert [m.name for m in modules if re.search(r"(environ|getenv)\W.*DTL_SCALE", m.read_text())] == ["scale.py"]
