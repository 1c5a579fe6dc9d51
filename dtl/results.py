"""Results that ship with the book: arrays in one file, and a manifest that says where they come from.

A set of results is a folder of `results.nc`, a tree of xarray datasets, and `manifest.json`: for each run its command,
commit, date, hardware, versions and seconds; recipe, settings and seeds; SHA-256 of the data and of the file.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numcodecs import BitRound

FOLDER = Path(__file__).parents[1] / "book/results"


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
        last, seconds = pieces[-1], sum(piece["seconds"] or 0 for piece in pieces)
        took = f"{seconds / 60:.0f} minutes" + (f" in {len(pieces)} pieces" if len(pieces) > 1 else "")
        versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
        file, digest = next(iter(self.manifest["files"].items()))
        return (
            f"{last['command']}\ncommit {last['commit']}, {last['date'][:10]}, {took} on {last['hardware']}\n"
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
            raise ValueError(f"{path} is not what was measured: SHA-256 {found[:12]}, not {digest[:12]}; get it again")
    tree = xr.load_datatree(manifest.with_name("results.nc"), engine="h5netcdf")
    parts = {name: node.to_dataset() for name, node in tree.children.items()}
    for part, settings in facts["settings"].items():
        parts[part].attrs["settings"] = settings
    return Results(parts, facts)


def save(folder: str | Path, parts: dict[str, xr.Dataset], facts: dict[str, Any]) -> Path:
    """Write results and their manifest, compressed without loss; returns the folder.

    facts : plain data for the manifest, with `runs`, part -> the runs that made it, and `settings`, part -> settings

    >>> dtl.results.save("book/results/mine", {"removal": curve}, {"runs": {}, "settings": {}})
    """
    folder, tree = Path(folder), xr.DataTree.from_dict(parts)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.nc"
    small = {"zlib": True, "complevel": 9, "shuffle": True}
    text = {"dtype": "S1", "zlib": True}  # strings of any length take thirty bytes each
    encoding = {
        node.path: {name: text if v.dtype.kind in "OUT" else small for name, v in node.variables.items() if v.ndim}
        for node in tree.subtree
    }
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
