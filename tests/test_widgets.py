"""Pickers: the link that works without a kernel, the numbers in their texts, what a reader without JavaScript gets."""

import base64
import io
import re
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
    stderr = np.full(VALUES.shape, 0.08 / 1.96)
    return Influence(VALUES, stderr, np.array([0.93, 0.5, 0.25]), "difference", "balanced", 398)


def figure() -> plt.Figure:
    return plt.subplots(figsize=(4, 3))[0]


def parts(picker) -> tuple[ipywidgets.Dropdown, ipywidgets.Stack]:
    choice, stack = picker.children
    assert isinstance(choice, ipywidgets.Dropdown) and isinstance(stack, ipywidgets.Stack)
    return choice, stack


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


def test_picker_links_the_index_in_the_browser():
    picker = widgets.picker(["a", "b"], [figure(), figure()], ["Chart a.", "Chart b."], "which")
    choice, stack = parts(picker)
    assert choice.description == "which" and choice.index == 0 and stack.selected_index == 0
    assert [name for name, _ in choice.options] == ["a", "b"]
    data: Any = embed_data(views=[picker])
    state = data["manager_state"]["state"]
    links = [widget["state"] for widget in state.values() if widget["model_name"].endswith("LinkModel")]
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

    def draw(name: str) -> plt.Figure:
        seen.append(name)
        assert len(plt.get_fignums()) == 0
        return figure()

    _, stack = parts(widgets.picker(names, draw, [f"Chart of {name}." for name in names], "which"))
    assert seen == names and len(stack.children) == 25
    assert "Chart of item 24." in stack.children[24].value


def test_picker_with_equal_names_keeps_both():
    choice, stack = parts(widgets.picker(["a", "a"], [figure(), figure()], ["First.", "Second."], "which"))
    choice.index = 1
    assert choice.value == 1 and len(stack.children) == 2


@pytest.mark.parametrize(
    "names, alts, captions, message",
    [
        ([], [], None, "names is empty"),
        (["a", "b"], ["A."], None, "1 alts for 2 names"),
        (["a", "b"], ["A.", "B."], ["c"], "1 captions for 2 names"),
        (["a", "b"], ["A.", " "], None, "alt text of 'b' is empty"),
    ],
)
def test_picker_refuses_what_does_not_fit(names, alts, captions, message):
    with pytest.raises(ValueError, match=message):
        widgets.picker(names, lambda name: figure(), alts, "which", captions)
    with pytest.raises(ValueError, match="0 figures for 1 names"):
        widgets.picker(["a"], [], ["A."], "which")


def test_class_picker_has_an_item_for_each_target_class():
    choice, stack = parts(widgets.class_picker(influence(), problem(), k=2))
    assert [name for name, _ in choice.options] == list(TARGETS) and choice.description == "target class"
    pages = [Page(child.value) for child in stack.children]
    assert pages[0].images[0]["alt"] == (
        "Bar chart with 95% intervals: helpful for star: apple +0.41 ± 0.08, ball +0.30 ± 0.08; "
        "harmful: urn −0.40 ± 0.08, tent −0.30 ± 0.08."
    )
    assert pages[0].rows == [
        ["most helpful", "influence", "most harmful", "influence"],
        ["apple", "+0.41 ± 0.08", "urn", "−0.40 ± 0.08"],
        ["ball", "+0.30 ± 0.08", "tent", "−0.30 ± 0.08"],
    ]
    assert pages[0].caption == (
        "Influence of source classes on star, with 95% intervals (398 models, reliability 0.93)."
    )
    assert "reliability 0.50" in pages[1].caption and 'the "cross"' in pages[2].caption
    sizes = {(page.images[0]["width"], page.images[0]["height"]) for page in pages}
    assert len(sizes) == 1  # the page does not move when the reader chooses


def test_class_picker_marks_what_is_not_distinguishable_from_zero():
    _, stack = parts(widgets.class_picker(influence(), problem(), k=3))
    page = Page(stack.children[0].value)
    assert page.images[0]["alt"].endswith("The interval covers 0 for cup, so<ck.")
    assert ["cup", "+0.01 ± 0.08*", "so<ck", "−0.02 ± 0.08*"] in page.rows and "* the interval covers 0" in page.caption


def test_class_picker_draws_the_column_of_its_class_on_one_scale(monkeypatch):
    drawn = []
    original = plots.influence_bars

    def spy(*args, **kwargs):
        drawn.append(original(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(plots, "influence_bars", spy)
    widgets.class_picker(influence(), problem(), k=2)
    lengths = [[bar.get_width() for bar in ax.patches] for ax in drawn]
    assert lengths == [
        pytest.approx(row) for row in ([0.41, 0.3, -0.3, -0.4], [0.3, 0.1, -0.2, -0.2], [0.2, 0.1, -0.1, -0.2])
    ]
    assert [ax.get_title(loc="left") for ax in drawn] == list(TARGETS)
    (limits,) = {ax.get_xlim() for ax in drawn}
    assert limits[0] < -0.48 and limits[1] > 0.49


def test_class_picker_first_child_reads_alone_and_is_light():
    picker = widgets.class_picker(influence(), problem())
    first = parts(picker)[1].children[0].value
    page = Page(first)
    assert len(page.images) == 1 and len(page.rows) > 1
    assert len(first) < 80_000 and "http" not in first and "<script" not in first


def test_class_picker_from_names_alone_has_no_pictures(monkeypatch):
    given, original = [], plots.influence_bars

    def spy(*args, **options):
        given.append(args[4])
        return original(*args, **options)

    monkeypatch.setattr(plots, "influence_bars", spy)
    picker = widgets.class_picker(influence(), (list(SOURCES), list(TARGETS)), k=2)
    assert given == [None] * 3
    assert len(Page(parts(picker)[1].children[0].value).images) == 1


def test_class_picker_refuses_an_influence_per_example():
    example = Influence(np.zeros((6, 40)), np.ones((6, 40)), np.zeros(40), "difference", "balanced", 40)
    with pytest.raises(ValueError, match=r"shape \(6, 40\), but there are 6 source and 3 target classes.*by='class'"):
        widgets.class_picker(example, problem())


def test_alt_text_has_the_decimals_that_the_errors_call_for():
    result = Influence(VALUES[:, :1] / 100, np.full((6, 1), 0.0008 / 1.96), np.ones(1), "ols", "random", 9)
    text = widgets.influence_alt(plots.strongest(result, SOURCES, k=1), "star")
    assert text == (
        "Bar chart with 95% intervals: helpful for star: apple +0.0041 ± 0.0008; harmful: urn −0.0040 ± 0.0008."
    )


def test_alt_text_when_nothing_helps():
    result = Influence(np.array([[-1.0], [-2.0]]), np.full((2, 1), 0.1), np.ones(1), "ols", "random", 9)
    text = widgets.influence_alt(plots.strongest(result, ("a", "b")), "star")
    assert "helpful for star: none; harmful: b −2.00 ± 0.20, a −1.00 ± 0.20." in text


def test_projection_picker_shows_whom_a_class_helps_and_hurts():
    toy = problem()
    values = np.random.default_rng(0).normal(size=(len(SOURCES), len(toy.target_validation)))
    found = Influence(values, np.full(values.shape, 0.5), np.ones(values.shape[1]), "difference", "balanced", 92)
    choice, stack = parts(widgets.projection_picker(found, toy, k=3))
    assert [name for name, _ in choice.options] == list(SOURCES)
    (image,) = Page(stack.children[1].value).images
    order = np.argsort(-values[1])
    names = [TARGETS[toy.target_validation.labels[i]] for i in (*order[:3], *order[::-1][:3])]
    for name, i in zip(names, (*order[:3], *order[::-1][:3]), strict=True):
        assert f"{name} {values[1, i]:+.1f}".replace("-", "−") in image["alt"]
    assert "at a false discovery rate of 5%" in stack.children[1].value and "± 1.0 at 95%" in stack.children[1].value
    with pytest.raises(ValueError, match="estimate it with study.influence"):
        widgets.projection_picker(influence(), toy)


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
    found = Influence(values, np.full(values.shape, 0.1), np.ones(values.shape[1]), "difference", "balanced", 92)
    choice, stack = parts(widgets.mistake_picker(found, flips([0, 3]), toy))
    assert [name for name, _ in choice.options] == [f"{i}: {TARGETS[0]}, taken for {TARGETS[1]}" for i in (0, 3)]
    page = Page(stack.children[0].value)
    assert page.rows[0] == ["predicted", *TARGETS] and page.rows[1][:3] == [
        "full source",
        "0% (0% to 50%)",
        "75% (38% to 88%)",
    ]
    assert page.rows[2][0] == f"without {SOURCES[2]}" and page.rows[2][1] == "60% (30% to 80%)"
    assert f"{SOURCES[2]} −0.70" in page.images[0]["alt"] and "20 retrained models" in page.caption
    with pytest.raises(ValueError, match="the validation split"):
        widgets.mistake_picker(influence(), flips([0]), toy)


def test_flag_slider_counts_hits():
    toy = problem()
    ranking = pd.DataFrame({"source": np.arange(len(toy.source))[::-1]})
    hits = np.arange(len(ranking)) % 3 == 0
    slider, stack = widgets.flag_slider(ranking, toy, hits, step=4, k=8).children
    assert isinstance(slider, ipywidgets.SelectionSlider) and slider.index == 0
    assert [int(option) for option in slider.options] == [4 * (n + 1) for n in range(len(stack.children))]
    for stop, child in enumerate(stack.children):
        n = 4 * (stop + 1)
        found = hits[:n].sum()
        assert f"{n} flagged, {found} hits: precision {found / n:.2f}, recall {found / hits.sum():.2f}" in child.value
    data: Any = embed_data(views=[slider, stack])
    state = data["manager_state"]["state"]
    links = [w["state"] for w in state.values() if w["model_name"].endswith("LinkModel")]
    assert (f"IPY_MODEL_{slider.model_id}", "index") in [tuple(link["source"]) for link in links]
    for bad in ({"hits": hits[1:]}, {"hits": hits & False}):
        with pytest.raises(ValueError, match="hits must be one truth value for each"):
            widgets.flag_slider(ranking, toy, **bad)
    with pytest.raises(ValueError, match="step must lie in 1"):
        widgets.flag_slider(ranking, toy, hits, step=0)
