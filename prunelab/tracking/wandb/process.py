"""What a live W&B run changes in its process: variables for its folders, and SIGTERM."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from prunelab.files import make_folder
from prunelab.tracking.secret import one_line

LOGGER = logging.getLogger(__name__)
FOLDER_VARIABLES = ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ARTIFACT_DIR")
PREEMPT_S = 5.0


class Folders:
    """W&B's staging and caches inside the run's folder while the run lives; by default they fill home."""

    def __init__(self, folder: Path) -> None:
        self._values = folder_variables(folder)
        self._before = dict[str, str | None]()

    def enter(self) -> None:
        for name, value in self._values.items():
            make_folder(Path(value))
            self._before[name] = os.environ.get(name)
            os.environ[name] = value

    def leave(self) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._before = {}


def folder_variables(folder: Path) -> Mapping[str, str]:
    """Return the variables that keep W&B's own files below ``folder``."""
    return {name: str(folder / "wandb") for name in FOLDER_VARIABLES}


class Preemption:
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
            LOGGER.warning("W&B was not told of the preemption: %s", one_line(error))

    def leave(self) -> None:
        """Give SIGTERM back, unless somebody else has taken it since."""
        if self._installed and threading.current_thread() is threading.main_thread():
            # == and not `is`: each access to a bound method is a new object
            if signal.getsignal(signal.SIGTERM) == self._receive:
                signal.signal(signal.SIGTERM, self._before if self._before is not None else signal.SIG_DFL)
            self._installed = False
