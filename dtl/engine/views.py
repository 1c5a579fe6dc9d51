"""Logits on changed images, beside the outputs of a study: for each view a store of its own with the same models.

Each is a complete store, so that a view that is added to a finished study writes nothing into what was there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.storage import MemoryStore

from dtl._checks import InputError
from dtl.data import PLAIN, TransferProblem
from dtl.engine.store import SPLITS, Store, marks_of, read


def stores_of(store: Store, problem: TransferProblem) -> dict[str, Store]:
    """A store for each view and for the images as they are; none for a problem without views.

    Raises
    ------
    InputError : the store of a view holds another view, or views of another study
    """
    if not problem.views:
        return {}
    if store.folder is None and not isinstance(store.zarr, MemoryStore):
        raise InputError("views need a study that is stored in a folder, or in memory")
    found = {}
    for name in (PLAIN, *problem.views):
        images = [problem.judges[key].fingerprint for key in splits_of(name)]
        folder = store.folder and store.folder / "views" / name
        found[name] = Store(folder, {**store.settings, "view": images})
    return found


def splits_of(view: str) -> list[str]:
    """The splits of a view, in the order of its targets.

    >>> splits_of("square")
    ['validation/square', 'test/square']
    """
    return [split if view == PLAIN else f"{split}/{view}" for split in SPLITS]


def done_in(stores: Mapping[str, Store], n_models: int) -> np.ndarray:
    """Which of the first `n_models` models are done in all stores, bool (n_models,)."""
    done = np.ones(n_models, dtype=bool)
    for store in stores.values():
        own = marks_of(store.open()).done[:n_models] if store.ready else np.zeros(0, dtype=bool)
        done &= np.pad(own, (0, n_models - len(own)))
    return done


def save_missing(stores: Mapping[str, Store], run: str, rows: np.ndarray, outputs: Mapping[str, np.ndarray]) -> bool:
    """Write what each store lacks of models `rows`; False if a store is not that of the run, so that others must.

    stores : that of the study under ""
    outputs : of the study by name, logits as "logits/<view>", (transfer, len(rows), target x class)
    """
    for view, store in stores.items():
        root = store.open_during(run)
        if root is None:
            return False
        own = {"logits": outputs[f"logits/{view}"]} if view else {k: v for k, v in outputs.items() if "/" not in k}
        new = ~marks_of(root).done[rows]
        store.save(root, rows[new], {name: values[:, new] for name, values in own.items()})
    return True


def with_views(results: xr.Dataset, roots: Mapping[str, zarr.Group]) -> xr.Dataset:
    """Results with the targets of all views behind their own, and `logits` (transfer, model, target, class) of all.

    Only models that are done in every view are there.
    """
    models = results["model"].values
    for root in roots.values():
        models = np.intersect1d(models, np.flatnonzero(marks_of(root).done))
    results = results.sel(model=models)
    classes: Any = results.attrs["target_classes"]
    labels, split = results["label"].values, results["split"].values
    parts = []
    for view, root in roots.items():
        flat: Any = read(root, "logits").isel(model=models).data
        logits = flat.reshape(*flat.shape[:2], len(labels), len(classes))
        own = results.drop_vars(["mask", "seed"])
        if view != PLAIN:
            said = {name: (("transfer", "model", "target"), v) for name, v in outputs_of(logits, labels).items()}
            own = own.assign(said).assign_coords(split=("target", [f"{name}/{view}" for name in split]))
        parts.append(own.assign(logits=(("transfer", "model", "target", "class"), logits)))
    found = xr.concat(parts, "target", data_vars="minimal")
    return found.assign_coords({"class": list(classes)}).assign(
        {k: results[k] for k in ("mask", "seed") if k in results}
    )


def outputs_of(logits: Any, labels: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """What logits (..., n, classes), of NumPy or dask, say of examples with labels (n,): as `dtl.transfer.outputs`.

    >>> outputs_of(np.array([[[0.0, 0.0]]]), [1])["probability"].tolist()
    [[0.5]]
    """
    true = np.arange(logits.shape[-1]) == np.asarray(labels)[:, None]
    own = np.where(true, logits, 0).sum(-1)
    others = np.where(true, -np.inf, logits)
    most = others.max(-1)
    margin = own - (most + np.log(np.exp(others - most[..., None]).sum(-1)))
    found = {"margin": margin, "probability": 1 / (1 + np.exp(-margin)), "correct": own > most}
    return {name: v.astype(np.float32) if name != "correct" else v for name, v in found.items()} | {
        "prediction": logits.argmax(-1).astype(np.int16)
    }
