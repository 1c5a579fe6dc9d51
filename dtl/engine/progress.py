"""One progress line for everything that takes time."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress(total: int, unit: str, label: str, show: bool = True) -> Iterator[tqdm]:
    """A bar with count, rate and time left, then one printed line with the time taken.

    Under `DTL_PROGRESS=line` (set by the book build) only the printed line appears, under `show=False` nothing.

    >>> with progress(2, "model", "source models") as bar:
    ...     bar.update(2)
    source models: 2 models in 0 s
    """
    start = time.perf_counter()
    with tqdm(total=total, unit=unit, desc=label, disable=hidden(show), leave=False, dynamic_ncols=True) as bar:
        yield bar
    if show:
        print(f"{label}: {total} {unit}{'s' * (total != 1)} in {time.perf_counter() - start:.0f} s")


def hidden(show: bool) -> bool:
    """Whether bars stay away, because the caller or the book build says so."""
    return not show or os.environ.get("DTL_PROGRESS") == "line"
