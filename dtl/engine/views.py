"""Logits on changed images, beside the outputs of a study: for each view a store of its own with the same models.

Each is a complete store, so that a view that is added to a finished study writes nothing into what was there.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
import zarr
from zarr.storage import MemoryStore

from dtl._checks import InputError
from dtl.data import PLAIN, TransferProblem
from dtl.engine.store import OUTPUTS, SPLITS, Store, marks_of, read


def stores_of(store: Store, problem: TransferProblem) -> dict[str, Store]:
    """The store of a study under "", and one for each view and for the images as they are, if a problem has views.

    InputError if the store of a view holds another view, or views of another study.
    """
    if problem.views and store.folder is None and not isinstance(store.zarr, MemoryStore):
        raise InputError("views need a study that is stored in a folder, or in memory")
    found = {"": store}
    for name in (PLAIN, *problem.views) if problem.views else ():
        images = [problem.judges[key].fingerprint for key in splits_of(name)]
        folder = store.folder and store.folder / "views" / name
        found[name] = Store(folder, {**store.settings, "view": images})
    return found


def splits_of(view: str) -> list[str]:
    """The splits of a view, such as "test/square", in the order of its targets."""
    return [split if view == PLAIN else f"{split}/{view}" for split in SPLITS]


def done_in(stores: Mapping[str, Store], n_models: int) -> np.ndarray:
    """Which of the first `n_models` models are done in all stores, bool (n_models,)."""
    done = np.ones(n_models, dtype=bool)
    for store in stores.values():
        own = marks_of(store.open()).done[:n_models] if store.ready else np.zeros(0, dtype=bool)
        done &= np.pad(own, (0, n_models - len(own)))
    return done


def save_missing(stores: Mapping[str, Store], run: str, rows: np.ndarray, found: Mapping[str, np.ndarray]) -> bool:
    """Write what each store lacks of models `rows`; False if a store is not that of the run, so that others must.

    found : outputs (transfer, len(rows), ...) by name, those of views as "logits/<view>"
    """
    for view, store in stores.items():
        root = store.open_during(run)
        if root is None:
            return False
        own = {"logits": found[f"logits/{view}"]} if view else {k: v for k, v in found.items() if "/" not in k}
        new = ~marks_of(root).done[rows]
        store.save(root, rows[new], {name: values[:, new] for name, values in own.items()})
    return True


def with_views(results: xr.Dataset, roots: Mapping[str, zarr.Group], outputs: Callable[..., Any]) -> xr.Dataset:
    """Results with the targets of all views behind their own, and `logits` (transfer, model, target, class) of all.

    Only models that are done in every view are there.
    """
    models = results["model"].values
    for root in roots.values():
        models = np.intersect1d(models, np.flatnonzero(marks_of(root).done))
    results = results.sel(model=models)
    classes: Any = results.attrs["target_classes"]
    labels, split = results["label"].values, results["split"].values
    dims, parts = ("transfer", "model", "target"), []
    for view, root in roots.items():
        flat: Any = read(root, "logits").isel(model=models).data
        logits = flat.reshape(*flat.shape[:2], len(labels), len(classes))
        own = results.drop_vars(["mask", "seed"])
        if view != PLAIN:
            for name, dtype in OUTPUTS.items():
                known = {"meta": np.empty((0, 0, 0), dtype), "drop_axis": 3, "dtype": dtype}
                own[name] = dims, logits.map_blocks(_output_of, which=name, labels=labels, outputs=outputs, **known)
            own = own.assign_coords(split=("target", [f"{name}/{view}" for name in split]))
        parts.append(own.assign(logits=((*dims, "class"), logits)))
    found = xr.concat(parts, "target", data_vars="minimal").assign_coords({"class": list(classes)})
    return found.assign(mask=results["mask"], seed=results["seed"])


def _output_of(logits: np.ndarray, which: str, labels: np.ndarray, outputs: Callable[..., Any]) -> np.ndarray:
    """One of the outputs (transfer, model, target) that logits (transfer, model, target, class) say."""
    found = outputs(torch.tensor(logits).flatten(0, 1), torch.tensor(labels))
    return getattr(found, which).unflatten(0, logits.shape[:2]).numpy().astype(OUTPUTS[which])
