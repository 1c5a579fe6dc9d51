"""The figures say what the results say: texts, lengths, intervals, colours and order."""

import importlib
import io
import itertools
import subprocess
import sys
from dataclasses import replace
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgb
from matplotlib.offsetbox import AnnotationBbox
from matplotlib.text import Text

from dtl import _pictures, plots
from dtl._checks import InputError
from dtl.data import ImageDataset
from dtl.influence import Influence

mpl.use("agg")

NAMES = ("apple", "ball", "cup", "sock", "tent", "urn")
TARGETS = ("star", "ring", "cross")


@pytest.fixture(autouse=True)
def _style_and_close():
    with mpl.rc_context():
        plots.style()
        yield
        plt.close("all")


def influence(values, stderr=0.02) -> Influence:
    values = np.atleast_2d(np.asarray(values, dtype=float).T).T
    n = values.shape[1]
    errors, names = np.broadcast_to(stderr, values.shape).copy(), {"sources": NAMES, "targets": TARGETS[:n]}
    return Influence(values, errors, np.full(n, 0.9), "difference", "balanced", 40, **names)


def pictures(n_classes=6, per_class=5, size=16) -> ImageDataset:
    """Every image of class c is of the grey c + 1; its top left pixel counts the images of the class."""
    labels = torch.arange(n_classes).repeat(per_class)
    images = (labels + 1).to(torch.uint8)[:, None, None, None].repeat(1, 3, size, size)
    images[:, :, 0, 0] = (100 + torch.arange(per_class).repeat_interleave(n_classes)).to(torch.uint8)[:, None]
    return ImageDataset(images, labels, NAMES[:n_classes])


def texts(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.texts]


def luminance(colour: str) -> float:
    return float(TO_XYZ[1] @ linear(colour))


# Dichromacy of full severity, in linear RGB: Machado, Oliveira and Fernandes (2009), table of matrices.
VISION = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(colour: str) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB, white point D65."""
    x, y, z = (np.cbrt(t) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29
               for t in TO_XYZ @ rgb / TO_XYZ.sum(axis=1))  # fmt: skip
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def difference(one: str, other: str, vision: str) -> float:
    """CIE76 between two colours as seen by one kind of colour vision."""
    seen = (lab(np.clip(np.array(VISION[vision]) @ linear(colour), 0, 1)) for colour in (one, other))
    return float(np.linalg.norm(np.subtract(*seen)))


def test_differences_of_colours_are_known_ones():
    assert difference("#000000", "#FFFFFF", "normal") == pytest.approx(100, abs=0.01)
    assert difference("#FF0000", "#00FF00", "normal") == pytest.approx(170.6, abs=0.1)  # of the sRGB primaries
    assert difference("#6A3D9A", "#0067A5", "deutan") == pytest.approx(4.1, abs=0.1)  # purple and blue look alike


@pytest.mark.parametrize("vision", VISION)
def test_colours_of_one_figure_differ_for_every_colour_vision(vision):
    lines = (plots.HELPS, plots.HURTS, plots.NEUTRAL, *plots.CATEGORIES)
    bars = (plots.HELPS, plots.HURTS, plots.MUTED, plots.INK)
    for together in (lines, bars):
        for one, other in itertools.combinations(together, 2):
            assert difference(one, other, vision) >= 20, (one, other)


def test_colours_of_text_are_readable():
    for colour in (plots.HELPS, plots.HURTS, plots.NEUTRAL, plots.INK, *plots.CATEGORIES):
        assert 1.05 / (luminance(colour) + 0.05) >= 4.5, colour


def test_strongest_sorts_and_judges():
    table = plots.strongest(influence([0.1, -0.3, 0.5, -0.02, 0.03, -0.31]), k=2)
    assert table.name.tolist() == ["cup", "apple", "ball", "urn"]
    assert table.source.tolist() == [2, 0, 1, 5]
    assert table.verdict.tolist() == ["helps", "helps", "hurts", "hurts"]
    np.testing.assert_allclose(table.value, [0.5, 0.1, -0.3, -0.31])
    np.testing.assert_allclose(table.stderr, 0.02)
    np.testing.assert_allclose(table.high - table.value, 1.96 * 0.02, rtol=1e-4)
    np.testing.assert_allclose(table.value - table.low, 1.96 * 0.02, rtol=1e-4)
    few = replace(influence([0.1, -0.3, 0.5, -0.02, 0.03, -0.31]), dof=4.0)  # few models: Student's t
    np.testing.assert_allclose(plots.strongest(few).high - plots.strongest(few).value, 2.776445 * 0.02)


def test_strongest_never_calls_a_class_what_it_is_not():
    table = plots.strongest(influence([0.1, 0.2, 0.3, 0.0, 0.03, -0.1]), k=5)
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
    table = plots.strongest(result, k=3)
    assert (table.stderr >= draws.mean(axis=2).std(axis=0) * 0.999).all()
    np.testing.assert_allclose(table.stderr, result.stderr.mean(axis=1))
    np.testing.assert_allclose(table.high - table.low, 2 * 1.96 * table.stderr, rtol=1e-4)


def test_targets_are_chosen_by_name_or_number():
    result = influence(np.arange(18).reshape(6, 3) - 8.0)
    pd.testing.assert_frame_equal(plots.strongest(result, "ring"), plots.strongest(result, 1))
    assert plots.strongest(result, 1).value.tolist() == (np.arange(18).reshape(6, 3)[::-1, 1] - 8.0).tolist()
    with pytest.raises(InputError, match="no target 'rings'; its targets: star, ring, cross"):
        plots.strongest(result, "rings")
    twins = replace(result, targets=("crane", "crane", "cross"))
    with pytest.raises(InputError, match=r"2 targets 'crane', \[0, 1\]: choose by number"):
        plots.strongest(twins, "crane")
    assert plots.strongest(twins, 1).value[0] == 8.0


def test_an_influence_without_names_has_numbers():
    result = replace(influence([3, 2, 1, -1, -2, -3]), sources=(), targets=())
    assert plots.strongest(result, "0").name.tolist() == list("012345")
    ax: Any = plots.influence_heatmap(result)
    assert [label.get_text() for label in (*ax.get_yticklabels(), *ax.get_xticklabels())] == [*"012345", "0"]
    ax = plots.influence_bars(result, images=pictures())  # whose classes have names
    assert [label.get_text() for label in ax.get_yticklabels()] == list(NAMES)


def test_two_classes_of_one_name_stay_two():
    names = ("crane", "ball", "crane", "sports car, convertible, roadster", "sports car, convertible, coupe", "urn")
    result = replace(influence([3, 2, 1, -1, -2, -3]), sources=names)
    seen = ["crane (0)", "ball", "crane (2)", "sports car, convertible… (3)", "sports car, convertible… (4)", "urn"]
    for draw in (plots.influence_bars, plots.influence_heatmap):
        ax: Any = draw(result)
        assert [label.get_text() for label in ax.get_yticklabels()] == seen
    assert plots.strongest(result).name.tolist() == ["crane (0)", "ball", "crane (2)", *names[3:]]
    long = tuple(f"{'a long name ' * 6}{i}" for i in range(6))  # alike once they are cut
    grid = plots.image_grid(replace(pictures(), classes=long), per_class=2)
    assert [text[-3:] for text in texts(grid)] == [f"({i})" for i in range(6)]


ODD = ("$x^$ coupon", r"$\frac{$", "US$ vs C$", r"a\$b", "two\nlines", "100 %")


def test_text_from_data_is_no_mathematics():
    result = replace(influence([3, 2, 1, -1, -2, -3]), sources=ODD, targets=(ODD[1],))
    flat = [name.replace("\n", " ") for name in ODD]
    dataset = replace(pictures(), classes=ODD)
    order = xr.DataArray(list(ODD[:3]), dims="order")
    table = reliability_table().replace({"balanced": ODD[0], "random": ODD[1], "class": ODD[2]})
    drawn = [
        (plots.influence_bars(result, 0, images=dataset, title=ODD[1]), [*flat, ODD[1]]),
        (plots.influence_heatmap(result), [*flat, ODD[1]]),
        (plots.masks(np.eye(6, dtype=bool), ODD), flat),
        (plots.image_grid(dataset), flat),
        (plots.images(dataset, range(6)), ["$x^$ coupon"]),
        (plots.pairs(dataset, dataset, [(0, 1)]), []),
        (plots.removal_curves(curve().assign_coords(order=order)), ODD[:3]),
        (plots.reliability_curve(table), ODD[:3]),
        (plots.flip_bars(flips(labels=ODD[:3], arm=ODD[3]), 7), [f"{ODD[0]} (true)", ODD[1], f"without {ODD[3]}"]),
    ]
    for ax, expected in drawn:
        ax.figure.savefig(io.BytesIO())  # raises where text is parsed as mathematics and is none
        seen = [text for text in ax.figure.findobj(Text) if text.get_visible() and text.get_text()]
        parsed = [text._preprocess_math(text.get_text()) for text in seen]
        assert set(expected) <= {text.replace("\n", " ") for text, _ in parsed} | {t for t, _ in parsed}
        assert not any(math for text, math in parsed if "mathdefault" not in text), parsed


def test_other_scripts_are_drawn_where_a_font_is_at_hand():
    if not any("CJK" in name or "JP" in name for name in mpl.rcParams["font.family"]):
        pytest.skip("no font for Japanese is installed")
    result = replace(
        influence([3, 2, 1, -1, -2, -3]), sources=("日本語", "汉字", "한국어", "Ελληνικά", "кириллица", "é")
    )
    ax: Any = plots.influence_bars(result)
    ax.figure.savefig(io.BytesIO())  # a missing sign is a warning, and that an error
    assert mpl.rcParams["font.family"][0] == "DejaVu Sans"  # Latin text looks the same on every machine


def test_images_of_another_source_are_refused_by_name():
    other = replace(pictures(), classes=("apple", "ball", "cup", "sock", "tent", "vase"))
    for images in (other, pictures(n_classes=5)):
        with pytest.raises(InputError, match="the images are of .*, the influence is of apple, ball, cup ..."):
            plots.influence_bars(influence([3, 2, 1, -1, -2, -3]), images=images)


def test_the_forms_of_version_0_1_still_work():
    result, old = replace(influence(np.arange(18).reshape(6, 3) - 8.0), sources=(), targets=()), cast(Any, plots)
    for call in (
        lambda: old.influence_bars(result, NAMES, 1, 2, pictures()),
        lambda: old.influence_bars(result, list(NAMES), target=1, k=2, dataset=pictures()),
        lambda: old.influence_heatmap(result, NAMES, TARGETS),
    ):
        with pytest.warns(DeprecationWarning, match="the influence knows its names"):
            ax: Any = call()
        assert {label.get_text() for label in ax.get_yticklabels()} <= set(NAMES)
    assert [label.get_text() for label in ax.get_xticklabels()] == list(TARGETS)
    with pytest.warns(DeprecationWarning, match="strongest"):
        assert old.strongest(result, np.array(NAMES), 1).name[0] == "urn"


def test_too_few_models_for_an_error_draw_no_interval():
    result = influence([3, 2, 1, -1, -2, -3], stderr=np.inf)
    ax: Any = plots.influence_bars(result)
    assert "too few models for 95% intervals" in ax.get_xlabel() and not ax.collections[0].get_segments()
    assert set(plots.strongest(result).verdict) == {"unclear"}
    heatmap: Any = plots.influence_heatmap(result)
    assert np.ma.getmaskarray(heatmap.collections[0].get_array()).all()
    for drawn in (ax, heatmap):
        drawn.figure.savefig(io.BytesIO())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda r: plots.strongest(r, target=1), "target, a column of the influence, must be one whole number in 0..0"),
        (lambda r: plots.strongest(r, k=0), "k, the classes per side, must be"),
        (lambda r: plots.masks(np.ones((3, 6), bool), ("a",)), "1 names for 6"),
        (lambda r: plots.image_grid(pictures(), classes=("pear",)), "unknown class 'pear'"),
        (lambda r: plots.images(pictures(), []), "choose at least one picture"),
        (lambda r: plots.images(pictures(), [1, 2], titles=["a"]), "1 titles for 2 pictures"),
        (lambda r: plots.pairs(pictures(), pictures(), []), "choose at least one picture"),
        (lambda r: plots.pairs(pictures(), pictures(), [(1, 2)], titles=["a", "b"]), "2 titles for 1 pictures"),
        (lambda r: plots.flip_bars(flips(), 8), "unknown example 8: choose one of 7"),
        (lambda r: plots.flip_bars(flips(), 7, "urn"), "unknown class left out 'urn': choose one of dots, checks"),
        (
            lambda r: plots.removal_curves(curve(), split="train"),
            "unknown split 'train': choose one of validation, test",
        ),
        (lambda r: plots.removal_curves(curve(), chosen=3), "unknown count 3: choose one of 0, 2, 4, 8"),
        (lambda r: plots.removal_curves(curve().isel(count=slice(1, None))), "unknown count 0: choose one of 2, 4, 8"),
        (lambda r: plots.reliability_curve(pd.DataFrame({"models": [1]})), "no column reliability"),
    ],
)
def test_wrong_input_is_one_clear_error(call, message):
    with pytest.raises(InputError, match=message):
        call(influence([1, 2, 3, -1, -2, -3]))
    assert not plt.get_fignums()  # refused before anything is drawn


def test_influence_bars_show_values_intervals_and_colours():
    result = influence([0.5, 0.4, 0.02, -0.01, -0.3, -0.6], stderr=0.05)
    ax: Any = plots.influence_bars(result, target=0, k=3, title="star")
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.5, 0.4, 0.02, -0.01, -0.3, -0.6])
    blue, red, grey = (to_hex(c) for c in (plots.HELPS, plots.HURTS, plots.MUTED))
    assert [to_hex(bar.get_facecolor()) for bar in ax.patches] == [blue, blue, grey, grey, red, red]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(NAMES)
    low, high = np.array([line for line in ax.collections[0].get_segments()])[:, :, 0].T
    np.testing.assert_allclose(high - low, 2 * 1.96 * 0.05, rtol=1e-4)
    np.testing.assert_allclose((high + low) / 2, [bar.get_width() for bar in ax.patches])
    assert ax.yaxis_inverted() and ax.get_title(loc="left") == "star"
    assert texts(ax) == ["◂ hurts", "helps ▸"] and "grey: the 95% interval covers 0" in ax.get_xlabel()
    assert "grey" not in plots.influence_bars(influence([0.5, -0.5, 1, -1, 2, -2])).get_xlabel()


def test_influence_bars_put_images_of_the_class_beside_its_bar():
    result = influence([0.5, 0.4, 0.02, -0.01, -0.3, -0.6])
    ax: Any = plots.influence_bars(result, k=2, images=pictures(), n_images=3)
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
    strip = _pictures.strip(_pictures.pictures(pictures(size=16), [0, 6]))
    assert strip.shape == (128, 128 + 10 + 128, 3)
    assert strip[:8, :8].tolist() == [[[100] * 3] * 8] * 8 and strip[0, 8, 0] == 1 and strip[0, 130, 0] == 255
    assert _pictures.strip(_pictures.pictures(pictures(size=32), [0])).shape == (32, 32, 3)
    assert {image.get_interpolation() for image in plots.images(pictures(size=16), [0]).images} == {"none"}
    assert {image.get_interpolation() for image in plots.images(pictures(size=32), [0]).images} == {"antialiased"}


def test_long_class_names_are_cut_with_an_ellipsis():
    names = ("sports car, convertible, roadster, open two-seater", *NAMES[1:])
    ax: Any = plots.influence_bars(replace(influence([3, 2, 1, -1, -2, -3]), sources=names))
    assert ax.get_yticklabels()[0].get_text() == "sports car, convertible…"


def test_heatmap_of_the_specific_part_puts_the_classes_of_one_target_together():
    values = np.array([[0.1, -0.1], [-0.5, 0.5], [0.6, -0.6], [-0.3, 0.3], [0.2, -0.2], [0.0, 0.0]])
    ax: Any = plots.influence_heatmap(replace(influence(values, stderr=0.03), part="specific"))
    shown = [label.get_text() for label in ax.get_yticklabels()]
    assert shown == ["cup", "tent", "apple", "urn", "ball", "sock"]


def test_heatmap_orders_rows_centres_colours_and_greys_the_unclear():
    values = np.array([[0.1, 0.1], [-0.5, -0.4], [0.6, 0.4], [0.01, 0.3], [-0.2, -0.02], [0.0, 0.05]])
    ax: Any = plots.influence_heatmap(influence(values, stderr=0.03))
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


def test_removal_curves_on_validation_with_a_given_order():
    data = curve(orders=("negative", "my own"))
    ax: Any = plots.removal_curves(data, split="validation")
    assert "my own" in texts(ax) and "most negative first" in texts(ax)
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
    ax: Any = plots.reliability_curve(reliability_table())
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
        lambda ax: plots.influence_bars(result, images=dataset, ax=ax),
        lambda ax: plots.influence_heatmap(result, ax=ax),
        lambda ax: plots.flip_bars(flips(), 7, ax=ax),
        lambda ax: plots.pairs(dataset, dataset, [(0, 1)], ax=ax),
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
        ax: Any = plots.influence_bars(influence([3, 2, 1, -1, -2, -3]), images=pictures())
        buffer = io.BytesIO()
        ax.figure.savefig(buffer, format="svg", metadata={"Date": None})
        plt.close(ax.figure)
        return buffer.getvalue()

    first = svg()
    assert first == svg() and len(first) < 150_000
    ax: Any = plots.masks(np.eye(3, dtype=bool))
    assert to_hex(ax.figure.get_facecolor()) == "#ffffff" and not mpl.rcParams["savefig.transparent"]


def test_importing_changes_no_setting():
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.use("agg")
        before = dict(mpl.rcParams)
        importlib.reload(plots)
        assert dict(mpl.rcParams) == before


PHONE = 338  # of 390 pixels, within the margins of a page and the frame of a figure


def test_text_is_nine_pixels_high_on_a_phone():
    result, dataset = influence(np.arange(18).reshape(6, 3) - 8.0, stderr=3), pictures()
    drawn = [
        plots.influence_bars(result, "ring", images=dataset, title="ring"),
        plots.influence_heatmap(result),
        plots.removal_curves(curve(), chosen=4),
        plots.reliability_curve(reliability_table()),
        plots.reliability_curve(reliability_table().query("level == 'class'")),
        plots.flip_bars(flips(), 7),
        plots.image_grid(dataset),
        plots.images(dataset, range(20)),
        plots.pairs(dataset, dataset, [(0, 1)] * 5),
        plots.masks(np.random.default_rng(0).random((30, 6)) < 0.5, NAMES),
        plt.subplots()[1],
    ]
    for ax in drawn:
        figure: Any = ax.figure
        figure.draw_without_rendering()
        width = figure.get_tightbbox().width + 0.2  # inches, as a notebook crops it
        assert width <= plots.WIDTH + 0.25
        for text in figure.findobj(Text):
            if text.get_visible() and text.get_text():
                assert text.get_fontsize() / 72 * PHONE / max(width, PHONE / 96) >= 9, text


def test_titles_of_pictures_do_not_run_into_each_other():
    names = ("aeroplanes", "convertibles", "cup", "sock", "tent", "a title of many words that has to be wrapped")
    dataset = replace(pictures(per_class=1), classes=names)
    figure, axes = plt.subplots(1, 2, figsize=(plots.WIDTH, 6), layout="constrained")
    for ax in (None, axes[0]):
        drawn: Any = plots.images(dataset, range(6), ax=ax)
        drawn.figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in drawn.texts]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2)), ax


def flips(labels=("sky", "chess", "cards"), arm="dots") -> xr.Dataset:
    share = np.array([[[0.2, 0.8, 0.0], [0.75, 0.25, 0.0], [0.3, 0.7, 0.0]]])
    dims = ("example", "arm", "label")
    coords = {"example": [7], "arm": ["full", arm, "checks"], "label": list(labels), "true": ("example", [labels[0]])}
    found = {"share": share, "low": share / 2, "high": (share + 1) / 2}
    return xr.Dataset({name: (dims, array) for name, array in found.items()}, coords, {"seeds": 20})


def test_flip_bars_compare_the_full_source_with_one_class_less():
    for without, shares in ((None, [0.75, 0.25]), ("checks", [0.3, 0.7])):
        ax: Any = plots.flip_bars(flips(), 7, without)
        drawn = {
            bars.get_label(): [bar.get_width() for bar in bars] for bars in ax.containers if hasattr(bars, "patches")
        }
        assert drawn == {"full source": [0.2, 0.8], f"without {without or 'dots'}": shares}
        assert [label.get_text() for label in ax.get_yticklabels()] == ["sky (true)", "chess"]  # nobody says cards
        assert ax.get_xlim() == (0, 1) and "20 retrained models" in ax.get_xlabel()


def test_pairs_show_one_picture_of_each_data_set():
    left, right = pictures(), replace(pictures(), images=pictures().images + 50)
    ax: Any = plots.pairs(left, right, [(2, 7), (9, 0)])
    assert [int(np.asarray(image.get_array())[8, 8, 0]) for image in ax.images] == [3, 52, 4, 51]
    assert texts(ax) == ["cup / ball", "sock / apple"]


WITHOUT_TORCH = """
import sys, types
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision"): raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import matplotlib; matplotlib.use("agg")
import numpy as np, dtl
class Pictures:
    classes, labels, images = ("a", "b"), np.arange(4) % 2, np.zeros((4, 3, 8, 8), np.uint8)
    def subset(self, index): return types.SimpleNamespace(images=self.images[index])
values, stderr = np.array([[1.0], [-1.0]]), np.full((2, 1), 0.1)
found = dtl.Influence(values, stderr, np.ones(1), "ols", "random", 9, sources=("a", "b"))
dtl.plots.style()
dtl.plots.image_grid(Pictures())
dtl.plots.images(Pictures(), [1, 2])
dtl.plots.pairs(Pictures(), Pictures(), [(0, 1)])
picker = dtl.widgets.class_picker(found, images=Pictures(), n_images=2)
print(picker.children[0].options, [name for name in sys.modules if name.split(".")[0] in ("torch", "torchvision")])
"""


def test_figures_and_pickers_need_no_torch():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True)
    assert done.stdout == "(('0', 0),) []\n", done.stderr


@pytest.mark.parametrize(
    ("output", "said"),
    [("margin", "margin"), ("correct", "share right"), ("probability", "probability"), ("", "output")],
)
def test_figures_say_which_output_they_show(output, said):
    few = np.random.default_rng(0).normal(size=(3, 2))
    found = Influence(few, np.ones((3, 2)), np.ones(2), "difference", "paired", 9, output=output)
    assert f"influence on the {said}" in plots.influence_bars(found, target=0).get_xlabel()
    bar = plots.influence_heatmap(found).collections[0].colorbar
    assert bar is not None and bar.ax.get_ylabel() == f"influence on the {said}"


def test_pictures_of_groups_and_tables_of_others_are_refused(problem):
    few, names = np.random.default_rng(0).normal(size=(3, 1)), ("a", "b", "c")
    groups = Influence(few, np.ones((3, 1)), np.ones(1), "difference", "paired", 9, sources=names, unit="group")
    with pytest.raises(InputError, match="units are groups, for which there is no picture of a class"):
        plots.influence_bars(groups, images=problem.source)
    with pytest.raises(InputError, match=r"what dtl\.flip_rate returns"):
        plots.flip_bars(xr.Dataset({"n": 1}), 0)
