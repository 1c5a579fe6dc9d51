"""ImageNet (200 classes) to CIFAR-10: read from files as users have them, and the rule of the hand-picked classes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_targets import cifar10 as write_batches
from torchvision import datasets

import dtl
import dtl.datasets.imagenet200
from dtl.datasets.imagenet200 import CATEGORIES, NAMES

SHARED = Path(__file__).parents[3] / "shared/data/imagenet200/classes.json"
WORDNET = Path("/usr/share/wordnet/data.noun")  # Debian's package wordnet-base
WNIDS = {"goldfish": "n01443537", "bullfrog": "n01641577", "sports car": "n04285008"}


def save(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three source classes of four images, two target classes of ten and three."""
    for k, wnid in enumerate(WNIDS.values()):
        for i in range(4):
            save(tmp_path / f"imagenet200/train/{wnid}/{i}.png", 60 * k + i)
    for split, n in (("train", 10), ("test", 3)):
        for k, name in enumerate(["airplane", "automobile"]):
            for i in range(n):
                save(tmp_path / f"cifar10/{split}/{name}/{i}.png", 100 * k + i)
    return tmp_path


def load(root: Path | None, **options: object) -> dtl.TransferProblem:
    options = {"size": 8, "classes": list(WNIDS), "show_progress": False, **options}
    if root is not None:
        options |= {"cache": root / "cache"}
    return dtl.load("imagenet200-cifar10", root, **options)


def test_image_folders(root: Path) -> None:
    problem = load(root, holdout=0.2)
    assert problem.name == "imagenet200-cifar10"
    assert problem.source.classes == ("goldfish", "bullfrog", "sports car")
    assert problem.source.images[:, 0, 0, 0].tolist() == [60 * k + i for k in range(3) for i in range(4)]
    assert problem.source.labels.tolist() == np.repeat([0, 1, 2], 4).tolist()
    parts = {part: dataset.counts.tolist() for part, dataset in problem.parts.items()}
    assert parts == {
        "source": [4, 4, 4], "target_train": [8, 8], "target_validation": [2, 2], "target_test": [3, 3],
    }  # fmt: skip
    shades = [set(problem.parts[f"target_{s}"].images[:, 0, 0, 0].tolist()) for s in ("train", "validation")]
    assert not shades[0] & shades[1] and len(shades[0] | shades[1]) == 20


def test_classes_by_name_or_wnid_in_the_order_of_wordnet(root: Path) -> None:
    problem = load(root, classes=["sports car", "n01443537"])
    assert problem.source.classes == ("goldfish", "sports car")
    assert problem.source.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 120, 121, 122, 123]
    again = dtl.datasets.registry.reopen(problem.origin or {})
    assert again.fingerprints == problem.fingerprints


def test_limits(root: Path) -> None:
    problem = load(root, limit=2, target_limit=3, holdout=0.2)
    assert problem.source.counts.tolist() == [2, 2, 2]
    assert problem.target_train.counts.tolist() == [3, 3]
    assert problem.target_validation.counts.tolist() == [2, 2] and problem.target_test.counts.tolist() == [3, 3]
    assert load(root, limit=2, target_limit=3, holdout=0.2).fingerprints == problem.fingerprints


def test_the_layout_of_the_tiny_imagenet_archive_and_of_torchvision(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "imagenet200").rename(root / "tiny-imagenet-200")
    for wnid in WNIDS.values():
        folder = root / "tiny-imagenet-200/train" / wnid
        (folder / "images").mkdir()
        for file in folder.glob("*.png"):
            file.rename(folder / "images" / file.name)
    (root / "cifar10").rename(root / "elsewhere")
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(
        datasets.CIFAR10, "_load_meta", lambda self: setattr(self, "classes", ["airplane", "automobile"])
    )
    monkeypatch.setenv("DTL_DATA", str(root))
    with pytest.raises(
        FileNotFoundError, match="CIFAR-10 is missing: neither .*cifar10 nor .*cifar-10-batches-py.*download"
    ):
        load(None, cache=root / "cache")
    (root / "cifar-10-batches-py").mkdir()  # as a killed download leaves it
    with pytest.raises(FileNotFoundError, match="CIFAR-10 in .*batches-py lacks files .*; pass download=True"):
        load(None, cache=root / "cache")
    (root / "cifar-10-batches-py").rmdir()
    asked = []

    class Downloading(datasets.CIFAR10):
        def __init__(self, root: Path, train: bool = True, download: bool = False) -> None:
            if download:
                asked.append(root)
                write_batches(Path(root))
            super().__init__(root, train)

    monkeypatch.setattr(dtl.datasets.imagenet200.datasets, "CIFAR10", Downloading)
    problem = load(None, cache=root / "cache", size=32, download=True)
    assert asked == [root]
    assert problem.source.counts.tolist() == [4, 4, 4] and problem.source.size == (32, 32)
    assert len(problem.target_train) + len(problem.target_validation) == 20 and len(problem.target_test) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"classes": ["goldfish", "unicorn"]},
            "unknown classes unicorn: names and wnids are in imagenet200.NAMES",
        ),
        ({"classes": "goldfish"}, "classes must be a list of names, not 'goldfish'"),
        ({"classes": [1, 2]}, "classes must be a list of names, not"),
        ({"classes": ["goldfish"]}, "two or more different classes"),
        ({"classes": ["goldfish", "n01443537"]}, "two or more different classes"),
        ({"target_limit": 0}, "limit, in images a class, must be a whole number of at least 1"),
        ({"holdout": 0.7}, "holdout must lie"),
    ],
)
def test_bad_settings(root: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(root, **options)


def test_missing_data(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"lacks the classes n01629819.* \(197 of 200\)"):
        load(root, classes=None)
    with pytest.raises(
        FileNotFoundError, match="ImageNet-200 is missing: .*empty/imagenet200/train.*tiny-imagenet-200.zip"
    ):
        load(tmp_path / "empty")


def test_names() -> None:
    assert len(NAMES) == len(set(NAMES.values())) == 200 and list(NAMES) == sorted(NAMES)
    assert set(CATEGORIES) <= set(NAMES.values()) and len(CATEGORIES) == 32


@pytest.mark.skipif(not SHARED.is_file(), reason=f"{SHARED} is absent: nothing to compare the names with")
def test_names_are_those_of_the_data() -> None:
    names = json.loads(SHARED.read_text())
    assert {wnid: words.split(",")[0] for wnid, words in names.items()} == NAMES


@pytest.mark.skipif(not WORDNET.is_file(), reason=f"{WORDNET} is absent: nothing to compare the categories with")
def test_hand_picked_classes_are_hyponyms_in_wordnet() -> None:
    above: dict[str, list[str]] = {}
    word: dict[str, str] = {}
    for line in WORDNET.read_text("latin1").splitlines():
        if not line.startswith(" "):
            fields = line.split(" | ")[0].split()
            pointers = fields[5 + 2 * int(fields[3], 16) :]
            word[fields[0]] = fields[4]
            above[fields[0]] = [there for kind, there in zip(pointers[::4], pointers[1::4], strict=True) if kind == "@"]

    def hypernyms(synset: str) -> set[str]:
        return {synset}.union(*(hypernyms(one) for one in above[synset]))

    synsets = {"03125870", "03791235", "01503061", "02120997", "02370806", "02084071", "01639765"}
    assert {word[s].replace("_", " ") for s in synsets} == set(CATEGORIES.values())
    found = {name: [word[s] for s in hypernyms(wnid[1:]) & synsets] for wnid, name in NAMES.items()}
    assert {name: [c.replace(" ", "_")] for name, c in CATEGORIES.items()} == {n: c for n, c in found.items() if c}
