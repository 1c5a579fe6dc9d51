"""A study: many source models on many subsets, transferred, their outputs in one array store."""

import hashlib
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import wraps
from importlib.metadata import version
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store as ZarrStore

from dtl._checks import Diverged, InputError, check_kind, check_number, choice, several, whole
from dtl._estimators import plain
from dtl.data import TransferProblem
from dtl.design import block_length, groups_of, subset_masks
from dtl.engine.files import influence_to_zarr
from dtl.engine.progress import progress as progress_line
from dtl.engine.store import FORMAT, OUTPUTS, SPLITS, Store, local_folder, marks_of, read
from dtl.engine.views import done_in, save_missing, stores_of, with_views
from dtl.engine.weights import kept_nets
from dtl.engine.workers import Run, train
from dtl.models import PARALLEL
from dtl.results import Results, results_of
from dtl.training import Recipe, check_size, resolve_device
from dtl.transfer import REGIMES, outputs

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


def _of_finished(method: Callable[Concatenate[Results, P], T]) -> Callable[Concatenate["Study", P], T]:
    """A method of `Results` as one of `Study`, on the models that are finished when it is called."""

    @wraps(method)
    def ask(study: "Study", *options: P.args, **named: P.kwargs) -> T:
        return method(Results(study.results), *options, **named)

    return ask


class Study:
    """Source models on subsets of the source, each transferred to the target.

    Parameters
    ----------
    problem : what to train on and transfer to
    recipe : training and transfer settings; default `Recipe()`
    design : "balanced", "random" or "paired" (see `subset_masks`), or subsets of your own, bool (models, units)
    transfer : one or more of "fixed", "fixed+bn", "full", "scratch" (see `dtl.transfer.transfer`)
    store : folder of the results (Zarr); without one they live in memory. A store of the same study is continued, a
        store of another one is refused, unless that has saved no model
    seed : subsets, initial weights and order of examples are functions of it and of a model's number
    fraction : share of the units in a subset, for design "random"
    unit : what a subset holds or leaves out, and so has an influence: "class", "example", or groups of classes, as the
        group of each class in a list or by the name of the class in a mapping
    weights : folder that keeps source weights (safetensors); models that are there, also from a study with another
        target, are not trained again

    >>> study = dtl.Study(problem, dtl.Recipe(epochs=1)).run(4, progress=False)
    >>> study.influence(by="class").values.shape
    (24, 4)
    """

    def __init__(
        self,
        problem: TransferProblem,
        recipe: Recipe | None = None,
        design: str | np.ndarray = "balanced",
        transfer: str | Sequence[str] = ("fixed",),
        store: str | Path | ZarrStore | None = None,
        seed: int = 0,
        fraction: float = 0.5,
        unit: str | Sequence[str] | Mapping[str, str] = "class",
        weights: str | Path | None = None,
    ) -> None:
        self.weights = None if weights is None else local_folder(weights).absolute()
        self.problem, self.recipe, self.fraction = problem, Recipe() if recipe is None else recipe, fraction
        check_kind(problem, "dtl.TransferProblem", "problem")
        check_kind(self.recipe, "dtl.Recipe", "recipe")
        self.seed = whole("seed", seed, 0)
        self.transfer = several(transfer, "transfer")
        if not self.transfer or set(self.transfer) - set(REGIMES) or len(set(self.transfer)) < len(self.transfer):
            raise InputError(f"unknown transfer {self.transfer}: use one or more of {', '.join(REGIMES)}, each once")
        if self.recipe.model not in PARALLEL and self.recipe.models_at_once > 1:
            raise InputError(f"{self.recipe.model} trains one model at a time: set models_at_once=1 in the recipe")
        self.groups = None if isinstance(unit, str) else groups_of(problem.source.classes, unit)  # of each class
        self.unit = unit if isinstance(unit, str) else "class"
        choice(self.unit, ("class", "example"), "unit")
        n_units = problem.source.n_classes if self.unit == "class" else len(problem.source)
        self.n_units = len(set(self.groups or range(n_units)))
        check_size(self.recipe, *problem.source.size)
        self.design = design if isinstance(design, str) else None
        self.given = None if isinstance(design, str) else np.array(plain(design, "given subsets"), order="C")  # a copy
        block = block_length(self.n_units) if self.design == "balanced" and self.n_units < 1000 else 2
        self._subsets(block if self.given is None else None)  # raises now what it would raise later
        fragile = [part for part in ("source", "target_train") if problem.parts[part].still]
        if self.recipe.augment and fragile:
            raise InputError(
                f"what is planted in {' and '.join(fragile)} would not survive shifts and flips: set augment=0 in the "
                "recipe, or plant something that does, such as a tint"
            )
        self.store = Store(store, self.settings)
        self.stores = stores_of(self.store, problem)

    def __repr__(self) -> str:
        done = self.results.sizes["model"] if self.store.ready else 0
        subsets, regimes = self.design or "given", ", ".join(self.transfer)
        return f"Study({self.problem.name}: {done} models done, {subsets} subsets, {regimes})"

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the numbers: stores with equal settings hold the same study.

        `models_at_once` is one of them: a batch is a chunk of the store, so that no two workers write one file, and
        sums in another order give margins that agree only in distribution.
        """
        return {
            "format": FORMAT,
            "data": self.problem.fingerprints,
            "recipe": self.recipe.settings(),
            "design": self.design if self.given is None else hashlib.sha256(self.given.tobytes()).hexdigest(),
            "fraction": self.fraction,
            "unit": self.unit,
            "transfer": list(self.transfer),
            "seed": self.seed,
        } | ({"groups": list(self.groups)} if self.groups else {})

    def run(
        self,
        n_models: int | None = None,
        device: str = "auto",
        client: "Client | None" = None,
        progress: bool = True,
        start: int = 0,
        repair: bool = False,
        workers: int | None = None,
    ) -> "Study":
        """Train those of the models `start` to `n_models` - 1 that are missing; a batch is saved when it is done.

        A killed run loses the batches in flight; `run` again gives the arrays of an uninterrupted run.

        Parameters
        ----------
        n_models : models that the study shall have; may be left out when you gave the subsets
        device : "auto" (the GPU if there is one), "cpu", "cuda", "cuda:1", of each worker
        client : a `distributed.Client` whose workers train the batches, one each at a time, and open data and store by
            name; without one, a thread a core, or the GPU
        start : first model to train, to share a study between stores that are merged later
        repair : read the whole store first and train the models of damaged chunks again
        workers : processes of this machine that share the work, and on "cuda" its GPUs, which small nets leave idle

        Raises
        ------
        Diverged : some models did, a RuntimeError; all others are saved.

        >>> dtl.Study(problem, dtl.Recipe(epochs=1)).run(2, progress=False).run(4, progress=False)  # trains 2 more
        Study(testbed-0: 4 models done, balanced subsets, fixed)
        """
        masks = self._subsets(n_models)
        check_number(start, 0, len(masks) - 1, "start")
        if client is not None and not hasattr(client, "get_executor"):
            raise InputError(f"client must be a distributed.Client, not {client!r}")
        whole_store = self.store.ready and not repair and not marks_of(self.store.open()).lost
        if whole_store and done_in(self.stores, len(masks))[start:].all():
            return self  # also where the store cannot be written to
        if client is None:
            device = str(resolve_device(device))
        if workers is not None and (whole("workers", workers, 1) and client):
            raise InputError("give workers (processes of this machine) or client (a Dask cluster), not both")
        diverged, seeds = [], self.seeds(len(masks))
        with self.store.lock():
            for store in self.stores.values() if repair else ():
                store.repair()
            root, run = self._prepare(masks, device)
            done, size = done_in(self.stores, len(masks)), self.recipe.models_at_once
            done[:start] = True
            chunks = np.split(np.arange(len(masks)), range(size, len(masks), size))
            batches = [rows[~done[rows]] for rows in chunks if not done[rows].all()]
            with (
                progress_line(int((~done).sum()), "model", "training", progress and bool(batches)) as bar,
                closing(train(run, self.problem, self.stores, masks, seeds, batches, client, workers)) as trained,
            ):
                for batch in trained:
                    if batch.outputs is not None:
                        save_missing(self.stores, run.id, batch.rows, batch.outputs)
                    self.store.record(root, batch.device)
                    diverged.extend(batch.diverged.tolist())
                    bar.update(len(batch.rows))
        if diverged:
            raise Diverged(
                f"models {', '.join(map(str, sorted(diverged)))} diverged (outputs are not finite) and are not in the "
                "results, all others are: lower lr or finetune_lr of the recipe in a new store, or go on without them"
            )
        return self

    def merge(self, other: str | Path | ZarrStore) -> "Study":
        """Copy the models that only another store of this study has done; InputError if models of both differ.

        >>> from zarr.storage import MemoryStore
        >>> half, quick = MemoryStore(), dtl.Recipe(epochs=1, models_at_once=2)
        >>> _ = dtl.Study(problem, quick, store=half).run(4, start=2, progress=False)
        >>> dtl.Study(problem, quick).run(2, progress=False).merge(half)
        Study(testbed-0: 4 models done, balanced subsets, fixed)
        """
        theirs = Store(other, self.settings)
        if not theirs.ready:
            raise InputError(f"{theirs.zarr} holds no results yet: give the store of a study that has run")
        there = theirs.open()
        n_models = int(np.flatnonzero(marks_of(there).done).max(initial=1)) + 1
        with self.store.lock():
            root, _ = self._prepare(self._subsets(n_models), "", merged=there.attrs["runs"])
            self.store.merge(root, there)
        return self

    def _subsets(self, n_models: int | None) -> np.ndarray:
        """The classes, or images, of each model, bool (n_models, classes or images)."""
        if self.given is not None:
            if self.given.dtype != bool or self.given.shape[1:] != (self.n_units,) or len(self.given) < 2:
                units = "groups" if self.groups else "classes" if self.unit == "class" else "examples"
                raise InputError(
                    f"given subsets must be bool, two or more models x {self.n_units} {units}, not {self.given.dtype} "
                    f"{self.given.shape}"
                )
            if n_models is not None and not 2 <= n_models <= len(self.given):
                raise InputError(f"n_models must be 2 to {len(self.given)}, the given subsets, not {n_models}")
            masks = self.given[:n_models]
        elif self.design is None or not isinstance(n_models, Integral):
            raise InputError(f"run needs the number of models, not {n_models!r}")
        else:
            masks = subset_masks(self.n_units, n_models, self.design, self.fraction, self.seed)
        if self.groups is not None:
            masks = masks[:, np.unique(self.groups, return_inverse=True)[1]]
        labels, n_classes = self.problem.source.labels.numpy(), self.problem.source.n_classes
        for number, mask in enumerate(masks):
            classes = mask.sum() if self.unit == "class" else np.count_nonzero(np.bincount(labels[mask], minlength=1))
            if classes < 2:
                how = 'larger subsets, such as design="random" with fraction=2/3' if n_classes > 2 else "more classes"
                raise InputError(
                    f"subset {number} has fewer than two of the {n_classes} classes, which a source model needs: "
                    f"use {how}"
                )
        return masks

    def seeds(self, n_models: int) -> np.ndarray:
        """One seed per model, int64 (n_models,), each a function of (study seed, model number)."""
        sequences = (np.random.SeedSequence([self.seed, j]) for j in range(n_models))
        return np.array([int(s.generate_state(1, np.uint64)[0]) >> 1 for s in sequences], dtype=np.int64)

    def _prepare(self, masks: np.ndarray, device: str, **facts: object) -> tuple[zarr.Group, Run]:
        """The store open for writing, and the run that has been entered there."""
        run = Run(uuid.uuid4().hex, self.settings, device, self.weights)
        targets = [self.problem.parts[f"target_{split}"] for split in SPLITS]
        labels = np.concatenate([target.labels.numpy() for target in targets])
        split = np.repeat(np.arange(2, dtype=np.int8), [len(target) for target in targets])
        units = "source" if self.unit == "class" else "packed_source"
        per_model = {
            "mask": xr.Variable(("model", units), masks if self.unit == "class" else np.packbits(masks, axis=1)),
            "seed": xr.Variable("model", self.seeds(len(masks))),
        }

        def room(dtype: str, width: int) -> xr.Variable:  # which takes no memory
            shape = (len(self.transfer), len(masks), width)
            return xr.Variable(("transfer", "model", "target"), np.broadcast_to(np.zeros((), dtype), shape))

        versions = {name: version(name) for name in ("dtl", "torch", "torchvision", "numpy", "zarr")}
        date = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"id": run.id, "date": date, "models": len(masks), "device": "", **versions, **facts}
        about = {
            "problem": self.problem.name,
            "origin": self.problem.origin,
            "source_classes": self.problem.source.classes,
            "target_classes": self.problem.target_train.classes,
            "n_units": self.n_units,
        }
        roots = []
        for view, store in self.stores.items():
            if view:
                data = per_model | {"logits": room("float32", len(labels) * self.problem.target_train.n_classes)}
            else:
                known = {"label": xr.Variable("target", labels), "split": xr.Variable("target", split)}
                data = known | per_model | {name: room(dtype, len(labels)) for name, dtype in OUTPUTS.items()}
            roots.append(store.prepare(data, self.recipe.models_at_once, about, entry))
        return roots[0], run

    @property
    def results(self) -> xr.Dataset:
        """All finished models, read when used.

        Dimensions model, source, target (validation examples, then test) and transfer; variables mask, seed, margin,
        probability, correct, prediction; coordinates source (class names, or numbers of images), split, label.
        A problem with views has their targets behind those (split "test/<view>"), and logits (transfer, model, target,
        class) of all; models that are not done in every view are not there.
        """
        if not self.store.ready:
            raise InputError("this study has no results yet: call run(n_models) first")
        results = results_of(self.store.open())
        roots = {view: store.open() for view, store in self.stores.items() if view and store.ready}
        return with_views(results, roots, outputs) if len(roots) == len(self.stores) - 1 > 0 else results

    @property
    def masks(self) -> np.ndarray:
        """The source classes (or images) of each finished model, bool (models, units)."""
        return Results(self.results).masks

    nets = kept_nets
    outputs = _of_finished(Results.outputs)
    influence = _of_finished(Results.influence)

    def influence_to_zarr(
        self,
        store: str | Path | ZarrStore,
        output: str = "margin",
        transfer: str | None = None,
        split: str = "validation",
        tile: tuple[int, int] = (4096, 1024),
    ) -> xr.Dataset:
        """`influence("difference")` from disk to disk, for more source examples than memory holds.

        store : new folder, or Zarr store, of the influences; tile : see `dtl.influence_to_zarr`

        >>> study.influence_to_zarr("influence.zarr").sizes["source"]
        24
        """
        outputs = Results(self.results).comparable(output, transfer, split)
        if self.unit == "class":
            masks, n_units = self.results["mask"].sel(model=outputs["model"]), None
        else:  # which stay packed
            masks, n_units = read(self.store.open(), "mask").isel(model=outputs["model"].values), self.n_units
        return influence_to_zarr(masks.data, outputs.data, store, self.design, n_units, tile)
