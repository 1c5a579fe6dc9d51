"""Coverage of the 95% intervals and size of the errors, simulated: python tests/benchmarks/intervals.py [repetitions]

One row per world, method, design and number of models, for K = 20 classes and 16 targets a repetition. ``n`` is the
number of intervals behind the coverage; they share models, so it is less certain than n independent ones would make it.
"""

import logging
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_influence import METHODS, K, trial  # noqa: E402

from dtl.design import DESIGNS  # noqa: E402

WORLDS = {  # shares of additive, even, odd and noise variance
    "mixed": (0.4, 0.3, 0.0, 0.3),
    "odd interactions": (0.3, 0.2, 0.1, 0.4),
    "interactions": (0.3, 0.55, 0.0, 0.15),
    "weak signal": (0.1, 0.1, 0.0, 0.8),
}


def main(repetitions: int) -> None:
    start = time.perf_counter()
    print(f"{'world':17} {'method':11} {'design':9} {'m':>4} {'n':>6} coverage  stated error  actual error  corr^2")
    for world, shares in WORLDS.items():
        for design in DESIGNS:
            for method in METHODS:
                for m in (38, 57, 76, 152, 304):
                    try:
                        r = trial(method, design, m, shares, repetitions)
                    except ValueError as error:
                        print(f"{world:17} {method:11} {design:9} {m:4} {'-':>6} {error}")
                        continue
                    print(
                        f"{world:17} {method:11} {design:9} {m:4} {16 * K * repetitions:6} {r.coverage:8.3f} "
                        f"{r.stated_error:13.3f} {r.actual_error:13.3f} {r.correlation:7.3f}"
                    )
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
