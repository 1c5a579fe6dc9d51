"""Where all random numbers of a study come from: one stream for each purpose, a function of its seed alone."""

import numpy as np

STREAMS = {"training": 1, "transfer": 2, "removal": 3, "testbed": 7, "examples": 11}


def stream(purpose: str, seed: int) -> np.random.Generator:
    """The random numbers of one purpose under one seed; other purposes and other seeds share none of them.

    >>> stream("training", 0).integers(100), stream("transfer", 0).integers(100)
    (np.int64(52), np.int64(97))
    """
    return np.random.default_rng([int(seed), STREAMS[purpose]])
