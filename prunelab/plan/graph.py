"""The order of stages and their grouping into jobs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from heapq import heappop, heappush

from prunelab.plan.kind import position
from prunelab.plan.stage import Stage
from prunelab.plan.study import Plan


@dataclass(frozen=True)
class Job:
    """Stages run one after the other in one process. ``after`` must succeed first; ``after_any`` must be over."""

    name: str
    stages: tuple[str, ...]
    trial: int | None
    after: tuple[str, ...]
    after_any: tuple[str, ...]


def order(stages: Mapping[str, Stage]) -> list[str]:
    """Return the keys so that inputs, and planned prefixes, come first; ties stay in the plan's order."""
    graph = {key: [d for d in dependencies(stage) if d in stages] for key, stage in stages.items()}
    return _earliest(graph)


def _earliest(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the nodes so that predecessors come first; of those that may come next always the earliest in ``graph``."""
    place = {name: number for number, name in enumerate(graph)}
    sorter, ready, ordered = TopologicalSorter(graph), list[tuple[int, str]](), list[str]()
    sorter.prepare()
    while sorter.is_active():
        for name in sorter.get_ready():
            heappush(ready, (place[name], name))
        ordered.append(heappop(ready)[1])
        sorter.done(ordered[-1])
    return ordered


def dependencies(stage: Stage) -> list[str]:
    """Return the keys a stage should wait for: its inputs and what it can continue from."""
    return [*stage.inputs.values(), *stage.continues]


def jobs(plan: Plan, done: Collection[str]) -> list[Job]:
    """Group the stages that are not ``done`` into jobs, in an order in which they could run.

    A stage that one trial alone needs runs in that trial's job; one that several need, or that another
    trial's work continues from, is a job of its own and the others wait for it.
    """
    todo = [key for key in order(plan.stages) if key not in done]
    owner: dict[str, set[int]] = {key: {t.number for t in plan.users(key)} for key in todo}
    for key in todo:
        previous = longest_planned(plan.stages[key], plan.stages)
        if previous is not None and previous in owner:
            owner[previous] |= owner[key] | {-1}  # never a single trial's own
    job_of: dict[str, str] = {}
    members: dict[str, list[str]] = {}
    trial_of: dict[str, int | None] = {}
    for key in todo:
        single = len(owner[key]) == 1
        trial = next(iter(owner[key])) if single else None
        name = (
            plan.trials[trial].name
            if trial is not None
            else f"{plan.stages[key].kind}-{plan.stages[key].slug}"
        )
        if trial is None and name in members:
            name = f"{name}-{key[:6]}"
        job_of[key] = name
        members.setdefault(name, []).append(key)
        trial_of[name] = trial
    grouped = [
        # by kind, which every dependency follows: a trial's rows come in one order, whichever job makes them
        Job(
            name,
            tuple(sorted(keys, key=lambda key: position(plan.stages[key].kind))),
            trial_of[name],
            *_waits(name, keys, plan, job_of),
        )
        for name, keys in members.items()
    ]
    first = {
        job.name: min(number for key in job.stages for number in owner[key] if number >= 0) for job in grouped
    }
    by_name = {job.name: job for job in sorted(grouped, key=lambda job: first[job.name])}
    graph = {name: (*job.after, *job.after_any) for name, job in by_name.items()}
    return [by_name[name] for name in _earliest(graph)]


def _waits(
    name: str, keys: Iterable[str], plan: Plan, job_of: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    hard: dict[str, None] = {}
    soft: dict[str, None] = {}
    for key in keys:
        stage = plan.stages[key]
        hard |= dict.fromkeys(job_of[k] for k in stage.inputs.values() if k in job_of)
        previous = longest_planned(stage, plan.stages)
        if previous is not None and previous in job_of:
            soft[job_of[previous]] = None
    return tuple(j for j in hard if j != name), tuple(j for j in soft if j != name and j not in hard)


def longest_planned(stage: Stage, stages: Mapping[str, Stage]) -> str | None:
    """Return the key of the longest planned prefix of a stage's work, if there is one."""
    return next((key for key in stage.continues if key in stages), None)


def shots(stage: Stage, stages: Mapping[str, Stage]) -> int | None:
    """Return how many shots a stage runs itself, given what it can continue from; None if it has no schedule."""
    whole = stage.identity.get("schedule")
    if whole is None:
        return None
    previous = longest_planned(stage, stages)
    return len(whole) - (len(stages[previous].identity["schedule"]) if previous is not None else 0)
