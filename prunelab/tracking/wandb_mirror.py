"""W&B as a mirror of metrics.jsonl: one run per trial, its id from the trial's key (wandb 0.31).

Measured facts behind the settings: a plain SIGTERM or SIGKILL loses a short run unless the transaction log is
flushed each second and the process leaves through ``atexit``; an online ``init`` against a dead server takes
102 s; an outage blocks ``finish`` for ever unless ``finish_timeout`` is set; ``step=`` breaks requeued runs.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from prunelab.errors import ConfigError, nearest
from prunelab.tracking.base import NullTracker, RunInfo, Tracker
from prunelab.tracking.wandb_probe import Decision, decide
from prunelab.tracking.wandb_rows import as_number, axis_of, clean, columns_and_data, flat_config, flat_row

LOGGER = logging.getLogger(__name__)
INIT_TIMEOUT_S = 30
FLUSH_S = 0.5
PREEMPT_S = 5.0
LIVE: set[int] = set()  # this process's trackers with a run, by id()
FOLDER_VARIABLES = ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ARTIFACT_DIR")


def open_tracker(tracking_config: Mapping[str, Any], run: RunInfo) -> Tracker:
    """The tracker that ``conf/tracking/*.yaml`` names. Takes at most two seconds to choose online or offline.

    Whatever goes wrong with W&B itself is one warning and a ``NullTracker``.

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
        LOGGER.warning("W&B is left out of %s: %s", run.name, _one_line(error))
        return NullTracker()


class WandbTracker:
    """A live W&B run. The first failure is logged in one line; after it every call does nothing."""

    def __init__(self, config: Mapping[str, Any], run: RunInfo, decision: Decision) -> None:
        self.mode, self.reason = decision.mode, decision.reason
        self._tables: dict[str, list[dict[str, Any]]] = {}
        self._axes: set[str] = set()
        run.folder.mkdir(parents=True, exist_ok=True)
        self._environment = _Environment({name: str(run.folder / "wandb") for name in FOLDER_VARIABLES})
        self._environment.enter()
        try:
            self._run: Any = self._open(config, run, decision)
        except BaseException:
            self._environment.leave()
            raise
        self._signal = _Preemption(self._run)
        LIVE.add(id(self))
        if self.mode == "offline":
            LOGGER.info(
                "W&B is offline for %s (%s); files in %s", run.name, self.reason, run.folder / "wandb"
            )

    def _open(self, config: Mapping[str, Any], run: RunInfo, decision: Decision) -> Any:
        try:
            return _init(config, run, decision.mode, decision.base_url)
        except Exception as error:
            if decision.mode != "online":
                raise
            self.mode, self.reason = "offline", _one_line(error)
            import wandb

            wandb.teardown()  # the failed attempt keeps the id "in use" otherwise
            return _init(config, run, "offline", decision.base_url)

    def log(self, row: Mapping[str, Any]) -> None:
        """Mirror one metrics row; rows with an axis also grow the table named after their event."""
        row = dict(row)

        def send() -> None:
            axis = axis_of(row)
            if axis and axis[0] not in self._axes:
                self._axes.add(axis[0])
                self._run.define_metric(axis[1], hidden=True)
                self._run.define_metric(axis[0], step_metric=axis[1])
            flat = flat_row(row)
            if flat:
                self._run.log(flat)
            if axis:
                rows = self._tables.setdefault(str(row["event"]), [])
                rows.append({key: value for key, value in row.items() if key != "event"})

        self._guard(send)

    def table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep ``rows`` for the table ``name``, in place of what was logged under that name."""
        self._guard(lambda: self._tables.__setitem__(name, [dict(row) for row in rows]))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set final numbers and short texts under dot-free names."""

        def send() -> None:
            for key, value in values.items():
                number = as_number(value)
                if number is not None or isinstance(value, str):
                    self._run.summary[clean(key)] = value if number is None else number

        self._guard(send)

    def finish(self, ok: bool) -> None:
        """Send tables and plots and end the run; waits at most ``finish_timeout`` seconds for the upload."""
        self._guard(self._send_tables)
        run, self._run = self._run, None
        if run is not None:
            self._try(lambda: run.finish(exit_code=0 if ok else 1))
            self._forget()
        self._signal.leave()
        self._environment.leave()

    def _send_tables(self) -> None:
        import wandb

        for name, rows in self._tables.items():
            if f"{name}s" in self._tables:  # the record's own table, whole, in place of the logged rows
                continue
            columns: list[Any]
            data: list[Any]
            columns, data = columns_and_data(rows)
            if not data:
                continue
            table = wandb.Table(columns=columns, data=data, allow_mixed_types=True)
            self._run.log({f"table/{clean(name)}": table})
            plot = _plot(wandb, name, columns, data)
            if plot is not None:
                self._run.log({f"plot/{clean(name)}": plot})

    def _guard(self, call: Callable[[], None]) -> None:
        if self._run is not None and not self._try(call):
            self._signal.leave()
            self._run = None
            LIVE.discard(id(self))

    def _forget(self) -> None:
        """Offline, ``finish`` returns before the file is written, and a worker that leaves by ``os._exit``
        would lose it: stopping the SDK's process waits for it. Not while somebody else's run lives there.
        """
        import wandb

        LIVE.discard(id(self))
        if self.mode == "offline" and not LIVE and wandb.run is None:
            self._try(wandb.teardown)

    def _try(self, call: Callable[[], Any]) -> bool:
        try:
            call()
        except Exception as error:  # the trial outlives its tracker, whatever a third party raises
            LOGGER.warning("W&B stops mirroring: %s", _one_line(error))
            return False
        return True


def _init(config: Mapping[str, Any], run: RunInfo, mode: str, base_url: str) -> Any:
    import wandb  # 0.5 s: only a trial that is tracked pays for it

    settings = wandb.Settings(
        base_url=base_url,
        console="off",
        disable_git=True,
        finish_timeout=float(config.get("finish_timeout") or 300),
        init_timeout=INIT_TIMEOUT_S,
        save_code=False,
        silent=True,
        x_transaction_log_flush_interval=FLUSH_S,
    )
    return wandb.init(
        project=config.get("project") or "prunelab",
        entity=config.get("entity"),
        id=run.id,
        name=run.name,
        group=run.group,
        job_type=run.job_type,
        tags=list(dict.fromkeys([*run.tags, *(str(tag) for tag in config.get("tags") or ())])),
        config=flat_config(run.config),
        dir=str(run.folder),
        mode="offline" if mode == "offline" else "online",
        reinit="create_new",  # several trials may follow each other in one process
        resume="allow",
        settings=settings,
    )


def _plot(wandb: Any, name: str, columns: list[str], data: list[list[Any]]) -> Any:
    """Error over blocks by stream, ratio over shots; None for tables without an obvious line."""
    lines = {"block": ("block", "error", "stream"), "blocks": ("block", "error", "stream")}
    lines |= {"shot": ("shot", "achieved", None), "shots": ("shot", "achieved", None)}
    if name not in lines or not set(filter(None, lines[name])) <= set(columns):
        return None
    x, y, stroke = lines[name]
    table = wandb.Table(columns=columns, data=data, allow_mixed_types=True)
    return wandb.plot.line(table, x=x, y=y, stroke=stroke, title=f"{y} by {x}")


class _Environment:
    """W&B's staging and caches inside the run's folder while the run lives; by default they fill home."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values, self._before = dict(values), dict[str, str | None]()

    def enter(self) -> None:
        for name, value in self._values.items():
            Path(value).mkdir(parents=True, exist_ok=True)
            self._before[name] = os.environ.get(name)
            os.environ[name] = value

    def leave(self) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._before = {}


class _Preemption:
    """SIGTERM while the run lives: mark it preempting, then do as before; by default leave by SystemExit."""

    def __init__(self, run: Any) -> None:
        self._run, self._before = run, None
        self._installed = threading.current_thread() is threading.main_thread()
        if self._installed:
            self._before = signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # in a thread: the interrupted code may hold the SDK's lock, and then this must not wait for ever
        thread = threading.Thread(target=self._mark, daemon=True, name="prunelab-preempting")
        thread.start()
        thread.join(PREEMPT_S)
        before = self._before
        self.leave()
        if callable(before):
            before(number, frame)
        elif before != signal.SIG_IGN:
            sys.exit(128 + number)

    def _mark(self) -> None:
        try:
            self._run.mark_preempting()
        except Exception as error:
            LOGGER.warning("W&B was not told of the preemption: %s", _one_line(error))

    def leave(self) -> None:
        """Give SIGTERM back, unless somebody else has taken it since."""
        if self._installed and threading.current_thread() is threading.main_thread():
            # == and not `is`: each access to a bound method is a new object
            if signal.getsignal(signal.SIGTERM) == self._receive:
                signal.signal(signal.SIGTERM, self._before if self._before is not None else signal.SIG_DFL)
            self._installed = False


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    key = os.environ.get("WANDB_API_KEY")
    if key:  # messages of a third party: never let a key through
        text = text.replace(key, "***")
    return f"{type(error).__name__}: {text[:200]}"
