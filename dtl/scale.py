"""The one knob for how much to compute: `DTL_SCALE=ci|laptop|gpu`, read here and nowhere else."""

import os
from dataclasses import dataclass
from pathlib import Path


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


def current() -> Scale:
    """The scale that `DTL_SCALE` asks for, "ci" if it is not set.

    >>> dtl.scale.current().models
    184
    """
    name = os.environ.get("DTL_SCALE", "ci")
    if name not in SIZES:
        raise ValueError(f"DTL_SCALE is {name!r}: set it to one of {', '.join(SIZES)}")
    models, seeds = SIZES[name]
    return Scale(name, models, seeds, Path(os.environ.get("DTL_STUDIES", "studies")))
