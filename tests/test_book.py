"""The one knob, sentences that quote the run, checks of exercises."""

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
    modules = Path(dtl.__file__).parent.rglob("*.py")
    assert [m.name for m in modules if re.search(r"(environ|getenv)\W.*DTL_SCALE", m.read_text())] == ["book.py"]


def test_values_stand_where_the_braces_were():
    names = {"gain": 0.1463, "name": "rook", "table": {"a": 1}}
    text = "{{name}} gains {{100 * gain:+.1f}} of {{sum(v for v in table.values())}} {{words(11)}}, $x^{{2}}$"
    assert dtl.book.fill(text, names) == "rook gains +14.6 of 1 eleven, $x^2$"
    assert dtl.book.fill("nothing to fill {here} { {", names) == "nothing to fill {here} { {"


def test_a_claim_is_silent_where_it_holds_and_loud_where_not():
    assert dtl.book.fill("It rises {{? n > 2}}.", {"n": 3}) == "It rises."
    assert dtl.book.fill("It rises{{? n > 2}}.", {"n": 1}) == f"It rises{dtl.book.NOT_SO}."


def test_a_place_without_a_value_is_an_error_that_names_it():
    with pytest.raises(NameError) as caught:
        dtl.book.fill("It is {{missing:.2f}}.", {})
    assert caught.value.__notes__ == ["in {{missing:.2f}}"]


def test_say_shows_the_variables_of_its_caller(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda markdown: shown.append(markdown.data))
    exec('n = 24\ndtl.book.say("of {{n}} classes")', {"dtl": dtl})
    assert shown == ["of 24 classes"]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(14.63, 0.72, "14.6 ± 0.7"), (0.8164, 0.0187, "0.816 ± 0.019"), (123.4, 23.0, "123 ± 23"), (1.0, 0.0, "1 ± 0"),
     (0.5, 0.0999, "0.50 ± 0.10"), (-2.3456, 0.0196, "-2.35 ± 0.02")],
)  # fmt: skip
def test_a_value_is_rounded_to_its_error(value, error, text):
    assert dtl.book.pm(value, error) == text


def test_names_and_counts_as_words():
    assert dtl.book.names_of([]) == "none" and dtl.book.names_of(["a", "b"]) == "*a* and *b*"
    assert dtl.book.words(0) == "no" and dtl.book.words(13) == "13"


@pytest.mark.parametrize(
    ("yours", "expected", "right"),
    [(2.2, 2.197, True), (2.1, 2.197, False), (101, 100, False), (100, 100, True), ([1.0, 2.0], [1.0, 2.001], True),
     ([1.0], [1.0, 2.0], False), ({"a"}, {"a"}, True), ("on bars", "on checks", False)],
)  # fmt: skip
def test_answers_may_be_rounded_but_counts_are_exact(yours, expected, right, capsys):
    dtl.book.check(yours, expected, hint="count again")
    assert capsys.readouterr().out.startswith("Right.\n" if right else "Not yet. ")


@pytest.mark.parametrize(
    ("yours", "expected", "says"),
    [([1.0, 2.0], 0.5, "Give one number, not 2 numbers."), (97.0, 0.97, "in percent"), (-0.5, 0.5, "sign"),
     (2.3, 2.22, "one more digit"), (2.0, 0.5, "Not yet. count")],
)  # fmt: skip
def test_a_wrong_answer_is_told_what_is_wrong_with_it(yours, expected, says, capsys):
    dtl.book.check(yours, expected, hint="count")
    out = capsys.readouterr().out
    assert out.startswith("Not yet. ") and says in out
