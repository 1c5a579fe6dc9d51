"""Influences of more source examples on more targets than memory holds: from disk to disk, in tiles.

A tile is a block of source examples against a block of targets, over all models. dask reads what it needs; a tile's
influences and errors are written when it is solved, and last its sums over the examples, from which reliability
follows: a tile without them is not done.
"""

import logging
import math
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import joblib
import numpy as np
import xarray as xr
import zarr
from numpy.typing import ArrayLike
from zarr.abc.store import Store as ZarrStore

from dtl._checks import InputError
from dtl._estimators import difference, reliability_of, resolve_errors, sums_of_squares
from dtl._inputs import checked, checked_design, from_first, precision, unpacked
from dtl.engine.store import array_of, local_folder

logger = logging.getLogger(__name__)

IN_FLIGHT = 2  # tiles: one is read or written while the threads of the matrix product work on the other


def influence_to_zarr(
    masks: ArrayLike | da.Array | zarr.Array,
    outputs: ArrayLike | da.Array | zarr.Array,
    store: str | Path | ZarrStore,
    design: str | None = None,
    n_units: int | None = None,
    tile: tuple[int, int] = (4096, 1024),
) -> xr.Dataset:
    """`estimate_influence(masks, outputs, "difference", design)` out of core; run again, it does the tiles missing.

    Parameters
    ----------
    masks : NumPy, Zarr or dask array, bool (m, K) or, packed by `np.packbits(masks, axis=1)`, uint8 (m, ceil(K / 8))
    outputs : NumPy, Zarr or dask array, (m, n)
    store : folder or Zarr store of the results
    design : "balanced", "random", "paired", or None to recognise it
    n_units : K, for packed masks
    tile : s source examples (a multiple of 8) x t targets worked on at once, about ``2 m s + 4 m t + 5 s t`` numbers
        (logged); two are in flight, unless dask's `num_workers` says otherwise. Masks whose chunks span K are held
        whole besides: pack them

    Returns
    -------
    Dataset, read when used: `influence` and `stderr` (source, target), `reliability` (target)

    Raises
    ------
    ValueError : as `estimate_influence`, or the store was made from other masks, outputs or settings

    >>> dtl.influence_to_zarr(root["mask"], root["margin"][0], "influence.zarr", n_units=10**6)
    """
    stored, size = _lazy(masks), 8 * math.ceil(tile[0] / 8)
    if n_units is not None:
        stored = _packed(stored, n_units, size)
    included, y = checked(stored if n_units is None else unpacked(stored, n_units), _lazy(outputs))
    design = checked_design(included, design)
    (m, n_sources), n_targets = included.shape, y.shape[1]
    errors = resolve_errors(included, design)
    if errors == "balanced":
        size = n_sources  # the residuals of whole blocks need all units, which are m / 2 at most
    # Masks stay packed until a tile is solved: where they are stored by model, dask holds those of many tiles.
    units = stored.rechunk((m, size if n_units is None else math.ceil(size / 8))).to_delayed()[0]
    targets = y.rechunk((m, tile[1])).to_delayed()[0]
    settings = {
        "method": "difference",
        "design": design,
        "n_models": m,
        "tile": [size, tile[1]],
        "masks": _digest(units),
        "outputs": _digest(targets),
    }
    dtype = precision(y)
    root = _group(store, (n_sources, n_targets), (size, tile[1]), dtype, settings)
    missing = np.argwhere(np.isnan(np.asarray(array_of(root, "sums"))[:, 0, :: tile[1]])).tolist()
    s, t = min(size, n_sources), min(tile[1], n_targets)
    memory = dtype.itemsize * (2 * m * s + 4 * m * t + 5 * s * t) / 2**20
    logger.info("%d tiles of %d units x %d targets to do, about %.0f MiB each", len(missing), s, t, memory)
    solve = dask.delayed(_solve, pure=False)
    tasks = [solve(units[i], targets[j], n_units is not None, errors, root, i, j) for i, j in missing]
    dask.compute(tasks, num_workers=dask.config.get("num_workers", IN_FLIGHT))
    noise, mean, square = np.asarray(array_of(root, "sums")).sum(axis=0) / n_sources
    array_of(root, "reliability")[:] = reliability_of(noise, square - mean**2)
    return xr.open_zarr(root.store, consolidated=False).drop_vars("sums")


def _solve(masks: np.ndarray, y: np.ndarray, packed: bool, errors: str, root: zarr.Group, i: int, j: int) -> None:
    influence, stderr, sums = (array_of(root, name) for name in ("influence", "stderr", "sums"))
    if packed:
        masks = np.unpackbits(masks, axis=1)[:, : influence.shape[0] - i * influence.chunks[0]]
    dtype = precision(y)
    values, variances = difference(masks.astype(dtype), errors)(from_first(y, dtype))
    influence.blocks[i, j] = values
    stderr.blocks[i, j] = np.sqrt(variances)
    noise, mean = (array.sum(axis=0, dtype=np.float64) for array in (variances, values))
    sums.blocks[i, 0, j] = np.stack([noise, mean, sums_of_squares(values)])[None]


def _group(
    store: str | Path | ZarrStore, shape: tuple[int, int], tile: tuple[int, int], dtype: np.dtype, settings: dict
) -> zarr.Group:
    """The group of the results, continued if it has these settings; may be repeated after a kill at any point."""
    if isinstance(store, str | Path):
        store = local_folder(store)
    try:
        root = zarr.open_group(store, mode="r+")
    except FileNotFoundError:
        root = zarr.create_group(store, attributes=settings)
    differences = [name for name in settings if root.attrs.get(name) != settings[name]]
    if differences:
        raise InputError(f"{store} was made with other {', '.join(differences)}: use those, or give another store.")
    parts = {
        "influence": (shape, tile, dtype, ("source", "target")),
        "stderr": (shape, tile, dtype, ("source", "target")),
        "sums": ((-(-shape[0] // tile[0]), 3, shape[1]), (1, 3, tile[1]), np.float64, ("tile", "moment", "target")),
        "reliability": (shape[1:], shape[1:], np.float64, ("target",)),
    }
    for name, (full, chunks, kind, dims) in parts.items():
        if name not in root:
            root.create_array(
                name, shape=full, chunks=chunks, dtype=kind, dimension_names=dims, fill_value=np.nan,
                compressors=None,  # they would save 7%
            )  # fmt: skip
    return root


def _digest(blocks: Any) -> str:
    """Hash of an array, from hashes of its blocks."""
    return str(joblib.hash(dask.compute(*[dask.delayed(joblib.hash)(block) for block in blocks])))


def _lazy(array: Any) -> Any:
    return array if isinstance(array, da.Array) else da.from_array(array, name=False)


def _packed(masks: Any, n_units: int, size: int) -> Any:
    """Packed masks in chunks of all models and `size` units."""
    if masks.dtype != np.uint8 or masks.ndim != 2 or masks.shape[1] != math.ceil(n_units / 8):
        raise InputError(
            f"Packed masks of {n_units} units must be uint8 (models, {math.ceil(n_units / 8)}), got {masks.dtype} "
            f"{masks.shape}: pack them with np.packbits(masks, axis=1)."
        )
    return masks.rechunk((-1, size // 8))
