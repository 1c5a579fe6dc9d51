"""Tensors on disk: safetensors with a digest of their contents, written whole or not at all."""

import hashlib
import os
import threading
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dtl._checks import InputError


def save_tensors(file: Path, tensors: dict[str, torch.Tensor], facts: dict[str, str]) -> None:
    """Write tensors, and facts about them, to a safetensors file, or OSError, and nothing is left behind."""
    partial = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    try:
        save_file(tensors, partial, {**facts, "sha256": _digest(tensors)})
        partial.replace(file)
    except SafetensorError as error:
        raise OSError(f"cannot write {file} ({error}): free space, or give a folder that you may write to") from error
    finally:
        partial.unlink(missing_ok=True)


def load_tensors(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and facts of a file that `save_tensors` wrote; InputError where it is damaged."""
    try:
        with safe_open(file, "pt") as opened:
            tensors, facts = {name: opened.get_tensor(name) for name in [*opened.keys()]}, opened.metadata()
    except SafetensorError as error:
        raise InputError(f"{file} is damaged ({error})") from error
    if not facts or _digest(tensors) != facts.get("sha256"):
        raise InputError(f"{file} is damaged (its checksum does not match)")
    return tensors, facts


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].cpu().contiguous().numpy().data)
    return digest.hexdigest()
