"""Weights of source models on disk, so that a second target needs no second training: safetensors, a file a model."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dtl._checks import InputError
from dtl._files import load_tensors, save_tensors
from dtl.data import ImageDataset
from dtl.models import Nets, stack, states_of
from dtl.training import Recipe, images_of, train_sources

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
    states = []
    try:
        for file in files if all(file.exists() for file in files) else ():
            state, facts = load_tensors(file)
            if facts.get("model", file.stem) != file.stem:  # of dtl 0.1: only its name says whose it is
                raise InputError(f"{file} holds the weights of another model, {facts['model']}")
            states.append(state)
    except ValueError as error:
        states = []
        logger.warning("%s: its models are trained again", error)
    if states:
        nets = stack(states, recipe.model, source.n_classes, recipe.widths)
        return nets.to(device, memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
    nets = train_sources(source, masks, seeds, recipe, device, unit)
    folder.mkdir(parents=True, exist_ok=True)
    for file, state, good in zip(files, states_of(nets), finite(nets), strict=True):
        if good:
            save_tensors(file, {k: v.contiguous() for k, v in state.items()}, {"model": file.stem})
    return nets


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
