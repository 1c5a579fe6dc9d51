"""The files of the built site: links, alt texts, weight, nothing from third parties."""

import json
import os
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pages
import pytest
from bs4 import BeautifulSoup, Tag
from built import SITE, built_pages

pytestmark = [pytest.mark.book, pytest.mark.usefixtures("site")]

CHAPTERS = sorted((SITE.parents[1] / "chapters").glob("*.md"))
MAX_BYTES = 800_000


@cache
def soup(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf8"), "html.parser")


@cache
def anchors(page: Path) -> set[str]:
    return {str(tag.get("id") or tag.get("name")) for tag in soup(page).select("[id], a[name]")}


def widget_states(page: Path) -> list[str]:
    return [tag.get_text() for tag in soup(page).select('script[type$="widget-state+json"]')]


@pytest.mark.parametrize("name", built_pages())
def test_every_link_leads_somewhere(name: str) -> None:
    page = SITE / name
    broken = []
    for tag in soup(page).select("[href], [src]"):
        link = urlsplit(str(tag.get("href") or tag.get("src")))
        if link.scheme or link.netloc:
            continue
        target = (page.parent / unquote(link.path)).resolve() if link.path else page
        target = target / "index.html" if target.is_dir() else target
        if not target.is_file():
            broken.append(link.geturl())
        elif link.fragment and target.suffix == ".html" and unquote(link.fragment) not in anchors(target):
            broken.append(link.geturl())
    assert not broken, f"{name} links to what does not exist: {broken}"


@pytest.mark.parametrize("name", built_pages())
def test_nothing_is_loaded_from_third_parties(name: str) -> None:
    page = SITE / name
    loaded = [str(tag.get("src") or tag.get("data")) for tag in soup(page).select("[src], object[data]")]
    loaded += [str(tag["href"]) for tag in soup(page).select("link[href]") if "canonical" not in (tag.get("rel") or [])]
    foreign = [url for url in loaded if re.match(r"(https?:)?//", url)]
    assert not foreign, f"{name} loads from third parties: {foreign}"
    assert "thebe" not in page.read_text(encoding="utf8").lower()


@pytest.mark.parametrize("name", built_pages())
def test_no_script_holds_up_what_a_page_shows(name: str) -> None:
    """At 1.6 Mbit/s each would cost a part of a second before the first paint: see tests/benchmarks/page_load.py."""
    waiting = soup(SITE / name).select("head script[src]:not([defer]):not([async])")
    first = {Path(str(script["src"]).split("?")[0]).name for script in waiting}
    assert first <= {"documentation_options.js", "setup.js"}
    assert "fontawesome.js" not in (SITE / name).read_text(encoding="utf8")


def test_style_sheets_load_nothing_from_third_parties() -> None:
    sheets = list(SITE.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf8")), sheet.name


def has_good_alt(image: Tag) -> bool:
    alt = str(image.get("alt", "")).strip()
    return len(alt) >= 10 and "_images" not in alt and not re.search(r"\.(png|svg|webp|jpe?g)$", alt)


@pytest.mark.parametrize("name", built_pages())
def test_every_image_says_what_is_seen(name: str) -> None:
    page = SITE / name
    images = soup(page).select("article img")
    images += [image for state in widget_states(page) for image in images_in_state(state)]
    bad = [str(image)[:160] for image in images if not has_good_alt(image)]
    assert not bad, f"{name} has images without a sentence as alt text: {bad}"


def images_in_state(state: str) -> list[Tag]:
    values = [str(widget["state"].get("value", "")) for widget in json.loads(state)["state"].values()]
    return [image for value in values for image in BeautifulSoup(value, "html.parser").select("img")]


@pytest.mark.parametrize("name", built_pages())
def test_pages_are_light(name: str) -> None:
    size = (SITE / name).stat().st_size
    limit = 2 * MAX_BYTES if name == "book/dtl.html" else MAX_BYTES  # the signatures of the whole package
    assert size < limit, f"{name} has {size / 1000:.0f} kB of HTML; put figures in files."


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_cells_ran_without_errors_or_warnings(chapter: Path) -> None:
    page = soup(SITE / f"chapters/{chapter.stem}.html")
    assert page.select("div.cell"), "The chapter has no executed cell."
    assert not page.select(".output.traceback, .output.stderr")


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.stem)
def test_pages_ran_on_the_wheel_where_ci_is_set(page: Path) -> None:
    if "CI" in os.environ:
        assert nbformat.read(pages.kept(page), as_version=4).metadata["dtl"]["from_wheel"]


def test_examples_in_docstrings_are_not_read_as_parameters() -> None:
    fields = soup(SITE / "book/dtl.html").select("dl.field-list")
    assert fields
    lost = [field.get_text()[:200] for field in fields if ">>>" in field.get_text()]
    assert not lost, f"Put these examples under an Examples heading: {lost}"


def test_the_reference_reads_as_text() -> None:
    """No markup of docstrings is left in it, and what stands beside a parameter is not taken for its name or type."""
    page = soup(SITE / "book/dtl.html")
    assert not re.findall(r".{0,40}(?::raises|:param|:rtype|~dtl\.|<factory>).{0,40}", page.get_text())
    fields = [item.get_text() for item in page.select("dl.field-list strong")]
    assert len(fields) > 100 and not [name for name in fields if not re.fullmatch(r"\**\w+", name)]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_downloads_are_clean(chapter: Path) -> None:
    page = SITE / f"chapters/{chapter.stem}.html"
    links = [str(link["href"]) for link in soup(page).select("a[href$='.ipynb']") if "_sources" in str(link["href"])]
    assert links, "The page offers no notebook."
    notebook = json.loads((page.parent / links[0]).read_text(encoding="utf8"))
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    assert (page.parent / links[0]).read_bytes() == chapter.with_suffix(".ipynb").read_bytes()


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_widgets_are_static_and_have_a_fallback(chapter: Path) -> None:
    page = SITE / f"chapters/{chapter.stem}.html"
    views = soup(page).select('script[type$="widget-view+json"]')
    if not views:
        return
    (state,) = widget_states(page)
    assert "data:image" not in state, "Figures belong in files."
    assert not soup(page).select('head script[type$="widget-state+json"]'), "The state keeps the page blank."
    for view in views:
        assert json.loads(view.get_text())["model_id"] in json.loads(state)["state"]
    if '"StackModel"' in state:
        assert soup(page).select(".widget-fallback img"), "Without JavaScript nothing is shown."


def test_the_book_has_a_picker_and_mathematics() -> None:
    pages = [soup(SITE / f"chapters/{chapter.stem}.html") for chapter in CHAPTERS]
    assert any(page.select('script[type$="widget-view+json"]') for page in pages)
    assert any(page.select(".math") for page in pages)
