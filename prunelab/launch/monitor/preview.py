"""The dry run: what would run, what is cached, what is shared, what it will cost."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prunelab.errors import StoreError
from prunelab.launch.run.base import Resources
from prunelab.plan.graph import Job, shots
from prunelab.plan.kind import in_order
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
    for kind in in_order(stage.kind for stage in plan.stages.values()):
        stages = {key: stage for key, stage in plan.stages.items() if stage.kind == kind.name}
        todo = [stage for key, stage in stages.items() if key not in done]
        repeats = [shots(stage, plan.stages) for stage in todo]
        scheduled = any(shots(stage, plan.stages) is not None for stage in stages.values())
        median = seconds.get(kind.name, None if kind.home == "store" else 0.0)
        cost = None if median is None else median * sum(1 if n is None else n for n in repeats)
        unknown |= bool(todo) and cost is None
        whole += cost or 0.0
        table.add_row(
            kind.name, str(len(stages)), str(sum(users.get(key, 0) > 1 for key in stages)),
            str(len(stages) - len(todo)), str(len(todo)), str(sum(n or 0 for n in repeats)) if scheduled else "",
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
            repeats = record.cost.get("shots", 1) or 1
            found.setdefault(kind, []).append(float(record.cost.get("seconds", 0.0)) / repeats)
    return {kind: statistics.median(values) for kind, values in found.items()}


def _right(name: str) -> Any:
    from rich.table import Column

    return Column(name, justify="right")


def _count(number: int | None, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
