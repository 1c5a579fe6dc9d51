"""What a wrong argument says: one sentence that names the argument, what it may be, and what it was."""

import operator
from collections.abc import Iterable, Sequence
from numbers import Integral

import numpy as np


class InputError(ValueError):
    """An argument, a file or a setting that cannot be used, in one sentence that says what to do about it."""


def check_number(value: object, low: int, high: int, what: str) -> None:
    """InputError unless `value` is one whole number in low..high; names and arrays are none."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        raise InputError(f"{what} must be one whole number in {low}..{high}, not {value!r}")


def whole(name: str, value: object, least: int) -> int:
    """`value` as an int of at least `least`; InputError for anything else."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{name} must be an integer, got {value!r}.") from None
    if number < least:
        raise InputError(f"{name} must be at least {least}, got {number}.")
    return number


def choice(value: object, known: Iterable[str], what: str) -> None:
    """InputError unless `value` is one of the known names."""
    known = list(known)
    if value not in known:
        raise InputError(f"unknown {what} {value!r}: choose one of {', '.join(known)}")


def some(names: Sequence[object], most: int = 5) -> str:
    """The first names, as words."""
    text = ", ".join(map(str, names[:most]))
    return text if len(names) <= most else f"{text}, ... ({len(names)} in all)"


def listed(flags: np.ndarray, most: int = 5) -> str:
    """The first numbers at which flags are true, as words."""
    return some(np.flatnonzero(flags).tolist(), most)
