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
__all__ = [name for name in _names if importlib.util.find_spec(f"dtl.{name}") is None]

_MOVED = {  # rooms of version 0.1, for one version: where their names live now
    "beton": "datasets.ffcv",
    "check": "book",
    "imagenet200": "datasets.imagenet200",
    "scale": "book",
    "substitutes": "baselines",
    "targets": "datasets.targets",
}
_RENAMED = {"check": {"answer": "check"}, "scale": {"current": "scale", "SIZES": "SIZES", "Scale": "Scale"}}


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        return _lazy(name)
    warnings.warn(f"dtl.{name} is now dtl.{_MOVED[name]}", DeprecationWarning, stacklevel=2)
    room = importlib.import_module(f"dtl.{_MOVED[name]}")
    if name in _RENAMED:
        return SimpleNamespace(**{old: getattr(room, new) for old, new in _RENAMED[name].items()})
    return room
