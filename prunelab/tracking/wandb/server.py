"""What a W&B server has of a run, through the SDK's public API."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunelab.errors import LaunchError
from prunelab.tracking.secret import one_line
from prunelab.tracking.wandb.probe import Decision

_TIMEOUT_S = 20
LAG_S = 5.0  # a server may count rows a little after it took them


@dataclass(frozen=True)
class Held:
    """``rows`` of history, whether the run is over, and the names of the artefacts it uses."""

    rows: int
    over: bool
    inputs: frozenset[str]

    def lack(self, rows: int) -> str:
        """Return what there is not of a run that told ``rows`` and its end, "" if nothing."""
        if self.rows < rows:
            return f"the server has {self.rows} of {rows} rows"
        return "" if self.over else "the server has not seen its end"


class Server:
    """Asks one server about runs of one project. Raises LaunchError where it cannot be asked."""

    def __init__(self, config: Mapping[str, Any], decision: Decision) -> None:
        import wandb

        self._config, self._url = config, decision.base_url
        try:
            self._api = wandb.Api(overrides={"base_url": self._url}, timeout=_TIMEOUT_S)
            self._entity = config.get("entity") or self._api.default_entity
        except Exception as error:
            raise self._refused(error) from error

    def held(self, run_id: str) -> Held:
        """Return what there is of a run; no rows and no inputs if the server does not know it."""
        path = f"{self._entity}/{self._config.get('project') or 'prunelab'}/{run_id}"
        try:
            self._api.flush()  # it keeps what it saw
            run = self._api.run(path)
            inputs = frozenset(artifact.name.partition(":")[0] for artifact in run.used_artifacts())
            return Held(int(run.historyLineCount or 0), run.state in ("finished", "failed"), inputs)
        except Exception as error:
            if "Could not find run" in str(
                error
            ):  # the SDK's words in 0.31: it has no class of its own for it
                return Held(0, False, frozenset())
            raise self._refused(error) from error

    def settled(self, run_id: str, rows: int) -> Held:
        """Return what there is of a run that was told to its end: as soon as nothing lacks, or after LAG_S seconds."""
        end = time.monotonic() + LAG_S
        while (held := self.held(run_id)).lack(rows) and time.monotonic() < end:
            time.sleep(0.5)
        return held

    def _refused(self, error: Exception) -> LaunchError:
        return LaunchError(
            f"{self._url} cannot be asked about runs: {one_line(error)} Is the key the right one (WANDB_API_KEY, "
            "`wandb login`), and the server up? Run the command again then: what is sent is not sent twice."
        )
