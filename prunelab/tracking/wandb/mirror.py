"""W&B as a mirror of metrics.jsonl: one run per trial, its id from the trial's key (wandb 0.31).

Each start of a trial tells its story from the first row, from what the store has. Offline every folder is
therefore whole by itself; online the rows that the server has from an earlier start are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from prunelab.errors import ConfigError, StoreError, nearest
from prunelab.files import make_folder
from prunelab.tracking.base import Artefact, NullTracker, RunInfo, Tracker
from prunelab.tracking.note import UNOPENED, Note, live_lock
from prunelab.tracking.secret import one_line, without_secrets
from prunelab.tracking.wandb.end import send_artefact, send_tables, within
from prunelab.tracking.wandb.opening import end_timeout, open_run
from prunelab.tracking.wandb.probe import Decision, decide
from prunelab.tracking.wandb.process import Folders, Preemption
from prunelab.tracking.wandb.row import as_number, axis_of, clean, flat_row
from prunelab.tracking.wandb.server import Server

LOGGER = logging.getLogger(__name__)
LIVE: set[int] = set()  # this process's trackers with a run, by id()


def open_tracker(tracking_config: Mapping[str, Any], run: RunInfo) -> Tracker:
    """The tracker that ``conf/tracking/*.yaml`` names. Takes at most two seconds to choose online or offline.

    Whatever goes wrong with W&B itself is one warning, a note beside the runs, and a ``NullTracker``.

    Raises:
        ConfigError: the tracker's name or mode is unknown.
    """
    name = tracking_config.get("name")
    if name == "none":
        return NullTracker()
    if name != "wandb":
        raise ConfigError("tracking.name", name, "none | wandb", nearest(str(name), ("none", "wandb")))
    decision = decide(tracking_config)
    if decision.mode == "disabled":
        return NullTracker()
    try:
        return WandbTracker(tracking_config, run, decision)
    except Exception as error:  # the trial outlives its tracker, whatever a third party raises
        LOGGER.warning("W&B is left out of %s: %s", run.name, one_line(error))
        with suppress(OSError, StoreError):  # the warning says it too
            Note(run.id, UNOPENED, reason=one_line(error), refused=True).save(run.folder)
        return NullTracker()


class WandbTracker:
    """A live W&B run. The first failure is logged in one line; after it nothing but the end is sent."""

    def __init__(
        self, config: Mapping[str, Any], run: RunInfo, decision: Decision, *, strict: bool = False
    ) -> None:
        self._tables: dict[str, list[dict[str, Any]]] = {}
        self._artefacts: list[tuple[Artefact, bool]] = []
        self._axes: set[str] = set()
        self._rows, self._broken = 0, ""
        self._config, self._decision = config, decision
        self._end_s, self._folder = end_timeout(config), run.folder
        make_folder(run.folder)
        self._lock = ExitStack()
        try:
            self._lock.enter_context(live_lock(run.folder, run.id))
        except StoreError:  # a task that outlived its node's daemon: the store decides whose numbers count
            LOGGER.warning("another process is telling W&B about %s as well", run.name)
        self._folders = Folders(run.folder)
        self._folders.enter()
        try:
            self._run: Any
            self._run, self.mode, self.reason = open_run(config, run, decision, strict=strict)
        except BaseException:
            self._folders.leave()
            self._lock.close()
            raise
        self._known = int(self._run.starting_step or 0)  # rows the server has from an earlier start
        reason = self.reason if self.mode == "offline" else ""
        self.note = Note(run.id, self.mode, reason=reason, refused=self.mode != decision.mode)
        self.note.save(run.folder)
        self._signal = Preemption(self._run)
        LIVE.add(id(self))
        if self.mode == "offline":
            LOGGER.info(
                "W&B is offline for %s (%s); files in %s", run.name, self.reason, run.folder / "wandb"
            )

    def log(self, row: Mapping[str, Any]) -> None:
        """Mirror one metrics row; rows with an axis also grow the table named after their event."""
        row = dict(row)
        axis = axis_of(row)
        if axis:
            rows = self._tables.setdefault(str(row["event"]), [])
            rows.append({key: value for key, value in row.items() if key != "event"})

        def send() -> None:
            if axis and axis[0] not in self._axes:
                self._axes.add(axis[0])
                self._run.define_metric(axis[1], hidden=True)
                self._run.define_metric(axis[0], step_metric=axis[1])
            flat = flat_row(row)
            if flat:
                self._rows += 1
                if self._rows > self._known:
                    self._run.log(flat)

        self._guard(send)

    def table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep ``rows`` for the table ``name``, in place of what was logged under that name."""
        self._tables[name] = [dict(row) for row in rows]

    def artefact(self, item: Artefact, *, used: bool) -> None:
        """Keep an artefact until the end."""
        self._artefacts.append((item, used))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set final numbers and short texts under dot-free names."""

        def send() -> None:
            for key, value in values.items():
                number = as_number(value)
                if number is not None or isinstance(value, str):
                    self._run.summary[clean(key)] = value if number is None else number

        self._guard(send)

    def alert(self, title: str, text: str) -> None:
        """Send an alert of level ERROR; the reason without values of secret variables."""
        text = without_secrets(text)
        self._guard(lambda: self._run.alert(title[:63], text, "ERROR"))

    def finish(self, ok: bool) -> bool:
        """Send tables, plots and artefacts, and end the run, all within ``finish_timeout`` seconds.

        A failed trial sends no tables: its rows are not complete, and they will be at another start.
        """
        run, self._run = self._run, None
        if run is None:
            return self.note.ended == "ok"
        before = self._broken  # told when it happened
        if ok:
            self._broken = self._broken or within(
                self._end_s, "tables and artefacts", lambda: self._send_end(run)
            )
        try:
            run.finish(exit_code=0 if ok else 1)
        except TimeoutError:
            self._broken = f"the server did not take the rest within {self._end_s:g} s"
        except Exception as error:  # the trial outlives its tracker, whatever a third party raises
            self._broken = self._broken or one_line(error)
        if self.mode == "online" and not self._broken:
            self._broken = within(self._end_s, "asking what has arrived", lambda: self._lack(run))
        if self._broken and not before:
            LOGGER.warning("W&B has not all of it (prunelab sync sends the rest): %s", self._broken)
        self._close(ok)
        return True

    def _send_end(self, run: Any) -> str:
        send_tables(run, self._tables)
        sent = [send_artefact(run, item, used=used) for item, used in self._artefacts]
        if self.mode == "online":  # the SDK raises what the server refuses only for those who wait
            for artifact in sent:
                artifact.wait()
        return ""

    def _lack(self, run: Any) -> str:
        """Return what the server has not of the ended run: that it refused rows, the SDK says to a terminal only."""
        server = Server({**self._config, "entity": run.entity, "project": run.project}, self._decision)
        return server.settled(run.id, self._rows).lack(self._rows)

    def _close(self, ok: bool) -> None:
        """Note how it ended and give back lock, variables and SIGTERM.

        Offline, ``finish`` returns before the file is written, and a worker that leaves by ``os._exit`` would
        lose it: stopping the SDK's process waits for it. Not while somebody else's run lives there.
        """
        import wandb

        LIVE.discard(id(self))
        if self.mode == "offline" and not LIVE and wandb.run is None:
            self._try(wandb.teardown)
        whole = not self._broken
        self.note = replace(
            self.note, ended="ok" if ok else "failed", whole=whole, sent=whole and self.mode == "online",
            rows=self._rows, reason=self._broken or self.note.reason,
        )  # fmt: skip
        self._try(lambda: self.note.save(self._folder))
        self._signal.leave()
        self._folders.leave()
        self._lock.close()

    def _guard(self, call: Callable[[], None]) -> None:
        if self._run is not None and not self._broken:
            self._broken = self._try(call)

    def _try(self, call: Callable[[], Any]) -> str:
        try:
            call()
        except Exception as error:  # the trial outlives its tracker, whatever a third party raises
            LOGGER.warning("W&B stops mirroring: %s", one_line(error))
            return one_line(error)
        return ""
