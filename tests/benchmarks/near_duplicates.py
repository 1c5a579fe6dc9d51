"""How many copies `dtl.leakage.similarity` finds, and how many pairs it takes for copies that are none.

    python tests/benchmarks/near_duplicates.py [DATA ...] [--n 200] [--among 2000]

DATA are folders with one folder of images per class; the testbed is always there. `n` pictures are changed in each of
the ways below and looked for among `among` others. Recall: the share that is more similar to its original than the
threshold. Precision: that share of all pairs above the threshold. Beside them the same without alignment.
"""

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from PIL import Image
from torch.nn import functional as F

import dtl
from dtl.datasets.folders import list_tree, read_files

Change = Callable[[torch.Tensor, np.random.Generator], torch.Tensor]  # one image (3, h, w) uint8


def drawn(edit: Callable[[Image.Image], Image.Image]) -> Change:
    def change(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        edited = edit(Image.fromarray(image.permute(1, 2, 0).numpy())).convert("RGB")
        return torch.from_numpy(np.array(edited)).permute(2, 0, 1)

    return change


def jpeg(quality: int) -> Change:
    def edit(image: Image.Image) -> Image.Image:
        held = io.BytesIO()
        image.save(held, "jpeg", quality=quality)
        return Image.open(held)

    return drawn(edit)


def shifted(by: int) -> Change:
    def change(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        padded = F.pad(image[None].float(), (by,) * 4, mode="replicate")[0].byte()
        dy, dx = rng.choice([0, 2 * by], 2)
        return padded[:, dy : dy + image.shape[1], dx : dx + image.shape[2]]

    return change


def cropped(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    side = image.shape[1]
    kept = round(side * 7 / 8)
    top, left = rng.integers(0, side - kept + 1, 2)
    return drawn(lambda im: im.crop((left, top, left + kept, top + kept)).resize((side, side)))(image, rng)


def noisy(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    noise = torch.from_numpy(rng.normal(0, 8, tuple(image.shape)))
    return (image + noise).clamp(0, 255).round().byte()


CHANGES: dict[str, Change] = {
    "identical": lambda image, rng: image,
    "JPEG 85": jpeg(85),
    "JPEG 50": jpeg(50),
    "brighter": lambda image, rng: (image * 0.7 + 70).clamp(0, 255).byte(),
    "noise": noisy,
    "grey": drawn(lambda image: image.convert("L")),
    "1 px shift": shifted(1),
    "2 px shift": shifted(2),
    "crop 7/8": cropped,
    "mirrored": lambda image, rng: image.flip(2),
    "rotated 90": lambda image, rng: image.rot90(1, (1, 2)),
    "mirrored, 1 px": lambda image, rng: shifted(1)(image.flip(2), rng),
    "rotated 10": drawn(lambda image: image.rotate(10, Image.Resampling.BICUBIC)),
}


def table(pictures: dtl.ImageDataset, n: int, among: int, threshold: float) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    others = pictures.subset(rng.permutation(len(pictures))[:among])
    n, rows = min(n, len(others)), {}
    for name, change in CHANGES.items():
        images = torch.stack([change(image, rng) for image in others.images[:n]])
        changed = dtl.ImageDataset(images, others.labels[:n], others.classes)
        row = {}
        for how, aligned in (("aligned", True), ("plain", False)):
            near = dtl.leakage.similarity(others, changed, aligned) > threshold
            found, pairs = near[np.arange(n), np.arange(n)].sum(), near.sum()
            row |= {f"recall, {how}": found / n, f"precision, {how}": found / max(pairs, 1)}
        rows[name] = row
    return pd.DataFrame(rows).T


def main(
    data: Annotated[list[Path] | None, typer.Argument()] = None,
    n: int = 200,
    among: int = 2000,
    threshold: float = 0.93,
) -> None:
    sets = {"testbed": dtl.load("testbed").target_test}
    for folder in data or []:
        files = list_tree(folder, limit=max(1, -(-among // len(list(folder.iterdir())))))
        sets[str(folder)] = read_files(files, folder, 32, Path(tempfile.mkdtemp()), False)
    for name, pictures in sets.items():
        others = min(among, len(pictures))
        print(f"\n{name}: {min(n, others)} pictures among {others}, threshold {threshold}")
        print(table(pictures, n, among, threshold).round(2).to_string(), flush=True)


if __name__ == "__main__":
    typer.run(main)
