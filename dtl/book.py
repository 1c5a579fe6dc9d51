"""What the book's pages need and nothing else does: how much to compute, sentences that quote the run, exercises.

A number in the prose of a page is an expression in double braces, `{{gain:+.1%}}`, and a claim that the run has to bear
out its condition, `The target gains{{? gain > 2 * error}}.` The build and the notebooks fill them in (`fill`, `say`).
"""

import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dtl._checks import InputError


@dataclass(frozen=True)
class Scale:
    """How many models a study has, how often a page repeats a retraining, and where studies are kept."""

    name: str
    models: int
    seeds: int
    folder: Path

    def store(self, study: str) -> Path:
        """The folder of one study."""
        return self.folder / study


SIZES = {"ci": (184, 10), "laptop": (460, 20), "gpu": (920, 40)}  # models: whole balanced blocks of 46


def scale() -> Scale:
    """The one knob for how much to compute: `DTL_SCALE`, by default "ci"; studies are in `DTL_STUDIES` or ./studies.

    >>> dtl.book.scale().models
    184
    """
    name = os.environ.get("DTL_SCALE", "ci")
    if name not in SIZES:
        raise InputError(f"DTL_SCALE is {name!r}: set it to one of {', '.join(SIZES)}")
    models, seeds = SIZES[name]
    return Scale(name, models, seeds, Path(os.environ.get("DTL_STUDIES", "studies")))


PLACE = re.compile(r" ?\{\{\?(?P<condition>.+?)\}\}|\{\{(?P<value>.+?)\}\}")
NOT_SO = " **[not so in this run]**"
SMALL = "no one two three four five six seven eight nine ten eleven twelve".split()


def say(text: str) -> None:
    """Show Markdown text whose places in double braces are filled with the caller's variables.

    >>> gain = 0.146
    >>> dtl.book.say("Without them the target gains {{100 * gain:.0f}} points.")  # doctest: +SKIP
    """
    from IPython.display import Markdown, display  # only notebooks need it

    display(Markdown(fill(text, sys._getframe(1).f_globals)))


def fill(text: str, names: Mapping[str, object]) -> str:
    """The text with every place filled: a value is put in its stead, a claim that does not hold is marked.

    Parameters
    ----------
    text : Markdown with places `{{value:format}}`, as in an f-string, and `{{? condition}}`, each on one line
    names : variables for the expressions; `words`, `names_of` and `pm` are there as well

    >>> dtl.book.fill("{{words(n)}} of {{n + 1}} rise{{? n > 5}}", {"n": 3})
    'three of 4 rise **[not so in this run]**'
    """

    def put(match: re.Match[str]) -> str:
        known = {"words": words, "names_of": names_of, "pm": pm} | dict(names)
        try:
            if match["condition"]:
                return "" if eval(match["condition"].strip(), known) else NOT_SO
            return eval(f"f'''{{{match['value'].strip()}}}'''", known)
        except Exception as error:
            error.add_note(f"in {match[0].strip()}")
            raise

    return PLACE.sub(put, text)


def words(n: int) -> str:
    """A count as a word, from thirteen on in digits.

    >>> dtl.book.words(8), dtl.book.words(1440)
    ('eight', '1,440')
    """
    return SMALL[n] if 0 <= n < len(SMALL) else f"{n:,}"


def names_of(names: Iterable[str]) -> str:
    """Names in italics, with commas and an "and".

    >>> dtl.book.names_of(["plane", "anchor", "knight"])
    '*plane*, *anchor* and *knight*'
    """
    *most, last = [f"*{name}*" for name in names] or ["none"]
    return f"{', '.join(most)} and {last}" if most else last


def pm(value: float, error: float, sign: str = "") -> str:
    """A value with its standard error, both to the error's first digit (two digits where it is a 1).

    >>> dtl.book.pm(14.63, 0.72, "+"), dtl.book.pm(0.8164, 0.0187)
    ('+14.6 ± 0.7', '0.816 ± 0.019')
    """
    if not error > 0:
        return f"{value:{sign}.3g} ± {error:.3g}"
    first = math.floor(math.log10(error))
    digits = max(0, (1 if error / 10**first < 1.95 else 0) - first)
    return f"{value:{sign}.{digits}f} ± {error:.{digits}f}"


def check(yours: object, expected: object, hint: str, tolerance: float = 1e-2) -> None:
    """Print whether an answer is right, and the hint if it is not; `...` counts as not answered yet.

    Parameters
    ----------
    yours, expected : numbers, arrays, strings or sets
    tolerance : allowed relative difference of numbers that are not whole

    >>> dtl.book.check(yours=..., expected=4, hint="count the kinds")
    Not answered yet: replace the three dots.
    """
    if yours is ...:
        print("Not answered yet: replace the three dots.")
        return
    mine, theirs = np.asarray(yours), np.asarray(expected)
    if mine.dtype.kind not in "biuf" or theirs.dtype.kind not in "biuf":
        right = np.array_equal(mine, theirs)
    elif mine.shape != theirs.shape:
        shapes = [" x ".join(map(str, a.shape)) + " numbers" if a.ndim else "one number" for a in (theirs, mine)]
        right, hint = False, f"Give {shapes[0]}, not {shapes[1]}. {hint}"
    else:
        near = {"rtol": 0 if theirs.dtype.kind in "biu" else tolerance, "atol": 1e-9}
        right = np.allclose(mine, theirs, **near)
        if not right and np.allclose(mine, 100 * theirs, **near):
            hint = "This is in percent: give a share between 0 and 1."
        elif not right and np.allclose(mine, -theirs, **near):
            hint = f"The sign is wrong. {hint}"
        elif not right and np.allclose(mine, theirs, rtol=5 * tolerance):
            hint = f"Close: give one more digit, or look again. {hint}"
    print("Right." if right else f"Not yet. {hint}")
