"""dtl: which part of the source data helps or hurts a transferred model, and how sure we are.

Names are imported when they are first used, so what only reads results needs no torch; `__init__.pyi` lists them.
"""

import importlib
import importlib.util
import warnings
from types import SimpleNamespace
from typing import Any

import lazy_loader

_lazy, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]: the stub has them
    name for name in _names if importlib.util.find_spec(f"dtl.{name}") is None
]

_MOVED = {  # rooms of version 0.1, for one version: where their names live now
    "beton": "datasets.ffcv",
    "check": "book",
    "imagenet200": "datasets.imagenet200",
    "mistakes": "removal",
    "scale": "book",
    "substitutes": "baselines",
    "targets": "datasets.targets",
    "tiles": "engine.files",
}
_RENAMED = {  # rooms whose names changed, or moved to different rooms: old name -> where it lives
    "check": {"answer": "book.check"},
    "mistakes": {"wrong": "projection.wrong", "suspects": "projection.suspects", "flip_rate": "removal.flip_rate"}
    | {"newcombe": "removal.newcombe"},
    "scale": {"current": "book.scale", "SIZES": "book.SIZES", "Scale": "book.Scale"},
}


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        return _lazy(name)
    new = _RENAMED.get(name, {})
    now = ", ".join(f"dtl.{path}" for path in new.values()) or f"dtl.{_MOVED[name]}"
    warnings.warn(f"dtl.{name} is now {now}", DeprecationWarning, stacklevel=2)
    rooms = {old: path.rpartition(".") for old, path in new.items()}
    moved = {old: getattr(importlib.import_module(f"dtl.{room}"), to) for old, (room, _, to) in rooms.items()}
    return SimpleNamespace(**moved) if moved else importlib.import_module(f"dtl.{_MOVED[name]}")
