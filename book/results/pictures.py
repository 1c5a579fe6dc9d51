"""Pack the thumbnails that the pages about two hundred classes show, from data that cannot be shipped.

    python book/results/pictures.py --data DATA --numbers NUMBERS.json

DATA holds `imagenet200` and `cifar10` (see `dtl.load`), or is a file that holds the problem (`dtl.datasets.saved`).
NUMBERS are those of the target images that pages show: {"test": [3, 14], "validation": [15]}, and "pairs" of images of
the source and of the test split that are alike: [[3, 14]]. Of the source the first four images of each class are taken.
What is on the sheet and whose it is says PICTURES.md beside it.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

import dtl
from dtl.datasets import thumbnails

PROBLEM, PER_CLASS = "imagenet200-cifar10", 4
NOT_SHOWN = ("bikini", "miniskirt", "swimming trunks")  # people who did not ask to be here: grey squares


def main(
    data: Annotated[Path, typer.Option(envvar="DTL_DATA", help="folder of the images, or file of the problem")],
    numbers: Annotated[Path, typer.Option(help="JSON: split -> numbers of its images")],
    out: Annotated[Path, typer.Option(help="folder of the sheet")] = dtl.results.FOLDER / PROBLEM,
) -> None:
    """Pack the thumbnails of the pages about two hundred classes."""
    problem = dtl.load("file", path=data) if data.is_file() else dtl.load(PROBLEM, data)
    labels = problem.source.labels.numpy()
    first = [np.flatnonzero(labels == k)[:PER_CLASS] for k in range(problem.source.n_classes)]
    hidden = torch.tensor([name in NOT_SHOWN for name in problem.source.classes])[problem.source.labels]
    grey = problem.source.images.masked_fill(hidden[:, None, None, None], thumbnails.GREY)
    source = replace(problem.source, images=grey)
    chosen = json.loads(numbers.read_text())
    pairs = np.array(chosen.pop("pairs", np.empty((0, 2), int)))
    alike = {"alike source": (problem.source, pairs[:, 0]), "alike test": (problem.target_test, pairs[:, 1])}
    targets = {split: (problem.parts[f"target_{split}"], kept) for split, kept in chosen.items()}
    file = thumbnails.pack(out, {"source": (source, np.concatenate(first)), **targets, **(alike if len(pairs) else {})})
    print(f"{file}: {file.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    typer.run(main)
