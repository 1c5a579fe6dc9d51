"""Real images that one GPU can afford: 200 ImageNet classes (those of Tiny ImageNet) to CIFAR-10, at 32 pixels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from dtl._checks import InputError
from dtl.data import ImageDataset, TransferProblem
from dtl.datasets.folders import Listing, at_most, check_reading, hold_out, list_tree, read_files
from dtl.datasets.targets import TARGETS, data_folders, resized

SOURCES = ("imagenet200", "tiny-imagenet-200")  # folders that may hold the source
_TABLE: dict[str, list[str]] = json.loads(Path(__file__).with_suffix(".json").read_text())
NAMES = {wnid: name for wnid, (name, *_) in _TABLE.items()}  # WordNet 3.0 offset -> the first word of its synset
CATEGORIES = {name: category for name, category, _ in _TABLE.values() if category}
"""The hand-picked classes: hyponyms, in WordNet 3.0, of the nearest of seven synsets that holds a CIFAR-10 class: craft
(airplane, ship), motor vehicle (automobile, truck), bird, feline (cat), ungulate (deer, horse), dog and frog."""
GROUPS = {name: group for name, _, group in _TABLE.values()}
"""Forty groups of five classes, by what the pictures show, made before anything was trained on them; none fits all."""


def make(
    root: str | Path | None = None,
    size: int = 32,
    *,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    target_limit: int | None = None,
    holdout: float = 0.1,
    download: bool = False,
    seed: int = 0,
    cache: str | Path | None = None,
    show_progress: bool = True,
) -> TransferProblem:
    """200 classes of ImageNet and CIFAR-10; what `dtl.load("imagenet200-cifar10", root)` calls.

    Parameters
    ----------
    root : folder that holds `imagenet200` (or `tiny-imagenet-200`), with `train/<wnid>/`, and CIFAR-10, as
        `cifar10/train/<class>/` and `cifar10/test/<class>/` or as torchvision's `cifar-10-batches-py`; default is the
        folder of $DTL_DATA that holds them
    classes : source classes, by wnid or name (`dtl.datasets.imagenet200.NAMES`); default is all 200
    limit, target_limit : at most this many images of each source class, and training images of each target class
    holdout : share of CIFAR-10's training images that becomes the validation split: 45,000 and 5,000
    download : let torchvision download CIFAR-10 to `root` if it is missing
    seed, cache, show_progress : as in `dtl.datasets.folders.make`

    Raises
    ------
    FileNotFoundError : files are missing; says what is expected and how to get it
    ValueError : an unknown class, or a bad setting

    >>> dtl.load("imagenet200-cifar10", root="/data", classes=["bullfrog", "sports car"])  # doctest: +SKIP
    """
    check_reading(size, holdout, limit)
    check_reading(size, holdout, target_limit)
    wnids = _wnids(classes)
    roots = data_folders(root, "ImageNet-200")
    trees = [folder / name / "train" for folder in roots for name in SOURCES]
    tree = next((path for path in trees if path.is_dir()), None)
    if tree is None:
        raise FileNotFoundError(
            f"ImageNet-200 is missing: {trees[0]} is no folder; put one folder of images for each of its classes there "
            "(n01443537, ...), as in the archive tiny-imagenet-200.zip of Stanford's course CS231n"
        )
    files = list_tree(tree, limit, seed)
    absent = [wnid for wnid in wnids if wnid not in files.classes]
    if absent:
        raise FileNotFoundError(f"{tree} lacks the classes {', '.join(absent[:5])} ({len(absent)} of {len(wnids)})")
    place = np.full(len(files.classes), -1)
    place[[files.classes.index(wnid) for wnid in wnids]] = np.arange(len(wnids))
    files = files.take(np.flatnonzero(place[files.labels] >= 0))
    files = Listing(files.paths, place[files.labels], tuple(NAMES[wnid] for wnid in wnids))
    target = _cifar10(roots, size, download, cache, show_progress)
    target |= hold_out(target["train"], ["validation"], holdout, seed)
    if target_limit is not None:
        target["train"] = target["train"].subset(at_most(target_limit, target["train"].labels.numpy(), seed))
    source = read_files(files, tree, size, cache, show_progress)
    return TransferProblem("imagenet200-cifar10", source, target["train"], target["validation"], target["test"])


def _wnids(classes: Sequence[str] | None) -> list[str]:
    if classes is None:
        return list(NAMES)
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise InputError(f"classes must be a list of names, not {classes!r}")
    known = {name: wnid for wnid, name in NAMES.items()} | {wnid: wnid for wnid in NAMES}
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise InputError(f"unknown classes {', '.join(unknown[:5])}: names and wnids are in imagenet200.NAMES")
    wnids = sorted({known[name] for name in classes})
    if not 2 <= len(wnids) == len(classes):
        raise InputError(f"give two or more different classes, not {list(classes)}")
    return wnids


def _cifar10(
    roots: list[Path], size: int, download: bool, cache: str | Path | None, show_progress: bool
) -> dict[str, ImageDataset]:
    batches = TARGETS["cifar10"]
    for folder in roots:
        if (folder / "cifar10/train").is_dir() and (folder / "cifar10/test").is_dir():
            trees = {split: folder / "cifar10" / split for split in ("train", "test")}
            return {s: read_files(list_tree(tree), tree, size, cache, show_progress) for s, tree in trees.items()}
        if (folder / batches.folder).is_dir():
            try:
                parts: Any = batches.read(batches.made, folder)
                return {split: resized(part, size) for split, part in parts.items()}
            except (OSError, RuntimeError) as error:
                if not download:
                    where = folder / batches.folder
                    raise FileNotFoundError(f"CIFAR-10 in {where} lacks files ({error}); pass download=True") from error
    if download:
        datasets.CIFAR10(roots[0], download=True)
        return _cifar10(roots, size, False, cache, show_progress)
    raise FileNotFoundError(
        f"CIFAR-10 is missing: neither {roots[0] / 'cifar10'} nor {roots[0] / batches.folder} is there; "
        "pass download=True to get it with torchvision"
    )
