"""dtl: which part of the source data helps or hurts a transferred model, and how sure we are.

Names are imported when they are first used, so what only reads results needs no torch; `__init__.pyi` lists them.
"""

import importlib.util
import pkgutil
import warnings
from types import SimpleNamespace
from typing import Any

import lazy_loader

_lazy, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]: the stub has them
    name for name in _names if importlib.util.find_spec(f"dtl.{name}") is None
]

_MOVED: dict[str, Any] = {  # rooms of version 0.1, for one version: where they are now, or each of their names
    "beton": "datasets.ffcv",
    "check": {"answer": "book.check"},
    "imagenet200": "datasets.imagenet200",
    "mistakes": {"wrong": "projection.wrong", "suspects": "projection.suspects", "flip_rate": "removal.flip_rate"}
    | {"newcombe": "removal.newcombe"},
    "scale": {"current": "book.scale", "SIZES": "book.SIZES", "Scale": "book.Scale"},
    "substitutes": "baselines",
    "targets": "datasets.targets",
    "tiles": "engine.files",
}


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        return _lazy(name)
    new = _MOVED[name]
    paths = [new] if isinstance(new, str) else list(new.values())
    warnings.warn(f"dtl.{name} is now dtl.{', dtl.'.join(paths)}", DeprecationWarning, stacklevel=2)
    found = [pkgutil.resolve_name(f"dtl.{path}") for path in paths]
    return found[0] if isinstance(new, str) else SimpleNamespace(**dict(zip(new, found, strict=True)))
