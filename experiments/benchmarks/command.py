"""Seconds that a person waits for the command line: help with mistakes, status, a dry run, --cfg job.

python experiments/benchmarks/command.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

CASES = {
    "--cfg job": ["prunelab", "--cfg", "job"],
    "four mistakes in six trials": ["prunelab", "method=surgeonn,kobd", "sparsity.ratio=0.1,1.5,x", "calibration=austn", "-m"],
    "dry run of the 40 trials of surgeon_sweep": ["prunelab", "+exp=surgeon_sweep", "-m", "hydra.launcher.dry_run=true"],
    "dry run of 1,000 trials": [
        "prunelab", "seed=range(0,50)", "method=surgeon,kobd,lobd,magnitude", "sparsity.ratio=0.1,0.2,0.3,0.4,0.5",
        "hydra.launcher.dry_run=true", "-m",
    ],
}  # fmt: skip


def main() -> None:
    """Print the best of three for each case."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "PRUNELAB_HOME": home}
        for name, words in CASES.items():
            seconds = []
            for _ in range(3):
                started = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-m", *words], env=environment, capture_output=True, check=False
                )
                seconds.append(time.perf_counter() - started)
            print(f"{min(seconds):6.2f} s  {name}")


if __name__ == "__main__":
    main()
