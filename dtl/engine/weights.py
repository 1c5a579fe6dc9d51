"""Weights of source models on disk, so that a second target needs no second training: safetensors, a file a model."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dtl._checks import InputError
from dtl._files import load_tensors, save_tensors
from dtl.data import ImageDataset
from dtl.models import Nets, stack, states_of
from dtl.training import Recipe, images_of, resolve_device, schedule, train_sources

if TYPE_CHECKING:
    from dtl.study import Study

logger = logging.getLogger(__name__)

OTHER_SETTINGS = (  # of a recipe: not of its sources
    "probe_l2", "finetune_epochs", "finetune_lr", "finetune_weight_decay", "models_at_once",
)  # fmt: skip


def source_nets(
    source: ImageDataset,
    masks: np.ndarray,
    seeds: Sequence[int],
    recipe: Recipe,
    device: torch.device,
    unit: str,
    folder: Path | None,
) -> Nets:
    """`train_sources`, or the same nets from `folder` if it has them all; nets that are trained are kept there.

    One safetensors file a model, named by a digest of what decides its weights: source images, recipe, subset and seed.
    """
    if folder is None:
        return train_sources(source, masks, seeds, recipe, device, unit)
    # a setting that is not set may be younger than the files
    settings = {k: v for k, v in recipe.settings().items() if k not in OTHER_SETTINGS and v is not None}
    common = hashlib.sha256(json.dumps([source.fingerprint, settings]).encode())
    files = []
    for images, seed in zip(images_of(masks, source, unit), seeds, strict=True):
        own = common.copy()
        own.update(np.packbits(images).tobytes() + int(seed).to_bytes(8, "little"))
        files.append(folder / f"{own.hexdigest()[:32]}.safetensors")
    if all(file.exists() for file in files):
        try:
            nets = stack([_state_in(file) for file in files], recipe.model, source.n_classes, recipe.widths)
            return nets.to(device, memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
        except InputError as error:
            logger.warning("%s: its models are trained again", error)
    nets = train_sources(source, masks, seeds, recipe, device, unit)
    folder.mkdir(parents=True, exist_ok=True)
    for file, state, good in zip(files, states_of(nets), finite(nets), strict=True):
        if good:
            save_tensors(file, {k: v.contiguous() for k, v in state.items()}, {"model": file.stem})
    return nets


def _state_in(file: Path) -> dict[str, torch.Tensor]:
    """The weights in a file, which says whose they are since dtl 0.1; InputError if it is not that of its name."""
    state, facts = load_tensors(file)
    if facts.get("model", file.stem) != file.stem:
        raise InputError(f"{file} holds the weights of another model, {facts['model']}")
    return state


def kept_nets(study: "Study", models: Sequence[int], device: str = "auto") -> Iterator[tuple[np.ndarray, Nets]]:
    """Source models of a study by number, some side by side at a time: (numbers, nets), from its folder `weights`.

    InputError without such a folder: nets trained again elsewhere agree with the outputs only in distribution.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     kept = dtl.Study(problem, dtl.Recipe(epochs=1), weights=folder).run(4, progress=False)
    ...     [(numbers.tolist(), nets.n_models) for numbers, nets in kept.nets([0, 3])]
    [([0, 3], 2)]
    """
    if study.weights is None:
        raise InputError("the nets of this study were not kept: make it with weights=FOLDER, and run it")
    wanted, most, recipe, source = np.asarray(models), max(2, max(models) + 1), study.recipe, study.problem.source
    masks, seeds, size = study._subsets(most), study.seeds(most), recipe.models_at_once
    steps = np.array([schedule(int(n), recipe) for n in images_of(masks, source, study.unit).sum(1)])
    for plan in np.unique(steps[wanted], axis=0):
        alike = wanted[(steps[wanted] == plan).all(1)]
        for rows in np.split(alike, range(size, len(alike), size)):
            own, where = seeds[rows].tolist(), resolve_device(device)
            yield rows, source_nets(source, masks[rows], own, recipe, where, study.unit, study.weights)


def finite(nets: Nets) -> np.ndarray:
    """Which nets have finite weights and statistics only, bool (models,)."""
    states = (v.detach().unflatten(0, (nets.n_models, -1)) for v in nets.state_dict().values() if v.ndim)
    return torch.stack([v.isfinite().flatten(1).all(1) for v in states]).all(0).cpu().numpy()


@torch.no_grad()
def zero_diverged(nets: Nets, which: np.ndarray) -> None:
    """Zero the nets of a bool mask, so that what they would make of NaN does not stop the others."""
    for value in nets.state_dict().values() if which.any() else ():
        if value.ndim:
            value.unflatten(0, (nets.n_models, -1))[torch.from_numpy(which)] = 0
