"""What conf/hydra/launcher/slurm.yaml and a site's profile say, checked before anything is submitted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from prunelab.errors import ConfigError, LaunchError, nearest
from prunelab.files import replace_file
from prunelab.launch.slurm.environment import check_names

_KEY = "hydra.launcher"
# what prunelab decides itself; a second value would break the way back from a job to its trial
_OURS = ("array", "comment", "dependency", "error", "export", "job-name", "ntasks", "ntasks-per-node", "open-mode",
         "output", "parsable", "requeue", "no-requeue", "signal", "test-only", "wait", "wrap", "kill-on-invalid-dep")  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """One site and what a job asks of it; None leaves time, memory, GPUs, CPUs and tasks to an estimate per job."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time_min: int | None = None
    mem_gib: float | None = None
    gpus: int | None = None
    cpus: int | None = None
    nodes: int = 1
    tasks_per_node: int | None = None
    extra: Mapping[str, Any] | None = None
    setup: tuple[str, ...] = ()
    python: str | None = None
    environment: tuple[str, ...] = ()
    array_parallelism: int = 256
    signal_s: int = 90
    kill_requeues: int = 1
    poll_s: float = 10.0

    def __post_init__(self) -> None:
        if self.gpus and self.tasks_per_node and self.tasks_per_node > self.gpus:
            raise ConfigError(
                f"{_KEY}.tasks_per_node", self.tasks_per_node, f"at most the {self.gpus} of {_KEY}.gpus: a GPU per task",
                "null gives a task per GPU; gpus=0 runs tasks on CPUs.",
            )  # fmt: skip

    @staticmethod
    def read(values: Mapping[str, Any]) -> Settings:
        """Check plain values; raises ConfigError naming the key, what is allowed and the nearest key."""
        known = [field.name for field in fields(Settings)]
        for key in values:
            if key not in known:
                raise ConfigError(
                    f"{_KEY}.{key}",
                    values[key],
                    f"a key of the launcher: {', '.join(known)}",
                    nearest(key, known),
                )
        for key in ("partition", "account", "qos", "constraint", "python"):
            _check(key, values, str, "a string or null")
        for key in ("time_min", "cpus", "nodes", "tasks_per_node", "array_parallelism", "signal_s"):
            _check(key, values, int, "an integer, x >= 1", 1)
        for key in ("gpus", "kill_requeues"):
            _check(key, values, int, "an integer, x >= 0", 0)
        for key in ("mem_gib", "poll_s"):
            _check(key, values, (int, float), "a number, x > 0", 0.01)
        for key in ("setup", "environment"):
            lines = values.get(key) or []
            if isinstance(lines, str) or not all(isinstance(line, str) for line in lines):
                raise ConfigError(f"{_KEY}.{key}", lines, "a list of strings")
        check_names(values.get("environment") or [])
        for name in _extra(values.get("extra")):
            if name.replace("_", "-") in _OURS:
                raise ConfigError(
                    f"{_KEY}.extra.{name}", "...", "a parameter of sbatch that prunelab does not set itself"
                )
        tidy = {key: value for key, value in values.items() if value is not None}
        tidy |= {key: tuple(tidy[key]) for key in ("setup", "environment") if key in tidy}
        return Settings(**tidy)

    def changed(self, **values: Any) -> Settings:
        """Return a copy with the values that are not None."""
        return replace(self, **{key: value for key, value in values.items() if value is not None})

    def save(self, folder: Path) -> None:
        """Keep the settings beside a study's submissions, for ``retry``."""
        replace_file(folder / "settings.json", json.dumps(asdict(self), indent=1).encode("utf-8"))

    @staticmethod
    def load(folder: Path) -> Settings:
        """Read what ``save`` wrote; raises LaunchError if the study was never submitted."""
        try:
            return Settings.read(json.loads((folder / "settings.json").read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise LaunchError(
                f"{folder.parent} has no settings of a cluster ({error}); submit it with hydra/launcher=slurm."
            ) from None


def _extra(extra: Any) -> Mapping[str, Any]:
    if extra is None:
        return {}
    if not isinstance(extra, Mapping):
        raise ConfigError(f"{_KEY}.extra", extra, "a mapping of sbatch's parameters, e.g. {mail-type: FAIL}")
    return extra


def _check(key: str, values: Mapping[str, Any], kind: Any, allowed: str, low: float | None = None) -> None:
    value = values.get(key)
    wrong = value is not None and (not isinstance(value, kind) or isinstance(value, bool))
    if wrong or (value is not None and low is not None and value < low):
        raise ConfigError(f"{_KEY}.{key}", value, allowed)
