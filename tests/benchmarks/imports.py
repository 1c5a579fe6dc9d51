"""Processor seconds of imports, in new processes: python tests/benchmarks/imports.py [rounds]

Bars: `dtl.design` at most 3 times numpy, which reads results; `dtl.Study` at most 1.3 times torch, which trains.
"""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

import dtl

ARMS = {
    "numpy": "import numpy",
    "dtl": "import dtl",
    "dtl.design": "import dtl; dtl.design",
    "dtl.influence": "import dtl; dtl.influence",
    "dtl.results": "import dtl; dtl.results",
    "torch": "import torch",
    "dtl.Study": "import dtl; dtl.Study",
}


def cpu(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(Path(dtl.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(rounds: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    for _ in range(rounds):  # interleaved, so that a busy machine is busy for all
        for name, code in ARMS.items():
            seconds[name].append(cpu(code))
    print(f"| import | CPU seconds, median of {rounds} (range) | times numpy |\n|---|---|---|")
    for name, found in seconds.items():
        t = np.array(found)
        times = np.median(t / np.array(seconds["numpy"]))
        print(f"| {name} | {np.median(t):.2f} ({t.min():.2f} to {t.max():.2f}) | {times:.1f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
