"""Results on their way to disk: tables and arrays for other programs, and influences of more than memory holds."""

import hashlib
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from zarr.abc.store import Store as ZarrStore

from dtl._checks import InputError, check_kind, check_mapping, load_json, path_of, whole
from dtl._estimators import checked, difference, from_first, precision, reliability_of, resolve_errors
from dtl.design import checked_design
from dtl.engine.store import local_folder


def check_file(out: str | Path | None, *endings: str) -> None:
    """InputError if `write` could not write there, asked before the results are computed."""
    if out is None:
        return
    if not isinstance(out, str | Path):
        raise InputError(f"{out!r} is no file: give one")
    if not str(out).endswith(endings):
        raise InputError(f"cannot write {Path(out).name}: end it with {' or '.join(endings)}")
    if not (parent := Path(out).expanduser().parent).is_dir():
        raise InputError(f"{parent} is no folder: make it, or write elsewhere")


def write(out: str | Path, data: pd.DataFrame | xr.Dataset) -> Path:
    """A table as CSV, results as NetCDF or zipped Zarr by the file's ending; nothing is left if it fails half-way."""
    check_file(out, *((".csv",) if isinstance(data, pd.DataFrame) else (".nc", ".zarr.zip")))
    out = Path(out).expanduser()
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        partial = Path(folder, out.name)
        if isinstance(data, pd.DataFrame):
            data.to_csv(partial, index=False)
        elif out.suffix == ".nc":
            data = data.assign_attrs({k: v if isinstance(v, str) else json.dumps(v) for k, v in data.attrs.items()})
            data.to_netcdf(partial, engine="h5netcdf")
        else:
            tree = partial.with_suffix("")
            batch = data.attrs["settings"]["recipe"]["models_at_once"]
            data = data.drop_encoding().chunk(dict.fromkeys(data.dims, -1) | {"model": batch})
            data.to_zarr(tree, zarr_format=2)  # the version that has strings, and that every reader knows
            shutil.make_archive(str(tree), "zip", tree)
        partial.replace(out)
    return out


def decoded(value: Any) -> Any:
    """An attribute of NetCDF, which knows no settings, as what `write` was given."""
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        return value


def influence_to_zarr(
    masks: Any, outputs: Any, store: Any, design: str | None = None, n_units: int | None = None,
    tile: tuple[int, int] = (4096, 1024),
) -> xr.Dataset:  # fmt: skip
    """`estimate_influence(masks, outputs, "difference", design)` from disk to disk, for more than memory holds.

    A tile is a block of source examples against a block of targets, over all models; dask reads what it needs and
    writes each tile when it is solved. A folder appears under its name when it is complete; one that exists is refused.

    Parameters
    ----------
    masks, outputs : NumPy, Zarr or dask arrays, (m, K) and (m, n); masks bool, or uint8 (m, ceil(K / 8)) as
        `np.packbits(masks, axis=1)` packs them
    store : new folder, or Zarr store, of `influence` and `stderr` (source, target) and `reliability` (target)
    n_units : K, for packed masks
    tile : s source examples (a multiple of 8) x t targets, about ``2 m s + 4 m t + 5 s t`` numbers for each thread of
        dask. Masks whose chunks span K are held whole besides: pack them

    >>> masks = np.packbits(study.masks, axis=1)
    >>> dict(influence_to_zarr(masks, study.outputs(), "influence.zarr", n_units=24).sizes)
    {'source': 24, 'target': 40}
    """
    import dask.array as da  # here, because training needs none of it

    if not isinstance(store, str | Path | ZarrStore):
        raise InputError(f"store must be a new folder, or a Zarr store, not {store!r}")
    if np.shape(tile) != (2,):
        raise InputError(f"tile must be two numbers, source examples and targets, not {tile!r}")
    if not (hasattr(masks, "shape") and hasattr(outputs, "shape")):
        raise InputError("masks and outputs must be NumPy, Zarr or dask arrays")
    z, y = (a if isinstance(a, da.Array) else da.from_array(a, name=False) for a in (masks, outputs))
    if n_units is not None:
        width, size = math.ceil(whole("n_units", n_units, 1) / 8), math.ceil(tile[0] / 8)
        if z.dtype != np.uint8 or z.ndim != 2 or z.shape[1] != width:
            raise InputError(
                f"packed masks of {n_units} units must be uint8 (models, {width}), got {z.dtype} {z.shape}: pack them "
                "with np.packbits(masks, axis=1)"
            )
        z = unpacked(z.rechunk((-1, size)), n_units)  # where masks are stored by model, all are held, but packed
    included, y = checked(z, y)
    design = checked_design(included, design)
    errors, dtype = resolve_errors(included, design), precision(y)
    # The residuals of whole blocks need all units, which are m / 2 at most.
    included = included.rechunk((-1, -1 if errors == "balanced" else 8 * math.ceil(tile[0] / 8)))

    def solve(z: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        values, variances = difference(z.astype(dtype), errors)(from_first(outputs, dtype))
        return np.stack([values, np.sqrt(variances)])

    solved = da.blockwise(
        solve, "cst", included, "ms", y.rechunk((-1, tile[1])), "mt", new_axes={"c": 2}, concatenate=True, dtype=dtype
    )
    values, stderr = solved[0], solved[1]
    square = (stderr.astype(np.float64) ** 2).mean(axis=0)
    spread = values.astype(np.float64).var(axis=0)
    reliability = da.map_blocks(reliability_of, square, spread, len(values) - 1, dtype=np.float64)
    pair = ("source", "target")
    data = {"influence": (pair, values), "stderr": (pair, stderr), "reliability": ("target", reliability)}
    facts = {"method": "difference", "design": design, "n_models": len(included)}
    partial: Any = store
    final: Any = store
    if isinstance(store, str | Path):
        final = local_folder(store)
        if final.exists():
            raise InputError(f"{final} exists: open it with xarray.open_zarr, or give a new folder")
        partial = final.with_name(final.name + ".partial")  # of a run that was killed: begun again
    xr.Dataset(data, attrs=facts).to_zarr(partial, mode="w", consolidated=False)
    if partial is not final:
        partial.rename(final)
    return xr.open_zarr(final, consolidated=False)


def unpacked(masks: Any, n_units: int) -> Any:
    """Packed masks, a dask array, as bool (m, n_units)."""
    chunks = (masks.chunks[0], tuple(8 * width for width in masks.chunks[1]))
    return masks.map_blocks(np.unpackbits, axis=1, dtype=np.uint8, chunks=chunks)[:, :n_units].astype(bool)


def shipped(folder: Path) -> tuple[dict[str, xr.Dataset], dict[str, Any]]:
    """The parts of shipped results and their manifest, after a check of their hash."""
    facts = load_json(folder / "manifest.json", "files", "settings")
    for file, digest in facts["files"].items():
        path = folder / file
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "nothing"
        if found != digest:
            raise InputError(f"{path} is not what was measured: SHA-256 {found[:12]}, not {digest[:12]}; get it again")
    tree = xr.load_datatree(folder / "results.nc", engine="h5netcdf")
    parts = {name: node.to_dataset() for name, node in tree.children.items()}
    for part in parts.keys() & facts["settings"].keys():
        parts[part].attrs["settings"] = facts["settings"][part]
    return parts, facts


def save(folder: str | Path, parts: dict[str, xr.Dataset], facts: dict[str, Any]) -> Path:
    """Write results and their manifest, compressed without loss; returns the folder.

    facts : plain data for the manifest, with `runs`, part -> the runs that made it, and `settings`, part -> settings

    >>> curve = xr.Dataset({"test": ("count", [0.8, 0.9])})
    >>> dtl.results.save("mine", {"removal": curve}, {"runs": {}, "settings": {}}).name
    'mine'
    """
    if any("/" in name for name in check_mapping(parts, "parts")):
        raise InputError(f"names of parts cannot hold '/': {', '.join(parts)}")
    check_mapping(facts, "facts")
    folder, tree = path_of(folder, "folder"), xr.DataTree.from_dict(parts)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.nc"

    encoding = {n.path: {name: _packing(v) for name, v in n.variables.items() if v.ndim} for n in tree.subtree}
    tree.to_netcdf(file, engine="h5netcdf", encoding=encoding)
    facts = facts | {"files": {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}}
    (folder / "manifest.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf8")
    return folder


def _packing(v: xr.Variable) -> dict[str, Any]:
    if v.dtype.kind in "OUT":
        return {"dtype": "S1", "zlib": True}  # strings of any length take thirty bytes each
    packing = {"zlib": True, "complevel": 9, "shuffle": True}
    return packing | ({"chunksizes": (*[1] * (v.ndim - 2), *v.shape[-2:])} if v.size else {})  # smaller than h5py's own


def rounded(values: xr.DataArray, bits: int = 8) -> xr.DataArray:
    """float32 values with `bits` bits after the leading one, so that they compress: off by 2**-(bits + 1) at most.

    >>> float(dtl.results.rounded(xr.DataArray(np.float32(3.14159))))
    3.140625
    """
    from numcodecs import BitRound

    codec = BitRound(keepbits=whole("bits", bits, 0))
    found: Any = codec.decode(codec.encode(np.float32(check_kind(values, "xarray.DataArray", "values").values)))
    return values.copy(data=found.reshape(values.shape))
