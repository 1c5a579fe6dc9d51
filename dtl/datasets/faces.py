"""Attribute files of CelebA and FairFace as tables, and images with an attribute of one's own as a dataset.

Neither file can be downloaded without an agreement, so what is here reads the formats and no more.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dtl._checks import InputError, path_of
from dtl.data import ImageDataset
from dtl.datasets.folders import open_rgb, square

YOUNG = ("0-2", "3-9", "10-19", "20-29")  # bins of FairFace below thirty, as Salman et al. 2022 split it


def read_attributes(path: str | Path) -> pd.DataFrame:
    """Attributes by file name, bool, from CelebA's ``list_attr_celeba.txt`` or FairFace's ``fairface_label_*.csv``.

    FairFace's are `Male`, `Young` (below thirty) and a column for each race.

    Raises
    ------
    FileNotFoundError : no such file
    InputError : a file of neither format, or one that was cut

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "list_attr_celeba.txt")
    >>> _ = file.write_text("2\\nMale Young\\n000001.jpg -1  1\\n000002.jpg  1 -1\\n")
    >>> read_attributes(file).Young.tolist()
    [True, False]
    """
    path = path_of(path, "path")
    with path.open() as file:
        first = file.readline().strip()
    if first.isdigit():
        table = pd.read_csv(path, sep=r"\s+", skiprows=1)
        if len(table) != int(first) or not table.isin([-1, 1]).all(axis=None):
            raise InputError(f"{path} says {first} images and has {len(table)}, or not only -1 and 1: get it again")
        return table == 1
    table = pd.read_csv(path)
    if not {"file", "age", "gender", "race"} <= set(table):
        raise InputError(f"{path} is no attribute file: give list_attr_celeba.txt or fairface_label_train.csv")
    found = {"Male": table.gender == "Male", "Young": table.age.isin(YOUNG)}
    found |= {str(race): table.race == race for race in sorted(table.race.unique())}
    return pd.DataFrame(found).set_axis(pd.Index(table.file, name="file"))


def read_faces(
    folder: str | Path, table: pd.DataFrame, size: int, label: str = "Young", attribute: str = "Male"
) -> tuple[ImageDataset, np.ndarray]:
    """The images of a table, squares of `size` pixels, labelled by one attribute, and another attribute, (n,) bool.

    Raises
    ------
    InputError : an unknown attribute, or one with one value, or an image that is not there or cannot be read
    """
    for name in (label, attribute):
        if name not in table or table.loc[:, name].nunique() < 2:
            raise InputError(f"{name!r} must be an attribute with two values, one of {', '.join(table)}")
    images = [square(open_rgb(Path(folder, str(name))), size) for name in table.index]
    labels = torch.from_numpy(table[label].to_numpy(dtype=np.int64))
    return ImageDataset(torch.stack(images), labels, (f"not {label}", label)), table[attribute].to_numpy()
