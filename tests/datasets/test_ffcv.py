"""Betons hold the same samples as in-memory data, in the same order, and train the same models."""

import ast
import importlib.util
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.datasets import ImageFolder
from torchvision.transforms import RandomResizedCrop, ToTensor

import dtl
from dtl._batches import InMemory
from dtl.data import ImageDataset, TransferProblem
from dtl.datasets import ffcv as beton
from dtl.datasets import folders
from dtl.datasets.ffcv import Beton, BetonBatches, grown
from dtl.training import Recipe, draw_order

CPU = torch.device("cpu")
FFCV = importlib.util.find_spec("ffcv") is not None or "CI" in os.environ  # CI installs it, so nothing is skipped
needs_ffcv = pytest.mark.skipif(not FFCV, reason="FFCV is not installed: it is the extra `ffcv`")


# Without FFCV


def test_training_images_grow_as_those_of_the_papers() -> None:
    assert [grown(epoch / 16, 160, 192) for epoch in (0, 11, 12, 13, 15)] == [160, 160, 192, 192, 192]
    assert [grown(step / 48, 150, 170) for step in (0, 35, 36, 38, 39, 47)] == [150, 150, 160, 160, 170, 170]
    assert grown(12.9 / 16, 100, 110) == 100 and grown(12 / 16, 60, 60) == 60  # no multiple of 32 between them


def test_random_boxes_are_distributed_as_those_of_torchvision() -> None:
    n = 2000
    found = beton.random_boxes(np.full(n, 300), np.full(n, 400), np.random.default_rng(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [RandomResizedCrop.get_params(torch.empty(3, 300, 400), [0.08, 1], [3 / 4, 4 / 3]) for _ in range(n)]
    for ours, theirs in zip(measures(found), measures(np.array(drawn)), strict=True):
        assert ks_2samp(ours, theirs).pvalue > 0.01  # pyright: ignore[reportAttributeAccessIssue]


def measures(boxes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Area, ratio and relative place of boxes in a picture of 300 x 400."""
    top, left, height, width = boxes.T
    assert min(top.min(), left.min()) >= 0 and (top + height).max() <= 300 and (left + width).max() <= 400
    return height * width, height / width, top / (301 - height), left / (401 - width)


def test_a_random_box_that_cannot_fit_is_the_largest_centred_one() -> None:
    boxes = beton.random_boxes(np.array([4, 400]), np.array([400, 4]), np.random.default_rng(0))
    assert boxes.tolist() == [[0, 198, 4, 5], [198, 0, 5, 4]]


def test_without_ffcv_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "ffcv"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ffcv", None)
    (tmp_path / "x.beton").touch()
    (tmp_path / "x.json").write_text('{"classes": []}')
    for use in (lambda: beton.write(dataset(), tmp_path / "y.beton"), lambda: Beton(tmp_path / "x.beton")):
        with pytest.raises(ImportError, match=re.escape("pip install 'dtl[ffcv]'")):
            use()


def test_dtl_imports_ffcv_only_when_it_is_used() -> None:
    for module in Path(dtl.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "ffcv" for name in names), module


def test_settings_and_files_are_checked_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quality must be 1 to 100"):
        beton.write(dataset(), tmp_path / "x.beton", quality=0)
    with pytest.raises(ValueError, match="max_side must be at least 1"):
        beton.write(dataset(), tmp_path / "x.beton", max_side=0)
    with pytest.raises(FileNotFoundError, match=r"x.beton does not exist: write it with dtl.datasets.ffcv.write"):
        Beton(tmp_path / "x.beton")
    (tmp_path / "x.beton").touch()
    with pytest.raises(FileNotFoundError, match=r"x.json with the class names is missing"):
        Beton(tmp_path / "x.beton")
    (tmp_path / "x.json").write_text('{"classes": ["a", ')
    with pytest.raises(ValueError, match=r"x.json is damaged \(.*: get it again"):
        Beton(tmp_path / "x.beton")
    with pytest.raises(ValueError, match="crop is a share"):
        Beton(tmp_path / "x.beton", crop=1.5)
    with pytest.raises(ValueError, match="resolution must be at least 1"):
        Beton(tmp_path / "x.beton", resolution=0)
    with pytest.raises(ValueError, match="growing is two sizes in pixels, the smaller one first"):
        Beton(tmp_path / "x.beton", growing=(192, 160))


# With FFCV


def dataset(n: int = 7, side: int = 12, seed: int = 0) -> ImageDataset:
    images = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, side, side), dtype=np.uint8))
    return ImageDataset(images, torch.arange(n) % 3, ("ant", "bee", "Käfer"))


def write(data: Any, path: Path, **options: Any) -> Path:
    return beton.write(data, path, show_progress=False, workers=2, **options)


@pytest.fixture(scope="module")
def betons(problem: TransferProblem, tmp_path_factory: pytest.TempPathFactory) -> TransferProblem:
    """The smallest testbed, every part of it read from a file."""
    folder = tmp_path_factory.mktemp("betons")
    source, *target = (Beton(write(part, folder / f"{name}.beton")) for name, part in problem.parts.items())
    return TransferProblem("betons", source, target[0], target[1], target[2])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of smooth pictures of several sizes, in colour and grey, with one to be turned upright."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for k, name in enumerate(("cat", "dog")):
        (root / name).mkdir()
        for i in range(4):
            height, width = rng.integers(40, 70, 2).tolist()
            x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
            colours = np.stack([120 + 100 * x, 60 * k + 30 * i + 0 * x, 230 - 200 * y], 2).astype(np.uint8)
            image = Image.fromarray(colours)
            exif = Image.Exif()
            exif[0x0112] = 6 if i == 3 else 1  # orientation
            (image.convert("L") if i == 2 else image).save(root / name / f"{i}.png", exif=exif)
    return root


@needs_ffcv
def test_a_lossless_beton_holds_the_same_samples_in_the_same_order(tmp_path: Path) -> None:
    data = dataset(250)  # more than two of the writer's portions, from two processes
    read = Beton(write(data, tmp_path / "x.beton"))
    assert torch.equal(read.images, data.images) and torch.equal(read.labels, data.labels)
    assert read.classes == data.classes and read.size == data.size and len(read) == len(data)
    assert (read.counts == data.counts).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.beton", "x.json"]
    index = np.array([249, 3, 3, 120])
    assert torch.equal(read.read(index), data.images[index])
    flipped = read.read(index, flips=np.array([True, False, True, False]))
    assert torch.equal(flipped[[0, 2]], data.images[index[[0, 2]]].flip(-1)) and torch.equal(
        flipped[3], data.images[120]
    )
    cut = read.read([7], np.array([[1, 2, 5, 5]]), resolution=5)
    assert torch.equal(cut[0], data.images[7, :, 1:6, 2:7])


@needs_ffcv
def test_subsets_of_classes_and_examples(tmp_path: Path) -> None:
    data = dataset(9)
    path = write(data, tmp_path / "x.beton")
    read = Beton(path)
    for index in ([8, 0, 3], np.array([8, 0, 3]), torch.tensor([8, 0, 3]), data.labels == 1):
        part, expected = read.subset(index), data.subset(index)
        assert torch.equal(part.images, expected.images) and torch.equal(part.labels, expected.labels)
    assert torch.equal(read.subset([8, 0, 3]).subset([1]).images, data.images[[0]])
    assert torch.equal(Beton(path, indices=[4, 2]).images, data.images[[4, 2]])
    assert len(read.subset(data.labels == 7)) == 0 and read.subset(data.labels == 7).size == (12, 12)
    for wrong in ([9], [-1]):
        with pytest.raises(ValueError, match=r"indices must be 0..8"):
            Beton(path, indices=wrong)
    with pytest.raises(ValueError, match="labels up to 2 but there are 2 classes"):
        Beton(path, classes=["a", "b"])
    path.with_suffix(".json").unlink()
    assert Beton(path, classes=["a", "b", "c"]).classes == ("a", "b", "c")


@needs_ffcv
def test_a_folder_and_a_torchvision_dataset_give_the_same_file(photos: Path, tmp_path: Path) -> None:
    folder = Beton(write(photos, tmp_path / "folder.beton"), resolution=32)
    assert folder.classes == ("cat", "dog") and folder.labels.tolist() == [0] * 4 + [1] * 4
    upright = beton.open_rgb(photos / "cat/3.png")
    with Image.open(photos / "cat/3.png") as stored:
        assert upright.size == stored.size[::-1]
    whole = Beton(folder.path, indices=[3])
    np.testing.assert_array_equal(whole.images[0].permute(1, 2, 0).numpy(), np.asarray(upright))
    torch_vision = Beton(write(ImageFolder(photos), tmp_path / "vision.beton"), resolution=32)
    straight = [i for i in range(8) if i % 4 != 3]  # torchvision leaves images as they lie
    assert torch.equal(folder.read(straight), torch_vision.read(straight)) and torch_vision.classes == folder.classes
    with pytest.raises(ValueError, match="have 8 sizes: give the resolution"):
        Beton(folder.path)
    with pytest.raises(TypeError, match="cannot write list: give an ImageDataset, a folder or a dataset with classes"):
        write([1, 2], tmp_path / "x.beton")


@needs_ffcv
def test_transparent_images_are_those_of_the_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shape = np.zeros((24, 24), dtype=bool)
    shape[6:18, 6:18] = True
    alpha = Image.fromarray(np.where(shape, 255, 0).astype(np.uint8))
    black, white = (Image.merge("RGBA", [*[Image.new("L", (24, 24), v)] * 3, alpha]) for v in (0, 255))
    for name in ("a", "b"):
        (tmp_path / "tree" / name).mkdir(parents=True)
    for name, image in {"rgba": black, "la": black.convert("LA"), "palette": black.quantize(8)}.items():
        image.save(tmp_path / "tree" / "a" / f"{name}.png")
    for mode, value in {"P": 60, "L": 60, "RGB": (60, 60, 60)}.items():  # one colour of these stands for nothing
        image = Image.fromarray(np.where(shape, 0, 60).astype(np.uint8)).convert(mode)
        image.save(tmp_path / "tree" / "b" / f"{mode}.png", transparency=value)
    expected = folders.read_files(folders.list_tree(tmp_path / "tree"), tmp_path, 24, tmp_path / "cache", False)
    read = Beton(write(tmp_path / "tree", tmp_path / "x.beton"), resolution=24, crop=1.0)
    assert torch.equal(read.images, expected.images) and read.images[:, :, 0].min() == 255
    assert "one colour" not in caplog.text
    white.save(tmp_path / "tree" / "b" / "white.png")
    write(tmp_path / "tree", tmp_path / "x.beton")
    assert "1 images show nothing but one colour: " in caplog.text and "b/white.png" in caplog.text
    Image.fromarray(np.where(shape, 900, 0).astype(np.uint16)).save(tmp_path / "tree" / "b" / "dark.png")
    with pytest.raises(ValueError, match=r"b/dark.png, uses 10 of 16 bits: save such images with 8"):
        write(tmp_path / "tree", tmp_path / "y.beton")


@needs_ffcv
def test_centre_crop_is_that_of_pillow_up_to_rounding(photos: Path, tmp_path: Path) -> None:
    path = write(photos, tmp_path / "x.beton")
    for resolution, crop in ((16, 1.0), (24, 224 / 256)):
        read = Beton(path, resolution=resolution, crop=crop)
        assert read.size == (resolution, resolution)
        for i, file in enumerate(sorted(photos.glob("*/*.png"))):
            image = beton.open_rgb(file)
            side = int(crop * min(image.size))
            left, top = (image.width - side) // 2, (image.height - side) // 2
            box = (left, top, left + side, top + side)
            expected = np.asarray(image.resize((resolution, resolution), Image.Resampling.BOX, box)).astype(int)
            assert np.abs(read.read([i])[0].permute(1, 2, 0).numpy() - expected).max() <= 2


@needs_ffcv
def test_jpeg_within_a_tolerance_and_smaller(photos: Path, tmp_path: Path) -> None:
    exact = Beton(write(photos, tmp_path / "raw.beton"), resolution=32)
    jpeg = Beton(write(photos, tmp_path / "jpeg.beton", quality=95), resolution=32)
    difference = (exact.images.int() - jpeg.images.int()).abs()
    assert 0 < difference.float().mean() < 2 and difference.max() <= 8
    file, other = jpeg._file, exact._file
    assert (
        file.jpeg.all() and not other.jpeg.any() and (file.end - file.start).sum() < (other.end - other.start).sum() / 3
    )
    small = Beton(write(photos, tmp_path / "small.beton", max_side=20), resolution=16)
    assert small._file.sides.max() == 20


@needs_ffcv
def test_batches_are_those_of_in_memory_data(problem: TransferProblem, betons: TransferProblem) -> None:
    ours = betons.target_test.batches(betons.source, CPU)
    theirs = problem.target_test.batches(problem.source, CPU)
    assert type(ours) is BetonBatches and type(theirs) is InMemory
    order = torch.tensor([[[3, 0, 39, 3], [1, 1, 2, 5]], [[3, 39, 0, 3], [5, 2, 1, 1]]])
    steps = zip(order, ours.load(order), theirs.load(order), strict=True)
    for index, of_ours, of_theirs in steps:
        a, b = ours.images(index, of_ours), theirs.images(index, of_theirs)
        assert a.shape == b.shape == (4, 6, 16, 16) and a.permute(1, 2, 3, 0).is_contiguous()
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert torch.equal(ours.labels, theirs.labels)
    mixed = problem.target_test.batches(betons.source, CPU)  # a target in memory, normalised as its source
    found, mixed, expected = (torch.cat([*batches.in_order(7)]) for batches in (ours, mixed, theirs))
    assert found.shape == (40, 3, 16, 16)
    for x in (found, mixed):
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)


@needs_ffcv
def test_a_study_on_betons_gives_the_numbers_of_one_in_memory(
    problem: TransferProblem, betons: TransferProblem, recipe: Recipe
) -> None:
    found, expected = (
        dtl.Study(p, recipe, transfer=("fixed", "full")).run(4, progress=False) for p in (betons, problem)
    )
    assert (found.masks == expected.masks).all()
    for regime in ("fixed", "full"):
        np.testing.assert_allclose(found.outputs(transfer=regime), expected.outputs(transfer=regime), atol=1e-3)


@needs_ffcv
def test_augmented_training_repeats_by_seed(betons: TransferProblem, recipe: Recipe) -> None:
    augmented = Recipe(**{**recipe.settings(), "augment": 1})  # pyright: ignore[reportArgumentType]
    first, second = (dtl.Study(betons, augmented, seed=s).run(4, progress=False).outputs() for s in (0, 0))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, dtl.Study(betons, recipe).run(4, progress=False).outputs(), atol=0.1)


@needs_ffcv
def test_crops_and_flips_are_a_models_own(photos: Path, tmp_path: Path) -> None:
    data = Beton(write(photos, tmp_path / "x.beton"), resolution=32)
    batches, order = data.batches(data, CPU, augment=1), torch.tensor([[[0, 1, 2, 3], [7, 6, 5, 4]]])

    def batch(*seeds: int) -> torch.Tensor:
        own = order[:, : len(seeds)]
        drawn = [batches.draw(own[:, m].numpy(), np.random.default_rng(seed)) for m, seed in enumerate(seeds)]
        (loaded,) = batches.load(own, torch.from_numpy(np.stack(drawn, 1)))
        return batches.images(own[0], loaded)

    both, alone = batch(1, 2), batch(1)
    assert torch.equal(both[:, :3], alone) and not torch.equal(both[:, :3], batch(2))
    assert not torch.equal(alone, next(data.batches(data, CPU).in_order(4)))
    boxes, flips = data.draw(np.arange(8).repeat(200), np.random.default_rng(0))
    assert 0.45 < flips.mean() < 0.55 and len(np.unique(boxes, axis=0)) > 1000
    # by hand: image 6 under the second model's crop and flip, after those of the step before
    rng = np.random.default_rng(2)
    first = data.draw(np.array([7, 6, 5, 4]), rng)
    for drawn, step in ((first, 0), (data.draw(np.array([5, 4, 6, 7]), rng), 1)):
        plan = batches.draw(np.array([[7, 6, 5, 4], [5, 4, 6, 7]]), np.random.default_rng(2))
        np.testing.assert_array_equal(plan[step], np.column_stack(drawn))
    expected = data.read([6], first[0][1:2], first[1][1:2])
    torch.testing.assert_close(both[1, 3:], batches.normalised(expected[:, None])[0])


@needs_ffcv
def test_training_images_grow(photos: Path, tmp_path: Path) -> None:
    data = Beton(write(photos, tmp_path / "x.beton"), resolution=48, growing=(32, 64))
    order = draw_order(np.arange(8), 8, 2, np.random.default_rng(0))
    batches, steps = data.batches(data, CPU, augment=1), torch.from_numpy(order)[:, None]
    draws = torch.from_numpy(batches.draw(order, np.random.default_rng(0)))[:, None]
    assert [x.shape[-1] for x in batches.load(steps, draws)] == [32] * 6 + [64] * 2
    assert {x.shape[-1] for x in data.batches(data, CPU).load(steps)} == {48}
    assert {x.shape[-1] for x in batches.in_order(3)} == {48}


@needs_ffcv
def test_fingerprints_see_content_and_how_it_is_read(tmp_path: Path) -> None:
    path = write(dataset(), tmp_path / "x.beton")
    same = Beton(write(dataset(), tmp_path / "again.beton"))
    others = [
        Beton(write(dataset(seed=1), tmp_path / "other.beton")),
        Beton(path, resolution=12),
        Beton(path, resolution=12, crop=1),
        Beton(path, growing=(8, 12)),
        Beton(path, classes=["a", "b", "c"]),
        Beton(path).subset([1, 0, 2, 3, 4, 5, 6]),
    ]
    assert Beton(path).fingerprint == same.fingerprint
    assert len({same.fingerprint, *(other.fingerprint for other in others)}) == 7


@needs_ffcv
def test_betons_are_sent_by_name(tmp_path: Path) -> None:
    data = dataset(9)
    sent = pickle.dumps(Beton(write(data, tmp_path / "x.beton")).subset([8, 1]))
    assert len(sent) < 2000 and torch.equal(pickle.loads(sent).images, data.images[[8, 1]])


@needs_ffcv
def test_a_failed_image_ends_the_writing_and_leaves_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "tree/a/broken.png"
    broken.parent.mkdir(parents=True)
    broken.write_bytes((photos / "cat/0.png").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cannot read the image .*broken.png"):
        write(tmp_path / "tree", tmp_path / "x.beton")
    monkeypatch.setattr(beton, "RESERVE", 1 << 62)
    with pytest.raises(ValueError, match="the disk of .* is full: free space"):
        write(photos, tmp_path / "x.beton")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="image . is float32 .*no picture: write data without transforms"):
        write(ImageFolder(photos, ToTensor()), tmp_path / "x.beton")
    Image.new("RGB", (2000, 1800)).save(broken)
    with pytest.raises(ValueError, match="1800 x 2000 pixels, too many for a .beton: give max_side"):
        write(tmp_path / "tree", tmp_path / "x.beton")
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]
    assert Beton(write(tmp_path / "tree", tmp_path / "x.beton", max_side=1000)).size == (900, 1000)


@needs_ffcv
def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = write(dataset(40, side=64), tmp_path / "x.beton", quality=90)  # other threads still decode when one fails
    start, end = (int(a[3]) for a in (Beton(path)._file.start, Beton(path)._file.end))
    whole = path.read_bytes()
    path.write_bytes(whole[:start] + bytes(end - start) + whole[end:])
    with pytest.raises(ValueError, match="cannot decode image 3 of .*x.beton: write the file again"):
        Beton(path).images  # noqa: B018
    for damaged in (whole[: len(whole) // 2], b"", b"hello" * 2000):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="no complete .beton of images with labels"):
            Beton(path)
