"""``prunelab status`` for a study on a cluster: a line per trial, and per shared job that is not done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from prunelab.launch.slurm.board import JobView, last_line
from prunelab.launch.slurm.files import Files
from prunelab.launch.status import columns
from prunelab.launch.worker import log_path
from prunelab.plan.study import Plan, Trial

_SHOWN = 30
_STYLES = {"done": "green", "running": "cyan", "failed": "red", "skipped": "yellow"}
_MARKS = {"done": "✓", "running": "▶", "failed": "✗"}
_ORDER = ("failed", "skipped", "running", "unknown", "pending", "waiting", "done")


@dataclass(frozen=True)
class Line:
    """One line: a trial or a shared job, the state of its stages by role, the job that works on it."""

    name: str
    state: str
    stages: Mapping[str, str]
    view: JobView | None
    reason: str
    trial: bool


def lines(plan: Plan, views: Mapping[str, JobView], done: Collection[str]) -> list[Line]:
    """Return a line per trial in the plan's order, then one per shared job that is not done."""
    by_key: dict[str, JobView] = {}
    for view in sorted(views.values(), key=lambda v: (v.live, v.attempt.time)):
        by_key |= dict.fromkeys(view.attempt.stages, view)
    found = [_of(trial, views, by_key, done) for trial in plan.trials]
    names = {trial.name for trial in plan.trials}
    shared = [view for name, view in views.items() if name not in names and view.state != "done"]
    return found + [
        Line(v.attempt.job, v.state, _stages_of(plan, v, done), v, v.reason, False) for v in shared
    ]


def _of(
    trial: Trial, views: Mapping[str, JobView], by_key: Mapping[str, JobView], done: Collection[str]
) -> Line:
    own = views.get(trial.name)
    missing = [key for key in trial.stages.values() if key not in done]
    if not missing:
        return Line(trial.name, "done", dict.fromkeys(trial.stages, "done"), own, "", True)
    working = [view for key in missing if (view := by_key.get(key))]
    stages = {
        role: "done" if key in done else _state(by_key.get(key), key, done)
        for role, key in trial.stages.items()
    }
    # its own job knows best why it waits or failed; without one, the shared jobs that it needs
    candidates = [own] if own is not None and own.state != "done" else working
    worst = min(candidates, key=lambda view: _ORDER.index(view.state), default=None)
    if worst is None:
        return Line(trial.name, "waiting", stages, own, "", True)
    return Line(
        trial.name, worst.state if worst.state != "done" else "waiting", stages, worst, worst.reason, True
    )


def _state(view: JobView | None, key: str, done: Collection[str]) -> str:
    """Return the state of an unfinished stage: of a job's stages, the first that is open is the one it is at."""
    if view is None or view.state not in ("running", "failed"):
        return "waiting"
    first = next((k for k in view.attempt.stages if k not in done), None)
    return view.state if key == first else "waiting"


def _stages_of(plan: Plan, view: JobView, done: Collection[str]) -> dict[str, str]:
    known = [key for key in view.attempt.stages if key in plan.stages]
    return {plan.stages[key].kind: "done" if key in done else _state(view, key, done) for key in known}


def table(plan: Plan, files: Files, found: Sequence[Line], *, whole: bool, note: str = "") -> RenderableType:
    """Return the table: all lines, or those that are not done and as many of the others as fit."""
    trials = [line for line in found if line.trial]
    roles = columns(plan)
    shown = list(found) if whole else sorted(found, key=lambda line: _ORDER.index(line.state))[:_SHOWN]
    shown = sorted(shown, key=lambda line: found.index(line)) if not whole else shown
    marks_of = [Column(role, justify="center") for role in roles]
    right = [Column(name, justify="right") for name in ("try", "elapsed")]
    grid = Table(
        "trial",
        "state",
        *marks_of,
        "job",
        "node",
        *right,
        "reason",
        title=f"{plan.study}: {len(trials)} trials",
    )
    for line in shown:
        style = _STYLES.get(line.state, "dim")
        marks = [Text(_MARKS.get(line.stages.get(role, ""), "·"), style=style) for role in roles]
        grid.add_row(line.name, Text(line.state, style=style), *marks, *_of_job(line.view), Text(line.reason))
    counts = Counter(line.state for line in trials)
    text = ", ".join(f"{counts[word]} {word}" for word in reversed(_ORDER) if counts[word])
    rest = [text + ("" if len(shown) == len(found) else f" ({len(shown)} shown; --all shows every one)")]
    rest += [note] if note else []
    for line in shown:
        if line.view and line.state in ("failed", "running"):
            rest.append(f"{line.name}: {last_line(line.view, plan, files)}"[:240])
            if line.state == "failed":
                rest.append(f"    log: {log_path(plan, line.view.attempt.job)}")
    if counts["failed"] or counts["skipped"] or counts["waiting"]:
        rest.append(f"go on with: prunelab retry {plan.folder}")
    return Group(grid, Text("\n".join(rest)))


def _of_job(view: JobView | None) -> list[Any]:
    if view is None:
        return ["", "", "", ""]
    starts = f"{view.attempt.number}" + (f".{view.starts}" if view.starts > 1 else "")
    return [view.id, view.node, starts, _clock(view.seconds)]


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
