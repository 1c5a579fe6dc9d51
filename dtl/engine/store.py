"""The results of a study on disk: one Zarr group, one chunk per batch of models, `done` written last.

Every chunk carries a CRC-32C checksum, so a damaged one is an error that names it and never a wrong number. Nothing in
a store is ever unpickled.
"""

import errno
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Literal, cast

import dask.array
import numpy as np
import xarray as xr
import zarr
from filelock import FileLock, Timeout
from zarr.abc.store import Store as ZarrStore
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.errors import ContainsArrayError
from zarr.storage import LocalStore, MemoryStore

from dtl._checks import InputError

logger = logging.getLogger(__name__)

FORMAT = 3
SPLITS = ("validation", "test")  # in the order of the target axis
OUTPUTS = {"margin": "float32", "probability": "float32", "correct": "bool", "prediction": "int16"}
ARRAYS = ("label", "split", "mask", "seed", *OUTPUTS)
CODECS = (ZstdCodec(), Crc32cCodec())
WRITE_ALL: Any = {"write_empty_chunks": True}  # also chunks of zeros: one that is missing has been lost


class Store:
    """Arrays over models that grow, and that a kill at any moment leaves consistent.

    Parameters
    ----------
    location : folder, a Zarr store, or None for memory
    settings : what decides the numbers; a store that was made with others is refused
    """

    def __init__(self, location: str | Path | ZarrStore | None, settings: dict[str, object]) -> None:
        if isinstance(location, str | Path):
            location = LocalStore(local_folder(location))
        self.zarr: ZarrStore = MemoryStore() if location is None else location
        self.settings = settings
        if self.exists:
            self.open()

    @property
    def folder(self) -> Path | None:
        """Where other processes find the store; None for one in memory or of another kind."""
        return self.zarr.root.absolute() if type(self.zarr) is LocalStore else None

    @property
    def exists(self) -> bool:
        """Whether a study is there; in a folder, which has a lock, one without models leaves it to other settings."""
        root = self._group()
        free = root is not None and self.folder is not None and _unused(root)
        return root is not None and not (free and _differences(root.attrs["settings"], self.settings))

    def _group(self) -> zarr.Group | None:
        """The group that is there; ValueError for anything else, which must not be written into."""
        try:
            return zarr.open_group(self.zarr, mode="r")
        except FileNotFoundError:
            folder = self.folder
            kept = sorted(folder.iterdir()) if folder and folder.is_dir() else []
            kept = [path.name for path in kept if path.suffix != ".partial"]  # which a kill at the first write leaves
            if kept and "zarr.json" not in kept:  # another process may just have begun
                raise InputError(f"{folder} holds {kept[0]!r} but no study: give another or an empty folder") from None
            return None
        except (ContainsArrayError, JSONDecodeError) as error:
            raise InputError(f"{self.zarr} holds no study ({error}): give another folder") from error

    @property
    def ready(self) -> bool:
        """Whether it has room for models; a run that was killed at its very start leaves a group without."""
        try:
            return self.exists and bool(array_of(zarr.open_group(self.zarr, mode="r"), "done"))
        except KeyError:
            return False

    def open(self, mode: Literal["r", "r+"] = "r") -> zarr.Group:
        """The group, after a check that it holds this study."""
        root = zarr.open_group(self.zarr, mode=mode)
        if "settings" not in root.attrs:
            raise InputError(f"{self.zarr} holds Zarr data but no study: give another folder")
        differences = _differences(root.attrs["settings"], self.settings)
        if differences:
            raise InputError(
                f"{self.zarr} holds another study ({'; '.join(differences)}): use its settings, or another folder"
            )
        return root

    def open_during(self, run: str) -> zarr.Group | None:
        """The group open for writing while `run` is its latest run, otherwise None.

        A worker asks before it saves: its machine may not see the coordinator's disk, and a worker that outlived its
        coordinator must not write into the run of the next one.
        """
        if not self.exists:
            return None
        root = self.open("r+")
        runs: Any = root.attrs["runs"]
        return root if runs and runs[-1]["id"] == run else None

    def prepare(
        self, constants: Mapping[str, np.ndarray], per_model: Mapping[str, np.ndarray], outputs: Mapping[str, str],
        shape: tuple[int, int], batch: int, attributes: Mapping[str, object], run: Mapping[str, Any],
    ) -> zarr.Group:  # fmt: skip
        """The group open for writing, with room for every model; may be repeated after a kill at any point.

        constants : (target,) arrays;  per_model : arrays with models first, then source, or uint8 of eight each
        outputs : name -> dtype of arrays (transfer, model, target), with (transfers, targets) = `shape`
        """
        if self.zarr.read_only:
            raise OSError(errno.EROFS, f"{self.zarr} is read-only: open it for writing, or give another folder")
        with self.writing("the settings of the study"):
            if not self.exists:
                facts: Any = {"settings": self.settings, "runs": [], **attributes}
                if self._group() is None:
                    zarr.create_group(self.zarr, attributes=facts)
                else:  # of a study without models
                    root = zarr.open_group(self.zarr, mode="r+")
                    for name in (name for name in (*constants, *per_model, *outputs, "done") if name in root):
                        del root[name]  # and nothing else: weights and notes may lie beside
                    root.attrs.put(facts)
            root = self.open("r+")
            for name, values in constants.items():
                _room(root, name, values.shape, values.shape, values.dtype, ("target",), axis=0)[:] = values
            n_models = len(next(iter(per_model.values())))
            for name, values in per_model.items():
                units = "packed_source" if values.dtype == np.uint8 else "source"
                chunks, dims = (batch, *values.shape[1:]), ("model", units)[: values.ndim]
                _room(root, name, values.shape, chunks, values.dtype, dims, axis=0)[:n_models] = values
            for name, dtype in outputs.items():
                full, chunks = (shape[0], n_models, shape[1]), (1, batch, shape[1])
                _room(root, name, full, chunks, np.dtype(dtype), ("transfer", "model", "target"), axis=1)
            _room(root, "done", (n_models,), (batch,), np.dtype(bool), ("model",), axis=0)
            runs: Any = root.attrs["runs"]
            root.attrs["runs"] = [*runs, run]
        return root

    def save(self, root: zarr.Group, rows: np.ndarray, outputs: Mapping[str, np.ndarray]) -> None:
        """Write outputs (transfer, len(rows), target) of models `rows`, ascending, then mark them done."""
        gaps = np.flatnonzero(np.diff(rows) > 1) + 1
        for part in np.split(np.arange(len(rows)), gaps) if len(rows) else ():
            span = slice(int(rows[part[0]]), int(rows[part[-1]]) + 1)
            with self.writing(f"models {span.start} to {span.stop - 1}"):
                for name, values in outputs.items():
                    array_of(root, name)[:, span] = values[:, part]
                array_of(root, "done")[span] = True

    def record(self, root: zarr.Group, **facts: str) -> None:
        """Add facts to the record of the latest run; a second value of one is added to the first."""
        runs: Any = root.attrs["runs"]
        latest = dict(runs[-1])
        for name, value in facts.items():
            known = latest[name].split(", ") if latest.get(name) else []
            latest[name] = ", ".join(known if value in known else [*known, value])
        if latest != runs[-1]:
            with self.writing("the record of the run"):
                root.attrs["runs"] = [*runs[:-1], latest]

    def repair(self, names: Sequence[str]) -> list[str]:
        """Empty every chunk that is damaged, or missing though its models are done; these models are not done then.

        Returns the names of the chunks. A run fills them again.
        """
        if not self.ready:
            return []
        root, repaired = self.open("r+"), []
        done = array_of(root, "done")
        for name in ("done", *names):  # first done, which the others need
            array = array_of(root, name)
            for corner in product(*map(range, array.cdata_shape)):
                region = tuple(slice(i * c, (i + 1) * c) for i, c in zip(corner, array.chunks, strict=True))
                models = dict(zip(_dims(array), region, strict=True)).get("model", slice(0))
                chunk = "/".join((name, "c", *map(str, corner)))
                try:
                    array[region]  # raises where the checksum does not match
                    lost = self.folder is not None and np.any(done[models]) and not (self.folder / chunk).exists()
                except ValueError:
                    lost = True
                if lost:
                    repaired.append(chunk)
                    with self.writing(f"the repair of {chunk}"):
                        done[models] = False  # first, so that a kill in between shows no empty chunk
                        array[region] = array.fill_value
        return repaired

    def merge(self, root: zarr.Group, other: zarr.Group, names: Sequence[str]) -> None:
        """Copy arrays `names` of the models that are done only in `other`; ValueError if any others differ."""
        mine, theirs = (np.flatnonzero(np.asarray(read(group, "done"))) for group in (root, other))
        here, there = ({name: read(group, name) for name in names} for group in (root, other))
        common, new = np.intersect1d(theirs, mine), np.setdiff1d(theirs, mine)
        differ = [(here[n][:, common] != there[n][:, common]).any(("transfer", "target")) for n in names]
        differing = common[np.any(differ, axis=0)]
        if len(differing):
            raise InputError(
                f"models {', '.join(map(str, differing))} are done in both stores and differ (other hardware or "
                "versions?): merge stores that share no models"
            )
        for rows in np.split(new, np.flatnonzero(np.diff(new // array_of(root, "done").chunks[0])) + 1):
            self.save(root, rows, {name: np.asarray(there[name][:, rows]) for name in names})

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Turns a failed write into one error that says what is safe and what to do."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                message = (
                    f"disk full while saving {what} to {self.zarr}: all saved before is safe; free space and run again"
                )
            else:
                message = f"cannot save {what} to {self.zarr} ({error}): give a folder that you may write to"
            raise OSError(error.errno, message) from error

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
                lock.acquire(timeout=0)
            except Timeout:
                logger.warning("another process is writing %s: waiting for it to end", self.zarr.root)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()


def open_store(location: str | Path) -> zarr.Group:
    """The group of a study in a folder, read-only; ValueError if there is none. No data is loaded."""
    try:
        root = zarr.open_group(LocalStore(local_folder(location), read_only=True), mode="r")
        settings: Any = root.attrs["settings"]
    except (FileNotFoundError, NotADirectoryError, ContainsArrayError, JSONDecodeError, KeyError) as error:
        raise InputError(f"{location} holds no study: give the folder that a study is stored in") from error
    if settings["format"] != FORMAT:
        raise InputError(
            f"{location} has format {settings['format']} and this dtl reads {FORMAT}: use the dtl that made it"
        )
    return root


def local_folder(location: str | Path) -> Path:
    """The folder that somebody means; ValueError for none, and for a URL.

    >>> local_folder("~/studies").is_absolute()
    True
    """
    if not str(location).strip():
        raise InputError(f"{str(location)!r} is no folder: give one")
    if re.match(r"[a-zA-Z][\w.+-]+:/", str(location)):
        raise InputError(
            f"{location} is a URL, not a folder: in Python, give a Zarr store such as zarr.storage.FsspecStore.from_url"
        )
    return Path(location).expanduser()


def array_of(root: zarr.Group, name: str) -> zarr.Array:
    """An array of the group, whose chunks are written even if they are all zero."""
    try:
        found = root[name]
    except JSONDecodeError as error:
        raise InputError(
            f"{name}/zarr.json in {root.store} is damaged ({error}): restore this file from a copy of the store, or "
            "from another store of as many models of this study"
        ) from error
    if not isinstance(found, zarr.Array):
        raise InputError(f"{name} of {root.store} is no array, so this is no study: give another folder")
    return found.with_config(WRITE_ALL)


def read(root: zarr.Group, name: str) -> xr.Variable:
    """An array of the group, read when it is used; a damaged chunk is a ValueError that names it."""
    array = array_of(root, name)
    checked, chunks = _Checked(array), cast(Any, array.chunks)
    meta = np.empty((0,) * array.ndim, array.dtype)
    return xr.Variable(_dims(array), dask.array.from_array(checked, chunks, name=False, meta=meta))


class _Checked:
    """An array of which dask reads one chunk at a time."""

    def __init__(self, array: zarr.Array) -> None:
        self.array, self.shape, self.dtype, self.ndim = array, array.shape, array.dtype, array.ndim

    def __getitem__(self, index: tuple[slice, ...]) -> Any:
        try:
            return self.array[index]
        except ValueError as error:
            spans = dict(zip(_dims(self.array), index, strict=True))
            models = f" of models {spans['model'].start} to {spans['model'].stop - 1}" if "model" in spans else ""
            raise InputError(
                f"{self.array.basename}{models} in {self.array.store} is damaged ({error}): run the study again with "
                "repair=True, which trains only those models"
            ) from error


def _dims(array: zarr.Array) -> tuple[str, ...]:
    metadata: Any = array.metadata
    return metadata.dimension_names


def _room(
    root: zarr.Group, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype,
    dims: tuple[str, ...], axis: int,
) -> zarr.Array:  # fmt: skip
    """The array `name` with at least shape[axis] models."""
    if name not in root:
        fill = {"f": np.nan, "i": -1, "b": False, "u": 0}[dtype.kind]
        root.create_array(
            name, shape=shape, chunks=chunks, dtype=dtype, dimension_names=dims, fill_value=fill, compressors=CODECS
        )
    array = array_of(root, name)
    if array.shape[axis] < shape[axis]:
        array.resize(shape)
    return array


def _unused(root: zarr.Group) -> bool:
    """Whether the group is that of a study whose runs have ended before they saved a model."""
    try:
        started = "done" in root and array_of(root, "done").nchunks_initialized
    except ValueError:  # damaged
        return False
    return not started and {"settings", "runs", "problem"} <= set(root.attrs)


def _differences(theirs: object, ours: object, path: str = "") -> list[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = sorted({*theirs, *ours})
        return [
            line for key in keys for line in _differences(theirs.get(key), ours.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if theirs == ours else [f"{path} is {theirs!r} there and {ours!r} here"]
