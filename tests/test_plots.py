"""The figures say what the results say: texts, lengths, intervals, colours and order."""

import importlib
import io
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgb
from matplotlib.offsetbox import AnnotationBbox

from dtl import plots
from dtl.data import ImageDataset
from dtl.influence import Influence

mpl.use("agg")

NAMES = ("apple", "ball", "cup", "sock", "tent", "urn")


@pytest.fixture(autouse=True)
def _style_and_close():
    with mpl.rc_context():
        plots.style()
        yield
        plt.close("all")


def influence(values, stderr=0.02) -> Influence:
    values = np.atleast_2d(np.asarray(values, dtype=float).T).T
    n = values.shape[1]
    return Influence(
        values, np.broadcast_to(stderr, values.shape).copy(), np.full(n, 0.9), "difference", "balanced", 40
    )


def pictures(n_classes=6, per_class=5, size=16) -> ImageDataset:
    """Every image of class c is of the grey c + 1; its top left pixel counts the images of the class."""
    labels = torch.arange(n_classes).repeat(per_class)
    images = (labels + 1).to(torch.uint8)[:, None, None, None].repeat(1, 3, size, size)
    images[:, :, 0, 0] = (100 + torch.arange(per_class).repeat_interleave(n_classes)).to(torch.uint8)[:, None]
    return ImageDataset(images, labels, NAMES[:n_classes])


def texts(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.texts]


def luminance(colour: str) -> float:
    rgb = np.array(to_rgb(colour))
    return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def test_colours_are_readable_and_differ_for_every_colour_vision():
    for colour in (plots.HELPS, plots.HURTS, plots.NEUTRAL, plots.INK, *plots.CATEGORIES):
        assert 1.05 / (luminance(colour) + 0.05) >= 4.5, colour
    # Dichromacy of full severity, in linear RGB: Machado, Oliveira and Fernandes (2009), table of matrices.
    vision = {
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    }
    for name, matrix in vision.items():
        helps, hurts, grey = (np.clip(np.array(matrix) @ np.array(to_rgb(c)) ** 2.2, 0, 1) ** (1 / 2.2)
                              for c in (plots.HELPS, plots.HURTS, plots.MUTED))  # fmt: skip
        for pair in ((helps, hurts), (helps, grey), (hurts, grey)):
            assert np.abs(np.subtract(*pair)).max() > 0.2, name


def test_strongest_sorts_and_judges():
    table = plots.strongest(influence([0.1, -0.3, 0.5, -0.02, 0.03, -0.31]), NAMES, k=2)
    assert table.name.tolist() == ["cup", "apple", "ball", "urn"]
    assert table.source.tolist() == [2, 0, 1, 5]
    assert table.verdict.tolist() == ["helps", "helps", "hurts", "hurts"]
    np.testing.assert_allclose(table.value, [0.5, 0.1, -0.3, -0.31])
    np.testing.assert_allclose(table.half_width, 1.96 * 0.02)


def test_strongest_never_calls_a_class_what_it_is_not():
    table = plots.strongest(influence([0.1, 0.2, 0.3, 0.0, 0.03, -0.1]), NAMES, k=5)
    assert table.name.tolist() == [
        "cup",
        "ball",
        "apple",
        "tent",
        "urn",
    ]  # sock is 0, no filling up of the harmful side
    assert table.verdict.tolist() == ["helps", "helps", "helps", "unclear", "hurts"]


def test_strongest_averages_targets_with_an_error_that_bounds_the_true_one():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4000, 6, 1)) * 0.1 + rng.normal(size=(4000, 6, 3)) * 0.05  # errors shared by the targets
    result = influence(np.linspace(1, -1, 6)[:, None] * np.ones(3), draws.std(axis=0))
    half_width = plots.strongest(result, NAMES, k=3).half_width
    assert (half_width >= 1.96 * draws.mean(axis=2).std(axis=0) * 0.999).all()
    np.testing.assert_allclose(half_width, 1.96 * result.stderr.mean(axis=1))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda r: plots.strongest(r, NAMES[:4]), "4 source names for 6 source classes"),
        (lambda r: plots.strongest(r, NAMES, target=1), "target is 1, but the influence has 1 columns"),
        (lambda r: plots.strongest(r, NAMES, k=0), "at least one class"),
        (lambda r: plots.influence_heatmap(r, NAMES, ("a", "b")), "2 target names for 1 target classes"),
        (lambda r: plots.influence_heatmap(r, NAMES, ("a",), order="size"), "choose 'mean', 'cluster' or 'given'"),
        (lambda r: plots.masks(np.ones((3, 6), bool), ("a",)), "1 source names for 6"),
        (lambda r: plots.image_grid(pictures(), classes=("pear",)), "no class 'pear'"),
        (lambda r: plots.images(pictures(), []), "choose at least one example"),
        (lambda r: plots.images(pictures(), [1, 2], titles=["a"]), "1 titles for 2 images"),
        (lambda r: plots.removal_curves(curve(), split="train"), "no split 'train': choose one of validation, test"),
        (lambda r: plots.removal_curves(curve(), chosen=3), "chosen is 3, which is not among the counts"),
        (lambda r: plots.removal_curves(curve().isel(count=slice(1, None))), "no count 0, the full source"),
        (lambda r: plots.reliability_curve(pd.DataFrame({"models": [1]})), "no column reliability"),
    ],
)
def test_wrong_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call(influence([1, 2, 3, -1, -2, -3]))
    assert not plt.get_fignums()  # refused before anything is drawn


def test_influence_bars_show_values_intervals_and_colours():
    result = influence([0.5, 0.4, 0.02, -0.01, -0.3, -0.6], stderr=0.05)
    ax: Any = plots.influence_bars(result, NAMES, target=0, k=3, title="star")
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.5, 0.4, 0.02, -0.01, -0.3, -0.6])
    blue, red, grey = (to_hex(c) for c in (plots.HELPS, plots.HURTS, plots.MUTED))
    assert [to_hex(bar.get_facecolor()) for bar in ax.patches] == [blue, blue, grey, grey, red, red]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(NAMES)
    low, high = np.array([line for line in ax.collections[0].get_segments()])[:, :, 0].T
    np.testing.assert_allclose(high - low, 2 * 1.96 * 0.05)
    np.testing.assert_allclose((high + low) / 2, [bar.get_width() for bar in ax.patches])
    assert ax.yaxis_inverted() and ax.get_title(loc="left") == "star"
    assert texts(ax) == ["◂ hurts", "helps ▸"] and "grey: the 95% interval covers 0" in ax.get_xlabel()
    assert "grey" not in plots.influence_bars(influence([0.5, -0.5, 1, -1, 2, -2]), NAMES).get_xlabel()


def test_influence_bars_put_images_of_the_class_beside_its_bar():
    result = influence([0.5, 0.4, 0.02, -0.01, -0.3, -0.6])
    ax: Any = plots.influence_bars(result, NAMES, k=2, dataset=pictures(), n_images=3)
    boxes: list[Any] = [artist for artist in ax.artists if isinstance(artist, AnnotationBbox)]
    bars = [bar.get_y() + bar.get_height() / 2 for bar in ax.patches]
    assert [box.xy[1] for box in boxes] == pytest.approx(bars)
    for box, grey in zip(boxes, [1, 2, 5, 6], strict=True):
        strip = np.asarray(box.offsetbox.get_data())  # 3 images of 128 pixels and two white gaps
        assert strip[64, 64].tolist() == [grey] * 3
        assert sorted(set(strip[0, :, 0].tolist())) == [grey, 100, 101, 102, 255]
    ax.figure.draw_without_rendering()
    renderer = ax.figure.canvas.get_renderer()
    for box, label in zip(boxes, ax.get_yticklabels(), strict=True):
        picture, name = box.get_window_extent(renderer), label.get_window_extent(renderer)
        assert name.x1 < picture.x0 and picture.x1 < ax.bbox.x0
        assert name.x0 >= 0 and picture.height <= ax.bbox.height / 4.6


def test_small_images_keep_their_pixels():
    strip = plots._strip(plots._pictures(pictures(size=16), [0, 6]))
    assert strip.shape == (128, 128 + 10 + 128, 3)
    assert strip[:8, :8].tolist() == [[[100] * 3] * 8] * 8 and strip[0, 8, 0] == 1 and strip[0, 130, 0] == 255
    assert plots._strip(plots._pictures(pictures(size=32), [0])).shape == (32, 32, 3)
    assert {image.get_interpolation() for image in plots.images(pictures(size=16), [0]).images} == {"none"}
    assert {image.get_interpolation() for image in plots.images(pictures(size=32), [0]).images} == {"antialiased"}


def test_long_class_names_are_cut_with_an_ellipsis():
    names = ("sports car, convertible, roadster, open two-seater", *NAMES[1:])
    ax: Any = plots.influence_bars(influence([3, 2, 1, -1, -2, -3]), names)
    assert ax.get_yticklabels()[0].get_text() == "sports car, convertible…"


def test_heatmap_orders_rows_centres_colours_and_greys_the_unclear():
    values = np.array([[0.1, 0.1], [-0.5, -0.4], [0.6, 0.4], [0.01, 0.3], [-0.2, -0.02], [0.0, 0.05]])
    ax: Any = plots.influence_heatmap(influence(values, stderr=0.03), NAMES, ("star", "ring"))
    shown = [label.get_text() for label in ax.get_yticklabels()]
    assert shown == ["cup", "sock", "apple", "urn", "tent", "ball"]
    mesh = ax.collections[0]
    assert mesh.get_clim() == (-0.6, 0.6)
    cells = mesh.get_array().reshape(6, 2)
    np.testing.assert_array_equal(np.ma.getmaskarray(cells)[:, 0], [False, True, False, True, False, False])
    np.testing.assert_array_equal(np.ma.getmaskarray(cells)[:, 1], [False, False, False, True, True, False])
    assert cells[0].tolist() == [0.6, 0.4]
    assert to_hex(mesh.cmap(0.0)) == plots.HURTS.lower() and to_hex(mesh.cmap(1.0)) == plots.HELPS.lower()
    assert luminance(to_hex(mesh.cmap(0.5))) > 0.98
    assert [label.get_text() for label in ax.get_xticklabels()] == ["star", "ring"]
    assert "covers 0" in ax.get_title(loc="left")
    bar = mesh.colorbar.ax
    assert (bar.get_title(loc="left"), bar.get_xlabel()) == ("helps", "hurts")


def test_heatmap_clusters_rows_that_behave_alike():
    values = np.array([[1, -1], [-1, 1], [0.9, -1.1], [-0.9, 1.1], [1.1, -1], [-1.1, 1]])
    ax: Any = plots.influence_heatmap(influence(values), NAMES, ("star", "ring"), order="cluster")
    shown = [label.get_text() for label in ax.get_yticklabels()]
    assert {frozenset(shown[:3]), frozenset(shown[3:])} == {frozenset(NAMES[::2]), frozenset(NAMES[1::2])}
    ax: Any = plots.influence_heatmap(influence(values), NAMES, ("star", "ring"), order="given")
    assert [label.get_text() for label in ax.get_yticklabels()] == list(NAMES)


def curve(n_seeds=10, orders=("negative", "positive", "random")) -> xr.Dataset:
    rng = np.random.default_rng(1)
    counts = np.array([0, 2, 4, 8])
    slope = {"negative": 0.01, "positive": -0.03, "random": -0.01}
    mean = np.stack([0.7 + slope.get(order, 0.002) * counts for order in orders])[:, :, None]
    test = mean + rng.normal(0, 0.01, (len(orders), len(counts), n_seeds))
    test[:, 0] = test[0, 0]  # one full source for all orders
    data = {"validation": (("order", "count", "seed"), test + 0.1), "test": (("order", "count", "seed"), test)}
    return xr.Dataset(data, coords={"order": list(orders), "count": counts, "seed": np.arange(n_seeds)})


def test_removal_curves_show_means_intervals_and_the_full_source():
    data = curve()
    ax: Any = plots.removal_curves(data, chosen=4)
    *lines, full = [line for line in ax.lines if line.get_markersize() < 10]
    for line, order in zip(lines, data.order.values, strict=True):
        np.testing.assert_allclose(line.get_ydata(), data.test.sel(order=order).mean("seed"))
        assert line.get_color() == plots.ORDERS[order][1]
    band = ax.collections[0].get_paths()[0].vertices
    seeds = data.test.sel(order="negative", count=8).values
    half_width = 2.2622 * seeds.std(ddof=1) / np.sqrt(10)  # Student's t with 9 degrees of freedom
    at_8 = band[band[:, 0] == 8][:, 1]
    assert (at_8.min(), at_8.max()) == pytest.approx((seeds.mean() - half_width, seeds.mean() + half_width), rel=1e-5)
    reference = float(data.test.sel(count=0).mean())
    np.testing.assert_allclose(full.get_ydata(), reference)
    assert set(texts(ax)) == {
        "most negative first", "most positive first", "at random", f"full source {reference:.1%}",
        "chosen on validation",
    }  # fmt: skip
    assert ax.get_xlabel() == "source classes removed" and ax.get_ylabel() == "target test accuracy"
    (ring,) = [line for line in ax.lines if line.get_markersize() >= 10]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (4, float(data.test.sel(order="negative", count=4).mean()))


def test_removal_curves_validation_without_reference_and_with_a_given_order():
    data = curve(orders=("negative", "my own"))
    ax: Any = plots.removal_curves(data, reference=False, split="validation")
    assert texts(ax) == ["my own", "most negative first"] and len(ax.lines) == 2
    np.testing.assert_allclose(ax.lines[1].get_ydata(), data.validation.sel(order="my own").mean("seed"))
    assert ax.lines[1].get_color() in plots.CATEGORIES


def test_removal_curves_of_one_seed_have_no_band_and_say_so(caplog):
    ax: Any = plots.removal_curves(curve(n_seeds=1))
    assert not ax.collections and "one seed" in caplog.text


def test_direct_labels_do_not_overlap():
    data = curve()
    data["test"] = data.test * 0 + 0.7  # all lines end in one point
    ax: Any = plots.removal_curves(data)
    ax.figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in ax.texts), key=lambda box: box.y0)
    assert len(boxes) == 4
    assert all(lower.y1 <= upper.y0 + 2 for lower, upper in zip(boxes[:-1], boxes[1:], strict=True))


def reliability_table() -> pd.DataFrame:
    rows = [
        {"models": m, "reliability": m / (m + cost) + shift, "design": design, "level": level}
        for design, cost in (("random", 100), ("balanced", 20))
        for level in ("class", "example")
        for m in (32, 64, 128)
        for shift in (-0.01, 0.01)
    ]
    return pd.DataFrame(rows)


def test_reliability_curve_averages_and_labels_lines():
    table = reliability_table()
    ax: Any = plots.reliability_curve(table.query("level == 'class'"))
    ends = {round(line.get_ydata()[-1], 6) for line in ax.lines if len(line.get_xdata()) == 3}
    assert ends == {round(128 / 228, 6), round(128 / 148, 6)}
    assert {text.get_text(): text.get_color() for text in ax.texts} == {
        "random": plots.CATEGORIES[2], "balanced": plots.CATEGORIES[0],
    }  # fmt: skip
    assert ax.get_legend() is None
    assert ax.get_xscale() == "log" and [label.get_text() for label in ax.get_xticklabels()] == ["32", "64", "128"]
    assert [line.get_ydata()[0] for line in ax.lines if len(set(line.get_ydata())) == 1] == [0.8]


def test_reliability_curve_uses_dashes_for_a_second_variable_and_refuses_a_third():
    ax: Any = plots.reliability_curve(reliability_table(), threshold=None)
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "design", "random", "balanced", "level", "class", "example",
    ]  # fmt: skip
    assert not ax.texts
    table = pd.concat([reliability_table().assign(method=method) for method in ("ols", "ridge")])
    with pytest.raises(ValueError, match="all vary"):
        plots.reliability_curve(table)


def test_reliability_curve_of_one_line_has_neither_legend_nor_label():
    ax: Any = plots.reliability_curve(pd.DataFrame({"models": [10, 20], "reliability": [0.5, 0.6]}))
    assert not ax.texts and ax.get_legend() is None and ax.lines[0].get_ydata().tolist() == [0.5, 0.6]


def test_image_grid_shows_the_first_images_under_the_class_name():
    ax: Any = plots.image_grid(pictures(), per_class=3, classes=("cup", "apple"))
    assert texts(ax) == ["cup", "apple"]
    corners = [int(np.asarray(image.get_array())[0, 0, 0]) for image in ax.images]
    greys = [int(np.asarray(image.get_array())[8, 8, 0]) for image in ax.images]
    assert corners == [100, 101, 102] * 2 and greys == [3] * 3 + [1] * 3
    for text, image in zip(ax.texts, ax.images[::3], strict=True):
        assert text.get_position()[0] == pytest.approx(image.get_extent()[0])
        assert text.get_position()[1] < min(image.get_extent()[2:])  # above: the axis points down
    assert len(plots.image_grid(pictures(per_class=2), per_class=8).images) == 12  # a small class shows what it has


def test_images_have_class_names_or_titles():
    dataset = pictures()
    assert texts(plots.images(dataset, [2, 7])) == ["cup", "ball"]
    ax: Any = plots.images(dataset, [2, 7, 9], titles=["predicted ball\nbut a cup", "b", "c"], columns=2)
    assert texts(ax) == ["predicted ball\nbut a cup", "b", "c"]
    assert [int(np.asarray(image.get_array())[8, 8, 0]) for image in ax.images] == [3, 2, 4]
    assert ax.images[2].get_extent()[3] > ax.images[0].get_extent()[2]  # the third starts a second row


def test_masks_fill_the_cells_of_the_classes_a_model_saw():
    seen = np.random.default_rng(0).random((12, 6)) < 0.5
    ax: Any = plots.masks(seen, NAMES)
    np.testing.assert_array_equal(ax.collections[0].get_array().reshape(6, 12), seen.T)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(NAMES)
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["trained with the class", "trained without"]


def test_every_function_draws_on_the_axes_it_is_given():
    result, dataset = influence([3, 2, 1, -1, -2, -3]), pictures()
    calls = [
        lambda ax: plots.influence_bars(result, NAMES, dataset=dataset, ax=ax),
        lambda ax: plots.influence_heatmap(result, NAMES, ("star",), ax=ax),
        lambda ax: plots.removal_curves(curve(), ax=ax),
        lambda ax: plots.reliability_curve(reliability_table(), ax=ax),
        lambda ax: plots.image_grid(dataset, ax=ax),
        lambda ax: plots.images(dataset, [0, 1], ax=ax),
        lambda ax: plots.masks(np.eye(6, dtype=bool), NAMES, ax=ax),
    ]
    for call in calls:
        figure, axes = plt.subplots(1, 2, figsize=(10, 4))
        assert call(axes[1]) is axes[1]
        assert not axes[0].has_data() and plt.get_fignums() == [figure.number]
        plt.close(figure)


def test_figures_are_opaque_and_svg_files_repeat_exactly():
    def svg() -> bytes:
        ax: Any = plots.influence_bars(influence([3, 2, 1, -1, -2, -3]), NAMES, dataset=pictures())
        buffer = io.BytesIO()
        ax.figure.savefig(buffer, format="svg", metadata={"Date": None})
        plt.close(ax.figure)
        return buffer.getvalue()

    first = svg()
    assert first == svg() and len(first) < 150_000
    ax: Any = plots.masks(np.eye(3, dtype=bool))
    assert to_hex(ax.figure.get_facecolor()) == "#ffffff" and not mpl.rcParams["savefig.transparent"]
    assert mpl.rcParams["font.size"] >= 10 and ax.figure.get_size_inches()[0] * 96 <= 680


def test_importing_changes_no_setting():
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.use("agg")
        before = dict(mpl.rcParams)
        importlib.reload(plots)
        assert dict(mpl.rcParams) == before
