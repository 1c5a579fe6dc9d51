"""The eleven targets of Jain et al. (2022): their files, their splits, and the paper's transfer settings."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
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


@dataclass(frozen=True)
class Target:
    """A target data set and the settings with which the paper transferred to it.

    Parameters
    ----------
    title, n_classes : what it is
    per_class : whether the paper's accuracy is the mean over classes
    epochs, lr, batch_size : of its fine-tuning
    folder : where the files lie, under the root
    made, read : torchvision's class, and what makes the splits of it and the root; "all" if there are none
    by_hand : how to get the files that torchvision does not download
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
    made: Any
    read: Callable[[Any, Path], Mapping[str, Listing | ImageDataset]]
    by_hand: str = ""
    n_train: int = 0
    n_test: int | None = None
    batch_size: int = 1024

    @property
    def get(self) -> str:
        """How to get the files."""
        return self.by_hand or f"get it with torchvision.datasets.{self.made.__name__}(root, download=True)"


def _listing(dataset: Any) -> Listing:
    """The files of a torchvision dataset that hands each path to its `loader`, here `str`."""
    paths, labels = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    return Listing([Path(path) for path in paths], np.array(labels, dtype=np.int64), tuple(map(str, dataset.classes)))


def _splits(made: Any, root: Path, **splits: str) -> dict[str, Listing]:
    return {name: _listing(made(root, split=split, loader=str)) for name, split in splits.items()}


def _pets(made: Any, root: Path) -> dict[str, Listing]:
    found = {}
    for name, split in (("train", "trainval"), ("test", "test")):
        pets = made(root, split)
        found[name] = Listing(pets._images, np.array(pets._labels, dtype=np.int64), tuple(pets.classes))
    return found


def _caltech(made: Any, root: Path) -> dict[str, Listing]:
    caltech, paths = made(root), []
    for i in range(len(caltech)):
        with caltech[i][0] as image:  # opened, not decoded
            paths.append(Path(image.filename))
    return {"all": Listing(paths, np.array(caltech.y, dtype=np.int64), tuple(caltech.categories))}


def _sun(made: Any, root: Path) -> dict[str, Listing]:
    files = _listing(made(root, loader=str))  # in the order of the file system
    return {"all": files.take(np.argsort([str(path) for path in files.paths]))}


def _cifar(made: Any, root: Path) -> dict[str, ImageDataset]:
    found = {}
    for name in ("train", "test"):
        cifar = made(root, train=name == "train")
        images = torch.from_numpy(cifar.data).permute(0, 3, 1, 2).contiguous()
        found[name] = ImageDataset(images, torch.tensor(cifar.targets), tuple(cifar.classes))
    return found


def _birdsnap(_: None, root: Path) -> dict[str, Listing]:
    found = split_folders(root / "birdsnap")
    missing = [split for split in ("train", "test") if split not in found]
    if missing:
        raise FileNotFoundError(f"no {' and no '.join(missing)} folder with one folder of images per class")
    return {split: list_tree(tree) for split, tree in found.items()}


TWO = partial(_splits, train="train", test="test")
THREE = partial(_splits, train="train", validation="val", test="test")
TARGETS = {
    "aircraft": Target("FGVC Aircraft", 100, True, 24, 0.3, "fgvc-aircraft-2013b", datasets.FGVCAircraft, THREE),
    "birdsnap": Target(
        "Birdsnap", 500, False, 15, 0.3, "birdsnap", None, _birdsnap,
        "put its images there as train/<class>/ and test/<class>/ (its authors publish a list of addresses)",
    ),
    "caltech101": Target("Caltech-101", 101, True, 24, 0.2, "caltech101", datasets.Caltech101, _caltech, n_train=30),
    "caltech256": Target("Caltech-256", 257, True, 14, 0.2, "caltech256", datasets.Caltech256, _caltech, n_train=60),
    "cars": Target(
        "Stanford Cars", 196, False, 50, 0.3, "stanford_cars", datasets.StanfordCars, TWO,
        "put cars_train, cars_test, devkit and cars_test_annos_withlabels.mat there (torchvision cannot download it)",
    ),
    "cifar10": Target("CIFAR-10", 10, False, 15, 0.1, "cifar-10-batches-py", datasets.CIFAR10, _cifar),
    "cifar100": Target("CIFAR-100", 100, False, 15, 0.1, "cifar-100-python", datasets.CIFAR100, _cifar),
    "flowers": Target("Oxford 102 Flowers", 102, True, 50, 0.15, "flowers-102", datasets.Flowers102, THREE),
    "food": Target("Food-101", 101, False, 15, 0.1, "food-101", datasets.Food101, TWO),
    "pets": Target("Oxford-IIIT Pets", 37, True, 24, 0.1, "oxford-iiit-pet", datasets.OxfordIIITPet, _pets),
    "sun397": Target("SUN397", 397, False, 24, 0.2, "SUN397", datasets.SUN397, _sun, n_train=50, n_test=50),
}  # fmt: skip


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
    root : folder that holds `imagenet` (an ImageFolder tree, or one in its `train`) and the target as torchvision lays
        it out (Birdsnap: ImageFolder trees); default is the folder of $DTL_DATA that holds them
    source : used in place of the `imagenet` folder
    holdout : share of the training images of each class that becomes the validation split, where there is none
    limit, seed, cache, show_progress : as in `dtl.datasets.folders.make`; the limit is one of source images

    Raises
    ------
    FileNotFoundError : files are missing; says which folder is expected and how to get it, before anything is decoded

    >>> dtl.load("imagenet-pets", root="/data", size=64, limit=100)  # doctest: +SKIP
    """
    check_reading(size, holdout, limit)
    choice(target, TARGETS, "target")
    what = TARGETS[target]
    roots = data_folders(root, what.title)
    place = next((folder for folder in roots if (folder / what.folder).is_dir()), roots[0])
    if not (place / what.folder).is_dir():
        raise FileNotFoundError(f"{what.title} is missing: {place / what.folder} is no folder; {what.get}")
    try:
        found = dict(what.read(what.made, place))
    except (OSError, RuntimeError, LookupError) as error:
        raise FileNotFoundError(f"{what.title} in {place / what.folder} is incomplete ({error}); {what.get}") from error
    n_classes = len(next(iter(found.values())).classes)
    if n_classes != what.n_classes:
        logger.warning("%s has %d classes in %s, not %d", what.title, n_classes, place, what.n_classes)
    if isinstance(files := found.get("all"), Listing):
        found = dict(_draw(files, what, seed))
    if source is None:
        tree = next((folder / SOURCE for folder in roots if (folder / SOURCE).is_dir()), roots[0] / SOURCE)
        if not tree.is_dir():
            raise FileNotFoundError(f"ImageNet is missing: {tree} is no folder; put a folder of images per class there")
        files = list_tree(split_folders(tree).get("train", tree), limit, seed)
        source = read_files(files, tree, size, cache, show_progress)
    parts = {
        split: resized(part, size) if isinstance(part, ImageDataset)
        else read_files(part, place / what.folder, size, cache, show_progress)
        for split, part in found.items()
    }  # fmt: skip
    if "validation" not in parts:
        parts |= hold_out(parts["train"], ["validation"], holdout, seed)
    return TransferProblem(
        f"imagenet-{target}", source, parts["train"], parts["validation"], parts["test"],
        per_class_accuracy=what.per_class,
    )  # fmt: skip


def _draw(files: Listing, target: Target, seed: int) -> dict[str, Listing]:
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
    if dataset.size == (size, size):
        return dataset
    pixels = dataset.images.permute(0, 2, 3, 1).numpy()
    images = torch.stack([square(Image.fromarray(image), size) for image in pixels])
    return ImageDataset(images, dataset.labels, dataset.classes)
