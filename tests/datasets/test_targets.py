"""The paper's targets, read from small files in the formats in which they are published."""

import hashlib
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

import dtl
from dtl.data import ImageDataset
from dtl.datasets.targets import TARGETS

SIDE, STEP = 8, 120  # pixels; grey of class k starts at STEP * k


def save(path: Path, grey: int) -> None:
    """A plain picture, so that what was read tells which file it was; JPEG keeps a plain grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (grey, grey, grey)).save(path, quality=95)


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def aircraft(root: Path) -> None:
    data, number = root / "fgvc-aircraft-2013b/data", 0
    write(data / "variants.txt", ["707-320", "A340 (long name)"])
    for split, n in (("train", 3), ("val", 2), ("test", 2)):
        lines = []
        for k, variant in enumerate(["707-320", "A340 (long name)"]):
            for _ in range(n):
                save(data / f"images/{number:07}.jpg", STEP * k + number)
                lines.append(f"{number:07} {variant}")
                number += 1
        write(data / f"images_variant_{split}.txt", lines)


def birdsnap(root: Path) -> None:
    for split, n in (("train", 5), ("test", 2)):
        for k, name in enumerate(["Acadian_Flycatcher", "Wood_Duck"]):
            for i in range(n):
                save(root / f"birdsnap/{split}/{name}/{i}.jpg", STEP * k + i)


def caltech101(root: Path) -> None:
    for k, name in enumerate(["BACKGROUND_Google", "anchor", "wild_cat"]):
        for i in range(33):
            save(
                root / f"caltech101/101_ObjectCategories/{name}/image_{i + 1:04}.jpg", STEP * (k - 1) + i if k else 255
            )


def caltech256(root: Path) -> None:
    for k, name in enumerate(["001.ak47", "002.american-flag"]):
        for i in range(63):
            save(root / f"caltech256/256_ObjectCategories/{name}/{k + 1:03}_{i + 1:04}.jpg", STEP * k + i)
        (root / f"caltech256/256_ObjectCategories/{name}/greg").mkdir()  # the published archive holds such leftovers


def cars(root: Path) -> None:
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "smart fortwo Convertible 2012"], dtype=object)
    savemat(base / "devkit/cars_meta.mat", {"class_names": names})
    fields = [*((name, np.int32) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class")), ("fname", object)]
    for split, n, where in (("train", 5, "devkit/cars_train_annos.mat"), ("test", 2, "cars_test_annos_withlabels.mat")):
        rows = []
        for k in range(2):
            for i in range(n):
                rows.append((0, 0, 9, 9, k + 1, f"{len(rows) + 1:05}.jpg"))
                save(base / f"cars_{split}/{rows[-1][-1]}", STEP * k + i)
        savemat(base / where, {"annotations": np.array(rows, dtype=fields)})


def cifar(root: Path, folder: str, batches: list[tuple[str, int]], meta: tuple[str, str], key: str) -> None:
    base = root / folder
    base.mkdir()
    for batch, (name, n) in enumerate(batches):
        labels = [i % 2 for i in range(n)]
        rows = np.array([np.full(3072, STEP * k + i // 2) for i, k in enumerate(labels)], dtype=np.uint8)
        rows[:, 0], rows[:, 1024:1280] = 250, 40 * (batch % 5)  # one red pixel; green: no copies
        (base / name).write_bytes(pickle.dumps({"data": rows, key: labels}))
    (base / meta[0]).write_bytes(pickle.dumps({meta[1]: ["airplane", "automobile"]}))


def cifar10(root: Path) -> None:
    batches = [*((f"data_batch_{i}", 4) for i in range(1, 6)), ("test_batch", 4)]
    cifar(root, "cifar-10-batches-py", batches, ("batches.meta", "label_names"), "labels")


def cifar100(root: Path) -> None:
    batches = [("train", 20), ("test", 4)]
    cifar(root, "cifar-100-python", batches, ("meta", "fine_label_names"), "fine_labels")


def flowers(root: Path) -> None:
    base, n = root / "flowers-102", 3 * 102
    for i in range(n):
        save(base / f"jpg/image_{i + 1:05}.jpg", i % 102)
    savemat(base / "imagelabels.mat", {"labels": np.arange(n) % 102 + 1})
    ids = np.arange(1, n + 1).reshape(3, 102)
    savemat(base / "setid.mat", {"trnid": ids[:1], "valid": ids[1:2], "tstid": ids[2:]})


def food(root: Path) -> None:
    for split, n in (("train", 5), ("test", 2)):
        listed = {}
        for k, name in enumerate(["apple_pie", "waffles"]):
            listed[name] = [f"{name}/{split}{i}" for i in range(n)]
            for i, stem in enumerate(listed[name]):
                save(root / f"food-101/images/{stem}.jpg", STEP * k + i)
        write(root / f"food-101/meta/{split}.json", [json.dumps(listed)])


def pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    for split, n in (("trainval", 5), ("test", 2)):
        lines = []
        for k, name in enumerate(["Abyssinian", "american_bulldog"]):
            for i in range(n):
                image = f"{name}_{i + (100 if split == 'test' else 0)}"
                save(base / f"images/{image}.jpg", STEP * k + i)
                lines.append(f"{image} {k + 1} {k + 1} {i}")
        write(base / f"annotations/{split}.txt", lines)


def sun397(root: Path) -> None:
    names = ["abbey", "field/wild"]
    write(root / "SUN397/ClassName.txt", [f"/{name[0]}/{name}" for name in names])
    for k, name in enumerate(names):
        for i in range(103):
            save(root / f"SUN397/{name[0]}/{name}/sun_{i:05}.jpg", STEP * k + i)


def imagenet(root: Path) -> None:
    for k, wnid in enumerate(["n01440764", "n01443537", "n01484850"]):
        for i in range(2):
            save(root / f"imagenet/train/{wnid}/{wnid}_{i}.JPEG", STEP * k + i)


MAKERS = (aircraft, birdsnap, caltech101, caltech256, cars, cifar10, cifar100, flowers, food, pets, sun397)
# training, validation and test images of the files above
SIZES = {
    "aircraft": (6, 4, 4), "birdsnap": (8, 2, 4), "caltech101": (48, 12, 6), "caltech256": (96, 24, 6),
    "cars": (8, 2, 4), "cifar10": (16, 4, 4), "cifar100": (16, 4, 4), "flowers": (102, 102, 102), "food": (8, 2, 4),
    "pets": (8, 2, 4), "sun397": (80, 20, 100),
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small ImageNet, where torchvision takes the checksums of the files that it finds as right."""
    monkeypatch.delenv("DTL_DATA", raising=False)
    folder = tmp_path / "data"
    folder.mkdir()
    imagenet(folder)
    return folder


def checksum(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def accept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision compares these files with the checksums of the real ones."""
    for make in (datasets.CIFAR10, datasets.CIFAR100):
        base = root / make.base_folder
        if base.is_dir():
            for attribute in ("train_list", "test_list"):
                right = [[name, checksum(base / name)] for name, _ in getattr(make, attribute)]
                monkeypatch.setattr(make, attribute, right)
            monkeypatch.setattr(make, "meta", make.meta | {"md5": checksum(base / make.meta["filename"])})
    base = root / "flowers-102"
    if base.is_dir():
        right = {
            key: (name, checksum(base / name) if (base / name).exists() else md5)
            for key, (name, md5) in datasets.Flowers102._file_dict.items()
        }
        monkeypatch.setattr(datasets.Flowers102, "_file_dict", right)


def load(name: str, root: Path | None, **options: Any) -> dtl.TransferProblem:
    return dtl.load(f"imagenet-{name}", root, **({"size": SIDE, "show_progress": False} | options))


def greys(dataset: ImageDataset) -> np.ndarray:
    return dataset.images[:, 0, -1, -1].numpy().astype(int)


def test_the_table_holds_the_eleven_targets_of_the_paper() -> None:
    assert list(TARGETS) == [make.__name__ for make in MAKERS]
    assert sum(target.n_classes for target in TARGETS.values()) == 1901
    assert [name for name, target in TARGETS.items() if target.per_class] == [
        "aircraft", "caltech101", "caltech256", "flowers", "pets",
    ]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_published_files_become_a_problem(make: Any, root: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    make(root)
    accept(root, monkeypatch)
    name = make.__name__
    with caplog.at_level(logging.WARNING, logger="dtl"):
        problem = load(name, root, cache=tmp_path / "cache")
    assert problem.name == f"imagenet-{name}" and problem.per_class_accuracy == TARGETS[name].per_class
    again = dtl.datasets.registry.reopen(problem.origin or {}, problem.fingerprints)
    assert again.per_class_accuracy == TARGETS[name].per_class
    assert problem.source.classes == ("n01440764", "n01443537", "n01484850") and len(problem.source) == 6
    assert tuple(len(problem.parts[f"target_{split}"]) for split in ("train", "validation", "test")) == SIZES[name]
    expected = 102 if name == "flowers" else 2
    assert problem.target_train.n_classes == expected
    partial = [
        record.message for record in caplog.records if record.levelno >= logging.WARNING and "classes" in record.message
    ]
    assert (partial == []) == (name == "flowers") and all(str(root) in message for message in partial)
    for split in ("train", "validation", "test"):
        part = problem.parts[f"target_{split}"]
        shown = greys(part) if name == "flowers" else greys(part) // STEP
        assert part.size == (SIDE, SIDE) and (shown == part.labels.numpy()).all()
    if name not in ("aircraft", "flowers"):  # their validation split is published
        train = [problem.parts[f"target_{split}"] for split in ("train", "validation")]
        assert all((part.counts == part.counts[0]).all() for part in train)


def test_images_in_no_two_splits(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file of SUN397 here has a grey of its own, which JPEG keeps."""
    sun397(root)
    problem = load("sun397", root, cache=tmp_path)
    again, other = load("sun397", root, cache=tmp_path), load("sun397", root, cache=tmp_path, seed=1)
    found = np.concatenate([greys(part) for name, part in problem.parts.items() if name != "source"])
    assert len(set(found.tolist())) == len(found) == 200
    assert problem.fingerprints == again.fingerprints != other.fingerprints


def test_cifar_is_as_published_at_32_pixels(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar10(root)
    accept(root, monkeypatch)
    source = ImageDataset(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]), ("a", "b"))
    problem = load("cifar10", root, size=32, source=source)
    assert problem.source is source and problem.origin is None  # as no name can make it again
    assert problem.target_test.images[0, :, 0, 0].tolist() == [250, 0, 0]
    assert problem.target_test.labels.tolist() == [0, 1, 0, 1] and greys(problem.target_test).tolist() == [
        0,
        STEP,
        1,
        STEP + 1,
    ]


def test_data_are_found_through_the_environment(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="where is Oxford-IIIT Pets.*root=, or set DTL_DATA"):
        load("pets", None)
    elsewhere = tmp_path / "targets"
    pets(elsewhere)
    monkeypatch.setenv("DTL_DATA", f"{root}:{elsewhere}")
    problem = load("pets", None, cache=tmp_path, limit=1)
    assert problem.target_train.classes == ("Abyssinian", "American Bulldog") and len(problem.source) == 3


@pytest.mark.parametrize("name", TARGETS)
def test_a_missing_target_is_one_clear_error(name: str, root: Path) -> None:
    target = TARGETS[name]
    before = sorted(root.iterdir())
    with pytest.raises(FileNotFoundError) as error:
        load(name, root)
    message = str(error.value)
    assert target.title in message and str(root / target.folder) in message and target.get in message
    assert sorted(root.iterdir()) == before
    (root / target.folder).mkdir()
    with pytest.raises(FileNotFoundError, match="is incomplete") as error:
        load(name, root)
    assert target.get in str(error.value)


def test_what_else_can_be_missing(root: Path, tmp_path: Path) -> None:
    pets(root)
    (root / "oxford-iiit-pet/annotations/test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"incomplete \(.*test.txt"):
        load("pets", root)
    caltech101(root)
    for i in range(4, 34):
        (root / f"caltech101/101_ObjectCategories/anchor/image_{i:04}.jpg").unlink()
    with pytest.raises(ValueError, match="anchor of Caltech-101 has 3 images, but 30 are for training"):
        load("caltech101", root)
    food(root)
    (root / "food-101/images/waffles/test1.jpg").unlink()
    with pytest.raises(ValueError, match=r"cannot read 1 of 4 images: .*test1.jpg \(it is no file"):
        load("food", root, cache=tmp_path)
    birdsnap(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"ImageNet is missing: {tmp_path / 'imagenet'}"):
        load("birdsnap", tmp_path)


def test_settings_are_checked_first(tmp_path: Path) -> None:
    for options, problem in (
        ({"size": 0}, "size, in pixels, must be"),
        ({"holdout": 0.5}, "holdout must"),
        ({"limit": 0}, "limit, in images a class, must"),
    ):
        with pytest.raises(ValueError, match=problem):
            load("pets", tmp_path, **options)
