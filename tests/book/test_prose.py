"""Pages say what their runs say: no number in the prose but from the run, a setting, a citation, or mathematics."""

import re
from pathlib import Path

import pages
import pytest

from dtl.book import PLACE

CITED = re.compile(r"\{cite(:\w)?\}`")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
NOT_PROSE = re.compile(
    r"^\$\$.*?^\$\$|\$[^$]+\$|\{[\w:]+\}`[^`]+`|`[^`]+`|\]\([^)]*\)|^:\w+:.*$|^\d+\. |^\*\*\d+\."
    r"|^:{3,}.*$|\bAlgorithm 1\b|^\*\*Time\*\*.*$|^\*\w+, \d+ minutes\.\*|\b95% (interval|confidence|band)",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"(?<![\w.-])[-+]?\d[\d,.]*(?<![,.])")
SMALL = "five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen".split()
WORDS = {word: n for n, word in enumerate(SMALL, 5)}  # fewer are mostly parts that the sentence itself names
TENS = "twenty thirty forty fifty sixty seventy eighty ninety hundred".split()
WORDS |= {word: 10 * n for n, word in enumerate(TENS, 2)}
WORDS |= {"thousand": 1000}
WORD = re.compile(rf"\b({'|'.join(WORDS)})\b", re.IGNORECASE)


def typed_numbers(page: Path) -> list[str]:
    """Numbers in the prose of a page that its run does not give."""
    notebook = pages.read(page)
    code = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    settings = {float(number.replace("_", "")) for number in re.findall(r"(?<![\w.])\d[\d_]*\.?\d*", code)}
    settings |= {100 * number for number in settings}  # a share in percent
    found = []
    for text in (text for cell in notebook.cells for text in pages.texts(cell)):
        for sentence in re.split(r"(?<=[.?!:])\s+(?=[A-Z*`{\[(])|\n\n|\|", FENCE.sub(" ", PLACE.sub(" ", text))):
            if not CITED.search(sentence):
                bare = NOT_PROSE.sub(" ", sentence)
                typed = {match[0]: float(match[0].replace(",", "")) for match in NUMBER.finditer(bare)}
                typed |= {match[0]: WORDS[match[0].lower()] for match in WORD.finditer(bare)}
                found += [f"{name} in: {sentence.strip()}" for name, n in typed.items() if abs(n) not in settings]
    return found


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.stem)
def test_numbers_in_the_prose_come_from_the_run(page: Path) -> None:
    assert not typed_numbers(page)


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.stem)
def test_places_are_closed_on_their_line(page: Path) -> None:
    for line in page.read_text(encoding="utf8").split("\n"):
        assert "{{" not in PLACE.sub("", line), line


def test_a_typed_number_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    header = "---\nkernelspec: {name: python3, display_name: Python 3}\n---\n"
    cell = "```{code-cell}\n---\nmystnb: {figure: {caption: It rises to 97%.}}\n---\nn = 24\n```\n"
    page.write_text(
        f"{header}It gains {{{{gain}}}} of 24 points, and 14.6 on CIFAR-10. The paper had 83 {{cite:p}}`jain2023`.\n\n"
        f"Twelve of $x^{{31}}$ rise{{{{? gain > 7}}}}.\n\n{cell}"
    )
    assert [found.split()[0] for found in typed_numbers(page)] == ["14.6", "Twelve", "97"]
