"""How long a plan takes: prunelab's composer against composing every trial with Hydra, in one run.

python experiments/benchmarks/planning.py [n_trials]
"""

from __future__ import annotations

import itertools
import sys
import time

from prunelab.config import hydra_inside
from prunelab.config.compose import Composer
from prunelab.config.place import conf_folder
from prunelab.launch.command.study import plan_study
from prunelab.plan.graph import jobs

SAMPLE = 40  # trials that Hydra composes; its time is linear in their number


def main() -> None:
    """Print seconds and ratio."""
    n_trials = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    axes = itertools.product(
        range(n_trials // 20 + 1), ("surgeon", "kobd", "lobd", "magnitude"), (0.1, 0.2, 0.3, 0.4, 0.5)
    )
    given = [[f"seed={s}", f"method={m}", f"sparsity.ratio={r}"] for s, m, r in axes][:n_trials]
    loader = hydra_inside.open_loader(conf_folder())

    started = time.perf_counter()
    for overrides in given[:SAMPLE]:
        hydra_inside.compose(loader, "config", overrides)
    hydra = (time.perf_counter() - started) / len(given[:SAMPLE]) * n_trials

    started = time.perf_counter()
    plan = plan_study(Composer(loader), given, [])
    planned = time.perf_counter() - started
    n_jobs = len(jobs(plan, set()))
    grouped = time.perf_counter() - started

    print(f"{n_trials} trials, {len(plan.stages)} stages, {n_jobs} jobs")
    print(f"composed by Hydra, one by one (from {SAMPLE} of them): {hydra:.1f} s")
    print(f"composed, checked and keyed here: {planned:.1f} s, {hydra / planned:.0f} times as fast")
    print(f"with jobs in order: {grouped:.1f} s")


if __name__ == "__main__":
    main()
