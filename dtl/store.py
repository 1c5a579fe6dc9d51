"""The results of a study on disk: one Zarr group, one chunk per batch of models, `done` written last."""

import errno
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from filelock import FileLock, Timeout
from zarr.abc.store import Store as ZarrStore
from zarr.errors import ContainsArrayError
from zarr.storage import LocalStore, MemoryStore

logger = logging.getLogger(__name__)


class Store:
    """Arrays over models that grow, and that a kill at any moment leaves consistent.

    Parameters
    ----------
    location : folder, a Zarr store, or None for memory
    settings : what decides the numbers; a store that was made with others is refused
    """

    def __init__(self, location: str | Path | ZarrStore | None, settings: dict[str, object]) -> None:
        local = isinstance(location, str | Path)
        self.zarr: ZarrStore = MemoryStore() if location is None else LocalStore(location) if local else location
        self.settings = settings
        if self.exists:
            self.open()

    @property
    def exists(self) -> bool:
        try:
            zarr.open_group(self.zarr, mode="r")
        except FileNotFoundError:
            return False
        except (ContainsArrayError, JSONDecodeError) as error:
            raise ValueError(f"{self.zarr} holds no study ({error}): give another folder") from error
        return True

    @property
    def ready(self) -> bool:
        """Whether it has room for models; a run that was killed at its very start leaves a group without."""
        return self.exists and "done" in zarr.open_group(self.zarr, mode="r")

    def open(self, mode: Literal["r", "r+"] = "r") -> zarr.Group:
        """The group, after a check that it holds this study."""
        root = zarr.open_group(self.zarr, mode=mode)
        if "settings" not in root.attrs:
            raise ValueError(f"{self.zarr} holds Zarr data but no study: give another folder")
        differences = _differences(root.attrs["settings"], self.settings)
        if differences:
            raise ValueError(
                f"{self.zarr} holds another study ({'; '.join(differences)}): use its settings, or another folder"
            )
        return root

    def prepare(
        self, constants: Mapping[str, np.ndarray], per_model: Mapping[str, np.ndarray], outputs: Mapping[str, str],
        shape: tuple[int, int], batch: int, attributes: Mapping[str, object], run: Mapping[str, Any],
    ) -> zarr.Group:  # fmt: skip
        """The group open for writing, with room for every model; may be repeated after a kill at any point.

        constants : (target,) arrays;  per_model : arrays with models first, the second dimension being source
        outputs : name -> dtype of arrays (transfer, model, target), with (transfers, targets) = `shape`
        """
        if self.zarr.read_only:
            raise OSError(errno.EROFS, f"{self.zarr} is read-only: open it for writing, or give another folder")
        with self.writing("the settings of the study"):
            if not self.exists:
                zarr.create_group(self.zarr, attributes={"settings": self.settings, "runs": [], **attributes})
            root = self.open("r+")
            for name, values in constants.items():
                _room(root, name, values.shape, values.shape, values.dtype, ("target",), axis=0)[:] = values
            n_models = len(next(iter(per_model.values())))
            for name, values in per_model.items():
                chunks, dims = (batch, *values.shape[1:]), ("model", "source")[: values.ndim]
                _room(root, name, values.shape, chunks, values.dtype, dims, axis=0)[:n_models] = values
            for name, dtype in outputs.items():
                full, chunks = (shape[0], n_models, shape[1]), (1, batch, shape[1])
                _room(root, name, full, chunks, np.dtype(dtype), ("transfer", "model", "target"), axis=1)
            _room(root, "done", (n_models,), (batch,), np.dtype(bool), ("model",), axis=0)
            runs: Any = root.attrs["runs"]
            root.attrs["runs"] = [*runs, run]
        return root

    def save(self, root: zarr.Group, rows: np.ndarray, outputs: Mapping[str, np.ndarray]) -> None:
        """Write outputs (transfer, len(rows), target) of a batch, then mark it done."""
        span = slice(int(rows[0]), int(rows[-1]) + 1)
        if len(rows) != span.stop - span.start:
            raise ValueError(f"rows of a batch must be consecutive, not {rows}")
        with self.writing(f"models {rows[0]} to {rows[-1]}"):
            for name, values in outputs.items():
                array_of(root, name)[:, span] = values
            array_of(root, "done")[span] = True

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


def array_of(root: zarr.Group, name: str) -> zarr.Array:
    """An array of the group, which holds no groups."""
    found = root[name]
    if not isinstance(found, zarr.Array):
        raise ValueError(f"{name} of {root.store} is no array, so this is no study: give another folder")
    return found


def _room(
    root: zarr.Group, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype,
    dims: tuple[str, ...], axis: int,
) -> zarr.Array:  # fmt: skip
    """The array `name` with at least shape[axis] models."""
    if name not in root:
        root.create_array(name, shape=shape, chunks=chunks, dtype=dtype, dimension_names=dims)
    array = array_of(root, name)
    if array.shape[axis] < shape[axis]:
        array.resize(shape)
    return array


def _differences(theirs: object, ours: object, path: str = "") -> list[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = sorted({*theirs, *ours})
        return [
            line for key in keys for line in _differences(theirs.get(key), ours.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if theirs == ours else [f"{path} is {theirs!r} there and {ours!r} here"]
