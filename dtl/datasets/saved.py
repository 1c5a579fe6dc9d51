"""Problems in one file each: pixels, labels, names, and what was planted."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dtl._checks import check_kind, path_of
from dtl._files import load_tensors, save_tensors
from dtl.data import ImageDataset, TransferProblem, Truth


def save(problem: TransferProblem, path: str | Path) -> Path:
    """Write a problem, planted truth included, to one file (safetensors) that `load("file", path=path)` reads.

    >>> dtl.load("file", path=dtl.datasets.saved.save(problem, "problem.safetensors")).name
    'testbed-0'
    """
    check_kind(problem, "dtl.TransferProblem", "problem")
    path = path_of(path, "path")
    facts = {
        "name": problem.name,
        "classes": json.dumps({part: dataset.classes for part, dataset in problem.parts.items()}),
        "paths": json.dumps({part: dataset.paths for part, dataset in problem.parts.items()}),
        "truth": json.dumps(problem.truth and asdict(problem.truth), default=np.ndarray.tolist),
        "per_class_accuracy": json.dumps(problem.per_class_accuracy),
        "still": json.dumps([part for part, dataset in problem.parts.items() if dataset.still]),
    }
    tensors = {f"{part}.images": dataset.images.contiguous() for part, dataset in problem.parts.items()}
    tensors |= {f"{part}.labels": dataset.labels.contiguous() for part, dataset in problem.parts.items()}
    kept = {part: dataset.normalisation for part, dataset in problem.parts.items() if dataset.normalisation}
    tensors |= {f"{part}.normalisation": torch.stack(numbers) for part, numbers in kept.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, tensors, facts)
    return path


def make(path: str | Path) -> TransferProblem:
    """A problem that `save` wrote; what `load("file", path=path)` calls."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is no file: give one that dtl.datasets.saved.save wrote")
    tensors, facts = load_tensors(Path(path))
    made: dict[str, Any] = {}
    files: dict[str, Any] = json.loads(facts.get("paths", "{}"))
    still = json.loads(facts.get("still", "[]"))
    for part, classes in json.loads(facts["classes"]).items():
        images, labels = tensors[f"{part}.images"], tensors[f"{part}.labels"]
        numbers: Any = tuple(tensors.get(f"{part}.normalisation", ())) or None
        made[part] = ImageDataset(images, labels, classes, files.get(part), numbers, part in still)
    truth: dict[str, Any] | None = json.loads(facts.get("truth", "null"))
    if truth is not None:
        for key, value in truth.items():
            if isinstance(value, dict):
                truth[key] = {split: np.array(values) for split, values in value.items()}
            elif value is not None:
                truth[key] = tuple(value) if key == "subpopulations" else np.array(value)
        made["truth"] = Truth(**truth)
    return TransferProblem(facts["name"], per_class_accuracy=facts.get("per_class_accuracy") == "true", **made)
