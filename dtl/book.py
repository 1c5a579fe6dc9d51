"""What the book's pages need and nothing else does: how much to compute, and checks of the exercises."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dtl._checks import InputError


@dataclass(frozen=True)
class Scale:
    """How many models a page trains, and how often it repeats a retraining.

    models : models of a study;  seeds : retrainings behind every point of a removal curve
    folder : where studies are kept, `DTL_STUDIES` or ./studies
    """

    name: str
    models: int
    seeds: int
    folder: Path

    def store(self, study: str) -> Path:
        """The folder of one study."""
        return self.folder / study


SIZES = {"ci": (184, 10), "laptop": (460, 20), "gpu": (920, 40)}  # models: whole balanced blocks of 46


def scale() -> Scale:
    """The one knob for how much to compute: the scale that `DTL_SCALE` asks for, "ci" if it is not set.

    >>> dtl.book.scale().models
    184
    """
    name = os.environ.get("DTL_SCALE", "ci")
    if name not in SIZES:
        raise InputError(f"DTL_SCALE is {name!r}: set it to one of {', '.join(SIZES)}")
    models, seeds = SIZES[name]
    return Scale(name, models, seeds, Path(os.environ.get("DTL_STUDIES", "studies")))


def check(yours: object, expected: object, hint: str, tolerance: float = 1e-3) -> None:
    """Print whether an answer is right, and the hint if it is not; `...` counts as not answered yet.

    Parameters
    ----------
    yours, expected : numbers, arrays, strings or sets
    tolerance : allowed relative difference of numbers

    >>> dtl.book.check(yours=..., expected=4, hint="count the kinds")
    Not answered yet: replace the three dots.
    """
    if yours is ...:
        print("Not answered yet: replace the three dots.")
        return
    mine, theirs = np.asarray(yours), np.asarray(expected)
    if mine.dtype.kind in "biuf" and theirs.dtype.kind in "biuf":
        right = mine.shape == theirs.shape and np.allclose(mine, theirs, rtol=tolerance)
    else:
        right = np.array_equal(mine, theirs)
    print("Right." if right else f"Not yet. {hint}")
