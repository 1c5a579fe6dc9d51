"""Pickers: the link that works without a kernel, the numbers in their texts, what a reader without JavaScript gets."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import ipywidgets
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from ipywidgets.embed import embed_data
from matplotlib import pyplot as plt
from PIL import Image

from dtl import plots, widgets
from dtl._checks import InputError
from dtl.data import ImageDataset, TransferProblem
from dtl.influence import Influence

mpl.use("agg")

SOURCES = ("apple", "ball", "cup", "so<ck", "tent", "urn")
TARGETS = ("star", "ring", 'the "cross"')
VALUES = np.array(
    [[0.41, 0.1, 0], [0.3, -0.2, 0], [0.01, 0.3, 0.2], [-0.02, -0.2, 0.1], [-0.3, 0, -0.2], [-0.4, 0, -0.1]]
)


@pytest.fixture(autouse=True)
def _close():
    with mpl.rc_context():
        plots.style()
        yield
        assert not plt.get_fignums()  # a figure left open would be shown a second time by the notebook


def dataset(classes, n=8, size=16) -> ImageDataset:
    labels = torch.arange(len(classes)).repeat(n)
    return ImageDataset(torch.full((len(labels), 3, size, size), 90, dtype=torch.uint8), labels, classes)


def problem() -> TransferProblem:
    target = dataset(TARGETS)
    return TransferProblem("toy", dataset(SOURCES), target, dataset(TARGETS, n=4), dataset(TARGETS, n=5))


def influence() -> Influence:
    stderr = np.full(VALUES.shape, 0.04)
    names = {"sources": SOURCES, "targets": TARGETS}
    return Influence(VALUES, stderr, np.array([0.93, 0.5, 0.25]), "difference", "balanced", 398, **names)


def of_images(values: np.ndarray, split: str = "validation") -> Influence:
    names = {"sources": SOURCES, "targets": tuple(map(str, range(values.shape[1]))), "by": "image", "split": split}
    n = values.shape[1]
    return Influence(values, np.full(values.shape, 0.5), np.ones(n), "difference", "balanced", 92, **names)


def figure() -> plt.Figure:
    return plt.subplots(figsize=(4, 3))[0]


def parts(picker, control: type = ipywidgets.Dropdown) -> tuple[Any, ipywidgets.Stack]:
    choice, stack = picker.children
    assert isinstance(choice, control) and isinstance(stack, ipywidgets.Stack)
    return choice, stack


def spaces(text: str) -> str:
    """Text with plain spaces; those that do not break keep a number in one line."""
    return text.replace("\N{NO-BREAK SPACE}", " ")


class Page(HTMLParser):
    """The images, cells and header cells of a piece of HTML, with character references resolved."""

    def __init__(self, text: str):
        super().__init__()
        self.images, self.rows, self.caption, self._open = [], [], "", []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
            return
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        elif self._open and self._open[-1] == "caption":
            self.caption += data


@pytest.mark.parametrize("slider", [False, True])
def test_picker_links_the_index_in_the_browser(slider):
    picker = widgets.picker(["a", "b"], [figure(), figure()], ["Chart a.", "Chart b."], "which", slider=slider)
    choice, stack = parts(picker, ipywidgets.SelectionSlider if slider else ipywidgets.Dropdown)
    assert choice.description == "which" and choice.index == 0 and stack.selected_index == 0
    assert [name for name, _ in choice.options] == ["a", "b"]
    data: Any = embed_data(views=[picker])
    state = data["manager_state"]["state"]
    links = [widget["state"] for widget in state.values() if widget["model_name"].endswith("LinkModel")]
    links = [link for link in links if choice.model_id in link["source"][0]]  # not those of other tests
    assert [(link["source"], link["target"]) for link in links] == [
        ([f"IPY_MODEL_{choice.model_id}", "index"], [f"IPY_MODEL_{stack.model_id}", "selected_index"])
    ]
    modules = {widget["model_module"] for widget in state.values()}
    assert modules <= {"@jupyter-widgets/base", "@jupyter-widgets/controls"}  # core widgets need no third-party script


def test_picker_children_are_opaque_webp_figures_with_their_alt_text():
    _, stack = parts(widgets.picker(["a"], [figure()], ['Chart of "a" < b & c.'], "which", ["<p>more</p>"]))
    (child,) = stack.children
    assert isinstance(child, ipywidgets.HTML) and child.value.endswith("<p>more</p>")
    (image,) = Page(child.value).images
    assert image["alt"] == 'Chart of "a" < b & c.' and (image["width"], image["height"]) == ("384", "288")
    match = re.search(r' src="data:image/webp;base64,([A-Za-z0-9+/=]+)"', child.value)
    assert match is not None
    drawn = Image.open(io.BytesIO(base64.b64decode(match[1])))
    assert drawn.size == (768, 576)
    assert np.asarray(drawn.convert("RGBA"))[:, :, 3].min() == 255


def test_picker_calls_a_function_for_every_name_and_keeps_few_figures_open():
    names, seen = [f"item {i}" for i in range(25)], []  # matplotlib warns above 20 open figures

    def draw(i: int) -> plt.Figure:
        seen.append(i)
        assert len(plt.get_fignums()) == 0
        return figure()

    _, stack = parts(widgets.picker(names, draw, [f"Chart of {name}." for name in names], "which"))
    assert seen == list(range(25)) and len(stack.children) == 25
    assert "Chart of item 24." in stack.children[24].value


def test_picker_with_equal_names_keeps_both():
    choice, stack = parts(widgets.picker(["a", "a"], [figure(), figure()], ["First.", "Second."], "which"))
    choice.index = 1
    assert choice.value == 1 and len(stack.children) == 2
    assert [name for name, _ in choice.options] == ["a (0)", "a (1)"]


@pytest.mark.parametrize("slider", [False, True])
def test_controls_shrink_to_the_screen_and_keep_their_keys(slider):
    picker = widgets.picker(["a", "b"], [figure(), figure()], ["A.", "B."], "which", slider=slider)
    layout = picker.children[0].layout
    assert (layout.width, layout.min_width) == ("auto", "0") and layout.max_width.endswith("rem")
    for child in picker.children[1].children:  # JupyterLab reads this attribute of what has the focus
        (image,) = Page(child.value).images
        assert "closest('.widget-vbox')" in image["onload"] and "lmSuppressShortcuts" in image["onload"]


@pytest.mark.parametrize(
    "names, alts, captions, message",
    [
        ([], [], None, "0 alts for 0 names"),
        (["a", "b"], ["A."], None, "1 alts for 2 names"),
        (["a", "b"], ["A.", "B."], ["c"], "1 captions for 2 names"),
        (["a", "b"], ["A.", " "], None, "alt text of 'b' is empty"),
    ],
)
def test_picker_refuses_what_does_not_fit(names, alts, captions, message):
    with pytest.raises(InputError, match=message):
        widgets.picker(names, lambda i: figure(), alts, "which", captions)
    with pytest.raises(ValueError, match="0 figures for 1 names"):
        widgets.picker(["a"], [], ["A."], "which")


def test_a_long_list_is_searched_by_any_part_of_a_name():
    names = ["sea urchin", "urn", "Cat", "lynx cat", *(f"thing {i}" for i in range(27))]
    pixels = np.zeros((2, 4, 3), np.uint8)
    box, choice, _ = widgets.picker(names, [pixels] * 31, ["Black."] * 31, "which").children
    assert isinstance(box, ipywidgets.Combobox)
    assert box.options == tuple(names)
    for typed, found in [("u", 1), ("cat", 2), ("thing 26", 30), ("nothing of this", 30), ("", 30), ("URCHIN", 0)]:
        box.value = typed
        assert choice.index == found, typed
    assert len(widgets.picker(names[:30], [pixels] * 30, ["Black."] * 30, "which").children) == 2
    assert len(widgets.picker(names, [pixels] * 31, ["Black."] * 31, "which", slider=True).children) == 2


def test_source_picker_shows_a_class_with_what_it_helps_and_hurts():
    few = dataset(SOURCES, n=3)
    few.images[few.labels == 2] = 200
    choice, stack = parts(widgets.source_picker(influence(), few, k=1, n_images=2))
    assert [name for name, _ in choice.options] == list(SOURCES)
    cup, tent = stack.children[2].value, stack.children[4].value
    (image,) = Page(cup).images
    with Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) as strip:
        assert strip.size == (32, 16)
        assert abs(np.asarray(strip.convert("RGB")).astype(int) - 200).max() < 4
    assert "ring +0.30" in cup and "star" not in cup and "cross" not in cup  # one a side, and nothing is hurt
    assert "star −0.30" in tent and "ring" not in tent and "cross" not in tent
    with pytest.raises(InputError, match="no picture of ball"):
        widgets.source_picker(influence(), few.subset(few.labels != 1))
    with pytest.raises(InputError, match="by='class'"):
        widgets.source_picker(of_images(np.zeros((6, 40))), few)


def test_class_picker_has_an_item_for_each_target_class():
    choice, stack = parts(widgets.class_picker(influence(), problem().source, k=2))
    assert [name for name, _ in choice.options] == list(TARGETS) and choice.description == "target class"
    pages = [Page(child.value) for child in stack.children]
    assert spaces(pages[0].images[0]["alt"]) == (
        "Bar chart, values ± standard errors: helpful for star: apple +0.41 ± 0.04, ball +0.30 ± 0.04; "
        "harmful: urn −0.40 ± 0.04, tent −0.30 ± 0.04."
    )
    assert [[spaces(cell) for cell in row] for row in pages[0].rows] == [
        ["most helpful", "most harmful"],
        ["apple +0.41 ± 0.04", "urn −0.40 ± 0.04"],
        ["ball +0.30 ± 0.04", "tent −0.30 ± 0.04"],
    ]
    assert pages[0].caption == ("Influence of source classes on star ± standard error (398 models, reliability 0.93).")
    assert "reliability 0.50" in pages[1].caption and 'the "cross"' in pages[2].caption
    sizes = {(page.images[0]["width"], page.images[0]["height"]) for page in pages}
    assert len(sizes) == 1  # the page does not move when the reader chooses


def test_class_picker_marks_what_is_not_distinguishable_from_zero():
    _, stack = parts(widgets.class_picker(influence(), problem().source, k=3))
    page = Page(stack.children[0].value)
    assert page.images[0]["alt"].endswith("The 95% interval covers 0 for cup, so<ck.")
    assert ["cup +0.01 ± 0.04*", "so<ck −0.02 ± 0.04*"] in [[spaces(cell) for cell in row] for row in page.rows]
    assert "* The 95% interval covers 0" in page.caption


def test_no_number_breaks_before_its_error():
    _, stack = parts(widgets.class_picker(influence(), k=2))
    assert all(" ±" not in cell and "± " not in cell for row in Page(stack.children[0].value).rows for cell in row)


def test_two_classes_of_one_name_have_a_figure_each(monkeypatch):
    twins = replace(influence(), targets=("crane", "crane", "star"), sources=("a", "a", *SOURCES[2:]))
    drawn, original = [], plots.influence_bars
    monkeypatch.setattr(plots, "influence_bars", lambda *args, **rest: drawn.append(args[1]) or original(*args, **rest))
    choice, stack = parts(widgets.class_picker(twins, k=2))
    assert [name for name, _ in choice.options] == ["crane (0)", "crane (1)", "star"] and drawn == [0, 1, 2]
    alts = [spaces(Page(child.value).images[0]["alt"]) for child in stack.children]
    assert "a (0) +0.41" in alts[0] and "a (1) +0.30" in alts[0] and "a (1) −0.20" in alts[1]


def test_class_picker_draws_the_column_of_its_class_on_one_scale(monkeypatch):
    drawn = []
    original = plots.influence_bars

    def spy(*args, **kwargs):
        drawn.append(original(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(plots, "influence_bars", spy)
    widgets.class_picker(influence(), problem().source, k=2)
    lengths = [[bar.get_width() for bar in ax.patches] for ax in drawn]
    assert lengths == [
        pytest.approx(row) for row in ([0.41, 0.3, -0.3, -0.4], [0.3, 0.1, -0.2, -0.2], [0.2, 0.1, -0.1, -0.2])
    ]
    assert [ax.get_title(loc="left") for ax in drawn] == list(TARGETS)
    (limits,) = {ax.get_xlim() for ax in drawn}
    assert limits[0] < -0.48 and limits[1] > 0.49


def test_class_picker_first_child_reads_alone_and_is_light():
    picker = widgets.class_picker(influence(), problem().source)
    first = parts(picker)[1].children[0].value
    page = Page(first)
    assert len(page.images) == 1 and len(page.rows) > 1
    assert len(first) < 80_000 and "http" not in first and "<script" not in first


def test_class_picker_without_images_has_no_pictures(monkeypatch):
    given, original = [], plots.influence_bars

    def spy(*args, **options):
        given.append(args[3])
        return original(*args, **options)

    monkeypatch.setattr(plots, "influence_bars", spy)
    picker = widgets.class_picker(influence(), k=2)
    assert given == [None] * 3
    assert len(Page(parts(picker)[1].children[0].value).images) == 1


def test_class_picker_takes_a_problem():
    choice, _ = parts(widgets.class_picker(influence(), problem(), k=1))
    assert [name for name, _ in choice.options] == list(TARGETS)


def test_class_picker_refuses_single_images_and_another_source():
    with pytest.raises(InputError, match="by='class'"):
        widgets.class_picker(of_images(np.zeros((6, 40))), problem().source)
    with pytest.raises(InputError, match="the images are of star, ring"):
        widgets.class_picker(influence(), problem().target_train)
    elsewhere = replace(influence(), data={"source": "of other images"}, problem="other")
    with pytest.raises(InputError, match="the influences are of problem other, whose source.* differ from those of"):
        widgets.class_picker(elsewhere, problem())


def test_class_picker_draws_what_has_no_error_yet():
    early = replace(influence(), stderr=np.full(VALUES.shape, np.inf))
    _, stack = parts(widgets.class_picker(early, k=1))
    assert "apple +0.41 ± ?*" in spaces(Page(stack.children[0].value).rows[1][0])


def test_alt_text_has_the_decimals_that_the_errors_call_for():
    result = Influence(VALUES[:, :1] / 100, np.full((6, 1), 0.0008), np.ones(1), "ols", "random", 9, sources=SOURCES)
    text = widgets.influence_alt(plots.strongest(result, k=1), "star")
    assert spaces(text) == (
        "Bar chart, values ± standard errors: helpful for star: apple +0.0041 ± 0.0008; harmful: urn −0.0040 ± 0.0008."
    )


def test_alt_text_when_nothing_helps():
    values, stderr = np.array([[-1.0], [-2.0]]), np.full((2, 1), 0.1)
    result = Influence(values, stderr, np.ones(1), "ols", "random", 9, sources=("a", "b"))
    text = widgets.influence_alt(plots.strongest(result), "star")
    assert "helpful for star: none; harmful: b −2.00 ± 0.10, a −1.00 ± 0.10." in spaces(text)


def test_projection_picker_shows_whom_a_class_helps_and_hurts():
    toy = problem()
    values = np.random.default_rng(0).normal(size=(len(SOURCES), len(toy.target_validation)))
    found = of_images(values)
    choice, stack = parts(widgets.projection_picker(found, toy, k=3))
    assert [name for name, _ in choice.options] == list(SOURCES)
    (image,) = Page(stack.children[1].value).images
    order = np.argsort(-values[1])
    names = [TARGETS[toy.target_validation.labels[i]] for i in (*order[:3], *order[::-1][:3])]
    for name, i in zip(names, (*order[:3], *order[::-1][:3]), strict=True):
        assert f"{name} {values[1, i]:+.1f}".replace("-", "−") in image["alt"]
    assert "at a false discovery rate of 5%" in stack.children[1].value and "error of 0.5" in stack.children[1].value
    with pytest.raises(InputError, match="a column for each target image is needed"):
        widgets.projection_picker(influence(), toy)
    with pytest.raises(InputError, match="k, the examples per side, must be one whole number in 1..10"):
        widgets.projection_picker(found, toy, k=11)


def test_projection_picker_shows_pictures_of_the_split_of_the_influence(monkeypatch):
    toy, shown, original = problem(), [], plots.images
    monkeypatch.setattr(plots, "images", lambda *args, **rest: shown.append(args[0]) or original(*args, **rest))
    widgets.projection_picker(of_images(np.zeros((6, len(toy.target_test))), "test"), toy, k=1)
    assert all(dataset is toy.target_test for dataset in shown) and len(shown) == 6


def flips(examples) -> xr.Dataset:
    share = np.zeros((len(examples), 3, len(TARGETS)))
    share[:, 0, 1], share[:, 1, 0], share[:, 2, 1] = 0.75, 0.6, 0.7
    dims = ("example", "arm", "label")
    return xr.Dataset(
        {"share": (dims, share), "low": (dims, share * 0.5), "high": (dims, share * 0.5 + 0.5)},
        coords={
            "example": examples, "arm": ["full", SOURCES[2], SOURCES[0]], "label": list(TARGETS),
            "true": ("example", [TARGETS[0]] * len(examples)),
        },
        attrs={"split": "validation", "seeds": 20},
    )  # fmt: skip


def test_mistake_picker_names_the_suspect_and_its_flip():
    toy = problem()
    values = np.full((len(SOURCES), len(toy.target_validation)), 0.1)
    values[2] = -0.7
    found = of_images(values)
    choice, stack = parts(widgets.mistake_picker(found, flips([0, 3]), toy))
    assert [name for name, _ in choice.options] == [f"{i}: {TARGETS[0]}, taken for {TARGETS[1]}" for i in (0, 3)]
    page = Page(stack.children[0].value)
    assert [[spaces(cell) for cell in row] for row in page.rows] == [
        ["predicted", "full source", f"without {SOURCES[2]}"],
        ["star", "0% (0% to 50%)", "60% (30% to 80%)"],
        ["ring", "75% (38% to 88%)", "0% (0% to 50%)"],
    ]  # nobody predicts the third label
    assert f"{SOURCES[2]} −0.70" in page.images[0]["alt"] and "20 retrained models" in page.caption
    with pytest.raises(InputError, match="a column for each target image is needed"):
        widgets.mistake_picker(influence(), flips([0]), toy)
    with pytest.raises(InputError, match="split of the influence"):
        widgets.mistake_picker(of_images(np.zeros((6, len(toy.target_test))), "test"), flips([0]), toy)


def test_flag_slider_counts_hits():
    toy = problem()
    ranking = pd.DataFrame({"source": np.arange(len(toy.source))[::-1]})
    hits = np.arange(len(ranking)) % 3 == 0
    picker = widgets.flag_slider(ranking, toy.source, hits, step=4, k=8)
    slider, stack = parts(picker, ipywidgets.SelectionSlider)
    assert [int(name) for name, _ in slider.options] == [4 * (n + 1) for n in range(len(stack.children))]
    for stop, child in enumerate(stack.children):
        n = 4 * (stop + 1)
        found = hits[:n].sum()
        assert f"{n} flagged, {found} hits: precision {found / n:.2f}, recall {found / hits.sum():.2f}" in child.value
    for bad in ({"hits": hits[1:]}, {"hits": hits & False}):
        with pytest.raises(InputError, match="hits must be one truth value for each"):
            widgets.flag_slider(ranking, toy.source, **bad)
    with pytest.raises(InputError, match="step, in rows of the ranking, must be one whole number in 1..48"):
        widgets.flag_slider(ranking, toy.source, hits, step=0)


def test_flag_slider_shows_those_flagged_last(monkeypatch):
    shown, original = [], plots.images
    monkeypatch.setattr(plots, "images", lambda *args, **rest: shown.append(args[1:3]) or original(*args, **rest))
    ranking = pd.DataFrame({"source": np.arange(48)[::-1]})
    _, stack = parts(
        widgets.flag_slider(ranking, problem().source, np.arange(48) == 9, step=8, k=4), ipywidgets.SelectionSlider
    )
    assert shown[0] == ([43, 42, 41, 40], ["no hit"] * 4) and shown[1] == ([35, 34, 33, 32], ["no hit"] * 4)
    assert "flagged last of 16, 0 of them hits" in stack.children[1].value and len(shown) == 6
