"""``prunelab sync``: what a study's runs have not told the W&B server yet.

A run goes by one of two ways. A folder that tells all there is goes to ``wandb sync``, if the server has nothing of
the run: syncing twice would double its history. Everything else (a run that broke off online, a killed start, a
torn file) is told again from the store, without the rows that the server has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from prunelab.config.trial import plain
from prunelab.errors import LaunchError, PrunelabError
from prunelab.launch.run.failure import read_failure
from prunelab.launch.track.lineage import lineage
from prunelab.launch.track.mirror import Mirror, is_finished, run_info, tracking_folder
from prunelab.lock import locked
from prunelab.plan.study import Plan, Trial, load_plan
from prunelab.tracking.base import run_id
from prunelab.tracking.note import UNOPENED, Note, is_live, read_note
from prunelab.tracking.secret import one_line
from prunelab.tracking.wandb.file import Fragment, read_fragment, run_files
from prunelab.tracking.wandb.mirror import WandbTracker
from prunelab.tracking.wandb.probe import Decision, decide, is_wanted
from prunelab.tracking.wandb.server import Held, Server
from prunelab.tracking.wandb.sync import send_folder

_AT_ONCE = 4


@dataclass(frozen=True)
class Sent:
    """What became of one run: ``what`` is sent, already, live or failed; ``torn`` names files that were skipped."""

    run: str
    what: str
    detail: str = ""
    torn: tuple[Path, ...] = ()


@dataclass
class _Run:
    """One run that has something to tell: its trial, if a plan knows it, its note and its folders, oldest first."""

    id: str
    plan: Plan
    trial: Trial | None
    note: Note | None
    files: list[Path]

    @property
    def name(self) -> str:
        return self.trial.name if self.trial else self.id

    @cached_property
    def fragments(self) -> list[Fragment]:
        return [read_fragment(file) for file in self.files]

    @property
    def torn(self) -> tuple[Path, ...]:
        return tuple(fragment.file for fragment in self.fragments if fragment.torn)

    @property
    def whole(self) -> Fragment | None:
        """The newest folder, if it is offline and tells all there is."""
        newest = next((fragment for fragment in reversed(self.fragments) if not fragment.torn), None)
        if newest is None or not newest.offline:
            return None
        if self.trial is None:  # nobody could tell it otherwise
            return newest
        last = newest is self.fragments[-1]
        return newest if last and newest.ended and (self.note is None or self.note.whole) else None


@dataclass
class Sync:
    """One call of the command; ``timeout_s`` bounds each run. Raises LaunchError without key or server."""

    plan: Plan
    timeout_s: float | None = None
    _config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._config = next(
            (plain(t.config.tracking) for t in self.plan.trials if t.config.tracking.name == "wandb"), {}
        )
        self._folder = tracking_folder(self.plan)

    def run(self) -> Iterator[Sent]:
        """Yield what becomes of each run, as it is known."""
        todo = []
        for run in self._runs():
            if is_live(self._folder, run.id):
                yield Sent(run.name, "live", "its trial is running")
            elif run.note.sent if run.note else _marked(run):
                yield Sent(run.name, "already")
            else:
                todo.append(run)
        if todo:
            decision = decide({**self._config, "mode": "online"})
            if decision.mode != "online":
                raise LaunchError(f"{len(todo)} runs wait for a W&B server: {decision.reason}.")
            with locked(self._folder / "sync.lock", f"prunelab sync of {self.plan.study}", timeout=0):
                yield from self._send(todo, Server(self._config, decision), decision)

    def _runs(self) -> list[_Run]:
        files = run_files(self._folder)
        known = {run_id(t.key): (self.plan, t) for t in self.plan.trials}
        if not files.keys() <= known.keys():  # of a sweep that had this study's name before
            for path in sorted((self.plan.folder / "plans").glob("*.json")):
                older = load_plan(path)
                if not older.store.is_dir():  # it was moved together with the one that is known
                    older = replace(older, store=self.plan.store)
                known |= {run_id(t.key): (older, t) for t in older.trials if run_id(t.key) not in known}
        runs = []
        for name in dict.fromkeys([*known, *files]):
            plan, trial = known.get(name, (self.plan, None))
            note = read_note(self._folder, name)
            # a finished trial without either was to be tracked, and no run could be opened
            lost = trial and is_wanted(trial.config.tracking) and is_finished(plan, trial)
            if name in files or note is not None or lost:
                runs.append(_Run(name, plan, trial, note, files.get(name, [])))
        return runs

    def _send(self, todo: list[_Run], server: Server, decision: Decision) -> Iterator[Sent]:
        held = {run.id: server.held(run.id) for run in todo}
        folders = [run for run in todo if run.whole is not None and not held[run.id].rows]
        again = [run for run in todo if run not in folders]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            jobs = {
                pool.submit(send_folder, run.whole, decision, self._seconds): run
                for run in folders
                if run.whole
            }
            for job in as_completed(jobs):
                run = jobs[job]
                rows = run.whole.rows if run.whole else 0
                unsent = job.result()
                there = server.held(run.id) if unsent else server.settled(run.id, rows)
                reason = unsent or _lacks(run, there, rows)
                if not reason:
                    yield self._done(run, "its folder")
                elif run.trial is not None and (there.over or (unsent and not there.rows)):
                    # a part is missing; or all, and a folder keeps the names it was made with
                    again.append(run)
                else:
                    yield self._failed(run, reason)
        for run in again:
            yield self._again(run, server, decision, held[run.id])

    def _again(self, run: _Run, server: Server, decision: Decision, held: Held) -> Sent:
        if run.trial is None:
            if run.whole is not None and not _lacks(run, held, run.whole.rows):
                return self._done(run, "its folder")  # by an earlier call that was cut off
            if run.torn and run.whole is None:
                return Sent(run.name, "torn", "no plan of this study knows the run", run.torn)
            reason = f"the server has {held.rows} rows of it, and no plan of this study knows the rest"
            return self._failed(run, reason)
        try:
            # tags: run_info has the trial's own
            config = {**self._config, "tags": (), "finish_timeout": self._seconds}
            rows = tell(run.plan, run.trial, config, decision)
            reason = _lacks(run, server.settled(run.id, rows), rows)
        except PrunelabError as error:
            reason = str(error)
        except Exception as error:  # a third party's: the other runs go on
            return self._failed(run, one_line(error), refused=True)
        return self._failed(run, reason) if reason else self._done(run, "the store")

    def _done(self, run: _Run, source: str) -> Sent:
        note = read_note(self._folder, run.id) or Note(run.id, "offline", "ok", whole=True)
        replace(note, sent=True).save(self._folder)
        return Sent(run.name, "sent", f"from {source}", run.torn)

    def _failed(self, run: _Run, reason: str, *, refused: bool = False) -> Sent:
        if run.trial is not None:  # what the study says of its losses is the last that was heard
            note = read_note(self._folder, run.id) or Note(run.id, UNOPENED)
            replace(note, sent=False, reason=reason, refused=refused).save(self._folder)
        return Sent(run.name, "failed", reason, run.torn)

    @property
    def _seconds(self) -> float:
        return self.timeout_s or float(self._config.get("finish_timeout") or 300)


def tell(plan: Plan, trial: Trial, config: Mapping[str, Any], decision: Decision) -> int:
    """Tell a server all that the store has of a trial; return the rows. Raises what the SDK raises, or LaunchError."""
    tracker = WandbTracker(config, run_info(plan, trial), decision, strict=True)
    mirror = Mirror(plan, trial, own=(), tracker=tracker)
    mirror.unfinished()
    if is_finished(plan, trial):
        mirror.finish(True)
    elif failure := next(filter(None, (read_failure(plan, key) for key in trial.stages.values())), None):
        mirror.failed(failure.reason)
    else:
        mirror.finish(False)
    if not tracker.note.sent:
        raise LaunchError(tracker.note.reason)
    return tracker.note.rows


def _lacks(run: _Run, held: Held, rows: int) -> str:
    """Return what the server lacks of a run that was sent, "" if nothing."""
    lack = held.lack(rows)
    if lack or run.trial is None or not is_finished(run.plan, run.trial):
        return lack
    inputs = {item.name for item, used in lineage(run.plan, run.trial) if used}
    lacking = sorted(inputs - held.inputs)
    return f"the server does not link it to {', '.join(lacking)}" if lacking else ""


def _marked(run: _Run) -> bool:
    """Say whether a run without a note was synced by hand: its newest folder carries the SDK's mark."""
    return bool(run.files) and run.files[-1].with_name(run.files[-1].name + ".synced").exists()
