"""The eleven targets of Jain et al. (2022): their files, their splits, and the paper's transfer settings."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import datasets

from dtl._checks import InputError, choice
from dtl.data import ImageDataset, TransferProblem
from dtl.datasets.folders import Listing, check_reading, hold_out, list_tree, read_files, split_folders, square

logger = logging.getLogger(__name__)

SOURCE = "imagenet"  # folder of the source, an ImageFolder tree or one that holds it as `train`
Parts = dict[str, Listing | ImageDataset]  # by split; "all" where there are none


@dataclass(frozen=True)
class Target:
    """A target data set and the settings with which the paper transferred to it.

    Parameters
    ----------
    title, n_classes, folder : what it is, and where it lies under the root as torchvision lays it out
    per_class : whether the paper's accuracy is the mean over classes
    epochs, lr, batch_size : of its fine-tuning
    get : the class of torchvision.datasets that gets it
    n_train, n_test : images of each class that are drawn where there are no splits (Kornblith et al. 2019); None for
        all others

    Source: configuration released with Jain et al. 2022; which splits they used is not on record. It left most targets
    without normalisation, and cropped and scheduled some of them in their own ways; `dtl` treats every target alike.

    >>> pets = dtl.datasets.targets.TARGETS["pets"]
    >>> dtl.Recipe(finetune_epochs=pets.epochs, finetune_lr=pets.lr, batch_size=pets.batch_size).finetune_epochs
    24
    """

    title: str
    n_classes: int
    per_class: bool
    epochs: int
    lr: float
    folder: str
    get: str = ""
    read: Callable[["Target", Path], Parts] | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    n_train: int = 0
    n_test: int | None = None
    batch_size: int = 1024

    def open(self, root: Path, **options: Any) -> Any:
        """The data set as torchvision reads it."""
        return getattr(datasets, self.get)(root, **options)


def _listing(dataset: Any) -> Listing:
    """The files of a torchvision dataset that hands each path to its `loader`, here `str`."""
    paths, labels = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    return Listing([Path(path) for path in paths], np.array(labels, dtype=np.int64), tuple(map(str, dataset.classes)))


def _splits(what: Target, root: Path) -> Parts:
    return {name: _listing(what.open(root, split=split, loader=str)) for name, split in what.splits.items()}


def _pets(what: Target, root: Path) -> Parts:
    opened = {name: what.open(root, split=split) for name, split in what.splits.items()}
    return {
        name: Listing(d._images, np.array(d._labels, dtype=np.int64), tuple(d.classes)) for name, d in opened.items()
    }


def _caltech(what: Target, root: Path) -> Parts:
    caltech, paths = what.open(root), []
    for i in range(len(caltech)):
        with caltech[i][0] as image:  # opened, not decoded
            paths.append(Path(image.filename))
    return {"all": Listing(paths, np.array(caltech.y, dtype=np.int64), tuple(caltech.categories))}


def _sun(what: Target, root: Path) -> Parts:
    files = _listing(what.open(root, loader=str))  # in the order of the file system
    return {"all": files.take(np.argsort([str(path) for path in files.paths]))}


def _cifar(what: Target, root: Path) -> Parts:
    found: Parts = {}
    for name in ("train", "test"):
        cifar = what.open(root, train=name == "train")
        images = torch.from_numpy(cifar.data).permute(0, 3, 1, 2).contiguous()
        found[name] = ImageDataset(images, torch.tensor(cifar.targets), tuple(cifar.classes))
    return found


THREE = {"train": "train", "validation": "val", "test": "test"}
TWO = {"train": "train", "test": "test"}
PETS = {"train": "trainval", "test": "test"}
TARGETS = {
    "aircraft": Target("FGVC Aircraft", 100, True, 24, 0.3, "fgvc-aircraft-2013b", "FGVCAircraft", _splits, THREE),
    "birdsnap": Target("Birdsnap", 500, False, 15, 0.3, "birdsnap"),
    "caltech101": Target("Caltech-101", 101, True, 24, 0.2, "caltech101", "Caltech101", _caltech, n_train=30),
    "caltech256": Target("Caltech-256", 257, True, 14, 0.2, "caltech256", "Caltech256", _caltech, n_train=60),
    "cars": Target("Stanford Cars", 196, False, 50, 0.3, "stanford_cars", "StanfordCars", _splits, TWO),
    "cifar10": Target("CIFAR-10", 10, False, 15, 0.1, "cifar-10-batches-py", "CIFAR10", _cifar),
    "cifar100": Target("CIFAR-100", 100, False, 15, 0.1, "cifar-100-python", "CIFAR100", _cifar),
    "flowers": Target("Oxford 102 Flowers", 102, True, 50, 0.15, "flowers-102", "Flowers102", _splits, THREE),
    "food": Target("Food-101", 101, False, 15, 0.1, "food-101", "Food101", _splits, TWO),
    "pets": Target("Oxford-IIIT Pets", 37, True, 24, 0.1, "oxford-iiit-pet", "OxfordIIITPet", _pets, PETS),
    "sun397": Target("SUN397", 397, False, 24, 0.2, "SUN397", "SUN397", _sun, n_train=50, n_test=50),
}


def data_folders(root: str | Path | None, what: str) -> list[Path]:
    """Where data sets lie: `root`, or the folders of $DTL_DATA."""
    named = [root] if root else os.environ.get("DTL_DATA", "").split(os.pathsep)
    roots = [Path(folder).expanduser() for folder in named if folder]
    if not roots:
        raise InputError(f"where is {what}? give root=, or set DTL_DATA to the folder of your data sets")
    return roots


def make(
    target: str,
    root: str | Path | None = None,
    size: int = 32,
    *,
    source: ImageDataset | None = None,
    holdout: float = 0.2,
    limit: int | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    show_progress: bool = True,
) -> TransferProblem:
    """ImageNet and one of the paper's targets; what `dtl.load("imagenet-<target>", root)` calls.

    All images are decoded at size x size pixels and held in memory: ImageNet's training set takes 3.9 GB at 32 pixels,
    15.7 GB at 64 and 193 GB at the paper's 224. For those give the source as a `.beton`, which is decoded when needed.

    Parameters
    ----------
    target : one of `TARGETS`
    root : folder that holds `imagenet` (an ImageFolder tree, or one in its `train`) and the target, as torchvision lays
        it out or as `<target>/train/<class>` and `<target>/test/<class>`; default is that of $DTL_DATA that holds them
    source : used in place of the `imagenet` folder
    holdout : share of the training images of each class that becomes the validation split, where there is none
    limit : at most this many source images of each class, drawn with `seed`
    seed : draws the splits that a target does not have
    cache : folder for decoded images; default is the user's cache folder

    Raises
    ------
    FileNotFoundError : files are missing; says which folder is expected and how to get it, before anything is decoded

    >>> dtl.load("imagenet-pets", root="/data", size=64, limit=100)  # doctest: +SKIP
    """
    check_reading(size, holdout, limit)
    choice(target, TARGETS, "target")
    what = TARGETS[target]
    roots = data_folders(root, what.title)
    files, tree = None, next((folder / SOURCE for folder in roots if (folder / SOURCE).is_dir()), roots[0] / SOURCE)
    if source is None:
        if not tree.is_dir():
            raise FileNotFoundError(
                f"ImageNet is missing: {tree} is no folder; put one folder of images per class there"
            )
        files = list_tree(split_folders(tree).get("train", tree), limit, seed)
    parts = read_target(target, roots, size, holdout, seed, cache, show_progress)
    parts["source"] = source if files is None else read_files(files, tree, size, cache, show_progress)
    return TransferProblem(f"imagenet-{target}", **parts, per_class_accuracy=what.per_class)


def read_target(
    target: str, roots: list[Path], size: int, holdout: float, seed: int, cache: str | Path | None, show_progress: bool
) -> dict[str, Any]:
    """The three splits of a target, datasets by the name of the part; arguments as of `make`."""
    what = TARGETS[target]
    lies = [folder for folder in roots if (folder / what.folder).is_dir() or (folder / target / "train").is_dir()]
    place, get = (lies or roots)[0], f"get it with torchvision.datasets.{what.get}(root, download=True), or "
    get = f"{get if what.get else ''}put its images into {target}/train/<class> and {target}/test/<class>"
    if not lies:
        raise FileNotFoundError(f"{what.title} is missing: {place / what.folder} is no folder; {get}")
    try:
        if what.read is None or (place / target / "train").is_dir():
            trees = split_folders(place / target)
            found: Parts = {split: list_tree(trees[split]) for split in trees | dict.fromkeys(TWO)}
        else:
            found = what.read(what, place)
    except (OSError, RuntimeError, LookupError) as error:
        raise FileNotFoundError(f"{what.title} in {place / what.folder} is incomplete ({error}); {get}") from error
    n_classes = len(next(iter(found.values())).classes)
    if n_classes != what.n_classes:
        logger.warning("%s has %d classes in %s, not %d", what.title, n_classes, place, what.n_classes)
    if isinstance(files := found.get("all"), Listing):
        found = _draw(files, what, seed)
    parts = {
        split: resized(part, size) if isinstance(part, ImageDataset)
        else read_files(part, place / what.folder, size, cache, show_progress)
        for split, part in found.items()
    }  # fmt: skip
    if "validation" not in parts:
        parts |= hold_out(parts["train"], ["validation"], holdout, seed)
    return {f"target_{split}": part for split, part in parts.items()}


def _draw(files: Listing, target: Target, seed: int) -> Parts:
    """Training and test images of each class, as many as the target says."""
    rng, train, test = np.random.default_rng(seed), [], []
    for k, name in enumerate(files.classes):
        members = rng.permutation(np.flatnonzero(files.labels == k))
        if len(members) <= target.n_train:
            raise InputError(
                f"class {name} of {target.title} has {len(members)} images, but {target.n_train} are for training and "
                "at least one for test: the download is incomplete"
            )
        train.append(members[: target.n_train])
        test.append(members[target.n_train :][: target.n_test])
    return {split: files.take(np.sort(np.concatenate(part))) for split, part in (("train", train), ("test", test))}


def resized(dataset: ImageDataset, size: int) -> ImageDataset:
    """Images held in memory at another size."""
    if dataset.size == (size, size):
        return dataset
    pixels = dataset.images.permute(0, 2, 3, 1).numpy()
    images = torch.stack([square(Image.fromarray(image), size) for image in pixels])
    return ImageDataset(images, dataset.labels, dataset.classes)
