"""How far do estimates agree on which units go? Jaccard index of the removed sets of the trials of finished studies.

    python experiments/estimation_fusion/overlap.py STUDY_FOLDER...

A row per estimate, allocation and ratio: the index |A and B| / |A or B| of its removed neurons, and heads, with those
of the fine estimate (fixed_weight 0) and of the coarse one (fixed_weight 1) under the same allocation and ratio. Sets
are read off the columns of the output maps in the stored states.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prunelab.config.trial import plain
from prunelab.pattern.base import HEADS, NEURONS
from prunelab.plan.study import load_plan
from prunelab.store.layout import OUTPUTS, locate
from prunelab.structures.state import open_state

Removed = dict[str, set[tuple[str, int]]]  # by kind: layer and column
FINE, COARSE = "fixed 0", "fixed 1"


def removed(path: Path) -> Removed:
    """The columns that output maps lost, by kind: a neuron is one column of its output map, a head several."""
    found: Removed = {NEURONS: set(), HEADS: set()}
    for name, site in open_state(path).sites():
        columns, whole = site.mask.lines()[1], getattr(site.mask, "whole", None)
        if whole is not None and whole[0]:
            kind = NEURONS if whole[0] == columns.numel() else HEADS
            found[kind] |= {(name, column) for column in (~columns).nonzero()[:, 0].tolist()}
    return found


def jaccard(a: set[Any], b: set[Any]) -> float:
    """|a and b| / |a or b|; NaN if both are empty."""
    return len(a & b) / len(a | b) if a | b else float("nan")


def estimate(method: dict[str, Any]) -> str:
    """A short name of what a method of gradients estimates by."""
    if method["name"] == "llm_pruner":
        return f"llm_pruner {method['taylor']}"
    return f"fixed {method['fixed_weight']:g}" if method["mode"] == "fixed" else method["mode"]


def collect(folders: list[Path]) -> dict[tuple[str, str, float], Removed]:
    """What each trial removed, by estimate, allocation and ratio."""
    found: dict[tuple[str, str, float], Removed] = {}
    for folder in folders:
        plan = load_plan(folder)
        for trial in plan.trials:
            config = plain(trial.config)
            stage = plan.stages[trial.stages["prune"]]
            state = locate(plan.store, stage.kind, stage.key, stage.folder) / OUTPUTS / "state.safetensors"
            where = (config["allocation"]["name"], config["sparsity"]["ratio"])
            found[estimate(config["method"]), *where] = removed(state)
    return found


def main() -> None:
    """Print the table as Markdown."""
    found = collect([Path(word) for word in sys.argv[1:]])
    print("| allocation | ratio | estimate | neurons: fine | coarse | heads: fine | coarse |")
    print("|---|---|---|---|---|---|---|")
    for (name, allocation, ratio), own in sorted(found.items(), key=lambda item: (item[0][1:], item[0][0])):
        others = [found.get((other, allocation, ratio)) for other in (FINE, COARSE)]
        cells = [
            "" if other is None else f"{jaccard(own[kind], other[kind]):.3f}"
            for kind in (NEURONS, HEADS)
            for other in others
        ]
        print(f"| {allocation} | {ratio:g} | {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
