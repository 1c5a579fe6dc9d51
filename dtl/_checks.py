"""What a wrong argument says: one sentence that names the argument, what it may be, and what it was."""

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from numbers import Integral
from unicodedata import normalize

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


def class_names(names: Iterable[object]) -> tuple[str, ...]:
    """Names as text that can be written and shown: in one Unicode form, bytes that are no UTF-8 escaped.

    >>> class_names([7, "tom", np.str_("rex")])
    ('7', 'tom', 'rex')
    """
    try:
        found = tuple(normalize("NFC", str(name)).encode("utf-8", "backslashreplace").decode() for name in names)
    except TypeError:
        raise InputError(f"classes must be a sequence of names, not {names!r}") from None
    twice = [name for name, n in Counter(found).items() if n > 1]
    if twice:
        raise InputError(f"more than one class is called {some(twice)}: give each a name of its own")
    return found
