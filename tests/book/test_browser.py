"""Every page of the built site in a browser: nothing blocked or broken, accessible in both themes, fit for a phone."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from built import SITE, built_pages, missing
from playwright.sync_api import Page
from pypdf import PdfReader

import dtl

pytestmark = pytest.mark.book

AXE = Path(__file__).parents[2] / "book/_vendor/axe/axe.min.js"
PAGES = built_pages()
# Listings of source code come from one template and have the same colours: the longest one is judged as other pages
# are, the others where CI is set, but for their colours.
LISTINGS = [name for name in PAGES if name.startswith("_modules/dtl/")]
LONGEST = max(LISTINGS, key=lambda name: (SITE / name).stat().st_size, default="")
ALIKE = {name for name in LISTINGS if name != LONGEST}


# What a theme changes: colours, and which of the pictures made for it are seen. All other rules judge the same page.
BY_THEME = ["color-contrast", "link-in-text-block", "image-alt", "svg-img-alt", "role-img-alt"]


def violations(page: Page, **options: object) -> list[str]:
    """What axe-core finds, by rule."""
    found = page.evaluate(
        "options => axe.run(options).then(result => result.violations)", {"resultTypes": ["violations"], **options}
    )
    return [f"{rule['id']}: {[node['html'][:120] for node in rule['nodes']]}" for rule in found]


@pytest.mark.parametrize("name", [pytest.param(p, marks=[pytest.mark.slow] * (p in ALIKE)) for p in PAGES])
def test_page_is_whole_accessible_and_fits_a_phone(visit, name: str) -> None:
    if not AXE.is_file():
        missing("axe-core is not in book/_vendor: run `make book` first.")
    opened = visit(name)
    opened.page.add_script_tag(path=AXE)
    opened.page.add_style_tag(content="* { transition: none !important; }")  # axe must not see a colour half-way
    coloured = name not in ALIKE
    assert not violations(opened.page, rules={"color-contrast": {"enabled": coloured}}), f"{name}, light"
    if coloured:
        opened.page.evaluate("document.documentElement.setAttribute('data-theme', 'dark')")
        assert not violations(opened.page, runOnly=BY_THEME), f"{name}, dark"
    opened.page.set_viewport_size({"width": 390, "height": 800})
    width = opened.page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390, f"{name} is {width} px wide on a 390 px screen."
    assert not opened.settled(), f"{name}: {opened.problems}"


def test_the_book_is_printed_with_what_is_folded(site: Path, tmp_path: Path) -> None:
    script, to = site.parents[1] / "book/pdf.py", tmp_path / "book.pdf"
    subprocess.run([sys.executable, script, "chapters/01-question", "book/timings", f"--to={to}"], check=True)
    book = PdfReader(to)
    assert len(book.outline) == 2
    text = " ".join(page.extract_text() for page in book.pages)
    links = [note.get_object().get("/A", {}).get("/URI", "") for page in book.pages for note in page.get("/Annots", [])]
    assert links and not [link for link in links if "127.0.0.1" in link]
    assert "Timings" in text and text.count("Right.") >= 3  # the answers of the quick questions


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_is_accessible_and_fits_a_phone(visit, tmp_path: Path, scheme: Any) -> None:
    if not AXE.is_file():
        missing("axe-core is not in book/_vendor: run `make book` first.")
    report = dtl.report(dtl.results.open("imagenet20-cifar10").part("balanced"), tmp_path / "found.html")
    page = visit("index.html", scheme).page
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(report.as_uri())
    page.add_script_tag(path=AXE)
    assert not violations(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
