"""SIGKILL a sweep, driver and workers, at random moments; then finish it and compare with an undisturbed run.

    python experiments/reliability/kill.py                                # ten kills of +exp=surgeon_sweep
    python experiments/reliability/kill.py --sweep repair --kills 20      # generation, prune and reconstruct
    python experiments/reliability/kill.py --sweep units                  # neurons and heads, by gradients and with new biases
    python experiments/reliability/kill.py --kills 3 study=s method=magnitude,random -m

Each kill aims at one kind of work and waits until a random number of its stages are finished (the kills of one kind
are spread over all of them), one is under way, and then for a random part of the time that such a stage took. Exit code
0 if results.csv (timing columns aside) and every file that a stage wrote, states and generated text among them,
are byte-identical, and no finished stage ran again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from prunelab.metric import is_clock
from prunelab.report.table import results_csv
from prunelab.store.layout import DONE, WORK, is_done

SWEEPS = {
    "surgeon": ["+exp=surgeon_sweep", "-m"],
    "units": [
        "study=units", "method=flap,llm_pruner", "sparsity=units", "sparsity.ratio=0.2,0.4", "method.step=0.02",
        "calibration.n_samples=32", "calibration.seq_len=128", "-m",
    ],
    "repair": [
        "study=repair", "method=sparsegpt", "sparsity=unstructured", "sparsity.ratio=0.5,0.6",
        "reconstruction=block_gp,cross_block", "reconstruction.masks=before,between", "reconstruction.epochs=6",
        "reconstruction.min_updates=0",
        "reconstruction_data=self_generated_mix",
        "reconstruction_data.parts.self_generated=16", "reconstruction_data.batch=4", "reconstruction_data.text_len=128",
        "calibration.n_samples=16", "calibration.seq_len=64", "evaluation.corpora=[austen]", "evaluation.held_out=[kjv]",
        "evaluation.seq_len=64", "evaluation.max_samples=4", "evaluation.error_samples=2", "seed=0,1", "-m",
    ],
}  # fmt: skip
AIMS = ("generation", "prune", "reconstruct")  # in the order in which a study does them


def main() -> int:
    """Run the comparison; print a line per kill and a verdict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweep", choices=SWEEPS, default="surgeon", help="unless words of a command follow")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--root", type=Path, default=None, help="where to put the two stores (default: a temporary folder)"
    )
    arguments, words = parser.parse_known_args()
    root = arguments.root or Path(tempfile.mkdtemp(prefix="prunelab-kill-"))
    words = [*(words or SWEEPS[arguments.sweep]), "hydra.launcher.report=false"]
    whole, killed = root / "undisturbed", root / "killed"

    started = time.monotonic()
    if _start(words, whole).wait():
        print("the undisturbed run failed", file=sys.stderr)
        return 1
    stages = _stages(whole)
    spent = ", ".join(f"{len(stages[kind])} {kind} {sum(stages[kind]):.1f} s" for kind in stages)
    print(f"undisturbed: {time.monotonic() - started:.0f} s; stages: {spent}", flush=True)

    moments = random.Random(arguments.seed)
    aims = [kind for kind in AIMS if kind in stages]
    aims = sorted((aims[i % len(aims)] for i in range(arguments.kills)), key=AIMS.index)
    finished: dict[Path, tuple[int, int]] = {}
    repeated: list[Path] = []
    struck: Counter[str] = Counter()
    for number, aim in enumerate(aims):
        before, count = aims[:number].count(aim), aims.count(aim)
        # the kills of one aim are spread over its stages
        after = int(moments.uniform(before, before + 1) / count * len(stages[aim]))
        began, driver = time.time(), _start(words, killed)
        _wait(driver, killed, aim, after, len(stages[aim]), began)
        time.sleep(moments.uniform(0, sum(stages[aim]) / len(stages[aim])))
        over = driver.poll() is not None
        at_work = Counter() if over else _at_work(killed, began)
        _kill(driver)
        struck += at_work
        repeated += _repeated(killed, finished)
        what = "after the sweep" if over else f"in {', '.join(sorted(at_work)) or 'no stage'}"
        print(f"kill {number + 1} (aim: {aim}): {what}; {len(finished)} stages are finished", flush=True)
    if _start(words, killed).wait():
        print("the run after the kills failed", file=sys.stderr)
        return 1
    repeated += _repeated(killed, finished)

    equal = _numbers(whole) == _numbers(killed)
    one, two = _files(whole), _files(killed)
    differ = sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
    print("stages killed: " + ", ".join(f"{struck[kind]} {kind}" for kind in struck))
    print(
        f"{len(finished)} stages; {len(repeated)} of them ran twice; results {'equal' if equal else 'DIFFER'}; "
        f"{len(one)} files, {len(differ)} differ"
    )
    for name in differ:
        print(f"  differs: {name}")
    return 0 if equal and not differ and not repeated else 1


def _start(words: list[str], home: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PRUNELAB_HOME": str(home)}
    command = [sys.executable, "-m", "prunelab", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


def _kind(folder: Path) -> str:
    """The kind of a stage's folder; writing text is a kind of its own."""
    try:
        spec = json.loads((folder / "spec.json").read_text())
    except (OSError, ValueError):  # being written, or moved this moment
        return folder.parent.name
    return "generation" if "recipe" in spec["identity"] else spec["kind"]


def _stages(home: Path) -> dict[str, list[float]]:
    """Seconds of each stage, by the kinds that kills aim at."""
    found: dict[str, list[float]] = {}
    for path in home.glob("store/*/*/record.json"):
        cost = json.loads(path.read_text())["cost"]
        found.setdefault(_kind(path.parent), []).append(cost["seconds"])
    return {kind: found[kind] for kind in AIMS if kind in found}


def _at_work(home: Path, since: float) -> Counter[str]:
    """Kinds of the stages that a driver started at ``since`` (seconds of the epoch) is at."""
    found: Counter[str] = Counter()
    for owner in home.glob(f"store/*/*/{WORK}/owner"):
        try:
            begun = owner.stat().st_mtime >= since
        except FileNotFoundError:
            continue
        if begun and not is_done(owner.parents[1]):
            found[_kind(owner.parents[1])] += 1
    return found


def _wait(
    driver: subprocess.Popen[bytes], home: Path, aim: str, after: int, total: int, since: float
) -> None:
    """Wait until a stage of the kind ``aim`` is at work and ``after`` of them are finished, or all ``total``."""
    while driver.poll() is None:
        done = sum(_kind(path.parent) == aim for path in home.glob(f"store/*/*/{DONE}"))
        if done == total or (done >= after and aim in _at_work(home, since)):
            return
        time.sleep(0.02)


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
    for done in home.glob(f"store/*/*/{DONE}"):
        stat = (done.parent / "record.json").stat()
        mark = (stat.st_ino, stat.st_mtime_ns)
        if finished.setdefault(done, mark) != mark:
            again.append(done)
    return again


def _numbers(home: Path) -> list[list[str]]:
    (plan,) = home.glob("studies/*/plan.json")
    lines = [line.split(",") for line in results_csv(plan.parent).splitlines()]
    kept = [index for index, name in enumerate(lines[0]) if not is_clock(name)]
    return [[line[index] for index in kept] for line in lines]


def _files(home: Path) -> dict[str, bytes]:
    """Everything that finished stages wrote but clocks: outputs, and of each record its metrics and tables."""
    store = home / "store"
    found = {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.glob("*/*/outputs/**/*")
        if path.is_file()
    }
    for path in store.glob("*/*/record.json"):
        record = json.loads(path.read_text())
        kept = {key: record[key] for key in ("key", "inputs", "metrics", "tables", "outputs")}
        kept["metrics"] = {name: value for name, value in kept["metrics"].items() if not is_clock(name)}
        found[str(path.relative_to(store))] = json.dumps(kept, sort_keys=True).encode()
    return found


if __name__ == "__main__":
    sys.exit(main())
