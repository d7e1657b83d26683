"""The state of every trial of a study, read from the store, the locks and the notes of failures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prunelab.launch.runner import finished
from prunelab.launch.worker import failure_path
from prunelab.plan.kind import in_order
from prunelab.plan.study import Plan, Trial
from prunelab.store.layout import index, lock_path

_SHOWN = 30
_MARKS = {"done": ("✓", "green"), "running": ("▶", "cyan"), "failed": ("✗", "red"), "waiting": ("·", "dim")}


@dataclass(frozen=True)
class TrialState:
    """One trial: the state of its stages by role, and why it failed, if it did."""

    trial: Trial
    stages: Mapping[str, str]
    reason: str
    log: str

    @property
    def failed(self) -> bool:
        """True if any of its stages failed."""
        return "failed" in self.stages.values()

    @property
    def state(self) -> str:
        """One word for the whole trial."""
        found = set(self.stages.values())
        return next(
            (word for word in ("failed", "running") if word in found),
            "done" if found == {"done"} else "waiting",
        )


def trial_states(plan: Plan) -> list[TrialState]:
    """Return the state of every trial: one listing per kind of stage, one probe of a lock per unfinished stage."""
    done, folders = finished(plan), index(plan.store) if plan.store.is_dir() else {}
    states: dict[str, str] = {}
    notes: dict[str, Mapping[str, str]] = {}
    failures = {path.stem for path in (plan.folder / "failures").glob("*.json")}
    for key in plan.stages:
        folder = folders.get(key[:16])
        if key in done:
            states[key] = "done"
        elif key[:16] in failures:
            states[key] = "failed"
            notes[key] = _note(failure_path(plan, key))
        else:
            states[key] = (
                "running" if folder is not None and _is_locked(lock_path(plan.store, key)) else "waiting"
            )
    return [_of(trial, states, notes) for trial in plan.trials]


def status_table(plan: Plan, states: Sequence[TrialState], *, whole: bool) -> RenderableType:
    """Return a table of trials: all of them, or those that are not done and as many of the others as fit."""
    counts = Counter(state.state for state in states)
    order = ("failed", "running", "waiting", "done")
    shown = sorted(states, key=lambda state: order.index(state.state))
    shown = states if whole else sorted(shown[:_SHOWN], key=lambda state: state.trial.number)
    kinds = columns(plan)
    table = Table("trial", "state", *kinds, "reason", title=f"{plan.study}: {len(states)} trials")
    for state in shown:
        style = _MARKS[state.state][1]
        cells = [_cell(state.stages, kind) for kind in kinds]
        table.add_row(state.trial.name, Text(state.state, style=style), *cells, Text(state.reason))
    summary = ", ".join(
        f"{counts[word]} {word}" for word in ("done", "running", "waiting", "failed") if counts[word]
    )
    lines = [summary + ("" if len(shown) == len(states) else f" ({len(shown)} shown; --all shows every one)")]
    lines += sorted({f"log: {state.log}" for state in states if state.log})[:_SHOWN]
    if counts["failed"] or counts["waiting"]:
        lines.append(f"go on with: prunelab retry {plan.folder}")
    return Group(table, Text("\n".join(lines)))


def columns(plan: Plan) -> list[str]:
    """Return the kinds of stages that a plan has and a status shows, in order; they are roles of the trials too."""
    return [kind.name for kind in in_order(stage.kind for stage in plan.stages.values()) if kind.column]


def _of(trial: Trial, states: Mapping[str, str], notes: Mapping[str, Mapping[str, str]]) -> TrialState:
    stages = {role: states[key] for role, key in trial.stages.items()}
    note = next((notes[key] for key in trial.stages.values() if key in notes), {})
    return TrialState(trial, stages, note.get("reason", ""), note.get("log", ""))


def _note(path: Path) -> Mapping[str, str]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"reason": "unknown: its note cannot be read", "log": str(path)}


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def _cell(stages: Mapping[str, str], role: str) -> Text:
    mark, style = _MARKS[stages.get(role, "waiting")]
    return Text(mark, style=style)
