"""Folders of images, one for each class: found, read, cut to one size, and kept decoded."""

import hashlib
import json
import logging
import mimetypes
import os
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs
import torch
from PIL import Image, ImageOps
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dtl._checks import InputError, check_between, class_names, shown, some, whole
from dtl._files import load_tensors, save_tensors
from dtl.data import ImageDataset, TransferProblem
from dtl.datasets.registry import load
from dtl.engine.progress import progress

logger = logging.getLogger(__name__)

CACHE = "2"  # how images are decoded and kept: raise it when that changes
BACKGROUND = (255, 255, 255)  # what transparent images are laid on
SPLIT_FOLDERS = {  # in any case
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
SPLIT_LIKE = (
    r"(?i)(train|val|valid|validation|test|dev|eval|hold-?out|unlabell?ed)(ing)?([-_ ]?(set|data|images?|\d+))*"
)
SYSTEM = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "thumbs.db", "desktop.ini"}  # and all .names
PICTURES = {".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw"}  # images of which no library says so
Groups = Callable[[Path], object] | Mapping[str, object] | str


def from_folders(source_dir: str | Path, target_dir: str | Path, size: int = 32, **options: Any) -> TransferProblem:
    """Your own images: `dtl.load("folders", ...)`, see `dtl.datasets.folders.make` for the options.

    >>> dtl.from_folders("animals", "pets", size=16, show_progress=False).name
    'animals-pets'
    """
    return load("folders", source_dir=source_dir, target_dir=target_dir, size=size, **options)


def make(
    source_dir: str | Path,
    target_dir: str | Path,
    size: int = 32,
    *,
    holdout: float = 0.2,
    groups: Groups | None = None,
    limit: int | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    show_progress: bool = True,
) -> TransferProblem:
    """Your own images: two trees with one folder per class (ImageFolder layout).

    Hidden and system files and folders are passed over, and so is what is no image; the log says how many, by ending,
    and which images are copies of each other. Transparent images are laid on white. Of an animation, or a file of
    several pages, the first is taken. 16-bit grey is scaled so that white is the largest number of as many bits as the
    images of a tree need (8, 10, 12, 14 or 16).

    Parameters
    ----------
    source_dir : folder of class folders, or a folder that holds such a tree as `train`
    target_dir : likewise; `validation` (or `val`) and `test` beside `train` are used where they are, and
        split off `train` with `seed`, the same share of each class, where they are not. Copies stay together
    size : images are resized and centre-cropped to size x size pixels, grey and palette images to RGB
    holdout : share of the target's training images that each missing split takes
    groups : what must not be torn apart by that, such as the images of one patient or video. A regular expression,
        whose first group (or whole match) in a path names its group; a mapping from paths, or names of files, to
        groups; or a function of a path. Paths are relative to `target_dir`, as `cat/p7-3.png`
    limit : at most this many images of each class, drawn with `seed`
    cache : folder for decoded images, by path, size and time of change; default is the user's cache folder
    show_progress : show a bar while images are decoded

    Raises
    ------
    FileNotFoundError : a folder is missing or holds no class folders
    InputError : a class without images, unreadable images (all of them named), folders of which it is not clear whether
        they are splits or classes, fewer than two classes, a bad setting

    >>> dtl.load("folders", source_dir="animals", target_dir="pets", show_progress=False).target_validation.classes
    ('ant', 'bee')
    """
    check_reading(size, holdout, limit)
    source_dir, target_dir = Path(source_dir), Path(target_dir)
    beside = split_folders(source_dir)
    source_tree = beside.pop("train", source_dir)
    if beside:
        logger.info("%s: a source is its train folder alone, without its %s", shown(source_dir), " and ".join(beside))
    trees = split_folders(target_dir) or {"train": target_dir}
    for tree in trees.values():
        one, other = source_tree.resolve(), tree.resolve()
        if one in other.parents or other in one.parents:
            raise InputError(f"of {source_tree} and {tree} one lies in the other: give two folders of class folders")

    def read(folder: Path) -> ImageDataset:
        return read_files(list_tree(folder, limit, seed), folder, size, cache, show_progress)

    source, target = read(source_tree), {split: read(folder) for split, folder in trees.items()}
    named = {} if groups is None else {k: group_names(part, groups, target_dir) for k, part in target.items()}
    for torn in [set(named[a]) & set(named[b]) for a in named for b in named if a < b]:
        if torn:
            logger.warning("groups in two splits of %s: %s", shown(target_dir), some(sorted(map(str, torn))))
    missing = [split for split in SPLIT_FOLDERS if split not in target]
    if missing:
        target |= hold_out(target["train"], missing, holdout, seed, named.get("train"))
        least = min(int(target[split].counts.min()) for split in missing)
        share = f"{holdout:.0%} of its training images each, of a class at least {least}"
        told = logger.info if least > 1 else logger.warning
        told("no folder for %s in %s: held out, %s", " and ".join(missing), shown(target_dir), share)
    (name,) = class_names([f"{source_dir.name}-{target_dir.name}"])
    return TransferProblem(name, source, target["train"], target["validation"], target["test"])


def check_reading(size: int, holdout: float, limit: int | None) -> None:
    """InputError for settings of reading images that make no sense."""
    whole("size, in pixels,", size, 1)
    check_between(holdout, "holdout", 0, 0.5)
    whole("limit, in images a class,", 1 if limit is None else limit, 1)


def hidden(name: str) -> bool:
    """Whether a file or folder is what a system, a file manager or a notebook server leaves behind."""
    return name.startswith(".") or name.lower() in SYSTEM


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, hidden ones left out, in the order of their names as they are shown."""
    inside = [path for path in folder.iterdir() if path.is_dir() and not hidden(path.name)]
    return sorted(inside, key=lambda path: (class_names([path.name]), path.name))


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders of the splits, none in a tree of classes; an error where it is not clear what folders are."""
    inside = folders_in(folder) if folder.is_dir() else []
    found = {split: [path for path in inside if path.name.lower() in SPLIT_FOLDERS[split]] for split in SPLIT_FOLDERS}
    named = [path for paths in found.values() for path in paths]
    trees = [path for path in named if folders_in(path)]
    if not trees:  # a folder without folders in it may be a class of that name
        if inside and all(re.fullmatch(SPLIT_LIKE, path.name) for path in inside):
            raise InputError(
                f"{folder} holds {some([path.name for path in inside])}: splits, not classes; name them train, "
                "validation and test, and give each one folder of images per class"
            )
        return {}
    if not found["train"]:
        names = ", ".join(path.name for path in named)
        raise FileNotFoundError(f"{folder} has {names} but no train folder: add one, or give a tree of classes")
    for paths in found.values():
        if len(paths) > 1:
            raise InputError(f"{folder} has {' and '.join(path.name for path in paths)}: keep one of them")
        if paths and paths[0] not in trees:
            raise InputError(f"{paths[0]} holds no class folders: sort its images into them, or remove it")
    classes, others = {path.name for path in folders_in(found["train"][0])}, [p for p in inside if p not in named]
    for other in others:
        alike = classes & {path.name for path in folders_in(other)}
        if not alike and any(readable(name) for _, names in walk(other, {}, Counter()) for name in names):
            raise InputError(
                f"is {found['train'][0]} a split or a class? Beside it {other.name} holds images too: give the folder "
                "of the training images alone, or rename one of the two"
            )
    rest = sorted(class_names(path.name for path in folder.iterdir() if path not in named))
    if rest:
        level = logging.WARNING if others or any(readable(name) and not hidden(name) for name in rest) else logging.INFO
        logger.log(level, "%s: passed over beside its train folder: %s", shown(folder), some(rest, 20))
    return {split: paths[0] for split, paths in found.items() if paths}


def group_names(dataset: ImageDataset, groups: Groups, root: Path) -> Sequence[object]:
    """The group of each image, by the path of its file relative to `root`."""
    paths = [Path(os.path.relpath(path, root)) for path in dataset.paths or ()]
    if callable(groups):
        found = [groups(path) for path in paths]
    elif isinstance(groups, Mapping):
        found = [groups.get(path.as_posix(), groups.get(path.name)) for path in paths]
    else:
        try:
            hits = [re.search(groups, path.as_posix()) for path in paths]
            found = [hit and hit[min(1, hit.re.groups)] for hit in hits]
        except (re.error, TypeError) as error:
            raise InputError(f"groups must be a regular expression, a mapping or a function ({error})") from None
    if not all(isinstance(group, Hashable) for group in found):
        raise InputError("groups must name each group by text, a number or another value that can be a key")
    lost = [path.as_posix() for path, group in zip(paths, found, strict=True) if group is None]
    if lost:
        raise InputError(f"groups names no group for {some(lost)}")
    return found


def hold_out(
    dataset: ImageDataset, splits: Sequence[str], share: float, seed: int, groups: Sequence[object] | None = None
) -> dict[str, ImageDataset]:
    """What stays in train, and the missing splits: the same share of every class for each, at least one image.

    Images that are equal, or of one group, stay together; a group that is too large for a split stays in train.
    """
    tied = _tied(dataset.digests.tolist(), *([] if groups is None else [groups]))
    rng, labels, part = np.random.default_rng(seed), dataset.labels.numpy(), np.zeros(len(dataset), dtype=np.int64)
    own = [len(np.unique(tied[labels == k])) for k in range(dataset.n_classes)]
    small = [f"{dataset.classes[k]} ({n} of {dataset.counts[k]})" for k, n in enumerate(own) if n <= len(splits)]
    if small:
        raise InputError(
            f"classes with too few images to hold out {' and '.join(splits)}, copies and groups counted once: "
            f"{some(small)}; add images or give validation and test folders"
        )
    rows = np.split(np.argsort(tied, kind="stable"), np.cumsum(np.bincount(tied))[:-1])  # of each group
    for k, n in enumerate(dataset.counts):
        members, take = rng.permutation(np.flatnonzero(labels == k)), max(1, int(share * n + 1e-9))
        within = np.bincount(tied[members])
        for i in range(1, len(splits) + 1):
            free = list(dict.fromkeys(tied[[m for m in members if part[m] == 0]]))
            have = np.count_nonzero(part[members] == i)
            for group in free:
                if have + within[group] <= take:
                    part[rows[group]] = i
                    have += within[group]
            if not have and free:
                part[rows[min(free, key=within.__getitem__)]] = i
    found = {split: dataset.subset(part == i) for i, split in enumerate(("train", *splits))}
    for split, held in found.items():
        if not held.counts.all():
            lacking = some(np.array(held.classes)[held.counts == 0].tolist())
            raise InputError(f"groups leave no image of {lacking} for {split}: use smaller groups, or give the splits")
    return found


def _tied(*ties: Sequence[object]) -> np.ndarray:
    """Number of the set that each image is in, (n,) int, when images with equal values of any tie are in one."""
    first: list[dict[object, int]] = [{} for _ in ties]
    ends = [seen.setdefault(value, i) for seen, tie in zip(first, ties, strict=True) for i, value in enumerate(tie)]
    n = len(ties[0])
    links = coo_array((np.ones(len(ends)), (np.tile(np.arange(n), len(ties)), ends)), shape=(n, n))
    return connected_components(links, directed=False)[1]


class Listing(NamedTuple):
    """Image files with one label each, not read yet."""

    paths: list[Path]
    labels: np.ndarray
    classes: tuple[str, ...]

    def take(self, index: np.ndarray) -> "Listing":
        """The files at `index`, with the same classes."""
        return Listing([self.paths[i] for i in index], self.labels[index], self.classes)


def walk(top: Path, seen: dict[str, str], passed: Counter[str]) -> Iterator[tuple[str, list[str]]]:
    """Each folder in a tree, and the files in it; hidden ones are counted in `passed`.

    InputError for a folder that cannot be read, or is reached twice because of a link.
    """

    def stop(error: OSError) -> None:
        raise InputError(f"cannot read the folder {error.filename} ({error.strerror}): see to its permissions")

    for place, inside, files in os.walk(top, onerror=stop, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            raise InputError(f"{real} is reached twice, as {seen[real]} and {place}: remove the link that does it")
        seen[real] = place
        passed.update(f"{name}/" for name in inside if hidden(name))
        passed.update("._*" if name.startswith("._") else name for name in files if hidden(name))
        inside[:] = [name for name in inside if not hidden(name)]
        yield place, [name for name in files if not hidden(name)]


def readable(name: str) -> bool:
    """Whether the ending of a file is that of an image that Pillow opens."""
    return Image.registered_extensions().get(os.path.splitext(name)[1].lower()) in Image.OPEN


def list_tree(folder: Path, limit: int | None = None, seed: int = 0) -> Listing:
    """The files of an ImageFolder tree, at most `limit` of each class, drawn with `seed`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give a folder that holds one folder of images per class")
    tops = folders_in(folder)
    if not tops:
        raise FileNotFoundError(f"{folder} holds no class folders: put the images of each class into one")
    classes, paths, labels, seen, passed = class_names(path.name for path in tops), [], [], {}, Counter()
    aside = [path.name for path in folder.iterdir() if path not in set(tops)]
    for k, top in enumerate(tops):
        for place, names in sorted(walk(top, seen, passed)):
            chosen = sorted(name for name in names if readable(name))
            aside += [name for name in names if not readable(name)]
            paths += [Path(place, name) for name in chosen]
            labels += [k] * len(chosen)
    passed.update(name if hidden(name) else os.path.splitext(name)[1].lower() or "without ending" for name in aside)
    pictures = [e for e in passed if e in PICTURES or str(mimetypes.guess_type(f"x{e}")[0]).startswith("image/")]
    said = ", ".join(f"{n} {what}" for what, n in passed.most_common()) or "nothing"
    level = logging.WARNING if pictures or any(readable(name) and not hidden(name) for name in aside) else logging.INFO
    logger.log(level, "%s: %d classes, %d images; passed over: %s", shown(folder), len(tops), len(paths), said)
    folded = Counter(map(str.casefold, classes))
    alike = [name for name in classes if folded[name.casefold()] > 1]
    if alike:
        logger.warning("%s: classes that differ by capitals alone: %s", shown(folder), some(alike))
    counts = np.bincount(np.array(labels, dtype=np.int64), minlength=len(tops))
    if not counts.all():
        raise InputError(
            f"class folders without any image in {folder}: {some(np.array(classes)[counts == 0].tolist())}; "
            f"add images or remove them (passed over: {said})"
        )
    places = {(k, path.parent) for path, k in zip(paths, labels, strict=True)}
    if not {place for _, place in places} & set(tops) and min(Counter(k for k, _ in places).values()) > 1:
        logger.warning("%s: every class has images in several folders: is it the parent of your tree?", shown(folder))
    files = Listing(paths, np.array(labels, dtype=np.int64), classes)
    return files if limit is None else files.take(at_most(limit, files.labels, seed))


def at_most(limit: int, labels: np.ndarray, seed: int) -> np.ndarray:
    """Indices of at most `limit` examples of each label, drawn with `seed`, in their order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.sort(np.concatenate([order[labels[order] == k][:limit] for k in np.unique(labels)]))


def read_files(files: Listing, where: Path, size: int, cache: str | Path | None, show_progress: bool) -> ImageDataset:
    """Files decoded in parallel at size x size pixels, or from the cache of the same, unchanged files."""
    cache = Path(cache or platformdirs.user_cache_dir("dtl"))
    shape = (len(files.paths), 3, size, size)
    have, need = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), len(files.paths) * 3 * size**2
    if need > have:
        raise InputError(
            f"{shape[0]} images of {size} x {size} pixels take {need / 1e9:.0f} GB, of {have / 1e9:.0f} GB that this "
            "machine has: use a smaller size, a limit, or a .beton (dtl.datasets.ffcv)"
        )
    kept = cache / f"{_key(files.paths, size)}.safetensors"
    images, notes = _kept(kept, shape) or _decoded(files.paths, where, size, show_progress)
    if not kept.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            save_tensors(kept, {"images": images}, {"version": CACHE, "notes": json.dumps(notes)})
        except OSError as error:
            logger.warning("cannot keep decoded images in %s (%s): they are decoded again next time", cache, error)
    for note in notes:
        logger.info("%s: %s", shown(where), note)
    plain = np.flatnonzero((images.amax((2, 3)) == images.amin((2, 3))).all(1))
    if len(plain):
        names = some([shown(files.paths[i]) for i in plain])
        logger.warning("%s: %d images show nothing but one colour: %s", shown(where), len(plain), names)
    return ImageDataset(images, torch.from_numpy(files.labels), files.classes, tuple(map(str, files.paths)))


def _key(paths: Sequence[Path], size: int) -> str:
    """What the images decoded from these files are kept under: no file is read for it."""
    digest = hashlib.sha256(repr((CACHE, size)).encode())
    for path in paths:
        try:
            found = path.stat()
            state = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        except OSError as error:
            state = (str(error),)  # which decoding will say
        digest.update(repr((os.path.abspath(path), *state)).encode())
    return digest.hexdigest()[:32]


def _kept(file: Path, shape: tuple[int, ...]) -> tuple[torch.Tensor, list[str]] | None:
    """Decoded images and what is to be said of them from the cache, None if they are not there or damaged."""
    if not file.is_file():
        return None
    try:
        tensors, facts = load_tensors(file)
        if facts["version"] != CACHE or tuple(tensors["images"].shape) != shape:
            raise InputError("it holds other images than its name says")
        return tensors["images"], json.loads(facts["notes"])
    except (OSError, ValueError, KeyError) as error:
        logger.warning("decoded images in %s cannot be used (%s): they are decoded again", file, error)
        file.unlink(missing_ok=True)
        return None


def _decoded(paths: Sequence[Path], where: Path, size: int, show_progress: bool) -> tuple[torch.Tensor, list[str]]:
    """All images, uint8 (n, 3, size, size), and what is to be said of them; InputError names all unreadable ones."""
    n, failed = len(paths), {}
    images = torch.empty(n, 3, size, size, dtype=torch.uint8)
    bits, several = np.zeros(n, dtype=np.uint8), np.zeros(n, dtype=bool)

    def decode(i: int) -> None:
        try:
            image = open_rgb(paths[i], size)
            images[i], bits[i], several[i] = square(image, size), image.info.get("bits", 0), image.info["several"]
        except InputError as error:
            failed[i] = error.__cause__

    with ThreadPoolExecutor() as pool, progress(n, "image", f"reading {where}", show_progress) as bar:
        for _ in pool.map(decode, range(n)):
            bar.update()
    if failed:
        names = some([f"{paths[i]} ({failed[i]})" for i in sorted(failed)], 1000)
        raise InputError(f"cannot read {len(failed)} of {n} images: {names}: replace or remove them")
    deep, notes = np.flatnonzero(bits), []
    if len(deep):
        images[deep] >>= torch.from_numpy(bits.max() - bits[deep])[:, None, None, None]
        notes.append(
            f"{len(deep)} images have 16 bits, of which {bits.max()} are used: {2 ** int(bits.max()) - 1} is white"
        )
    if several.any():
        notes.append(f"{several.sum()} files hold several pictures, of which the first is taken")
    return images, notes


def square(image: Image.Image, size: int) -> torch.Tensor:
    """An RGB image resized and centre-cropped, uint8 (3, size, size)."""
    fitted = image if image.size == (size, size) else ImageOps.fit(image, (size, size))
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def open_rgb(path: Path, size: int | None = None) -> Image.Image:
    """An image file, upright and in RGB; of a large JPEG only the detail that `size` pixels a side need."""
    try:
        if not path.is_file():
            raise FileNotFoundError("it is no file, or a link to none")
        with Image.open(path) as image:
            wide, several = ";16" in str(image.tile), getattr(image, "is_animated", False)
            if size:
                image.draft("RGB", (2 * size, 2 * size))  # lets the JPEG decoder skip detail that is resized away
            rgb = to_rgb(ImageOps.exif_transpose(image))
        if wide and "bits" not in rgb.info and 0 < np.max(rgb.getextrema()) < 64:
            raise InputError("its 16-bit channels use fewer than 14 bits, so that it is dark; save it with 8 bits")
        rgb.info["several"] = several
        return rgb
    except Exception as error:  # decoders raise almost anything on a broken file
        raise InputError(f"cannot read the image {path} ({error}): replace or remove it") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image with 8 bits a channel, or 16-bit grey, in RGB; a transparent one is laid on white.

    Of 16-bit grey as many bits count as its brightest pixel needs (8, 10, 12, 14 or 16), kept as `info["bits"]`.
    """
    if image.mode.startswith("I;16"):  # Pillow would clip it to white
        values = np.asarray(image)
        bits = max(8, -(-int(values.max()).bit_length() // 2) * 2)
        image = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
        image.info["bits"] = bits
    elif image.mode in ("I", "F"):
        raise InputError(f"its pixels are {image.mode!r}, 32 bits of unknown range; save it with 8 bits")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image)
    return image.convert("RGB")
