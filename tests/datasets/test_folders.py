"""Folders as they really are: hidden entries, split names, copies, groups, odd names, odd pixels."""

import io
import logging
import os
import shutil
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import dtl
import dtl._checks
from dtl.datasets import folders

NFC, NFD = "caf\u00e9", "cafe\u0301"


def png(seed: int, side: int = 9) -> bytes:
    """A picture like no other."""
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "png", compress_level=1)
    return held.getvalue()


def tree(root: Path, n: int = 6, classes=("ant", "bee"), seed: int = 0) -> Path:
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            (root / name / f"{i}.png").write_bytes(png(1000 * seed + 100 * k + i))
    return root


@pytest.fixture
def read(tmp_path, caplog):
    """from_folders of this test's trees; what it logs is kept."""
    caplog.set_level(logging.INFO, logger="dtl")

    def call(source, target, **options):
        options = {"size": 8, "cache": tmp_path / "cache", "show_progress": False} | options
        return dtl.from_folders(source, target, **options)

    return call


@pytest.fixture
def good(tmp_path):
    return tree(tmp_path / "good", seed=9)


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# What is a class, what is an image


def test_what_systems_leave_behind_is_no_class_and_no_image(tmp_path, good, read, caplog):
    root = tree(tmp_path / "t")
    for name in (
        ".ipynb_checkpoints",
        "__MACOSX",
        "@eaDir",
        ".Trash-1000",
        "ant/.ipynb_checkpoints",
        "ant/deep/.thumbs",
    ):
        shutil.copytree(good / "ant", root / name)
    shutil.copy(good / "ant" / "0.png", root / "ant" / "deep" / "5.png")
    for name in ("._0.png", ".DS_Store", "Thumbs.db"):
        (root / "ant" / name).write_bytes(b"\0")
    source = read(root, good).source
    assert source.classes == ("ant", "bee") and source.counts.tolist() == [7, 6]
    (line,) = [r.getMessage() for r in caplog.records if "2 classes, 13 images" in r.getMessage()]
    for name in (
        "1 .ipynb_checkpoints/",
        "1 .ipynb_checkpoints,",
        "__MACOSX",
        "@eaDir",
        ".Trash-1000",
        ".thumbs/",
        "1 ._*",
    ):
        assert name in f"{line},", name
    assert not any("passed over" in line for line in warnings_in(caplog))


@pytest.mark.parametrize("names", [("train", "val", "test"), ("train",), ("Train2017", "val2017"), ("dev", "eval-set")])
@pytest.mark.parametrize("inside", ["", "ant"])
def test_splits_are_no_classes(tmp_path, good, read, names, inside):
    for name in names:
        tree(tmp_path / "t", classes=(f"{name}/{inside}",))
    if inside and "train" in names:
        tree(tmp_path / "t", classes=(f"{name}/bee" for name in names), seed=1)
        assert read(good, tmp_path / "t").target_train.classes == ("ant", "bee")
        return
    with pytest.raises(ValueError, match="holds .*: splits, not classes; name them train, validation and test"):
        read(good, tmp_path / "t")


def test_a_class_called_train_with_folders_inside_is_not_taken_for_a_split(tmp_path, good, read):
    tree(tmp_path / "t", classes=("car", "train/steam", "train/diesel"))
    with pytest.raises(ValueError, match=r"is .*t/train a split or a class\? Beside it car holds images too"):
        read(tmp_path / "t", good)


def test_unknown_splits_are_said_and_folders_without_images_too(tmp_path, good, read, caplog):
    for k, split in enumerate(("train", "eval", "test")):
        tree(tmp_path / "t" / split, seed=k)
    (tmp_path / "t" / "annotations").mkdir()
    assert len(read(good, tmp_path / "t").target_test) == 12
    assert any("passed over beside its train folder: annotations, eval" in line for line in warnings_in(caplog))


def test_a_parent_given_as_source(tmp_path, read, caplog):
    for k, name in enumerate(("source", "target")):
        tree(tmp_path / "both" / name, seed=k)
    with pytest.raises(ValueError, match="of .*both and .*both/target one lies in the other"):
        read(tmp_path / "both", tmp_path / "both" / "target")
    with pytest.raises(ValueError, match="one lies in the other"):
        read(tmp_path / "both" / "source", tmp_path / "both")
    read(tmp_path / "both", tree(tmp_path / "elsewhere", seed=3))
    assert any("is it the parent of your tree?" in line for line in warnings_in(caplog))


def test_images_that_cannot_be_read_are_a_warning_and_notes_are_not(tmp_path, good, read, caplog):
    root = tree(tmp_path / "t")
    for name in ("IMG_0.HEIC", "IMG_1.heic", "notes.txt"):
        (root / "ant" / name).write_bytes(b"x")
    read(root, good)
    assert [line for line in warnings_in(caplog) if "passed over: 2 .heic, 1 .txt" in line]
    caplog.clear()
    (root / "lost.png").write_bytes(png(77))
    for path in root.glob("ant/*.[Hh]*"):
        path.unlink()
    read(root, good)
    assert [line for line in warnings_in(caplog) if "1 .png" in line]
    caplog.clear()
    (root / "lost.png").unlink()
    read(root, good)
    assert not [line for line in warnings_in(caplog) if "passed over" in line] and "1 .txt" in caplog.text


def test_all_unreadable_images_are_in_one_error(tmp_path, good, read):
    root = tree(tmp_path / "t", n=30)
    bad = [root / name / f"{i}.png" for name in ("ant", "bee") for i in range(10)]
    for path in bad[:18]:
        path.write_bytes(b"no picture")
    bad[18].unlink()
    bad[18].symlink_to(tmp_path / "gone.png")
    bad[19].unlink()
    os.mkfifo(bad[19])  # reading it would wait for ever
    with pytest.raises(ValueError, match="cannot read 20 of 60 images") as error:
        read(root, good)
    assert all(f"{path} (" in str(error.value) for path in bad)


def test_an_error_says_what_was_passed_over(tmp_path, good, read):
    (tree(tmp_path / "t") / "cow").mkdir()
    (tmp_path / "t" / "cow" / "a.heic").touch()
    with pytest.raises(ValueError, match=r"without any image in .*: cow; add .*passed over: 1 .heic"):
        read(tmp_path / "t", good)


# Names and links


def test_home_is_known(tmp_path, read, monkeypatch):
    for k, name in enumerate("ab"):
        tree(tmp_path / name, seed=k)
    monkeypatch.setenv("HOME", str(tmp_path))
    problem = read("~/a", "~/b", cache="~/kept")
    assert problem.origin["options"]["source_dir"] == str(tmp_path / "a") and (tmp_path / "kept").is_dir()
    for wrong in ("", 5, None):
        with pytest.raises(ValueError, match="source_dir must name a folder or file, not|needs"):
            read(wrong, "~/b")


def test_links_into_a_content_store(tmp_path, good, read):
    """As Hugging Face, git-annex and DVC keep files: two names may be one blob."""
    (tmp_path / "blobs").mkdir()
    root = tree(tmp_path / "t")
    for path in [*root.glob("*/*.png")]:
        shutil.move(path, tmp_path / "blobs" / f"{path.parent.name}{path.stem}")
        path.symlink_to(tmp_path / "blobs" / f"{path.parent.name}{path.stem}")
    (root / "ant" / "again.png").symlink_to(tmp_path / "blobs" / "ant0")
    assert read(root, good).source.counts.tolist() == [7, 6]
    (root / "bee" / "more").symlink_to(root / "ant")
    with pytest.raises(ValueError, match="t/ant is reached twice, as .*ant and .*bee/more: remove the link"):
        read(root, good)


@pytest.mark.parametrize("twin", ["b ee", "b\u200bee", "bee "])
def test_names_that_look_alike_are_refused(tmp_path, good, read, twin):
    tree(tmp_path / "alike", classes=("b  ee" if twin == "b ee" else "bee", twin))
    with pytest.raises(ValueError, match="more than one class is called b ?ee: give each a name of its own"):
        read(tmp_path / "alike", good)


def test_names_that_differ_by_capitals_alone_are_said(tmp_path, good, read, caplog):
    problem = read(tree(tmp_path / "letters", classes=("a", "A", "b")), good)
    assert problem.source.classes == ("A", "a", "b")
    assert "classes that differ by capitals alone: A, a" in caplog.text


def test_one_picture_under_two_labels_is_said(tmp_path, good, read, caplog):
    root = tree(tmp_path / "torn")
    shutil.copy(next((root / "ant").iterdir()), root / "bee" / "again.png")
    problem = read(root, good)
    torn = [problem.source.paths[i] for i in np.flatnonzero(problem.source.contradicted)]
    assert len(torn) == 2 and torn[1].endswith("again.png")
    assert "2 images of source are in it under two labels" in caplog.text and "again.png" in caplog.text


def test_names_that_are_no_utf8(tmp_path, good, read):
    odd = os.fsdecode(b"caf\xe9")
    problem = read(tree(tmp_path / odd, classes=(odd, "bee")), good)
    assert problem.source.classes == ("bee", r"caf\udce9") and problem.name.encode()
    assert all(Path(path).is_file() for path in problem.source.paths)


def test_two_forms_of_one_name(tmp_path, good, read):
    for k, (split, name) in enumerate((("train", NFD), ("val", NFC), ("test", NFD))):
        tree(tmp_path / "t" / split, classes=("bee", name), seed=k)
    problem = read(good, tmp_path / "t")
    assert problem.target_test.classes == problem.target_validation.classes == ("bee", NFC)
    tree(tmp_path / "twins", classes=(NFC, NFD))
    with pytest.raises(ValueError, match=f"more than one class is called {NFC}"):
        read(tmp_path / "twins", good)


def test_a_class_that_one_split_lacks_is_named(tmp_path, good, read):
    names = [f"class{i:03}" for i in range(200)]
    for k, (split, kept) in enumerate((("train", names), ("val", names[:-1]), ("test", names))):
        tree(tmp_path / "t" / split, n=1, classes=kept, seed=10 + k)
    with pytest.raises(ValueError, match="target_validation lacks class199") as error:
        read(good, tmp_path / "t")
    assert len(str(error.value)) < 200


def test_paths_lead_to_files_and_follow_subsets(tmp_path, good, read):
    problem = read(tree(tmp_path / "t"), good)
    for part in problem.parts.values():
        for path, image, label in zip(part.paths, part.images, part.labels, strict=True):
            assert torch.equal(folders.square(folders.open_rgb(Path(path), 8), 8), image)
            assert Path(path).parent.name == part.classes[label]
    few = problem.source.subset(torch.tensor([7, 2]))
    assert few.paths == (problem.source.paths[7], problem.source.paths[2])
    assert problem.source.subset([]).paths == ()
    bare = dtl.ImageDataset(problem.source.images, problem.source.labels, problem.source.classes)
    assert bare.paths is None and bare.fingerprint == problem.source.fingerprint
    with pytest.raises(ValueError, match="paths must be one for each of the 12 images, not 1"):
        dtl.ImageDataset(bare.images, bare.labels, bare.classes, ("x",))


# Pixels


def icon(mode: str, shape: np.ndarray) -> Image.Image:
    """A black shape on nothing."""
    alpha = Image.fromarray(np.where(shape, 255, 0).astype(np.uint8))
    image = Image.merge("RGBA", [*[Image.new("L", alpha.size)] * 3, alpha])
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB", "L"])
def test_transparent_images_are_laid_on_white(tmp_path, mode):
    shape = np.zeros((24, 24), dtype=bool)
    shape[6:18, 6:18] = True
    if mode in ("RGBA", "LA", "PA"):
        image = icon("RGBA", shape).convert("LA") if mode == "LA" else icon("RGBA", shape)
        image.save(tmp_path / "x.png")
    else:  # one colour of these stands for nothing
        image = Image.fromarray(np.where(shape, 0, 60).astype(np.uint8)).convert(mode)
        image.save(tmp_path / "x.png", transparency={"P": 60, "L": 60, "RGB": (60, 60, 60)}[mode])
    decoded = folders.square(folders.open_rgb(tmp_path / "x.png", 8), 8)
    assert decoded[:, 3:5, 3:5].max() == 0 and decoded[:, 0].min() == 255


def test_half_transparent_is_mixed_with_white_and_nothing_visible_is_said(tmp_path, good, read, caplog):
    half = folders.to_rgb(Image.new("RGBA", (2, 2), (10, 200, 30, 128)))
    assert np.asarray(half)[0, 0].tolist() == pytest.approx([132, 227, 142], abs=1)
    root = tree(tmp_path / "t")
    shape = np.eye(24, dtype=bool)
    white = icon("RGBA", shape)
    Image.merge("RGBA", [*[Image.new("L", (24, 24), 255)] * 3, white.getchannel("A")]).save(root / "ant" / "0.png")
    read(root, good)
    assert any("1 images show nothing but one colour: " in line and "ant/0.png" in line for line in warnings_in(caplog))


def wide_png(path: Path, values: np.ndarray) -> None:
    """16 bits a channel in RGB, which Pillow does not write."""
    height, width, _ = values.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0),
        b"IDAT": zlib.compress(lines),
        b"IEND": b"",
    }
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_16_bits_are_scaled_by_what_the_images_of_a_tree_hold(tmp_path, good, read, caplog):
    root = tree(tmp_path / "t")
    for i, top in enumerate((4095, 900)):  # 12 bits; the second picture is dark
        values = np.full((8, 8), top, dtype=np.uint16)
        values[0, 0] = 0
        Image.fromarray(values).save(root / "ant" / f"{i}.png")
    source = read(root, good).source
    assert source.images[:2, 0, 4, 4].tolist() == [255, 900 >> 4] and source.images[0, 0, 0, 0] == 0
    assert "2 images have 16 bits, of which 12 are used: 4095 is white" in caplog.text
    caplog.clear()
    read(root, good)
    assert "2 images have 16 bits" in caplog.text  # also where they come from the cache
    Image.fromarray(np.full((8, 8), 60000, dtype=np.uint16)).save(root / "ant" / "2.png")
    assert read(root, good).source.images[:3, 0, 4, 4].tolist() == [4095 >> 8, 900 >> 8, 60000 >> 8]


def test_16_bits_of_colour(tmp_path, good, read):
    root, values = tree(tmp_path / "t"), np.random.default_rng(0).integers(0, 65536, (8, 8, 3))
    wide_png(root / "ant" / "0.png", values)
    assert (read(root, good).source.images[0].permute(1, 2, 0).numpy() == values >> 8).all()
    wide_png(root / "ant" / "0.png", values >> 4)
    with pytest.raises(ValueError, match=r"ant/0.png \(its 16-bit channels use fewer than 14 bits, so that it is dark"):
        read(root, good)


def test_of_an_animation_the_first_frame_is_taken_and_that_is_said(tmp_path, good, read, caplog):
    root = tree(tmp_path / "t")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    for name, kind in (("0.gif", "gif"), ("1.tif", "tiff"), ("2.webp", "webp")):
        frames[0].save(root / "ant" / name, kind, save_all=True, append_images=frames[1:])
    source = read(root, good).source
    shown = [source.images[i, :, 4, 4].tolist() for i, path in enumerate(source.paths) if path[-3:] != "png"]
    assert len(shown) == 3 and all(r > 230 and b < 20 for r, _, b in shown)
    assert "3 files hold several pictures, of which the first is taken" in caplog.text


def test_more_than_the_memory_is_refused_with_its_price(tmp_path, good, read):
    with pytest.raises(ValueError, match=r"12 images of 10000000 x 10000000 pixels take 36.* GB, of \d+ GB that this"):
        read(tree(tmp_path / "t"), good, size=10**7)


# Copies and groups


def test_copies_between_parts_are_counted(tmp_path, read, caplog):
    tree(tmp_path / "s", n=8)
    for k, split in enumerate(("train", "val", "test")):
        tree(tmp_path / "t" / split, seed=1 + k)
    shutil.copy(tmp_path / "s" / "ant" / "0.png", tmp_path / "t" / "test" / "ant" / "copy.png")
    shutil.copy(tmp_path / "t" / "train" / "bee" / "0.png", tmp_path / "t" / "val" / "bee" / "copy.png")
    problem = read(tmp_path / "s", tmp_path / "t")
    assert problem.copies == {("source", "target_test"): 1, ("target_train", "target_validation"): 1}
    assert "s-t: 1 of 13 images of target_test are also in source" in warnings_in(caplog)
    caplog.clear()
    same = read(tmp_path / "s", tmp_path / "s")
    assert sum(same.copies.values()) == 16 and len(warnings_in(caplog)) == 4  # the fourth: small splits
    caplog.clear()
    part = problem.target_train
    dtl.TransferProblem("by hand", problem.source, part, part, part)
    assert len(warnings_in(caplog)) == 3


def splits_of(problem):
    return [problem.target_train, problem.target_validation, problem.target_test]


def test_copies_are_held_out_together(tmp_path, good, read):
    root = tree(tmp_path / "t", n=10)
    for path in [*root.glob("*/*.png")]:
        for copy in "ab":
            shutil.copy(path, path.with_name(f"{path.stem}{copy}.png"))
    for seed in range(3):
        problem = read(good, root, seed=seed)
        assert problem.copies == {}
        assert [part.counts.tolist() for part in splits_of(problem)] == [[18, 18], [6, 6], [6, 6]]
    for i in range(3, 10):
        for name in (f"{i}.png", f"{i}a.png", f"{i}b.png"):
            (root / "bee" / name).unlink()
    assert [part.counts.tolist() for part in splits_of(read(good, root))] == [[18, 3], [6, 3], [6, 3]]
    (root / "bee" / "2.png").write_bytes((root / "bee" / "0.png").read_bytes())
    for name in ("2a.png", "2b.png"):
        (root / "bee" / name).unlink()
    with pytest.raises(ValueError, match="too few images to hold out .*, copies and groups counted once: bee"):
        read(good, root)


def test_four_images_of_a_class_are_enough_and_that_is_said(tmp_path, read, caplog):
    y, x = np.mgrid[:24, :24] - 12
    for split in ("source", "target"):  # black icons, whose shape is in the alpha channel alone
        for name, shape, axis in (("disc", x**2 + y**2 < 64, 1), ("bar", abs(y) < 4, 0)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                icon("RGBA", np.roll(shape, i, axis)).save(tmp_path / split / name / f"{i}.png")
    problem = read(tmp_path / "source", tmp_path / "target", size=24)
    assert len(set(problem.source.digests.tolist())) == 8
    assert [part.counts.tolist() for part in splits_of(problem)] == [[2, 2], [1, 1], [1, 1]]
    assert any(
        "held out, 20% of its training images each, of a class at least 1" in line for line in warnings_in(caplog)
    )
    for i in range(1, 4):  # all bars are one picture, of which none can be held out from the others
        shutil.copy(tmp_path / "target" / "bar" / "0.png", tmp_path / "target" / "bar" / f"{i}.png")
    with pytest.raises(
        ValueError, match=r"too few images .*counted once: bar \(1 of 4\); add images or give validation"
    ):
        read(tmp_path / "source", tmp_path / "target", size=24)


@pytest.mark.parametrize("kind", ["pattern", "whole match", "function", "paths", "names"])
def test_groups_stay_on_one_side(tmp_path, good, read, kind):
    root = tmp_path / "t"
    for k, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(40):  # patients 0 to 9 with four images each, some with both classes
            (root / name / f"p{(i + 3 * k) % 10}-{name}{i}.png").write_bytes(png(100 * k + i))
    files = [path.relative_to(root) for path in root.glob("*/*.png")]
    groups = {
        "pattern": r"p(\d+)-", "whole match": r"p\d+", "function": lambda path: path.name.split("-")[0],
        "paths": {path.as_posix(): path.name[:2] for path in files},
        "names": {path.name: path.name[:2] for path in files},
    }[kind]  # fmt: skip
    problem = read(good, root, groups=groups)
    found = [{Path(path).name.split("-")[0] for path in part.paths} for part in splits_of(problem)]
    assert not (found[0] & found[1] or found[0] & found[2] or found[1] & found[2]) and len(set.union(*found)) == 10
    assert [len(part) for part in splits_of(problem)] == [48, 16, 16]
    assert (problem.origin is None) == (kind == "function")
    if kind != "function":
        assert dtl.datasets.registry.reopen(problem.origin, problem.fingerprints).name == problem.name


def test_groups_that_do_not_work(tmp_path, good, read, caplog):
    root = tree(tmp_path / "t", n=6)
    for groups, message in (
        ({"0.png": 1}, "groups names no group for ant/1.png, ant/2.png"),
        (r"x(\d)", r"groups names no group for ant/0.png.*\(12 in all\)"),
        ("(", "groups must be a regular expression, a mapping or a function"),
        (5, "groups must be a regular expression, a mapping or a function"),
        (lambda path: 1, "too few images to hold out .*groups counted once: ant \\(1 of 6\\), bee"),
        (lambda path: path.name if path.parent.name == "ant" else "b", "groups counted once: bee"),
    ):
        with pytest.raises(ValueError, match=message):
            read(good, root, groups=groups)
    for k, split in enumerate(("train", "val", "test")):
        tree(tmp_path / "given" / split, seed=k)
    for function, message in ((lambda path: None, "groups names no group for"), (lambda path: [1], "can be a key")):
        with pytest.raises(ValueError, match=message):
            read(good, root, groups=function)
    read(good, tmp_path / "given", groups=lambda path: path.name if path.parts[0] != "val" else "x")
    assert any("groups in two splits of" in line and "0.png, 1.png" in line for line in warnings_in(caplog))


def test_images_of_their_own_are_held_out_as_ever():
    """Of splits that were drawn before there were groups none may change: stores and shipped results rest on them."""
    rng, n = np.random.default_rng(3), 90
    labels = torch.from_numpy(rng.integers(0, 3, n))
    images = torch.from_numpy(rng.integers(0, 255, (n, 3, 4, 4), dtype=np.uint8))
    data = dtl.ImageDataset(images, labels, ("a", "b", "c"))
    found = folders.hold_out(data, ["validation", "test"], 0.2, seed=5)
    draw, part = np.random.default_rng(5), np.zeros(n, dtype=int)
    for k, count in enumerate(data.counts):
        members = draw.permutation(np.flatnonzero(labels.numpy() == k))
        take = max(1, int(0.2 * count + 1e-9))
        part[members[:take]], part[members[take : 2 * take]] = 1, 2
    for i, split in enumerate(("train", "validation", "test")):
        assert torch.equal(found[split].images, images[part == i])


# Names and arrays of other types


@pytest.mark.parametrize(
    ("names", "expected"),
    [(np.arange(2), ("0", "1")), (["x", "y"], ("x", "y")), (np.array(["x", "y"]), ("x", "y")), ("xy", ("x", "y")),
     ((0, 1), ("0", "1")), ((NFD, np.str_("y")), (NFC, "y"))],
)  # fmt: skip
def test_names_are_strings_once(names, expected):
    data = dtl.ImageDataset(np.zeros((4, 3, 2, 2), np.uint8), np.array([0, 1, 0, 1], np.int32), names)  # pyright: ignore
    assert data.classes == expected and all(type(name) is str for name in data.classes)
    assert data.images.dtype == torch.uint8 and data.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [({"classes": ("crane", "crane")}, "more than one class is called crane: give each a name of its own"),
     ({"classes": 5}, "classes must be a sequence of names, not 5"),
     ({"classes": {"x", "y"}}, "classes must be a sequence of names, not {"),
     ({"images": np.ma.masked_equal(np.zeros((4, 3, 2, 2), np.uint8), 0)}, "images must not be masked"),
     ({"images": "picture.png"}, "images must be an array of numbers"),
     ({"labels": ["a", "b", "a", "b"]}, "labels must be an array of numbers")],
)  # fmt: skip
def test_what_is_no_dataset(change, message):
    good = {"images": np.zeros((4, 3, 2, 2), np.uint8), "labels": [0, 1, 0, 1], "classes": ("x", "y")}
    with pytest.raises(dtl.data.InputError, match=message):
        dtl.ImageDataset(**good | change)


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True])
def test_a_seed_is_a_whole_number(tmp_path, good, read, seed):
    for call in (lambda: read(tree(tmp_path / "t"), good, seed=seed), lambda: dtl.load("testbed", seed=seed)):
        with pytest.raises(ValueError, match=f"seed must be a whole number of at least 0, not {seed!r}"):
            call()


def test_what_is_no_part_of_a_problem():
    with pytest.raises(ValueError, match=r"source must be a dtl.ImageDataset, not \(1, 2\)"):
        dtl.TransferProblem("p", *[(1, 2)] * 4)  # pyright: ignore


# Any tree: a right answer or one clear error, and nothing silent

FILES = st.sampled_from(
    ["0.png", "1.png", "2.PNG", "3.png", "copy.png", "bad.png", "._0.png", "note.txt", "x.heic", "gone.png", "noend"]
)
FOLDERS = [
    "ant",
    "bee",
    "cow",
    "train",
    "Train",
    "val",
    "test",
    "eval",
    ".git",
    "__MACOSX",
    NFC,
    NFD,
    os.fsdecode(b"d\xe9"),
    "up",
]
LEAVES = st.dictionaries(FILES, st.just("file"), min_size=1, max_size=7)
FULL = st.just({f"{i}.png": "file" for i in range(5)})
NODES = st.recursive(
    st.one_of(FULL, FULL, LEAVES),
    lambda inner: st.dictionaries(st.sampled_from(FOLDERS), inner, min_size=1, max_size=4),
    max_leaves=8,
)
TREES = st.one_of(
    NODES,
    st.dictionaries(st.sampled_from(FOLDERS[:3] + FOLDERS[8:12]), FULL | LEAVES, min_size=2, max_size=4),
    st.fixed_dictionaries(
        {"train": st.fixed_dictionaries({"ant": FULL, "bee": FULL})},
        optional=dict.fromkeys(("val", "test", "eval", "cow", ".git"),
                               st.fixed_dictionaries({"ant": FULL | LEAVES, "bee": FULL})),
    ),
)  # fmt: skip


def build(place: Path, node: dict, made: dict[Path, str], count: list[int]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name, inner in node.items():
        path = place / name
        if isinstance(inner, dict) and name == "up":
            path.symlink_to(place)
        elif isinstance(inner, dict):
            build(path, inner, made, count)
        elif name == "gone.png":
            path.symlink_to(place / "nowhere.png")
            made[path] = "bad"
        else:
            count[0] += 1
            picture = name.lower().endswith(".png") and name != "bad.png"
            path.write_bytes(BYTES[0 if name == "copy.png" else count[0] % len(BYTES)] if picture else b"?")
            made[path] = "picture" if picture else "bad" if name == "bad.png" else "other"


BYTES = [png(i) for i in range(400)]


@settings(max_examples=500 if os.environ.get("CI") else 80, deadline=None, suppress_health_check=list[Any](HealthCheck))
@given(source=TREES, target=TREES)
def test_any_tree_gives_a_right_answer_or_one_clear_error(source, target):
    said: list[str] = []
    ear = type("Ear", (logging.Handler,), {"emit": lambda self, record: said.append(record.getMessage())})()
    logger = logging.getLogger("dtl")
    with tempfile.TemporaryDirectory() as folder:
        root, made = Path(folder), dict[Path, str]()
        for name, node in (("source", source), ("target", target)):
            build(root / name, node, made, count := [200 * (name == "target")])
        logger.addHandler(ear)
        before, logger.level = logger.level, logging.INFO
        try:
            problem = dtl.from_folders(root / "source", root / "target", size=4, cache=root / "c", show_progress=False)
        except (dtl.data.InputError, FileNotFoundError) as error:
            assert (
                str(error)
                and "\n" not in str(error)
                and len(str(error)) < 3000 + 200 * str(error).count("cannot ident")
            )
            return
        finally:
            logger.removeHandler(ear)
            logger.level = before
        assert count
        used = {Path(path): (part, int(label)) for part, data in problem.parts.items()
                for path, label in zip(data.paths or (), data.labels, strict=True)}  # fmt: skip
        for path, (part, label) in used.items():
            assert made[path] == "picture" and not any(folders.hidden(name) for name in path.relative_to(root).parts)
            below = path.relative_to(root).parts[1:]
            classes = problem.parts[part].classes
            assert classes[label] in {dtl._checks.class_names([name])[0] for name in below[:2]}
            image = folders.square(folders.open_rgb(path, 4), 4)
            data = problem.parts[part]
            assert torch.equal(data.images[(data.paths or ()).index(str(path))], image)
        text = "\n".join(said)
        for path, kind in made.items():  # what was not used was said, and nothing broken was passed over
            names = path.relative_to(root).parts
            split = {"val": "validation"}.get(names[1], names[1])
            unread = [line for line in said if "beside its train" in line or "train folder alone" in line]
            if path in used or any(names[0] in line and (names[1] in line or split in line) for line in unread):
                continue
            lying = next((name for name in names if folders.hidden(name)), None)
            expected = path.suffix.lower() or "without ending" if lying is None else lying
            assert ("._*" if expected.startswith("._") else expected) in text, (path, kind, text)
        for (one, other), n in problem.copies.items():
            assert any(f"{n} of " in line and f"images of {other} are also in {one}" in line for line in said)
        trained = set(problem.target_train.digests.tolist())
        if not any(split in target for split in ("val", "test")):
            assert not trained & set(problem.target_test.digests.tolist())
