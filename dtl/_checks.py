"""What a wrong argument says: one sentence that names the argument, what it may be, and what it was."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import wraps
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin
from unicodedata import category, normalize

import numpy as np

T = TypeVar("T")


class InputError(ValueError):
    """An argument, a file or a setting that cannot be used, in one sentence that says what to do about it."""


class Diverged(RuntimeError):
    """Models whose training left finite numbers; all others are saved."""


def check_number(value: object, low: int, high: int, what: str) -> None:
    """InputError unless `value` is one whole number in low..high; names and arrays are none."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        raise InputError(f"{what} must be one whole number in {low}..{high}, not {value!r}")


def whole(name: str, value: object, least: int) -> int:
    """`value` as an int of at least `least`; InputError for anything else."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return int(value)


def check_kind(value: T, kind: str, what: str, optional: bool = False) -> T:
    """`value` if it is one of a kind, such as "dtl.Recipe", which need not be loaded; InputError for anything else."""
    if optional and value is None:
        return value
    if kind.rpartition(".")[2] in (base.__name__ for base in type(value).__mro__):
        return value
    raise InputError(f"{what} must be {'an' if kind[0] == 'x' else 'a'} {kind}, not {value!r}"[:300])


def real(name: str, value: object) -> float:
    """`value` as a float; InputError for anything but one finite number."""
    if not isinstance(value, Real) or not isfinite(value):
        raise InputError(f"{name} must be one finite number, not {value!r}")
    return float(value)


def check_images(value: T, what: str) -> T:
    """`value` if it is a data set, of this package or one that behaves like it; InputError for anything else."""
    if all(hasattr(value, name) for name in ("classes", "labels")):
        return value
    raise InputError(f"{what} must be a data set, such as a dtl.ImageDataset, not {value!r}"[:300])


def check_between(value: object, what: str, low: float = 0, high: float = 1) -> None:
    """InputError unless `value` is one number strictly between two others."""
    if not isinstance(value, Real) or not low < float(value) < high:
        raise InputError(f"{what} must lie strictly between {low} and {high}, not {value!r}")


def floats(value: Any, what: str, ndim: int | None = None) -> np.ndarray:
    """Numbers as a float64 array, of `ndim` dimensions if that is given; InputError for anything else."""
    try:
        found = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} must be an array of numbers ({error})") from None
    if found.ndim != (found.ndim if ndim is None else ndim):
        raise InputError(f"{what} must be an array of {ndim} dimensions, not of shape {found.shape}")
    return found


def check_mapping(value: T, what: str) -> T:
    """`value` if it maps names to something; InputError for anything else."""
    if isinstance(value, Mapping):
        return value
    raise InputError(f"{what} must be a mapping of names, not {value!r}"[:300])


def hinted(value: Any, hint: Any, what: str) -> Any:
    """`value` if it is of the kind that an annotation names, paths made absolute; InputError for anything else."""
    kinds = get_args(hint) or (hint,)
    if value is None and type(None) in kinds:
        return value
    if Path in kinds:
        return os.path.abspath(path_of(value, what))
    if int in kinds:
        whole(what, value, 0)
    elif float in kinds:
        real(what, value)
    elif Sequence in [get_origin(kind) for kind in kinds]:
        several(value, what)
    elif isinstance(kinds[0], type) and hint is not str:
        check_kind(value, f"{kinds[0].__module__}.{kinds[0].__name__}".removeprefix("builtins."), what)
    return value


def path_of(value: object, what: str) -> Path:
    """A path, its `~` opened; InputError for anything else."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise InputError(f"{what} must name a folder or file, not {value!r}")
    return Path(os.fsdecode(value)).expanduser()


def several(value: object, what: str) -> tuple[Any, ...]:
    """One name or a sequence, as a tuple; InputError for anything else."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Iterable):
        raise InputError(f"{what} must be a name or a sequence, not {value!r}")
    return tuple(value)


def load_json(file: Path, *keys: str) -> dict[str, Any]:
    """What a JSON file says of these keys, among others; InputError where it is damaged."""
    try:
        found = json.loads(file.read_text("utf8"))
        return {key: found[key] for key in keys} | found
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error}): get it again") from error


def choice(value: object, known: Iterable[object], what: str) -> None:
    """InputError unless `value` is one of the known names."""
    known = list(known)
    if value not in known:
        raise InputError(f"unknown {what} {value!r}: choose one of {', '.join(map(str, known))}")


def some(names: Sequence[object], most: int = 5) -> str:
    """The first names, as words."""
    text = ", ".join(map(str, names[:most]))
    return text if len(names) <= most else f"{text}, ... ({len(names)} in all)"


def listed(flags: np.ndarray, most: int = 5) -> str:
    """The first numbers at which flags are true, as words."""
    return some(np.flatnonzero(flags).tolist(), most)


def in_plain_words(of: type[T]) -> type[T]:
    """For a pydantic dataclass, such as `Recipe`: what it refuses is an InputError that names the recipe setting."""
    validate: Any = of.__init__

    @wraps(validate)
    def __init__(self: T, *args: Any, **settings: Any) -> None:
        try:
            validate(self, *args, **settings)
        except ValueError as errors:  # pydantic's own error, whose import is slow
            raise InputError(_sentence(errors, f"{of.__name__.lower()} setting", list(of.__annotations__))) from None

    of.__init__ = __init__
    return of


def _sentence(errors: Any, what: str, known: list[str]) -> str:
    """The first of pydantic's errors in one sentence."""
    error = errors.errors()[0]
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "value_error":  # one of our own checks
        return str(error["ctx"]["error"])
    if error["type"] == "unexpected_keyword_argument":
        near = get_close_matches(name, known, 1)
        return f"unknown {what} {name!r}: " + (f"did you mean {near[0]!r}?" if near else f"use {', '.join(known)}")
    return f"{what} {name} cannot be {error['input']!r}: {error['msg'].replace('Input should', 'it should')}"


def shown(name: object) -> str:
    """A name or path as text that can be written anywhere: bytes that are no UTF-8 are escaped.

    >>> shown("caf\\udce9").isascii()
    True
    """
    return str(name).encode("utf-8", "backslashreplace").decode()


def class_names(names: Iterable[object]) -> tuple[str, ...]:
    """Names as text that can be written and shown: in one Unicode form, bytes that are no UTF-8 escaped.

    >>> class_names([7, "tom", np.str_("rex")])
    ('7', 'tom', 'rex')
    """
    try:
        if isinstance(names, set | frozenset):
            raise TypeError("without an order")
        found = tuple(normalize("NFC", shown(name)) for name in names)
    except TypeError:
        raise InputError(f"classes must be a sequence of names, not {names!r}") from None
    seen = [" ".join("".join(c for c in name if category(c) != "Cf").split()) for name in found]  # Cf: of no width
    twice = [name for name, n in Counter(seen).items() if n > 1]
    if twice:
        raise InputError(f"more than one class is called {some(twice)}: give each a name of its own")
    return found
