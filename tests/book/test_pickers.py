"""The pickers of the built site in a real browser: they answer mouse and keyboard, without a kernel, in both themes."""

import re
from typing import Any

import explorer
import numpy as np
import pytest
from built import SITE, built_pages
from playwright.sync_api import Locator, Page, expect

import dtl

pytestmark = pytest.mark.book

PAGES = [name for name in built_pages() if (SITE / name).is_file()]
PICKER_PAGES = [name for name in PAGES if "widget-view+json" in (SITE / name).read_text()] or ["index.html"]

CONTRAST = """element => {
    const channels = color => color.match(/[\\d.]+/g).map(Number);
    const behind = node => {
        const color = channels(getComputedStyle(node).backgroundColor);
        return color.length === 4 && color[3] === 0 ? behind(node.parentElement) : color;
    };
    const luminance = color => {
        const [r, g, b] = color.slice(0, 3).map(c => c / 255).map(
            c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const [low, high] = [luminance(channels(getComputedStyle(element).color)), luminance(behind(element))].sort(
        (a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
}"""


def visible_image(page: Page, picker: int, after: str | None = None) -> tuple[str, str]:
    """Address and alt text of the one image that a picker shows, once it is another one than `after`."""
    area = page.locator(".widget-subarea").nth(picker)
    images = area.locator("img:visible")
    if after is not None:
        expect(images.first).not_to_have_attribute("src", after)
    assert images.count() >= 1, "The picker shows no image."
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=images.first.element_handle())
    return str(images.first.get_attribute("src")), str(images.first.get_attribute("alt"))


@pytest.mark.parametrize("name", PICKER_PAGES)
def test_pickers_answer_mouse_and_keyboard(visit, name: str) -> None:
    page = visit(name).page
    areas = page.locator(".widget-subarea")
    controls = [areas.nth(picker).locator("select, .noUi-handle") for picker in range(areas.count())]
    assert any(control.count() for control in controls), "The page's state holds nothing to choose with."
    for picker, control in enumerate(controls):
        if control.count() and control.first.evaluate("node => node.tagName") == "SELECT":
            by_mouse, by_keyboard = select_answers(page, picker, control.first)
        elif control.count():
            by_mouse, by_keyboard = slider_answers(page, picker, control.first)
        else:
            continue
        assert len({source for source, _ in by_mouse}) == len(by_mouse) > 1, "Two choices show the same image."
        assert all(len(alt) >= 10 for _, alt in by_mouse)
        assert by_keyboard == by_mouse


def select_answers(page: Page, picker: int, select: Locator) -> tuple[list, list]:
    """What a picker shows for each option, chosen by mouse and by keyboard."""
    options, by_mouse = min(30, select.locator("option").count()), [visible_image(page, picker)]
    for option in range(1, options):
        select.click()
        page.keyboard.press("Escape")  # the list that the click opened takes keys until it is closed
        select.select_option(index=option)
        by_mouse.append(visible_image(page, picker, after=by_mouse[-1][0]))
    select.focus()
    return by_mouse, pressed(page, picker, ["Home"] + ["ArrowDown"] * (options - 1))


def test_a_long_list_is_searched_without_a_kernel(visit) -> None:
    opened = visit("chapters/13-forty-groups.html")
    box = opened.page.locator("input[list]")
    picker = next(
        i for i, area in enumerate(opened.page.locator(".widget-subarea").all()) if area.locator("input[list]").count()
    )
    box.scroll_into_view_if_needed()
    _, before = visible_image(opened.page, picker)
    for typed, alt in (("dragonf", "dragonfly"), ("SPIDER", "spider web"), ("no such class", "spider web")):
        source, _ = visible_image(opened.page, picker)
        box.fill(typed)
        if alt not in before:
            expect(opened.page.locator(".widget-subarea").nth(picker).locator("img:visible")).not_to_have_attribute(
                "src", source
            )
        _, before = visible_image(opened.page, picker)
        assert alt in before
    assert not opened.problems


def slider_answers(page: Page, picker: int, handle: Locator) -> tuple[list, list]:
    """What a slider shows at each stop, dragged from left to right and moved by arrow keys."""
    stops = int(float(str(handle.get_attribute("aria-valuemax")))) + 1
    track = handle.locator("xpath=ancestor::*[contains(@class, 'noUi-base')]")
    track.scroll_into_view_if_needed()
    box, by_mouse = track.bounding_box(), [visible_image(page, picker)]
    assert box is not None
    for stop in range(1, stops):
        page.mouse.click(box["x"] + (box["width"] - 1) * stop / (stops - 1), box["y"] + box["height"] / 2)
        by_mouse.append(visible_image(page, picker, after=by_mouse[-1][0]))
        expect(page.locator(".noUi-state-tap")).to_have_count(0)  # while it glides it takes no click
    handle.focus()
    return by_mouse, pressed(page, picker, ["Home"] + ["ArrowRight"] * (stops - 1))


def pressed(page: Page, picker: int, keys: list[str]) -> list[tuple[str, str]]:
    """What a picker shows after each key, each another image."""
    shown = [visible_image(page, picker)]
    for key in keys:
        page.keyboard.press(key)
        shown.append(visible_image(page, picker, after=shown[-1][0]))
    return shown[1:]


@pytest.mark.parametrize("name", PICKER_PAGES)
def test_the_widget_takes_the_place_of_the_fallback_and_can_be_read(visit, name: str) -> None:
    page = visit(name, "dark").page
    assert page.locator("html").get_attribute("data-theme") == "dark"
    page.add_style_tag(content="* { transition: none !important; }")  # no colour half-way
    assert page.locator(".widget-fallback:visible").count() == 0
    for theme in ("dark", "light"):
        page.emulate_media(color_scheme=theme)
        expect(page.locator("html")).to_have_attribute("data-theme", theme)
        for text in page.locator(".widget-subarea :is(select, .widget-label)").all():
            assert text.evaluate(CONTRAST) >= 4.5


@pytest.mark.parametrize("name", PICKER_PAGES)
def test_first_answer_is_there_without_javascript(visit, name: str) -> None:
    page = visit(name, scripts=False).page
    image = page.locator(".widget-fallback img").first
    assert image.is_visible()
    assert re.search(r"\w{3}", str(image.get_attribute("alt")))


SAMPLES = ((38, 100), (50, 10), (152, 100))  # models, images of each class
QUESTIONS = ((-1, False), (1, False), (6, True))  # column, whether its specific part
LEFT_OUT = ([], [3], [0, 7])
# Eighteen settings in which any two values of different knobs meet: a Latin square, for new images and for these.
EXPLORED: list[dict[str, Any]] = [
    {
        "models": models,
        "images": images,
        "question": question,
        "specific": specific,
        "drawn": drawn,
        "leftOut": LEFT_OUT[(i + j) % 3],
    }
    for i, (models, images) in enumerate(SAMPLES)
    for j, (question, specific) in enumerate(QUESTIONS)
    for drawn in (True, False)
]


def explored(
    models: int, images: int, question: int, specific: bool, drawn: bool, leftOut: list[int]
) -> dict[str, Any]:
    """What dtl makes of these settings of the picker."""
    masks, margins, labels, _ = explorer.study()
    rows = np.flatnonzero(~masks[:models][:, leftOut].any(axis=1))
    few = np.sort(np.concatenate([np.flatnonzero(labels == g)[:images] for g in np.unique(labels)]))
    found = dtl.estimate_influence(
        np.delete(masks[rows], leftOut, axis=1),
        margins[rows][:, few].astype(float),
        design="random" if leftOut else None,
        groups=labels[few],
        part="common" if question < 0 else "specific" if specific else "whole",
        target="new" if drawn else "these",
    )
    column = max(question, 0)
    low, high = (end[:, column] for end in found.interval())
    dof = np.broadcast_to(found.dof, found.values.shape)[:, column]
    of = {"values": found.values[:, column], "stderr": found.stderr[:, column], "dof": dof, "low": low, "high": high}
    return of | {"reliability": found.reliability[column], "models": len(rows)}


def test_the_picker_without_a_kernel_computes_as_dtl_does(visit) -> None:
    name = next((name for name in PAGES if 'class="explorer"' in (SITE / name).read_text()), None)
    assert name, "No page has the picker."
    opened = visit(name)
    place = opened.page.locator(".explorer")
    place.scroll_into_view_if_needed()
    expect(place).to_have_attribute("data-ready", "true")
    for chosen in EXPLORED:
        found, wanted = place.evaluate("(place, chosen) => place.compute(chosen)", chosen), explored(**chosen)
        for what, value in wanted.items():
            np.testing.assert_allclose(found[what], value, rtol=1e-6, atol=1e-6, err_msg=f"{what}, {chosen}")

    text, drawn = place.locator("p[aria-live]"), place.locator("svg[role=img]")
    before = text.inner_text()
    slider = place.locator("input[type=range]").first
    slider.focus()
    slider.press("Home")
    expect(text).not_to_have_text(before)
    slider.press("End")
    expect(text).to_have_text(before)
    place.locator("select").first.select_option(label="ship")
    expect(drawn).to_have_attribute("aria-label", re.compile("lifeboat, which helps most"))
    place.locator("summary").press("Enter")
    place.get_by_role("checkbox", name="lifeboat").press("Space")
    expect(text).to_contain_text("of 19 classes")
    for number in range(6):
        place.locator("details input").nth(number).check()
    expect(text).to_contain_text("Too few models")
    assert not opened.problems
