"""Every job of a study and what became of it, wherever jobs run: one description, one explanation, one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from prunelab.launch.run.log import last_line
from prunelab.plan.kind import in_order
from prunelab.plan.study import Plan, Trial

State = Literal["done", "running", "pending", "failed", "skipped", "waiting", "unknown"]
_SHOWN = 30
_STYLES = {"done": "green", "running": "cyan", "failed": "red", "skipped": "yellow"}
_MARKS = {"done": "✓", "running": "▶", "failed": "✗"}
_ORDER = ("failed", "skipped", "running", "unknown", "pending", "waiting", "done")


@dataclass(frozen=True)
class JobView:
    """One job and its last attempt.

    ``after``: jobs it waits for. ``logs``: files it writes, the main one last. On a cluster ``id`` is the id there,
    ``uid`` that of its submission, ``number`` counts submissions and ``starts`` the starts of the last one.
    ``time``: when the attempt was made; ``seconds``: since, or of, its last start.
    """

    name: str
    stages: tuple[str, ...]
    after: tuple[str, ...]
    state: State
    reason: str = ""
    logs: tuple[Path, ...] = ()
    id: str = ""
    uid: str = ""
    node: str = ""
    time: float = 0.0
    number: int = 1
    starts: int = 0
    seconds: float | None = None

    @property
    def live(self) -> bool:
        """True if it runs or will run."""
        return self.state in ("running", "pending")


@dataclass(frozen=True)
class Line:
    """One line: a trial or a shared job, the state of its stages by role, the job that works on it."""

    name: str
    state: State
    stages: Mapping[str, str]
    view: JobView | None
    reason: str
    trial: bool


def explained(views: Mapping[str, JobView], why: Callable[[JobView], str]) -> dict[str, JobView]:
    """Return the views with the reasons of those that failed, by ``why``, and of those that never started for them."""
    found = {}
    for name, view in views.items():
        culprit = _culprit(view, views)
        if culprit:
            found[name] = replace(view, state="skipped", reason=f"dependency: {culprit} failed")
        else:
            found[name] = replace(view, reason=why(view)) if view.state == "failed" else view
    return found


def _culprit(view: JobView, views: Mapping[str, JobView]) -> str:
    """Return the job because of which this one never started, or an empty string."""
    if view.starts or view.state not in ("failed", "waiting"):
        return ""
    for name in view.after:
        parent = views.get(name)
        if parent is None or parent.time > view.time:
            continue
        root = _culprit(parent, views)
        if root or parent.state == "failed":
            return root or name
    return ""


def lines(plan: Plan, views: Mapping[str, JobView], done: Collection[str]) -> list[Line]:
    """Return a line per trial in the plan's order, then one per shared job that is not done."""
    by_key: dict[str, JobView] = {}
    for view in sorted(views.values(), key=lambda v: (v.live, v.time)):
        by_key |= dict.fromkeys(view.stages, view)
    found = [_of(trial, views, by_key, done) for trial in plan.trials]
    names = {trial.name for trial in plan.trials}
    shared = [view for name, view in views.items() if name not in names and view.state != "done"]
    return found + [Line(v.name, v.state, _stages_of(plan, v, done), v, v.reason, False) for v in shared]


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
    state = worst.state if worst.state != "done" else "waiting"
    return Line(trial.name, state, stages, worst, worst.reason, True)


def _state(view: JobView | None, key: str, done: Collection[str]) -> str:
    """Return the state of an unfinished stage: of a job's stages, the first that is open is the one it is at."""
    if view is None or view.state not in ("running", "failed"):
        return "waiting"
    first = next((k for k in view.stages if k not in done), None)
    return view.state if key == first else "waiting"


def _stages_of(plan: Plan, view: JobView, done: Collection[str]) -> dict[str, str]:
    known = [key for key in view.stages if key in plan.stages]
    return {plan.stages[key].kind: "done" if key in done else _state(view, key, done) for key in known}


def table(plan: Plan, found: Sequence[Line], *, whole: bool, note: str = "") -> RenderableType:
    """Return the table: all lines, or those that are not done and as many of the others as fit.

    A column per kind of stage that the plan has; where jobs run on a cluster also their ids, nodes, tries and times.
    """
    trials = [line for line in found if line.trial]
    kinds = [kind.name for kind in in_order(stage.kind for stage in plan.stages.values()) if kind.column]
    shown = list(found) if whole else sorted(found, key=lambda line: _ORDER.index(line.state))[:_SHOWN]
    shown = sorted(shown, key=lambda line: found.index(line)) if not whole else shown
    elsewhere = any(line.view and line.view.uid for line in found)
    columns: list[Column | str] = [Column(kind, justify="center") for kind in kinds]
    if elsewhere:
        columns += ["job", "node", *(Column(name, justify="right") for name in ("try", "elapsed"))]
    grid = Table("trial", "state", *columns, "reason", title=f"{plan.study}: {len(trials)} trials")
    for line in shown:
        style = _STYLES.get(line.state, "dim")
        marks = [Text(_MARKS.get(line.stages.get(kind, ""), "·"), style=style) for kind in kinds]
        cells = _of_job(line.view) if elsewhere else []
        grid.add_row(Text(line.name), Text(line.state, style=style), *marks, *cells, Text(line.reason))
    counts = Counter(line.state for line in trials)
    text = ", ".join(f"{counts[word]} {word}" for word in reversed(_ORDER) if counts[word])
    rest = [text + ("" if len(shown) == len(found) else f" ({len(shown)} shown; --all shows every one)")]
    rest += [note] if note else []
    rest += list(dict.fromkeys(said for line in shown for said in _said(line)))
    if any(counts[state] for state in ("failed", "skipped", "waiting")):
        rest.append(f"go on with: prunelab retry {plan.folder}")
    return Group(grid, Text("\n".join(rest)))


def _said(line: Line) -> list[str]:
    """The last line of the log of a job that failed or runs, and where the log of a failed one is."""
    if line.view is None or line.state not in ("failed", "running"):
        return []
    words = last_line(line.view.logs)
    said = [f"{line.name}: {words}"[:240]] if words else []
    return said + [f"    log: {path}" for path in line.view.logs[-1:] if line.state == "failed"]


def _of_job(view: JobView | None) -> list[Any]:
    if view is None:
        return ["", "", "", ""]
    starts = f"{view.number}" + (f".{view.starts}" if view.starts > 1 else "")
    return [view.id, view.node, starts, _clock(view.seconds)]


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
