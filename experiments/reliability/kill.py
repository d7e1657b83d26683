"""SIGKILL a sweep, driver and workers, at random moments; then finish it and compare with an undisturbed run.

    python experiments/reliability/kill.py                      # ten kills of +exp=surgeon_sweep
    python experiments/reliability/kill.py --kills 3 study=s method=magnitude,random -m

Exit code 0 if the results are byte-identical (timing columns aside) and no finished stage ran again.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prunelab.report.table import results_csv

SWEEP = ["+exp=surgeon_sweep", "-m"]


def main() -> int:
    """Run the comparison; print a line per kill and a verdict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--root", type=Path, default=None, help="where to put the two stores (default: a temporary folder)"
    )
    arguments, words = parser.parse_known_args()
    root = arguments.root or Path(tempfile.mkdtemp(prefix="prunelab-kill-"))
    words = [*(words or SWEEP), "hydra.launcher.report=false"]

    started = time.monotonic()
    if _start(words, root / "undisturbed").wait():
        print("the undisturbed run failed", file=sys.stderr)
        return 1
    whole = time.monotonic() - started
    print(f"undisturbed: {whole:.0f} s", flush=True)

    moments = random.Random(arguments.seed)
    finished: dict[Path, tuple[int, int]] = {}
    repeated: list[Path] = []
    for number in range(arguments.kills):
        driver = _start(words, root / "killed")
        time.sleep(moments.uniform(1.0, max(2.0, 2 * whole / arguments.kills)))
        over = driver.poll() is not None
        _kill(driver)
        repeated += _repeated(root / "killed", finished)
        print(
            f"kill {number + 1}: {len(finished)} stages finished{' (the sweep was over)' if over else ''}",
            flush=True,
        )
    if _start(words, root / "killed").wait():
        print("the run after the kills failed", file=sys.stderr)
        return 1
    repeated += _repeated(root / "killed", finished)

    one, two = (_numbers(root / name) for name in ("undisturbed", "killed"))
    print(
        f"{len(finished)} stages; {len(repeated)} of them ran twice; results {'equal' if one == two else 'DIFFER'}"
    )
    return 0 if one == two and not repeated else 1


def _start(words: list[str], home: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PRUNELAB_HOME": str(home)}
    command = [sys.executable, "-m", "prunelab", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


def _kill(driver: subprocess.Popen[bytes]) -> None:
    workers = [
        int(word)
        for task in Path(f"/proc/{driver.pid}/task").glob("*/children")
        for word in task.read_text().split()
    ]
    for pid in (driver.pid, *workers):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    driver.wait()


def _repeated(home: Path, finished: dict[Path, tuple[int, int]]) -> list[Path]:
    """Return stages whose record was written again since it was first seen; note the new ones."""
    again = []
    for done in home.glob("store/*/*/DONE"):
        stat = (done.parent / "record.json").stat()
        mark = (stat.st_ino, stat.st_mtime_ns)
        if finished.setdefault(done, mark) != mark:
            again.append(done)
    return again


def _numbers(home: Path) -> list[list[str]]:
    (plan,) = home.glob("studies/*/plan.json")
    lines = [line.split(",") for line in results_csv(plan.parent).splitlines()]
    kept = [index for index, name in enumerate(lines[0]) if not name.startswith("cost/")]
    return [[line[index] for index in kept] for line in lines]


if __name__ == "__main__":
    sys.exit(main())
