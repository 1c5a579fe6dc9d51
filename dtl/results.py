"""Results without the images they were made of: those of a store, and those that ship with the book.

A set of shipped results is a folder of `results.nc`, a tree of xarray datasets, and `manifest.json`: for each run its
command, commit, date, hardware, versions and seconds; recipe, settings and seeds; SHA-256 of the data and of the file.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numcodecs import BitRound

from dtl._checks import InputError
from dtl._inputs import is_balanced, unpacked
from dtl.design import DESIGNS
from dtl.engine.store import ARRAYS, SPLITS, marks_of, read
from dtl.influence import Influence, estimate_influence, group_means
from dtl.transfer import Outputs

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parents[1] / "book/results"


def results_of(root: zarr.Group) -> xr.Dataset:
    """All finished models of a store, read when used; what `Study.results` gives, without the data of the problem."""
    facts: Any = root.attrs.asdict()
    settings, sources = facts["settings"], facts["source_classes"]
    marks = marks_of(root)
    done = np.flatnonzero(marks.done)
    data = {name: read(root, name, marks).isel(model=done) for name in ARRAYS[2:]}
    if settings["unit"] == "example":
        sources = np.arange(facts["n_units"])
        data["mask"] = xr.Variable(("model", "source"), unpacked(data["mask"].data, len(sources)))
    return xr.Dataset(data, attrs=facts).assign_coords(
        model=done,
        source=sources,
        transfer=settings["transfer"],
        split=("target", np.array(SPLITS)[np.asarray(read(root, "split"))]),
        label=("target", np.asarray(read(root, "label"))),
    )


def outputs_of(results: xr.Dataset, output: str, transfer: str | None, split: str) -> xr.DataArray:
    """One output on one split, (model, target), read when used; ValueError if the study lacks it."""
    regimes = results["transfer"].values.tolist()
    transfer = transfer or regimes[0]
    there = [name for name in Outputs._fields if name in results]  # results that ship hold some
    splits = list(dict.fromkeys(results["split"].values.tolist()))
    given = {"output": (output, there), "transfer": (transfer, regimes), "split": (split, splits)}
    for name, (value, known) in given.items():
        if value not in known:
            raise InputError(f"unknown {name} {value!r}: this study has {', '.join(known)}")
    return results[output].sel(transfer=transfer).isel(target=results["split"].values == split)


def comparable(results: xr.Dataset, output: str, transfer: str | None, split: str) -> xr.DataArray:
    """`outputs_of` the models that give influences: a run that was cut leaves pairs of which one is missing."""
    if output == "prediction":
        raise InputError("predictions are numbers of classes, which have no mean: use 'margin', or another output")
    outputs, models = outputs_of(results, output, transfer, split), results["model"].values
    whole = np.isin(models ^ 1, models)
    if whole.all() or results.attrs["settings"]["design"] not in ("balanced", "paired"):
        return outputs
    logger.warning("%d models are left out: their complements are not done", (~whole).sum())
    return outputs.isel(model=whole)


def influence_of(
    results: xr.Dataset,
    method: str | None = None,
    output: str = "margin",
    transfer: str | None = None,
    split: str = "validation",
    by: str | np.ndarray | None = None,
) -> Influence:
    """`Study.influence` from results alone.

    >>> results = dtl.results.open("imagenet20-cifar10")["balanced"]
    >>> influence_of(results, transfer="full", by="class").reliability
    """
    chosen, design = comparable(results, output, transfer, split), results.attrs["settings"]["design"]
    masks = results["mask"].sel(model=chosen["model"]).values
    outputs, labels = chosen.values.astype(np.float32), chosen["label"].values
    if by is not None:
        named = {"class": labels, "all": np.zeros_like(labels)}
        if isinstance(by, str) and by not in named:
            raise InputError(f"unknown grouping {by!r}: use None, 'class', 'all', or the group of each example")
        outputs = group_means(outputs, named[by] if isinstance(by, str) else by)
    if method is None:
        sized = design == "balanced" and np.ptp(masks.sum(axis=1)) > 0 and is_balanced(masks)
        method = "ols" if sized else "difference"
    return estimate_influence(masks, outputs, method, design if design in DESIGNS else None)


@dataclass(frozen=True)
class Results:
    """Datasets by name, in memory, and the manifest that they agree with.

    >>> results = dtl.results.open("imagenet20-cifar10")
    >>> results["balanced"].margin.dims
    ('transfer', 'model', 'target')
    """

    parts: dict[str, xr.Dataset]
    manifest: dict[str, Any]

    def __getitem__(self, name: str) -> xr.Dataset:
        if name not in self.parts:
            raise KeyError(f"no {name!r} among these results: they hold {', '.join(self.parts)}")
        return self.parts[name]

    def certificate(self, run: str) -> str:
        """Where one part of the results comes from, in four lines for a page to print.

        >>> print(results.certificate("balanced"))
        """
        pieces = self.manifest["runs"][run]
        took = f"{sum(piece['seconds'] for piece in pieces) / 60:.0f} minutes"
        took += f" in {len(pieces)} pieces" if len(pieces) > 1 else ""
        commits, places = (", ".join(dict.fromkeys(piece[key] for piece in pieces)) for key in ("commit", "hardware"))
        last = pieces[-1]
        versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
        file, digest = next(iter(self.manifest["files"].items()))
        return (
            f"{last['command']}\ncommit {commits}, {last['date'][:10]}, {took} on {places}\n"
            f"{versions}\n{file} sha256 {digest[:16]}"
        )


def open(name: str, folder: str | Path | None = None) -> Results:
    """Results by name, verified.

    Parameters
    ----------
    folder : that holds the folder `name`; default is `book/results` of the repository

    Raises
    ------
    FileNotFoundError : there are no such results; says what there is
    ValueError : a file is not the one that the manifest describes

    >>> dtl.results.open("imagenet20-cifar10")["removal"].test.mean("seed")
    """
    folder = FOLDER if folder is None else Path(folder)
    manifest = folder / name / "manifest.json"
    if not manifest.is_file():
        known = sorted(path.parent.name for path in folder.glob("*/manifest.json"))
        raise FileNotFoundError(
            f"no results {name!r} in {folder}: there are {', '.join(known) or 'none'}. They come with a clone of the "
            "repository; `python book/results/run.py all` makes them again"
        )
    facts = json.loads(manifest.read_text("utf8"))
    for file, digest in facts["files"].items():
        path = manifest.with_name(file)
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "nothing"
        if found != digest:
            raise InputError(f"{path} is not what was measured: SHA-256 {found[:12]}, not {digest[:12]}; get it again")
    tree = xr.load_datatree(manifest.with_name("results.nc"), engine="h5netcdf")
    parts = {name: node.to_dataset() for name, node in tree.children.items()}
    for part in parts.keys() & facts["settings"].keys():
        parts[part].attrs["settings"] = facts["settings"][part]
    return Results(parts, facts)


def save(folder: str | Path, parts: dict[str, xr.Dataset], facts: dict[str, Any]) -> Path:
    """Write results and their manifest, compressed without loss; returns the folder.

    facts : plain data for the manifest, with `runs`, part -> the runs that made it, and `settings`, part -> settings

    >>> dtl.results.save("book/results/mine", {"removal": curve}, {"runs": {}, "settings": {}})
    """
    if any("/" in name for name in parts):
        raise InputError(f"names of parts cannot hold '/': {', '.join(parts)}")
    folder, tree = Path(folder), xr.DataTree.from_dict(parts)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.nc"

    def packing(v: xr.Variable) -> dict[str, Any]:
        if v.dtype.kind in "OUT":
            return {"dtype": "S1", "zlib": True}  # strings of any length take thirty bytes each
        whole = (
            {"chunksizes": (*[1] * (v.ndim - 2), *v.shape[-2:])} if v.size else {}
        )  # a tenth smaller than h5py's own
        return {"zlib": True, "complevel": 9, "shuffle": True, **whole}

    encoding = {n.path: {name: packing(v) for name, v in n.variables.items() if v.ndim} for n in tree.subtree}
    tree.to_netcdf(file, engine="h5netcdf", encoding=encoding)
    facts = facts | {"files": {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}}
    (folder / "manifest.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf8")
    return folder


def rounded(values: xr.DataArray, bits: int = 8) -> xr.DataArray:
    """float32 values with `bits` bits after the leading one, so that they compress: off by 2**-(bits + 1) at most.

    >>> float(rounded(xr.DataArray(np.float32([3.14159]))))
    3.140625
    """
    codec = BitRound(keepbits=bits)
    found: Any = codec.decode(codec.encode(np.float32(values.values)))
    return values.copy(data=found.reshape(values.shape))
