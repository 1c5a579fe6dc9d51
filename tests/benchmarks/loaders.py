"""Images per second: `.beton` files against torchvision's ImageFolder with a DataLoader, on the same pictures.

    python tests/benchmarks/loaders.py                      # 2,000 JPEGs of 256 pixels, five rounds; needs FFCV

Every arm delivers random resized crops and flips of all images once a round, in random order, as uint8 batches on the
CPU, with as many workers as there are cores:

imagefolder : torchvision, Pillow, a DataLoader whose processes stay alive
ffcv jpeg, ffcv raw : FFCV's own `Loader` on the images as JPEG (quality 90) or as pixels
beton jpeg, beton raw : `dtl.datasets.ffcv.Beton` on the same two files

Rounds are interleaved; the first epoch of an arm (compilation, processes) is reported on its own.
"""

import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import joblib
import numpy as np
import pandas as pd
import torch
import typer
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from dtl.datasets import ffcv as beton

BATCH = 128
Epochs = Callable[[], Iterator[torch.Tensor]]


def photographs(root: Path, n: int, side: int) -> None:
    """JPEGs in ten class folders: clouds of several scales with grain, about as large in bytes as photographs."""
    rng = np.random.default_rng(0)
    for i in range(n):
        layers = [
            np.asarray(
                Image.fromarray(rng.integers(0, 256, (k, k, 3), dtype=np.uint8)).resize((side, side)), dtype=float
            )
            for k in (4, 16, 64, side)
        ]
        mixed = np.average(layers, axis=0, weights=(8, 4, 2, 1))
        folder = root / f"{i % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        stretched = ((mixed - mixed.mean()) * 2 + 128).clip(0, 255)
        Image.fromarray(stretched.astype(np.uint8)).save(folder / f"{i:05}.jpg", quality=90)


def torchvision_loader(root: Path, crop: int, workers: int) -> Epochs:
    augment = [transforms.RandomResizedCrop(crop), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    data = ImageFolder(root, transforms.Compose(augment))
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=workers, persistent_workers=True)
    return lambda: (images for images, _ in loader)


def ffcv_loader(path: Path, crop: int, workers: int) -> Epochs:
    module, image, operations = beton.ffcv("loader"), beton.ffcv("fields.rgb_image"), beton.ffcv("transforms")
    pipeline = [image.RandomResizedCropRGBImageDecoder((crop, crop)), operations.RandomHorizontalFlip()]
    loader = module.Loader(
        str(path), BATCH, workers, order=module.OrderOption.RANDOM, drop_last=False,
        pipelines={"image": [*pipeline, operations.ToTensor()]},
    )  # fmt: skip
    return lambda: (images for images, _ in loader)


def beton_reader(path: Path, crop: int) -> Epochs:
    data, rng = beton.Beton(path, resolution=crop), np.random.default_rng(0)

    def epoch() -> Iterator[torch.Tensor]:
        for index in np.array_split(rng.permutation(len(data)), -(-len(data) // BATCH)):
            yield data.read(index, *data.draw(index, rng))

    return epoch


def seconds(epochs: Epochs) -> float:
    start, n = time.perf_counter(), 0
    for images in epochs():
        n += len(images)
    assert n, "no images came"
    return time.perf_counter() - start


def main(images: int = 2000, side: int = 256, crop: int = 160, rounds: int = 5) -> None:
    workers = joblib.cpu_count()
    beton.ffcv("writer")  # its import is not part of any measurement
    with TemporaryDirectory() as folder:
        root = Path(folder)
        photographs(root / "jpeg", images, side)
        size = sum(path.stat().st_size for path in (root / "jpeg").glob("*/*")) / images
        print(
            f"{images} JPEGs of {side} pixels, {size / 1e3:.0f} kB each, cut to {crop}; {workers} workers, n = {rounds}"
        )
        for name, quality in (("jpeg", 90), ("raw", None)):
            start = time.perf_counter()
            path = beton.write(root / "jpeg", root / f"{name}.beton", quality=quality, show_progress=False)
            took = time.perf_counter() - start
            print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB, {images / took:.0f} images/s to write")
        arms: dict[str, Callable[[], Epochs]] = {
            "imagefolder": lambda: torchvision_loader(root / "jpeg", crop, workers),
            "ffcv jpeg": lambda: ffcv_loader(root / "jpeg.beton", crop, workers),
            "beton jpeg": lambda: beton_reader(root / "jpeg.beton", crop),
            "ffcv raw": lambda: ffcv_loader(root / "raw.beton", crop, workers),
            "beton raw": lambda: beton_reader(root / "raw.beton", crop),
        }
        first, epochs = {}, {}
        for name, open_arm in arms.items():
            start = time.perf_counter()
            epochs[name] = open_arm()
            seconds(epochs[name])
            first[name] = time.perf_counter() - start
        found = pd.DataFrame([{name: images / seconds(epochs[name]) for name in arms} for _ in range(rounds)])
    ratios = found.div(found["imagefolder"], axis=0)
    table = pd.DataFrame({
        "images/s": found.median(), "min": found.min(), "max": found.max(), "ratio": ratios.median(),
        "ratio min": ratios.min(), "ratio max": ratios.max(), "first epoch, s": pd.Series(first),
    })  # fmt: skip
    print(table.round(2).to_string())
    print(f"{platform.processor() or platform.machine()}, {workers} cores, torch {torch.__version__}")


if __name__ == "__main__":
    typer.run(main)
