"""The dry run: what would run, what is cached, what is shared, what it will cost."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prunelab.errors import StoreError
from prunelab.launch.base import Resources
from prunelab.plan.graph import Job, longest_planned
from prunelab.plan.stage import KINDS, Stage
from prunelab.plan.study import Plan
from prunelab.store.layout import index, is_done
from prunelab.store.record import read_record

_SAMPLES = 40  # records read per kind; enough for a median, quick in a store of thousands


def preview(plan: Plan, done: Collection[str], jobs: Sequence[Job], resources: Resources) -> RenderableType:
    """Return a table by kind of stage: planned, cached, to run, shots, seconds by what the store has seen."""
    users: dict[str, int] = {}
    for trial in plan.trials:
        for key in set(trial.stages.values()):
            users[key] = users.get(key, 0) + 1
    seconds = _seconds(plan)
    table = Table(
        "stage", *(_right(n) for n in ("planned", "shared by trials", "cached", "to run", "shots", "seconds"))
    )
    whole, unknown = 0.0, False
    for kind in KINDS:
        stages = {key: stage for key, stage in plan.stages.items() if stage.kind == kind}
        if not stages:
            continue
        todo = [stage for key, stage in stages.items() if key not in done]
        shots = sum(shots_to_run(stage, plan, done) for stage in todo)
        each = seconds.get(kind)
        cost = None if each is None else each * (shots if kind == "prune" else len(todo))
        unknown |= bool(todo) and cost is None
        whole += cost or 0.0
        table.add_row(
            kind, str(len(stages)), str(sum(users.get(key, 0) > 1 for key in stages)),
            str(len(stages) - len(todo)), str(len(todo)), str(shots) if kind == "prune" else "",
            "0" if not todo else "not known yet" if cost is None else f"{cost:.0f}",
        )  # fmt: skip
    workers = resources.workers or 1
    what = (
        f"{_count(len(jobs), 'job')} for {_count(workers, 'worker')} of {_count(resources.threads, 'thread')}"
    )
    if not jobs:
        last = "Everything is in the store: nothing would run."
    elif unknown:
        last = f"{what}; the store has no times of this model yet."
    else:
        last = f"{what}: about {whole / workers:.0f} s."
    return Group(table, Text(last))


def shots_to_run(stage: Stage, plan: Plan, done: Collection[str]) -> int:
    """Return how many shots a prune stage would run itself, given what it can continue from."""
    if stage.kind != "prune":
        return 0
    whole = list(stage.identity["schedule"])
    previous = longest_planned(stage, plan.stages)
    if previous is not None:
        return len(whole) - len(plan.stages[previous].identity["schedule"])
    return len(whole)


def _seconds(plan: Plan) -> dict[str, float]:
    """Return the median seconds of stages (of shots, for prune) that the store has of this plan's models."""
    models = [
        stage.identity.get("model") or stage.identity.get("tokenizer") for stage in plan.stages.values()
    ]
    found: dict[str, list[float]] = {}
    for folder in index(plan.store).values() if plan.store.is_dir() else ():
        kind = folder.parent.name
        if len(found.get(kind, ())) >= _SAMPLES or not is_done(folder):
            continue
        try:
            record = read_record(folder)
        except StoreError:
            continue
        if (record.identity.get("model") or record.identity.get("tokenizer")) in models:
            shots = record.cost.get("shots", 1) or 1
            found.setdefault(kind, []).append(float(record.cost.get("seconds", 0.0)) / shots)
    return {kind: statistics.median(values) for kind, values in found.items()}


def _right(name: str) -> Any:
    from rich.table import Column

    return Column(name, justify="right")


def _count(number: int | None, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
