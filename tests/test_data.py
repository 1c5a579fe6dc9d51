"""Datasets, problems, and folders of images in whatever format."""

import dataclasses
import logging
import os
import pickle
import shutil
import threading
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

import dtl
from dtl._files import save_tensors
from dtl.data import ImageDataset, TransferProblem
from dtl.datasets import folders as data
from dtl.datasets.saved import save

FORMATS = ["png", "jpg", "gif", "bmp", "webp", "tiff", "avif"]
COLOURS = [(200, 30, 40), (20, 180, 60), (30, 60, 210)]


def picture(colour, size=(24, 24)):
    return Image.new("RGB", size, colour)


def tree(root, n=6, classes=("ant", "bee"), ending="png"):
    """Class folders of plain pictures whose red channel is 10 * class + number."""
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(n):
            picture((10 * k + i, 100, 200)).save(root / name / f"{i:02}.{ending}")
    return root


def decode(path, size):
    return data.square(data.open_rgb(path, size), size)


def reds(dataset):
    return dataset.images[:, 0, 0, 0].tolist()


@pytest.fixture
def folders(tmp_path):
    """from_folders of this test's trees, with a cache of its own."""

    def read(source, target, **options):
        options = {"size": 8, "cache": tmp_path / "cache", "show_progress": False} | options
        return dtl.from_folders(source, target, **options)

    return read


# Datasets and problems


def dataset(n=6, classes=("a", "b"), labels=None, side=4):
    labels = torch.arange(n) % len(classes) if labels is None else torch.tensor(labels)
    return ImageDataset(torch.zeros(n, 3, side, side, dtype=torch.uint8), labels, classes)


def test_subset_keeps_classes_and_takes_indices_or_a_mask():
    full = ImageDataset(torch.arange(6, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 2, 2),
                        torch.tensor([0, 1, 0, 1, 0, 1]), ("a", "b"))  # fmt: skip
    for index in ([4, 1], np.array([4, 1]), torch.tensor([4, 1])):
        assert reds(full.subset(index)) == [4, 1] and full.subset(index).labels.tolist() == [0, 1]
    assert reds(full.subset(full.labels == 1)) == [1, 3, 5]
    assert full.subset([0]).classes == ("a", "b") and full.subset([0, 2]).counts.tolist() == [2, 0]


def test_fingerprint_sees_pixels_labels_and_names_and_nothing_else():
    base = dataset()
    pixels = base.images.clone()
    pixels[3, 1, 2, 0] = 1
    others = [
        ImageDataset(pixels, base.labels, base.classes),
        ImageDataset(base.images, base.labels.flip(0), base.classes),
        ImageDataset(base.images, base.labels, ("a", "c")),
        ImageDataset(base.images.reshape(6, 3, 2, 8), base.labels, base.classes),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 5
    strided = torch.zeros(6, 4, 4, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    assert ImageDataset(strided, base.labels, base.classes).fingerprint == base.fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]), ("a", "b")), "images must be uint8"),
        ((torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b")), "images must be uint8"),
        ((torch.zeros(2, 3, 0, 4, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b")), "images must be uint8"),
        ((torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0]), ("a", "b")), "one for each of the 2 images"),
        ((torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0.0, 1.0]), ("a", "b")), "labels must be int64"),
        ((torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 2]), ("a", "b")),
         "label 2 of image 1 is out of range: there are 2 classes, so labels are 0..1"),
        ((torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([-1, 0]), ("a", "b")), "label -1 of image 0"),
    ],
)  # fmt: skip
def test_a_dataset_refuses_what_is_not_one(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageDataset(*arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": dataset(classes=("a",))}, "source has 1 class"),
        ({p: dataset(classes=("a",)) for p in ("target_train", "target_validation", "target_test")},
         "target_train has 1 class: influences and transfer need at least two"),
        ({"source": dataset(labels=[0] * 6)}, "source has classes without images: b"),
        ({"target_train": dataset(labels=[1] * 6)}, "target_train has classes without images: a"),
        ({"target_test": dataset(classes=("a", "c"))}, "target_test lacks b and also has c"),
        ({"target_validation": dataset(n=0)},
         "target_validation has no images"),
        ({"target_test": dataset(side=5)}, "images of a problem must have one size"),
    ],
)  # fmt: skip
def test_a_problem_refuses_parts_that_do_not_fit(change, message):
    parts: dict[str, Any] = {name: dataset() for name in ("source", "target_train", "target_validation", "target_test")}
    assert TransferProblem("fits", **parts).fingerprints["source"] == dataset().fingerprint
    with pytest.raises(ValueError, match=message):
        TransferProblem("does not fit", **(parts | change))


def test_load_names_what_it_knows():
    with pytest.raises(ValueError, match="unknown problem 'testbeds': known are .*testbed.*from_folders"):
        dtl.load("testbeds")


# Problems by name


def same(one, other):
    return one.name == other.name and one.fingerprints == other.fingerprints


def test_a_problem_by_name_is_pickled_as_its_name(tmp_path, folders):
    problem = dtl.load("testbed", seed=np.int64(3), per_class=20)
    assert problem.origin == {"load": "testbed", "options": {"seed": 3, "per_class": 20}}
    text = pickle.dumps(problem)
    assert len(text) < 1000 and same(pickle.loads(text), problem)
    tree(tmp_path / "t")
    text = pickle.dumps(folders(tmp_path / "t", tmp_path / "t"))
    picture((1, 2, 3)).save(tmp_path / "t" / "ant" / "00.png")
    with pytest.raises(ValueError, match="data of t-t have changed: .* now gives another source, target_"):
        pickle.loads(text)
    shutil.rmtree(tmp_path / "t")
    with pytest.raises(FileNotFoundError, match="t is not a folder"):
        pickle.loads(text)


def test_a_problem_made_by_hand_is_pickled_as_its_tensors():
    named = dtl.load("testbed-examples", per_class=2)
    by_hand = dataclasses.replace(named, name="mine", per_class_accuracy=True)
    again = pickle.loads(pickle.dumps(by_hand))
    assert by_hand.origin is None and same(again, by_hand) and again.per_class_accuracy
    assert again.truth.copy_of.tolist() == np.asarray(vars(named.truth)["copy_of"]).tolist()


@pytest.mark.parametrize("name", ["testbed", "testbed-examples"])
def test_a_saved_problem_is_the_same_with_all_that_was_planted(tmp_path, name):
    problem = dataclasses.replace(dtl.load(name), name="kept", per_class_accuracy=name == "testbed")
    again = dtl.load("file", path=save(problem, tmp_path / "new" / "p.safetensors"))
    assert same(again, problem) and again.per_class_accuracy == problem.per_class_accuracy
    assert again.origin == {"load": "file", "options": {"path": str(tmp_path / "new" / "p.safetensors")}}
    for key, value in vars(problem.truth).items():
        np.testing.assert_equal(getattr(again.truth, key), value)
    held = bytearray((tmp_path / "new" / "p.safetensors").read_bytes())
    held[-1] ^= 1
    (tmp_path / "new" / "p.safetensors").write_bytes(held)
    with pytest.raises(ValueError, match="p.safetensors is damaged"):
        dtl.datasets.registry.reopen(again.origin or {})
    with pytest.raises(FileNotFoundError, match="nothing is no file: give one that dtl.datasets.saved.save wrote"):
        dtl.load("file", path=tmp_path / "nothing")


def test_both_notations_of_older_stores_are_understood(tmp_path, folders):
    tree(tmp_path / "t")
    options = {"source_dir": str(tmp_path / "t"), "target_dir": str(tmp_path / "t"), "size": 8,
               "cache": str(tmp_path / "cache"), "show_progress": False}  # fmt: skip
    problem = dtl.datasets.registry.reopen({"from_folders": options})
    assert problem.origin == {"load": "folders", "options": options}
    assert same(problem, folders(tmp_path / "t", tmp_path / "t"))
    assert dtl.datasets.registry.reopen({"load": "testbed", "options": {"seed": 1}}).name == "testbed-1"


@pytest.mark.parametrize("name", [n for n in dtl.datasets.registry.LOADERS if "<" not in n] + ["imagenet-pets"])
def test_every_name_has_a_loader_whose_options_have_types(name):
    options = typing.get_type_hints(dtl.datasets.registry.options_of(name))
    assert options.pop("return") is TransferProblem and options


def test_accuracy_is_the_mean_over_classes_where_the_problem_says_so():
    correct = np.array([[True, True, True, False], [False, False, False, True]])
    labels = torch.tensor([2, 2, 2, 5])  # others have no examples
    problem = dtl.load("testbed", per_class=20)
    np.testing.assert_allclose(problem.accuracy(correct, labels), [0.75, 0.25])
    problem = dataclasses.replace(problem, name="any", per_class_accuracy=True)
    np.testing.assert_allclose(problem.accuracy(correct, labels), [0.5, 0.5])


def test_problems_and_datasets_are_shown_in_few_words():
    problem = dtl.load("testbed")
    assert repr(problem).count("\n") == 1 and len(repr(problem)) < 250
    assert len(repr(problem.source)) < 120 and "classes a, b, c)" in repr(dataset(classes=("a", "b", "c")))


# Folders


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_is_read(tmp_path, folders, ending):
    if ending in ("avif", "webp") and not features.check(ending):
        pytest.skip(f"this Pillow was built without {ending}")
    for part in ("source", "target"):
        for k, name in enumerate(("ant", "bee", "cat")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(4):
                colour = tuple(channel + 12 * i for channel in COLOURS[k])
                picture(colour).save(tmp_path / part / name / f"{i}.{ending.upper() if i else ending}")
    source = folders(tmp_path / "source", tmp_path / "target").source
    assert source.classes == ("ant", "bee", "cat") and source.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert source.images.shape == (12, 3, 8, 8)
    expected = (torch.tensor(COLOURS)[source.labels] + 12 * torch.arange(4).repeat(3)[:, None])[..., None, None]
    assert (source.images.int() - expected).abs().max() <= 6  # lossy formats


MODES = {
    "grey": (Image.new("L", (24, 24), 120), "png", (120, 120, 120)),
    "grey jpg": (Image.new("L", (24, 24), 120), "jpg", (120, 120, 120)),
    "grey 16 bit": (Image.fromarray(np.full((24, 24), 220 * 256 + 80, dtype=np.uint16)), "png", (220, 220, 220)),
    "grey alpha": (Image.new("LA", (24, 24), (120, 200)), "png", (149, 149, 149)),
    "black and white": (Image.new("1", (24, 24), 1), "png", (255, 255, 255)),
    "alpha": (Image.new("RGBA", (24, 24), (10, 200, 30, 128)), "png", (132, 227, 142)),
    "palette": (picture((10, 200, 30)).quantize(4), "gif", (10, 200, 30)),
    "cmyk": (Image.new("CMYK", (24, 24), (255, 0, 0, 0)), "jpg", (0, 255, 255)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(tmp_path, mode):
    image, ending, expected = MODES[mode]
    image.save(tmp_path / f"x.{ending}")
    decoded = decode(tmp_path / f"x.{ending}", 8)
    assert decoded.shape == (3, 8, 8) and decoded.dtype == torch.uint8
    assert (decoded.int() - torch.tensor(expected)[:, None, None]).abs().max() <= 3


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path):
    picture((10, 200, 30)).quantize(4).save(tmp_path / "x.png", transparency=bytes([0, 100, 200, 255]))
    assert decode(tmp_path / "x.png", 8)[:, 4, 4].tolist() == [255, 255, 255]  # its one colour stands for nothing


def test_rotated_photographs_are_turned_upright(tmp_path):
    image = picture((255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 24, 12))  # the upper half is dark
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise, which brings the upper half to the right
    image.save(tmp_path / "x.jpg", exif=exif, quality=95)
    decoded = decode(tmp_path / "x.jpg", 8).float().mean(0)
    assert decoded[:, 5:].max() < 30 and decoded[:, :3].min() > 225


@pytest.mark.parametrize(("width", "height"), [(60, 20), (20, 60), (21, 20), (8, 8), (3, 5), (2000, 300)])
def test_images_are_cropped_to_the_centre_and_resized(tmp_path, width, height):
    image, side = picture((255, 0, 0), (width, height)), min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    image.paste((0, 255, 0), (left, top, left + side, top + side))
    image.save(tmp_path / "x.png")
    red, green, _ = decode(tmp_path / "x.png", 8).float()
    assert red.shape == (8, 8) and red[2:6, 2:6].max() < 20 and green[2:6, 2:6].min() > 235
    assert red.mean() < 25  # nothing but the central square, save for a rounded edge


def test_the_order_of_images_is_that_of_their_names_however_they_are_decoded(tmp_path, folders, monkeypatch):
    tree(tmp_path / "a", n=10)
    later = threading.Event()

    def slowly(path, size):
        if path.name == "00.png" and path.parent.name == "ant":
            later.wait(5)  # the first image is ready last
        elif path.name == "01.png":
            later.set()
        return original(path, size)

    original = data.open_rgb
    monkeypatch.setattr(data, "open_rgb", slowly)
    source = folders(tmp_path / "a", tmp_path / "a").source
    assert reds(source) == [10 * k + i for k in range(2) for i in range(10)]
    assert source.labels.tolist() == [0] * 10 + [1] * 10


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_split_folders_are_used_where_they_are(tmp_path, folders, validation):
    for k, split in enumerate(("train", validation, "test")):
        tree(tmp_path / "t" / split, n=3 + k)
    problem = folders(tmp_path / "t", tmp_path / "t")
    sizes = [len(part) for part in problem.parts.values()]
    assert sizes == [6, 6, 8, 10]  # the source is the `train` of its tree


def test_a_class_may_be_called_train(tmp_path, folders):
    tree(tmp_path / "vehicles", classes=("car", "test", "train"))
    problem = folders(tmp_path / "vehicles", tmp_path / "vehicles")
    assert problem.source.classes == ("car", "test", "train") and len(problem.source) == 18


@pytest.mark.parametrize("given", [(), ("validation",), ("test",)])
def test_missing_splits_are_held_out_by_class_and_seed(tmp_path, folders, given):
    train = tmp_path / "t" / "train"
    tree(train, n=10)
    for i in range(6, 10):
        (train / "bee" / f"{i:02}.png").unlink()
    for split in given:
        tree(tmp_path / "t" / split, n=1)
    first, again, other = (folders(train, tmp_path / "t", holdout=0.2, seed=seed) for seed in (0, 0, 1))
    held = [split for split in ("validation", "test") if split not in given]
    for split in held:
        assert first.parts[f"target_{split}"].counts.tolist() == [2, 1]  # a fifth of what was in train, for each
    assert first.target_train.counts.tolist() == [10 - 2 * len(held), 6 - len(held)]
    for k in range(2):  # nothing is lost, nothing is in two splits
        parts = [first.target_train, *(first.parts[f"target_{split}"] for split in held)]
        pictures = sorted(red for part in parts for red in reds(part.subset(part.labels == k)))
        assert pictures == list(range(10) if k == 0 else range(10, 16))
    assert first.fingerprints == again.fingerprints
    assert first.fingerprints[f"target_{held[0]}"] != other.fingerprints[f"target_{held[0]}"]


def test_the_smallest_class_that_can_be_split_is(tmp_path, folders):
    tree(tmp_path / "t", n=3)
    problem = folders(tmp_path / "t", tmp_path / "t")
    assert [len(problem.parts[f"target_{split}"]) for split in ("train", "validation", "test")] == [2, 2, 2]
    (tmp_path / "t" / "bee" / "02.png").unlink()
    with pytest.raises(ValueError, match="to hold out validation and test, .*: bee \\(2 of 2\\); add images or"):
        folders(tmp_path / "t", tmp_path / "t")


def test_limit_draws_images_of_each_class_with_the_seed(tmp_path, folders):
    tree(tmp_path / "t", n=10)
    draws = [reds(folders(tmp_path / "t", tmp_path / "t", limit=4, seed=seed).source) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert all(len(set(draw)) == 8 and sum(red < 10 for red in draw) == 4 for draw in draws)
    assert folders(tmp_path / "t", tmp_path / "t", limit=99).source.counts.tolist() == [10, 10]


def test_the_cache_knows_images_by_path_size_and_time(tmp_path, folders, monkeypatch):
    tree(tmp_path / "t")
    decoded = []
    original = data.open_rgb
    monkeypatch.setattr(data, "open_rgb", lambda path, size: decoded.append(path) or original(path, size))
    first = folders(tmp_path / "t", tmp_path / "t")
    assert len(decoded) == 12  # once, though the tree is read as source and as target
    monkeypatch.setattr(Path, "read_bytes", None)  # no file is read to find what was kept
    monkeypatch.setattr(Image, "open", None)
    assert folders(tmp_path / "t", tmp_path / "t").fingerprints == first.fingerprints
    monkeypatch.undo()
    monkeypatch.setattr(data, "open_rgb", lambda path, size: decoded.append(path) or original(path, size))
    before = (tmp_path / "t" / "ant" / "03.png").stat()
    picture((99, 100, 200)).save(tmp_path / "t" / "ant" / "03.png")  # as many bytes as before
    os.utime(tmp_path / "t" / "ant" / "03.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = folders(tmp_path / "t", tmp_path / "t")
    assert len(decoded) == 24 and reds(changed.source)[3] == 99
    folders(tmp_path / "t", tmp_path / "t", size=4)
    assert len(decoded) == 36


def test_a_cache_that_cannot_be_written_is_logged_and_harmless(tmp_path, folders, caplog):
    tree(tmp_path / "t")
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        problem = folders(tmp_path / "t", tmp_path / "t", cache=tmp_path / "file" / "cache")
    assert len(problem.source) == 12 and "cannot keep decoded images" in caplog.text


def test_the_progress_line_says_what_was_read(tmp_path, folders, capsys, monkeypatch):
    monkeypatch.setenv("DTL_PROGRESS", "line")
    tree(tmp_path / "t")
    folders(tmp_path / "t", tmp_path / "t", show_progress=True)
    assert f"reading {tmp_path / 't'}: 12 images in" in capsys.readouterr().out


def test_files_that_are_no_images_are_left_aside(tmp_path, folders):
    tree(tmp_path / "t")
    for name in ("notes.txt", "labels.csv", "paper.pdf"):
        (tmp_path / "t" / "ant" / name).write_text("not an image")
    assert len(folders(tmp_path / "t", tmp_path / "t").source) == 12


# Bad input: one clear error each


def test_missing_and_empty_folders(tmp_path, folders):
    good = tree(tmp_path / "good")
    for first, second in ((tmp_path / "nowhere", good), (good, tmp_path / "nowhere")):
        with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder: give a folder that holds one folder"):
            folders(first, second)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no class folders"):
        folders(tmp_path / "empty", good)


def test_a_class_without_an_image(tmp_path, folders):
    good = tree(tmp_path / "good")
    (tree(tmp_path / "t") / "cow").mkdir()
    with pytest.raises(ValueError, match="class folders without any image in .*: cow; add images or remove them"):
        folders(tmp_path / "t", good)


def test_one_class(tmp_path, folders):
    good = tree(tmp_path / "good")
    one = tree(tmp_path / "one", classes=("ant",))
    with pytest.raises(ValueError, match="source has 1 class"):
        folders(one, good)
    with pytest.raises(ValueError, match="target_train has 1 class"):
        folders(good, one)


BROKEN = {
    "empty.png": b"",
    "text.jpg": b"this is not a picture",
    "broken.ppm": b"P6 4x 4 255 ",
    "bomb.bmp": b"BM" + bytes(12) + b"\x28\0\0\0" + 2 * b"\x00\x00\x01\x00" + b"\x01\0\x18\0" + bytes(24),
}


@pytest.mark.parametrize("name", [*BROKEN, "cut.png", "cut.jpg", "link.png"])
def test_an_unreadable_image_is_named(tmp_path, folders, name):
    good = tree(tmp_path / "good")
    bad = tree(tmp_path / "t") / "bee" / name
    if name.startswith("cut"):
        Image.effect_noise((64, 64), 50).save(bad)
        bad.write_bytes(bad.read_bytes()[:900])
    elif name == "link.png":
        bad.symlink_to(tmp_path / "gone.png")
    else:
        bad.write_bytes(BROKEN[name])
    with pytest.raises(ValueError, match=f"cannot read 1 of 13 images: .*{name} .*: replace or remove them"):
        folders(tmp_path / "t", good)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"size": 0}, "size, in pixels, must be a whole number of at least 1, not 0"),
        ({"size": 16.0}, "size must be a whole number of at least 0, not 16.0"),
        ({"size": "16"}, "not '16'"),
        ({"holdout": "0.2"}, "holdout must be one finite number"),
        ({"holdout": 0}, "holdout must lie strictly between 0 and 0.5, not 0"),
        ({"holdout": 0.5}, "holdout must lie"),
        ({"limit": 0}, "limit, in images a class, must be a whole number of at least 1, not 0"),
    ],
)
def test_bad_settings(tmp_path, folders, option, message):
    good = tree(tmp_path / "good")
    with pytest.raises(ValueError, match=message):
        folders(good, good, **option)


def test_splits_with_other_classes(tmp_path, folders):
    tree(tmp_path / "t" / "train")
    tree(tmp_path / "t" / "test", classes=("ant", "cow"))
    with pytest.raises(ValueError, match="target_test lacks bee and also has cow"):
        folders(tmp_path / "t", tmp_path / "t")


def test_pixels_of_unknown_range_are_refused(tmp_path, folders):
    source = tree(tmp_path / "source")
    values = np.linspace(0, 1, 24 * 24, dtype=np.float32).reshape(24, 24)
    Image.fromarray(values).save(source / "ant" / "depth.tiff")
    with pytest.raises(ValueError, match="cannot read .*depth.tiff .*its pixels are 'F', 32 bits of unknown"):
        folders(source, tree(tmp_path / "target"))


def test_a_target_with_splits_but_no_train_folder(tmp_path, folders):
    tree(tmp_path / "target" / "val")
    tree(tmp_path / "target" / "test")
    with pytest.raises(FileNotFoundError, match="has .*val.*test but no train folder: add one"):
        folders(tree(tmp_path / "source"), tmp_path / "target")


def test_splits_are_found_in_any_case_and_nothing_of_the_users_is_passed_over(tmp_path, folders):
    good = tree(tmp_path / "good")
    for split in ("Training", "Val", "TEST"):
        tree(tmp_path / "target" / split, n=2)
    problem = folders(good, tmp_path / "target")
    assert [len(part) for part in problem.parts.values()] == [12, 4, 4, 4]
    tree(tmp_path / "target" / "validation", n=2)
    with pytest.raises(ValueError, match="target has .* keep one of them"):
        folders(good, tmp_path / "target")
    tree(tmp_path / "flat" / "train")
    (tmp_path / "flat" / "val").mkdir()
    picture((1, 2, 3)).save(tmp_path / "flat" / "val" / "0.png")
    with pytest.raises(ValueError, match="val holds no class folders: sort its images into them, or remove it"):
        folders(good, tmp_path / "flat")
    for split in ("val", "test"):
        tree(tmp_path / "source" / split)
    with pytest.raises(FileNotFoundError, match="source has .* but no train folder"):
        folders(tmp_path / "source", good)


def test_a_link_that_leads_back_is_refused(tmp_path, folders):
    looped = tree(tmp_path / "looped")
    (looped / "ant" / "up").symlink_to(looped)
    with pytest.raises(ValueError, match="is reached twice, as .*looped.*: remove the link"):
        folders(looped, tree(tmp_path / "good"))


@pytest.mark.parametrize("damage", ["cut", "flipped", "other shape", "no safetensors", "no images"])
def test_a_damaged_cache_is_decoded_again(tmp_path, folders, caplog, damage):
    source, target = tree(tmp_path / "a"), tree(tmp_path / "b", n=9)
    first = folders(source, target)
    for file in (tmp_path / "cache").iterdir():
        held = file.read_bytes()
        if damage in ("cut", "flipped"):
            file.write_bytes(held[:100] if damage == "cut" else held[:-9] + bytes([held[-9] ^ 1]) + held[-8:])
        elif damage == "no safetensors":
            file.write_bytes(b"\0")
        else:
            name, shape = ("images", (12, 3, 8, 9)) if damage == "other shape" else ("pixels", (12, 3, 8, 8))
            save_tensors(file, {name: torch.zeros(shape, dtype=torch.uint8)}, {"version": data.CACHE, "notes": "[]"})
    assert folders(source, target).fingerprints == first.fingerprints
    assert "decoded again" in caplog.text and str(tmp_path / "cache") in caplog.text
    caplog.clear()
    assert folders(source, target).fingerprints == first.fingerprints
    assert "decoded again" not in caplog.text  # it was kept anew


def test_options_that_a_problem_does_not_take():
    with pytest.raises(ValueError, match="problem 'testbed': .*keyword argument 'root'; its options are seed, size"):
        dtl.load("testbed", root="somewhere")


def test_every_target_class_needs_images_in_every_split():
    parts = [dataset(8), dataset(8), dataset(8, labels=[0] * 8), dataset(8)]
    with pytest.raises(ValueError, match="target_validation has classes without images: b"):
        TransferProblem("p", *parts)  # pyright: ignore[reportArgumentType]


def test_an_empty_subset_is_empty():
    assert len(dataset().subset([])) == 0
