"""Thumbnails of data that cannot be shipped: one picture file of tiles, and an index that knows which images they are.

They illustrate; nothing is trained on them. Whoever may not pass photographs on deletes the picture, or sets the
environment variable DTL_PICTURES to 0: then grey squares stand in their place. Neither reading nor drawing needs torch.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, features

from dtl import results
from dtl._checks import InputError, check_mapping, check_number, choice, load_json, path_of, some
from dtl.design import groups_of

if TYPE_CHECKING:
    from dtl.data import ImageDataset

COLUMNS = 40  # tiles side by side
GREY = 225  # of the squares that stand for pictures


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """A few images of a data set, as `dtl.plots` and `dtl.widgets` take them.

    images : uint8 (n, 3, height, width);  labels : (n,) int;  classes : names, of the whole data set
    numbers : (n,) int, the number that each image has in the whole data set
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: ArrayLike) -> "Thumbnails":
        """The thumbnails at `index`, positions or a boolean mask."""
        index = np.asarray(index, dtype=None if np.size(index) else int)
        return replace(self, images=self.images[index], labels=self.labels[index], numbers=self.numbers[index])

    def place(self, numbers: Sequence[int] | np.ndarray) -> list[int]:
        """Positions of the images that have these numbers in the whole data set; InputError if one is not here."""
        at = {number: i for i, number in enumerate(self.numbers.tolist())}
        wanted = [int(number) for number in numbers]
        if missing := [number for number in wanted if number not in at]:
            raise InputError(f"images {some(missing)} are not among these {len(self)} thumbnails: choose from .numbers")
        return [at[number] for number in wanted]

    def only(self, classes: Sequence[str]) -> "Thumbnails":
        """Those of some classes, numbered in this order."""
        for name in classes:
            choice(name, self.classes, "class")
        label = np.array([self.classes.index(name) for name in classes])
        few = self.subset(np.isin(self.labels, label))
        return replace(few, labels=(few.labels[:, None] == label).argmax(1), classes=tuple(classes))

    def grouped(self, groups: Sequence[str] | Mapping[str, str]) -> "Thumbnails":
        """With groups of classes, as a study with `unit=groups` has them, for classes; first one image of each class.

        >>> few = Thumbnails(np.zeros((4, 3, 2, 2), np.uint8), np.array([0, 0, 1, 2]), ("a", "b", "c"), np.arange(4))
        >>> few.grouped({"a": "both", "b": "both"}).numbers.tolist()
        [0, 2, 3, 1]
        """
        names, of = np.unique(groups_of(self.classes, groups), return_inverse=True)
        turn = [(self.labels[:i] == label).sum() for i, label in enumerate(self.labels)]
        few = self.subset(np.lexsort((self.labels, turn)))
        return replace(few, labels=of[few.labels], classes=tuple(names.tolist()))


def pack(
    folder: str | Path, parts: Mapping[str, tuple["ImageDataset", Sequence[int] | np.ndarray]], limit: int = 580_000
) -> Path:
    """Write chosen images as one picture, AVIF or else WebP, with its index `pictures.json`; returns the picture.

    Parameters
    ----------
    folder : for both files
    parts : name, such as "source", "validation" or "test" -> a data set and the numbers of the images to keep
    limit : bytes that the picture may have (with the index, some 20,000 more); it gets the best quality that fits

    Raises
    ------
    InputError : images of several sizes, a number that is no image or is given twice, or too many for the limit

    >>> dtl.datasets.thumbnails.pack("few", {"source": (problem.source, [0, 1, 30])}).parent.name
    'few'
    """
    folder = path_of(folder, "folder")
    check_number(limit, 1, 10**9, "limit, in bytes,")
    few, index = [], {}
    for name, (dataset, numbers) in check_mapping(parts, "parts").items():
        kept = np.asarray(numbers, dtype=int)
        if len(set(kept.tolist()) & set(range(len(dataset)))) < kept.size:
            raise InputError(f"give each image of {name} once, by a number from 0 to {len(dataset) - 1}")
        few.append(dataset.subset(kept))
        index[name] = {"classes": dataset.classes, "labels": few[-1].labels.tolist(), "numbers": kept.tolist()}
    n, sizes = sum(map(len, few)), {part.size for part in few}
    if n == 0 or len(sizes) > 1:
        raise InputError(f"thumbnails are one image or more, all of one size, not {n} of sizes {sizes}")
    ((height, width),) = sizes
    tiles = np.full((-(-n // COLUMNS) * COLUMNS, height, width, 3), GREY, dtype=np.uint8)
    tiles[:n] = np.concatenate([np.asarray(part.images) for part in few]).transpose(0, 2, 3, 1)
    rows = tiles.reshape(-1, COLUMNS, height, width, 3).swapaxes(1, 2)
    sheet = Image.fromarray(rows.reshape(-1, COLUMNS * width, 3))
    kind = "avif" if features.check("avif") else "webp"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"pictures.{kind}"
    for quality in range(95, 0, -5):
        sheet.save(file, quality=quality, subsampling="4:4:4")
        if file.stat().st_size <= limit:
            break
    else:
        file.unlink()
        raise InputError(f"{n} thumbnails do not fit into {limit} bytes: keep fewer")
    facts = {"picture": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "quality": quality}
    facts |= {"height": height, "width": width, "columns": COLUMNS, "parts": index}
    (folder / "pictures.json").write_text(json.dumps(facts, ensure_ascii=False) + "\n", "utf8")
    return file


def open(where: str | Path = "imagenet200-cifar10") -> dict[str, Thumbnails]:
    """The thumbnails that `pack` wrote, by part; grey squares, and a printed sentence, where the picture is left out.

    where : name of results that ship, or the folder that was packed

    FileNotFoundError where there is no index; InputError if the picture is not the one that was packed.

    >>> _ = dtl.datasets.thumbnails.pack("few", {"source": (problem.source, [0, 1, 30])})
    >>> source = dtl.datasets.thumbnails.open("few")["source"]
    >>> ax = dtl.plots.images(source, source.place([30, 0]))
    """
    shipped = results.FOLDER / path_of(where, "where")
    folder = shipped if str(where) == Path(where).name and shipped.is_dir() else Path(where)
    if not (folder / "pictures.json").is_file():
        raise FileNotFoundError(f"no thumbnails in {folder}: give a folder that dtl.datasets.thumbnails.pack wrote")
    facts = load_json(folder / "pictures.json")
    file, height, width, columns = folder / facts["picture"], facts["height"], facts["width"], facts["columns"]
    n, kind = sum(len(part["labels"]) for part in facts["parts"].values()), file.suffix[1:]
    reasons = {
        "DTL_PICTURES is 0": os.environ.get("DTL_PICTURES") == "0",
        f"{file.name} is not there": not file.is_file(),
        f"this Pillow reads no {kind.upper()}": not features.check(kind),
    }
    why = next((reason for reason, holds in reasons.items() if holds), None)
    if why:
        print(f"Pictures are left out ({why}): grey squares stand in their place.")
        tiles = np.full((n, height, width, 3), GREY, dtype=np.uint8)
    else:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != facts["sha256"]:
            raise InputError(f"{file} is not as packed: SHA-256 {found[:12]}, not {facts['sha256'][:12]}; get it again")
        with Image.open(file) as sheet:
            rows = np.asarray(sheet.convert("RGB")).reshape(-1, height, columns, width, 3)
        tiles = rows.swapaxes(1, 2).reshape(-1, height, width, 3)[:n]
    made, start = {}, 0
    for name, part in facts["parts"].items():
        few = tiles[start : start + len(part["labels"])].transpose(0, 3, 1, 2)
        labels, numbers = (np.array(part[key], dtype=int) for key in ("labels", "numbers"))
        made[name], start = Thumbnails(few, labels, tuple(part["classes"]), numbers), start + len(few)
    return made
