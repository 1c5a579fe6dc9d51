"""Problems in one file each: pixels, labels, names, and what was planted."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dtl._files import load_tensors, save_tensors
from dtl.data import ImageDataset, TransferProblem, Truth


def save(problem: TransferProblem, path: str | Path) -> Path:
    """Write a problem, planted truth included, to one file (safetensors) that `load("file", path=path)` reads.

    >>> dtl.load("file", path=dtl.datasets.saved.save(problem, "problem.safetensors")).name
    'testbed-0'
    """
    path = Path(os.path.expanduser(path))
    facts = {
        "name": problem.name,
        "classes": json.dumps({part: dataset.classes for part, dataset in problem.parts.items()}),
        "paths": json.dumps({part: dataset.paths for part, dataset in problem.parts.items()}),
        "truth": json.dumps(problem.truth and asdict(problem.truth), default=np.ndarray.tolist),
        "per_class_accuracy": json.dumps(problem.per_class_accuracy),
        "still": json.dumps([part for part, dataset in problem.parts.items() if dataset.still]),
    }
    tensors = {}
    for part, dataset in problem.parts.items():
        tensors |= {f"{part}.images": dataset.images.contiguous(), f"{part}.labels": dataset.labels.contiguous()}
        if dataset.normalisation:
            tensors[f"{part}.normalisation"] = torch.stack(dataset.normalisation)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, tensors, facts)
    return path


def make(path: str | Path) -> TransferProblem:
    """A problem that `save` wrote; what `load("file", path=path)` calls."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is no file: give one that dtl.datasets.saved.save wrote")
    tensors, facts = load_tensors(Path(path))
    kept: dict[str, Any] = {"paths": {}, "still": [], "truth": None, "per_class_accuracy": False}
    kept |= {key: json.loads(text) for key, text in facts.items() if key not in ("name", "sha256")}
    parts = {}
    for part, classes in kept["classes"].items():
        numbers: Any = tensors.get(f"{part}.normalisation")
        images, labels = tensors[f"{part}.images"], tensors[f"{part}.labels"]
        normalisation = None if numbers is None else tuple(numbers)
        parts[part] = ImageDataset(
            images, labels, classes, kept["paths"].get(part), normalisation, part in kept["still"]
        )
    if truth := kept["truth"]:
        for key, value in truth.items():
            if isinstance(value, dict):
                truth[key] = {split: np.array(values) for split, values in value.items()}
            elif isinstance(value, list):
                truth[key] = tuple(value) if key == "subpopulations" else np.array(value)
    truth = truth and Truth(**truth)
    return TransferProblem(facts["name"], **parts, truth=truth, per_class_accuracy=kept["per_class_accuracy"])
