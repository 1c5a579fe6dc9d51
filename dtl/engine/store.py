"""The results of a study on disk: one Zarr group, one chunk per batch of models, `done` written last.

Nothing that was lost or changed on the way becomes a number. Every chunk carries a CRC-32C checksum; every row of a
model has a digest, which finds chunks that were exchanged; the description of the study is sealed; and what is marked
done has reached the disk. Nothing in a store is ever unpickled.
"""

import asyncio
import errno
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar
from zlib import crc32

import numpy as np
import xarray as xr
import zarr
from filelock import FileLock, Timeout
from zarr.abc.store import Store as ZarrStore
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore, MemoryStore

from dtl._checks import InputError

logger = logging.getLogger(__name__)

FORMAT = 3
SPLITS = ("validation", "test")  # in the order of the target axis
OUTPUTS = {"margin": "float32", "probability": "float32", "correct": "bool", "prediction": "int16"}
ARRAYS = ("label", "split", "mask", "seed", *OUTPUTS)
MARKS = ("done", "digest")
CODECS = (ZstdCodec(), Crc32cCodec())
FILL = {"f": np.nan, "i": -1, "b": False, "u": 0}
WRITE_ALL: Any = {"write_empty_chunks": True}  # also chunks of zeros: one that is missing has been lost


class Durable(LocalStore):
    """A folder whose files, and their names, have reached the disk when a write returns; writes wait side by side."""

    async def set(self, key: str, value: Any) -> None:
        await super().set(key, value)
        await asyncio.to_thread(self._flush, self.root / key)

    def _flush(self, file: Path) -> None:
        for path in (file, *(above for above in file.parents if above.is_relative_to(self.root))):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


P = ParamSpec("P")
R = TypeVar("R")


def _uninterrupted(write: Callable[P, R]) -> Callable[P, R]:
    """Runs it in a thread of its own, for whose end Ctrl+C in the caller's waits: what has begun is written whole."""

    @wraps(write)
    def whole(*args: P.args, **options: P.kwargs) -> R:
        with ThreadPoolExecutor(1) as writer:
            return writer.submit(write, *args, **options).result()

    return whole


class Store:
    """Arrays over models that grow, and that a kill at any moment leaves consistent.

    location : folder, a Zarr store, or None for memory
    settings : what decides the numbers; a store that was made with others is refused
    """

    def __init__(self, location: str | Path | ZarrStore | None, settings: dict[str, object]) -> None:
        if isinstance(location, str | Path):
            location = Durable(local_folder(location).absolute())  # the same one after a change of folder
        self.zarr: ZarrStore = MemoryStore() if location is None else location
        self.settings = settings
        self.folder: Path | None = None  # where other processes find it, unless it is in memory or of another kind
        if isinstance(self.zarr, LocalStore) and type(self.zarr) in (LocalStore, Durable):
            self.folder = self.zarr.root.absolute()
        if self.ready:
            try:
                marks_of(self.open())  # says what has been lost
            except InputError as error:  # which a run with repair=True may mend
                logger.warning("%s", error)

    @property
    def exists(self) -> bool:
        """Whether a study is there; in a folder, which has a lock, one without models leaves it to other settings."""
        try:
            root = _open(self.zarr)
        except FileNotFoundError:
            kept = sorted(self.folder.iterdir()) if self.folder and self.folder.is_dir() else []
            kept = [path.name for path in kept if path.name[0] != "." and path.suffix != ".partial"]  # of a kill
            if kept and "zarr.json" not in kept:  # another process may just have begun
                raise InputError(f"{self.folder} holds {kept[0]!r} but no study: give another folder") from None
            return False
        return self.folder is None or not _differences(root.attrs["settings"], self.settings) or not _unused(root)

    @property
    def ready(self) -> bool:
        """Whether it has room for models; a run that was killed at its very start leaves a group without."""
        return self.exists and bool(self.open().attrs["runs"])

    def open(self, mode: Literal["r", "r+"] = "r") -> zarr.Group:
        """The group, after a check that it holds this study."""
        root = _open(self.zarr, mode)
        if differences := _differences(root.attrs["settings"], self.settings):
            raise InputError(
                f"{self.zarr} holds another study ({'; '.join(differences)}): use its settings, or another folder"
            )
        return _sealed(root)

    def open_during(self, run: str) -> zarr.Group | None:
        """The group open for writing while `run` is its latest run, otherwise None: a worker may outlive its run."""
        if not self.exists:
            return None
        root = self.open("r+")
        return root if [one["id"] for one in _facts(root)["runs"][-1:]] == [run] else None

    @_uninterrupted
    def prepare(
        self, data: Mapping[str, xr.Variable], batch: int, facts: Mapping[str, object], run: Mapping[str, Any]
    ) -> zarr.Group:
        """The group open for writing, with room for every model; may be repeated after a kill at any point.

        data : all arrays; of outputs, which have "transfer" as their first dimension, only the room
        """
        if self.zarr.read_only:
            raise OSError(errno.EROFS, f"{self.zarr} is read-only: open it for writing, or give another folder")
        columns = [name for name, v in data.items() if v.dims[0] == "model"]
        for name, v in data.items():
            columns += [f"{name}/{t}" for t in range(v.sizes.get("transfer", 0))]
        done = np.zeros(data["seed"].sizes["model"], bool)
        digest = np.zeros((len(done), len(columns)), "u4")
        like = {"done": xr.Variable("model", done), "digest": xr.Variable(("model", "column"), digest), **data}
        with self.writing("the settings of the study"):
            if not self.exists:
                begun = _with_seal({"settings": self.settings, "runs": [], **facts})
                root = zarr.open_group(self.zarr, mode="a", attributes=dict(begun))
                for name in (name for name in like if name in root):  # of a study without models
                    del root[name]  # and nothing else: weights and notes may lie beside
                root.attrs.put(begun)
            root = self.open("r+")
            known = _facts(root)
            if known["runs"] and "digest" not in _known(root):
                del like["digest"]  # a store of dtl 0.1 goes on without
            arrays = {name: _room(root, name, v, batch, columns) for name, v in like.items()}
            for name, v in data.items():
                if "transfer" not in v.dims:
                    arrays[name][: len(v)] = v.values
            constants = {name: v.values[None] for name, v in data.items() if "model" not in v.dims}
            known["constants"] = {name: _digests(name, [0], values).tolist() for name, values in constants.items()}
            known["arrays"] = {name: _described(array) for name, array in arrays.items()}
            root.attrs.put(_with_seal(known | {"runs": [*known["runs"], run]}))
        return root

    @_uninterrupted
    def save(self, root: zarr.Group, rows: np.ndarray, outputs: Mapping[str, np.ndarray]) -> None:
        """Write outputs (transfer, len(rows), target) of models `rows` of a batch, then mark them done."""
        if not len(rows):
            return
        with self.writing(f"models {rows[0]} to {rows[-1]}"):
            kept: Any = {name: array_of(root, name).oindex[rows] for name in ("mask", "seed")}
            for name, values in outputs.items():
                array = array_of(root, name)
                array.oindex[:, rows] = values.astype(array.dtype)
                kept |= {f"{name}/{t}": of.astype(array.dtype) for t, of in enumerate(values)}
            if "digest" in _known(root):
                digest: Any = array_of(root, "digest")
                columns = [_digests(name, rows, kept[name]) for name in digest.attrs["columns"]]
                digest.oindex[rows] = np.stack(columns, axis=1)
            array_of(root, "done").oindex[rows] = True

    @_uninterrupted
    def record(self, root: zarr.Group, device: str) -> None:
        """Add a device to the record of the latest run."""
        *before, latest = _facts(root)["runs"]
        if device not in latest["device"].split(", "):
            latest["device"] = ", ".join(filter(None, [latest["device"], device]))
            with self.writing("the record of the run"):
                root.attrs.put(_with_seal(_facts(root) | {"runs": [*before, latest]}))

    @_uninterrupted
    def repair(self) -> None:
        """Empty every chunk that is damaged, so that its models are not done and a run trains them again."""
        if not self.ready:
            return
        root, marks = self.open("r+"), None
        for name in sorted(_known(root), key=lambda name: (*MARKS, name).index(name)):  # marks tell of the others
            if name not in MARKS:
                marks = marks or marks_of(root)
            array = array_of(root, name)
            checked = _Checked(root, array, marks)
            for chunk, region in _chunks(array):
                try:
                    checked[region]
                except ValueError:
                    logger.warning("%s of %s was damaged: its models are not done", chunk, self.zarr)
                    models = dict(zip(_dims(array), region, strict=True)).get("model", slice(0))
                    with self.writing(f"the repair of {chunk}"):
                        array_of(root, "done")[models] = False  # first, so that a kill in between shows no empty chunk
                        array[region] = array.fill_value

    def merge(self, root: zarr.Group, other: zarr.Group) -> None:
        """Copy the outputs of the models that are done only in `other`; InputError if any others differ."""
        both = [(group, marks_of(group)) for group in (root, other)]
        mine, theirs = (np.flatnonzero(marks.done) for _, marks in both)
        here, there = ({name: read(group, name, marks) for name in OUTPUTS} for group, marks in both)
        common, new = np.intersect1d(theirs, mine), np.setdiff1d(theirs, mine)
        differ = [(here[n][:, common] != there[n][:, common]).any(("transfer", "target")) for n in OUTPUTS]
        differing = common[np.any(differ, axis=0)]
        if len(differing):
            raise InputError(
                f"models {', '.join(map(str, differing))} are done in both stores and differ (other hardware or "
                "versions?): merge stores that share no models"
            )
        for rows in np.split(new, np.flatnonzero(np.diff(new // array_of(root, "done").chunks[0])) + 1):
            self.save(root, rows, {name: np.asarray(there[name][:, rows]) for name in OUTPUTS})

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Turns a failed write into one error that says what is safe and what to do."""
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot save {what} to {self.zarr} ({error}): all saved before is safe; free space and run again, or "
                "give a folder that you may write to",
            ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One writer at a time; a second one says that it waits."""
        if not isinstance(self.zarr, LocalStore) or self.zarr.read_only:
            yield
            return
        with self.writing("its lock file"):
            self.zarr.root.parent.mkdir(parents=True, exist_ok=True)
            path = Path(f"{self.zarr.root}.lock")
            path.touch()  # where it cannot be made, FileLock would wait forever
        lock = FileLock(path)
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            logger.warning("another process is writing %s: waiting for it to end", self.zarr.root)
            held = lock.acquire()
        with held:
            yield


def open_store(location: str | Path) -> zarr.Group:
    """The group of a study in a folder, read-only; InputError if there is none. No data is loaded."""
    try:
        root = _open(LocalStore(local_folder(location), read_only=True))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{location} holds no study: give the folder that a study is stored in") from error
    found = _facts(root)["settings"]["format"]
    if found != FORMAT:
        raise InputError(f"{location} has format {found} and this dtl reads {FORMAT}: use the dtl that made it")
    return _sealed(root)


def local_folder(location: str | Path) -> Path:
    """The folder that somebody means; InputError for none, and for a URL.

    >>> local_folder("~/studies").is_absolute()
    True
    """
    if not isinstance(location, str | Path) or not str(location).strip():
        raise InputError(f"{location!r} is no folder: give one")
    if re.match(r"[a-zA-Z][\w.+-]+:/", str(location)):
        raise InputError(
            f"{location} is a URL, not a folder: in Python, give a Zarr store such as zarr.storage.FsspecStore.from_url"
        )
    return Path(location).expanduser()


class Marks(NamedTuple):
    """Which models are done, bool (models,); chunks that they lack; digests by column, uint32 (models,) each."""

    done: np.ndarray
    lost: list[str]
    digests: dict[str, np.ndarray]


def marks_of(root: zarr.Group, patient: bool = True) -> Marks:
    """What a group says of its models. Those that lost a file are not done, and a warning says so.

    A run that is saving has written digests that it marks next, so what lacks marks alone is looked at twice.

    Elsewhere than in a folder, where a look for each file is slow, their digests miss it when it is read.
    """
    arrays: dict[str, Any] = {name: array_of(root, name) for name in _known(root)}
    known = [name for name in MARKS if name in arrays]
    try:
        done, *digest = (np.asarray(arrays[name][...]) for name in known)
    except ValueError:  # `read` names the chunk; not as tasks, by which a Dask worker would begin the next batch
        done, *digest = (read(root, name).compute(scheduler="synchronous").values for name in known)
    digests = dict(zip(arrays["digest"].attrs["columns"], digest[0].T, strict=True)) if digest else {}
    saved = digests["seed"][: len(done)] > 0 if digest else np.zeros_like(done)
    saved = done | np.pad(saved, (0, len(done) - len(saved)))  # or killed before they were marked
    lost, folder = [], root.store.root if isinstance(root.store, LocalStore) else None
    for name, array in arrays.items():
        if "model" not in _dims(array):  # which a run writes
            lost += [chunk for chunk, _ in _chunks(array) if folder and not os.path.exists(f"{folder}/{chunk}")]
            continue
        axis, wanted = _dims(array).index("model"), saved if name == "done" else done.copy()
        if not np.flatnonzero(done).max(initial=-1) < array.shape[axis] <= len(done):
            raise _damaged(root, name, f"it speaks of {array.shape[axis]} models, done of {len(done)}")
        for chunk, region in _chunks(array) if folder else ():
            if wanted[region[axis]].any() and not os.path.exists(f"{folder}/{chunk}"):
                lost.append(chunk)
                done[region[axis]] = False
    if lost and patient and all(chunk.startswith("done/") for chunk in lost):
        time.sleep(0.3)
        return marks_of(root, patient=False)
    if lost:
        logger.warning("%s lacks %s: run again, which trains the models of these files", root.store, ", ".join(lost))
    return Marks(done, lost, digests)


def array_of(root: zarr.Group, name: str) -> zarr.Array:
    """An array of the group, whose chunks are written even if they are all zero; InputError if it is not as it was."""
    try:
        found = root[name]
    except OSError:
        raise
    except Exception as error:  # Zarr has many for a description that it cannot make sense of
        raise _damaged(root, name, error) from error
    if not isinstance(found, zarr.Array) or _known(root).get(name) not in (None, _described(found)):
        raise _damaged(root, name, "it describes something else")
    return found.with_config(WRITE_ALL)


def read(root: zarr.Group, name: str, marks: Marks | None = None) -> xr.Variable:
    """An array of the group, read when it is used; a damaged chunk is an InputError that names it.

    marks : finds chunks that are sound, but not those of the models that are done
    """
    from dask.array import from_array  # here, because training needs none of it

    array = array_of(root, name)
    chunks, meta, checked = array.chunks, np.empty((0,) * array.ndim, array.dtype), _Checked(root, array, marks)
    return xr.Variable(_dims(array), from_array(checked, chunks, name=False, meta=meta))  # pyright: ignore


class _Checked:
    """An array of which dask reads one chunk at a time."""

    def __init__(self, root: zarr.Group, array: zarr.Array, marks: Marks | None) -> None:
        self.array, self.shape, self.dtype, self.ndim = array, array.shape, array.dtype, array.ndim
        self.digests = {name: np.array(digest) for name, digest in _facts(root).get("constants", {}).items()}
        if marks:
            self.digests, self.done = self.digests | marks.digests, marks.done

    def __getitem__(self, index: tuple[slice, ...]) -> Any:
        where, name = dict(zip(_dims(self.array), index, strict=True)), self.array.basename
        models = where.get("model", slice(0, 1))
        column = f"{name}/{where['transfer'].start}" if "transfer" in where else name
        try:
            values: Any = self.array[index]
            if column in self.digests:
                rows = values[0] if "transfer" in where else values if "model" in where else values[None]
                wrong = _digests(column, range(models.start, models.stop), rows) != self.digests[column][models]
                if np.any(wrong & self.done[models] if "model" in where else wrong):
                    raise ValueError("it holds other values than were saved")
        except ValueError as error:
            whose = f" of models {models.start} to {models.stop - 1}" if "model" in where else ""
            raise InputError(
                f"{name}{whose} in {self.array.store} is damaged ({error}): run the study again with repair=True, "
                "which trains only those models"
            ) from error
        return values


def _digests(column: str, models: Iterable[int], rows: np.ndarray) -> np.ndarray:
    """CRC-32 of the row of each model: of column, number and bytes, so that no two places agree."""
    starts = (crc32(f"{column} {model}".encode()) for model in models)
    return np.array([crc32(row.tobytes(), start) for row, start in zip(rows, starts, strict=True)], np.uint32)


def _facts(root: zarr.Group) -> dict[str, Any]:
    return root.attrs.asdict()


def _known(root: zarr.Group) -> dict[str, str | None]:
    """The arrays of a group with their descriptions, which a store of dtl 0.1 does not keep."""
    return _facts(root).get("arrays") or dict.fromkeys(("done", *ARRAYS))


def _open(store: ZarrStore, mode: Literal["r", "r+"] = "r") -> zarr.Group:
    """The group of a study; FileNotFoundError if there is nothing, InputError for anything else."""
    try:
        root = zarr.open_group(store, mode=mode)
    except OSError:
        raise
    except Exception as error:  # Zarr has many for a description that it cannot make sense of
        raise InputError(
            f"{store} holds no study that can be read ({error}): give another folder, or restore its zarr.json"
        ) from error
    if not {"settings", "runs", "problem"} <= _facts(root).keys():
        raise InputError(f"{store} holds Zarr data but holds no study: give another folder")
    return root


def _with_seal(facts: dict[str, Any]) -> dict[str, Any]:
    facts = {name: value for name, value in facts.items() if name != "seal"}
    return {**facts, "seal": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}


def _sealed(root: zarr.Group) -> zarr.Group:
    """The group, whose facts are those that were written; InputError if somebody has changed them."""
    facts = _facts(root)
    of_before = "seal" not in facts and "arrays" not in facts  # of dtl 0.1
    if not of_before and facts != _with_seal(facts):
        raise InputError(f"zarr.json in {root.store} was edited or is damaged: restore this file from a copy")
    return root


def _described(array: zarr.Array) -> str:
    """What must not change in the description of an array: all but how many models it has room for."""
    sizes = [f"{d} {n}" for d, n in zip(_dims(array), array.shape, strict=True) if d != "model"]
    first = array.metadata.encode_chunk_key((0,) * array.ndim)
    return f"{array.dtype} {sizes} {array.chunks} {array.fill_value} {first} {array.attrs.asdict()}"


def _damaged(root: zarr.Group, name: str, why: object) -> InputError:
    return InputError(
        f"{name}/zarr.json in {root.store} is damaged ({why}): restore this file from a copy of the store, or from "
        "another store of as many models of this study"
    )


def _dims(array: zarr.Array) -> tuple[str, ...]:
    metadata: Any = array.metadata
    return metadata.dimension_names


def _chunks(array: zarr.Array) -> Iterator[tuple[str, tuple[slice, ...]]]:
    """File and region of each chunk."""
    from dask.array.core import normalize_chunks, slices_from_chunks

    regions = slices_from_chunks(normalize_chunks(array.chunks, array.shape))
    for corner, region in zip(np.ndindex(*array.cdata_shape), regions, strict=True):
        yield f"{array.path}/{array.metadata.encode_chunk_key(corner)}", region


def _room(root: zarr.Group, name: str, like: xr.Variable, batch: int, columns: list[str]) -> zarr.Array:
    """The array `name` with at least as many models as `like`."""
    dims, own = tuple(map(str, like.dims)), {"model": batch, "transfer": 1}
    if name not in root:
        chunks = tuple(own.get(dim) or size for dim, size in zip(dims, like.shape, strict=True))
        root.create_array(
            name, shape=like.shape, chunks=chunks, dtype=like.dtype, dimension_names=dims, compressors=CODECS,
            fill_value=FILL[like.dtype.kind], attributes={"columns": columns} if name == "digest" else None,
        )  # fmt: skip
    array = array_of(root, name)
    if "model" in dims and array.shape[dims.index("model")] < like.sizes["model"]:
        array.resize(like.shape)
    return array


def _unused(root: zarr.Group) -> bool:
    """Whether the group is that of a study whose runs have ended before they saved a model."""
    try:
        return not any(name in root and array_of(root, name).nchunks_initialized for name in ("done", "margin"))
    except ValueError:  # damaged
        return False


def _differences(theirs: object, ours: object, path: str = "") -> list[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = sorted({*theirs, *ours})
        return [
            line for key in keys for line in _differences(theirs.get(key), ours.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if theirs == ours else [f"{path} is {theirs!r} there and {ours!r} here"]
