"""What a study measured, without the images it was made of: of a store, of a file, or shipped with the book.

Shipped are folders of `results.nc`, a tree of xarray datasets, and `manifest.json`: runs, settings, SHA-256.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import zarr

from dtl._checks import InputError, check_kind, choice, path_of
from dtl.design import DESIGNS, is_balanced
from dtl.engine.files import decoded, rounded, save, shipped, unpacked, write
from dtl.engine.store import ARRAYS, OUTPUTS, SPLITS, local_folder, marks_of, open_store, read
from dtl.influence import Influence, estimate_influence

__all__ = ["Results", "open", "results_of", "rounded", "save"]

logger = logging.getLogger(__name__)

FEW = 10  # images: below, a variance between them is known to a half only

_BESIDE = Path(str(resources.files("dtl")))
FOLDER = _BESIDE / "shipped" if (_BESIDE / "shipped").is_dir() else _BESIDE.parent / "book/results"  # wheel or clone


@dataclass(frozen=True, eq=False)
class Results:
    """What models were trained on and what they said, and the questions to it.

    data : Dataset over model, source, target and transfer, as `Study.results` describes it
    parts : further datasets by name, of results that ship: ``results["removal"]``; those of studies also as `part`
    manifest : where shipped results come from

    >>> results = dtl.results.open("imagenet20-cifar10")
    >>> results["balanced"].margin.dims
    ('transfer', 'model', 'target')
    >>> results.part("balanced").influence(by="class").values.shape
    (20, 10)
    """

    data: xr.Dataset
    parts: Mapping[str, xr.Dataset] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_kind(self.data, "xarray.Dataset", "data")

    def __getitem__(self, name: str) -> xr.Dataset:
        if name not in self.parts:
            raise KeyError(f"no {name!r} among these results: they hold {', '.join(self.parts)}")
        return self.parts[name]

    def part(self, name: str) -> "Results":
        """One of the parts as results of their own."""
        return Results(self[name], manifest=self.manifest)

    @property
    def masks(self) -> np.ndarray:
        """The source classes (or images) of each model, bool (models, units)."""
        return self._study["mask"].values

    def outputs(self, output: str = "margin", transfer: str | None = None, split: str = "validation") -> np.ndarray:
        """One output of every model on one split, float32 (models, n); the default transfer is the first.

        >>> Results(study.results).outputs("correct", split="test").shape
        (8, 40)
        """
        return self.select(output, transfer, split).values.astype(np.float32)

    def select(self, output: str, transfer: str | None = None, split: str = "validation") -> xr.DataArray:
        """One output on one split, (model, target), read when used; InputError if the study lacks it."""
        regimes, splits = (list(dict.fromkeys(self._study[name].values.tolist())) for name in ("transfer", "split"))
        transfer = transfer or regimes[0]
        choice(output, [name for name in OUTPUTS if name in self.data], "output of this study")
        choice(transfer, regimes, "transfer of this study")
        choice(split, splits, "split of this study")
        return self.data[output].sel(transfer=transfer).isel(target=self.data["split"].values == split)

    def comparable(self, output: str, transfer: str | None = None, split: str = "validation") -> xr.DataArray:
        """`select` of the models that give influences: a run that was cut leaves pairs of which one is missing."""
        if output == "prediction":
            raise InputError("predictions are numbers of classes, which have no mean: use 'margin', or another output")
        outputs, models = self.select(output, transfer, split), self.data["model"].values
        whole = np.isin(models ^ 1, models)
        if whole.all() or self.data.attrs["settings"]["design"] not in ("balanced", "paired"):
            return outputs
        logger.warning("%d models are left out: their complements are not done", (~whole).sum())
        return outputs.isel(model=whole)

    def influence(
        self,
        method: str | None = None,
        output: str = "margin",
        transfer: str | None = None,
        split: str = "validation",
        by: str | np.ndarray | None = None,
        part: str = "whole",
        target: str = "new",
    ) -> Influence:
        """`estimate_influence` on these models; knows its names.

        Parameters
        ----------
        method : default is "difference", or "ols" for a balanced design in which a difference holds other effects: of
            sizes, where they differ, or of other units, where more than two models a unit end inside a block
        output, transfer, split : as in `outputs`
        by : None for a column per target example, "class" for one per target class, "all" for one of the whole target,
            or an int array with the group of each example
        part, target : "whole", "common" or "specific", and errors on "new" target images or on "these"; see
            `estimate_influence`

        >>> Results(study.results).influence(by="class").targets
        ('sky', 'chess', 'cards', 'travel')
        """
        chosen, facts = self.comparable(output, transfer, split), self.data.attrs
        settings, names = facts["settings"], facts.get("target_classes")
        masks = self.data["mask"].sel(model=chosen["model"]).values
        outputs, labels = chosen.values.astype(np.float32), chosen["label"].values
        groups, said = by, "image" if by is None else "group"
        if isinstance(by, str):
            choice(by, ("class", "all"), "grouping by")
            if by == "all" and part == "specific":
                raise InputError("the whole target has no specific part: ask for it by='class'")
            groups, said, part = labels, by, "common" if (by, part) == ("all", "whole") else part
        design, own = settings["design"] if settings["design"] in DESIGNS else None, method or "difference"
        if method is None and design == "balanced":
            mixed = np.ptp(masks.sum(axis=1)) > 0 if is_balanced(masks) else len(masks) > 2 * masks.shape[1]
            own = "ols" if mixed else own
        try:
            found = estimate_influence(masks, outputs, own, design, groups, part, target)
        except InputError:
            if method or own == "difference":
                raise
            found = estimate_influence(masks, outputs, "difference", design, groups, part, target)  # too few for OLS
        few = FEW if groups is None or target == "these" else np.bincount(groups).min()
        if few < FEW:
            logger.warning("%d %s images are few for a target: the errors are as uncertain as that", few, split)
        targets = tuple(map(str, range(found.values.shape[1])))
        if part == "common":
            targets = ("whole target",)
        elif said == "class" and names:
            targets = tuple(names)
        return replace(
            found,
            sources=tuple(map(str, self.data["source"].values)),
            targets=targets,
            by=said,
            split=split,
            output=output,
            transfer=str(chosen["transfer"].values),
            unit="group" if "groups" in settings else settings["unit"],
            problem=facts.get("problem", ""),
            data=settings["data"],
        )

    def to_frame(self, by: str = "class", **options: Any) -> pd.DataFrame:
        """`influence(by=by, **options)` as a table: a row for each target and source.

        >>> Results(study.results).to_frame(by="all").columns.tolist()
        ['target', 'source', 'influence', 'stderr', 'reliability']
        """
        return self.influence(by=by, **options).to_frame()

    def save(self, out: str | Path) -> Path:
        """Write everything to one file for other programs, or influences on the target classes as a table.

        out : ``.nc`` (NetCDF 4), ``.zarr.zip`` (zipped Zarr 2) or ``.csv``

        >>> Results(study.results).save("study.nc").name
        'study.nc'
        """
        return write(out, self.to_frame() if str(out).endswith(".csv") else self._study)

    def certificate(self, run: str) -> str:
        """Where one part of shipped results comes from, in four lines for a page to print.

        >>> print(dtl.results.open("imagenet20-cifar10").certificate("balanced"))
        python book/results/run.py balanced --scale cpu
        commit ...
        """
        runs = self.manifest.get("runs", {})
        choice(run, runs, "part of shipped results")
        pieces = runs[run]
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

    @property
    def _study(self) -> xr.Dataset:
        if "mask" not in self.data:
            parts = f"; take one of their parts, {', '.join(self.parts)}, with part(name)" if self.parts else ""
            raise InputError(f"these results hold no models with their subsets{parts}")
        return self.data


def open(where: str | Path, folder: str | Path | None = None) -> Results:
    """Results of a store, of a file, or shipped with the book; no images are needed.

    where : folder of a store, NetCDF file that `Results.save` wrote, or name of results that ship
    folder : that holds the folder of shipped results; default is what the package ships

    FileNotFoundError if there are none, says what there is; InputError for a store without a finished model, or a file
    that is not the one that the manifest describes.

    >>> dtl.results.open("imagenet20-cifar10")["removal"].test.dims
    ('order', 'count', 'seed')
    """
    if folder is None and str(where).endswith(".nc") and Path(where).exists():
        try:
            data = xr.load_dataset(where, engine="h5netcdf")
        except (OSError, ValueError) as error:
            raise InputError(f"{where} is no NetCDF file that can be read ({error}): get it again") from error
        return Results(data.assign_attrs({k: decoded(v) for k, v in data.attrs.items() if k != "problem"}))
    place = FOLDER if folder is None else path_of(folder, "folder")
    names = sorted(entry.parent.name for entry in place.glob("*/manifest.json"))
    if str(where) in names:
        return Results(xr.Dataset(), *shipped(place / where))
    if folder is None and (local_folder(where).exists() or str(where) != Path(where).name):
        root = open_store(where)
        data = results_of(root) if root.attrs["runs"] else xr.Dataset()
        if not data.sizes.get("model"):
            raise InputError(f"{where} has no finished model: run or resume the study first")
        return Results(data)
    raise FileNotFoundError(
        f"no results {str(where)!r} in {place}: give a store, a .nc file, or one of {', '.join(names)}"
    )


def results_of(root: zarr.Group | str | Path) -> xr.Dataset:
    """All finished models of a store, read when used; what `Study.results` gives, without the data of the problem."""
    root = root if isinstance(root, zarr.Group) else open_store(root)
    facts: Any = root.attrs.asdict()
    settings, sources = facts["settings"], facts["source_classes"]
    marks = marks_of(root)
    done = np.flatnonzero(marks.done)
    data = {name: read(root, name, marks).isel(model=done) for name in ARRAYS[2:]}
    if settings["unit"] == "example":
        sources = np.arange(facts["n_units"])
        data["mask"] = xr.Variable(("model", "source"), unpacked(data["mask"].data, len(sources)))
    if "groups" in settings:  # the store holds the subsets of classes that were trained
        sources, first = np.unique(settings["groups"], return_index=True)
        data["mask"] = data["mask"].isel(source=first)
    return xr.Dataset(data, attrs=facts).assign_coords(
        model=done,
        source=sources,
        transfer=settings["transfer"],
        split=("target", np.array(SPLITS)[np.asarray(read(root, "split"))]),
        label=("target", np.asarray(read(root, "label"))),
    )


def influence_of(results: xr.Dataset, *options: Any, **named: Any) -> Influence:
    """`Results(results).influence(...)`.

    >>> influence_of(dtl.results.open("imagenet20-cifar10")["random"], "ols", by="class").method
    'ols'
    """
    return Results(check_kind(results, "xarray.Dataset", "results")).influence(*options, **named)
