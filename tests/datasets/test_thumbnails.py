"""A sheet of thumbnails: what is packed is opened, what was changed is refused, and it can be left out."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

import dtl
from dtl import plots, results, widgets
from dtl._checks import InputError
from dtl.data import ImageDataset
from dtl.datasets import saved, thumbnails

ROOT = Path(__file__).resolve().parents[2]
SHEET = results.FOLDER / "imagenet200-cifar10"
SOURCE, TEST = [*range(0, 480, 20), 1, 475], [30, 3, 39]  # numbers of images: one of each class and two


@pytest.fixture
def folder(problem: dtl.TransferProblem, tmp_path: Path) -> Path:
    parts = {"source": (problem.source, SOURCE), "test": (problem.target_test, np.array(TEST))}
    return thumbnails.pack(tmp_path / "few", parts).parent


def same(found: thumbnails.Thumbnails, dataset: ImageDataset, numbers: list[int], most: float = 6) -> None:
    few = dataset.subset(numbers)
    assert found.numbers.tolist() == numbers and found.classes == few.classes and len(found) == len(numbers)
    np.testing.assert_array_equal(found.labels, few.labels.numpy())
    assert found.images.shape == tuple(few.images.shape) and found.images.dtype == np.uint8
    off = np.abs(found.images.astype(float) - few.images.numpy())
    assert off.mean() < most, off.mean()


@pytest.mark.parametrize("avif", [True, False], ids=["avif", "webp"])
def test_what_is_packed_is_opened(problem, tmp_path: Path, monkeypatch, avif: bool, capsys) -> None:
    check = features.check
    monkeypatch.setattr(features, "check", lambda name: avif if name == "avif" else check(name))
    many = np.random.default_rng(0).permutation(len(problem.source))[: 2 * thumbnails.COLUMNS + 1].tolist()
    parts = {
        "source": (problem.source, many),
        "validation": (problem.target_validation, []),
        "test": (problem.target_test, TEST),
    }
    file = thumbnails.pack(tmp_path, parts)
    assert file.name == ("pictures.avif" if avif else "pictures.webp")
    found = thumbnails.open(tmp_path)
    assert list(found) == ["source", "validation", "test"] and len(found["validation"]) == 0
    most = 6 if avif else 20  # the testbed is colourful noise, and WebP halves the resolution of colours
    same(found["source"], problem.source, many, most)
    same(found["test"], problem.target_test, TEST, most)
    assert capsys.readouterr().out == ""


def test_images_are_asked_for_by_their_numbers(problem, folder: Path) -> None:
    test = thumbnails.open(folder)["test"]
    assert test.place([39, 30, 39]) == [2, 0, 2] and test.place(np.array([3])) == [1] and test.place([]) == []
    same(test.subset(test.place([39, 3])), problem.target_test, [39, 3])
    same(test.subset(np.array([True, False, True])), problem.target_test, [30, 39])
    with pytest.raises(InputError, match="images 4, 7 are not among these 3 thumbnails"):
        test.place([4, 3, 7])


def test_classes_may_stand_in_groups(problem) -> None:
    source, names = problem.source, problem.source.classes
    few = thumbnails.Thumbnails(source.images.numpy(), source.labels.numpy(), names, np.arange(len(source)))
    groups = dict.fromkeys(names[:3], "first three")
    found = few.grouped(groups)
    assert found.classes == tuple(sorted(["first three", *names[3:]]))
    mine = found.numbers[found.labels == found.classes.index("first three")]
    assert len(mine) == 60 and source.labels.numpy()[mine[:3]].tolist() == [0, 1, 2]
    study = dtl.Study(problem, unit=groups)
    sources = study.run(46, "cpu", progress=False).influence(by="all").sources
    assert sources == found.classes


@pytest.mark.parametrize("left_out", [False, True])
def test_figures_and_pickers_take_them(problem, folder: Path, monkeypatch, left_out: bool, capsys) -> None:
    if left_out:
        monkeypatch.setenv("DTL_PICTURES", "0")
    found = thumbnails.open(folder)
    source, test = found["source"], found["test"]
    influence = dtl.Influence(np.eye(24, 4), np.full((24, 4), 0.1), np.ones(4), "difference", "paired", 100)
    for ax in (
        plots.image_grid(source, 2, [source.classes[0], source.classes[-1]]),
        plots.images(test, test.place(TEST)),
        plots.pairs(source, test, [(0, 1)]),
        plots.influence_bars(influence, 1, images=source),
    ):
        ax.figure.canvas.draw()  # pyright: ignore[reportAttributeAccessIssue]
        plots.plt.close(ax.figure)  # pyright: ignore[reportArgumentType]
    assert widgets.class_picker(influence, images=source).children
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["Pictures are left out (DTL_PICTURES is 0): grey squares stand in their place."] * left_out


@pytest.mark.parametrize("how", ["switch", "deleted", "unreadable"])
def test_pictures_can_be_left_out(problem, folder: Path, monkeypatch, capsys, how: str) -> None:
    if how == "switch":
        monkeypatch.setenv("DTL_PICTURES", "0")
    elif how == "deleted":
        next(folder.glob("pictures.[!j]*")).unlink()
    else:
        monkeypatch.setattr(features, "check", lambda name: False)
    found = thumbnails.open(folder)
    why = {"switch": "DTL_PICTURES is 0", "deleted": "is not there", "unreadable": "this Pillow reads no"}[how]
    assert why in capsys.readouterr().out
    assert (found["test"].images == thumbnails.GREY).all() and found["test"].images.shape == (3, 3, 16, 16)
    assert found["source"].numbers.tolist() == SOURCE and found["source"].classes == problem.source.classes


def test_other_values_of_the_switch_leave_them_in(folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("DTL_PICTURES", "1")
    assert np.ptp(thumbnails.open(folder)["source"].images) > 0


def test_a_damaged_picture_is_refused(folder: Path) -> None:
    file = next(folder.glob("pictures.[!j]*"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match="is not as packed: SHA-256 .* get it again"):
        thumbnails.open(folder)


def test_no_sheet_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no thumbnails in"):
        thumbnails.open(tmp_path)


def test_what_cannot_be_packed(problem, tmp_path: Path) -> None:
    source = problem.source
    for numbers in ([0, 0], [-1], [480]):
        with pytest.raises(InputError, match="each image of source once, by a number from 0 to 479"):
            thumbnails.pack(tmp_path, {"source": (source, numbers)})
    small = ImageDataset(source.images[:, :, :8, :8], source.labels, source.classes)
    with pytest.raises(InputError, match="all of one size"):
        thumbnails.pack(tmp_path, {"source": (source, [0]), "test": (small, [0])})
    with pytest.raises(InputError, match="one image or more"):
        thumbnails.pack(tmp_path, {"source": (source, [])})
    with pytest.raises(InputError, match="2 thumbnails do not fit into 10 bytes"):
        thumbnails.pack(tmp_path, {"source": (source, [0, 1])}, limit=10)
    assert not list(tmp_path.iterdir())


def test_the_best_quality_that_fits(problem, tmp_path: Path) -> None:
    parts = {"source": (problem.source, range(480))}
    large = thumbnails.pack(tmp_path / "large", parts)
    small = thumbnails.pack(tmp_path / "small", parts, limit=large.stat().st_size // 2)
    assert small.stat().st_size <= large.stat().st_size // 2
    qualities = [json.loads((file.parent / "pictures.json").read_text())["quality"] for file in (small, large)]
    assert qualities[0] < qualities[1] == 95


def test_the_script_packs_the_first_four_of_each_class(problem, tmp_path: Path) -> None:
    data = saved.save(problem, tmp_path / "p.safetensors")
    (tmp_path / "numbers.json").write_text(json.dumps({"test": TEST, "validation": [7]}))
    script = [sys.executable, ROOT / "book/results/pictures.py", "--data", data, "--out", tmp_path / "out"]
    subprocess.run([*script, "--numbers", tmp_path / "numbers.json"], check=True, capture_output=True)
    found = thumbnails.open(tmp_path / "out")
    same(found["source"], problem.source, [20 * k + i for k in range(24) for i in range(4)])
    same(found["test"], problem.target_test, TEST)
    same(found["validation"], problem.target_validation, [7])


# The sheet that ships


def test_the_wheel_brings_the_sheet() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = settings["package-data"]["dtl.shipped"]
    folder = ROOT / settings["package-dir"]["dtl.shipped"]
    brought = {path for pattern in shipped for path in folder.glob(pattern)}
    here = {path for path in (folder / "imagenet200-cifar10").iterdir() if path.suffix != ".py"}
    assert here <= brought, f"the wheel lacks {here - brought}"


@pytest.mark.skipif(not (SHEET / "pictures.avif").is_file(), reason="pictures are left out")
def test_the_shipped_sheet_is_small_and_says_whose_it_is(monkeypatch) -> None:
    monkeypatch.delenv("DTL_PICTURES", raising=False)
    assert sum((SHEET / name).stat().st_size for name in ("pictures.avif", "pictures.json")) <= 600_000
    found = thumbnails.open("imagenet200-cifar10")
    assert np.bincount(found["source"].labels).tolist() == [4] * 200
    assert all(part.images.shape[1:] == (3, 32, 32) for part in found.values())
    assert list(found) == ["source", "validation", "alike source", "alike test"]
    assert [len(part.classes) for part in found.values()] == [200, 10, 200, 10]
    with Image.open(SHEET / "pictures.avif") as sheet:
        assert not sheet.getexif(), "no data about the photographs"
    terms = (SHEET / "PICTURES.md").read_text()
    assert all(word in terms for word in ("ImageNet", "CIFAR-10", "non-commercial", "DTL_PICTURES=0", "photographers"))


def test_some_classes_only(folder: Path) -> None:
    source = thumbnails.open(folder)["source"]
    names = source.classes[5], source.classes[2]
    few = source.only(names)
    assert few.classes == names and few.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(few.images[1], source.images[source.labels == 5][0])
    with pytest.raises(InputError, match="unknown class 'cheese'"):
        source.only(["cheese"])
