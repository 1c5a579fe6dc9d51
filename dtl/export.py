"""The results of a store as arrays, tables and files, without the images that the study was made of."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from dtl._checks import InputError
from dtl.engine.store import open_store
from dtl.influence import Influence
from dtl.results import results_of


def read_results(location: str | Path) -> xr.Dataset:
    """What `Study.results` gives, without the data of the problem.

    >>> read_results("studies/testbed").margin.dims
    ('transfer', 'model', 'target')
    """
    root = open_store(location)
    results = results_of(root) if root.attrs["runs"] else xr.Dataset()
    if not results.sizes.get("model"):
        raise InputError(f"{location} has no finished model: run or resume the study first")
    return results


def influence_table(results: xr.Dataset, influence: Influence, by: str) -> pd.DataFrame:
    """A row for each target and source."""
    targets = results.attrs["target_classes"] if by == "class" else ["whole target"]
    sources = results["source"].values
    return pd.DataFrame(
        {
            "target": np.repeat(targets, len(sources)),
            "source": np.tile(sources, len(targets)),
            "influence": influence.values.T.ravel(),
            "stderr": influence.stderr.T.ravel(),
            "reliability": np.repeat(influence.reliability, len(sources)),
        }
    )


def check_file(out: Path, *endings: str) -> Path:
    """The file; InputError if `write` could not write there, asked before the results are computed."""
    if not out.name.endswith(endings):
        raise InputError(f"cannot write {out.name}: end it with {' or '.join(endings)}")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is no folder: make it, or write elsewhere")
    return out


def write(out: Path, data: pd.DataFrame | xr.Dataset) -> None:
    """A table as CSV, results as NetCDF or zipped Zarr by the file's ending; nothing is left if it fails half-way."""
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
