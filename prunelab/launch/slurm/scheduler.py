"""SLURM's own commands: one ``squeue`` for all states, ``sacct`` only for what that lacks, ``scancel``."""

from __future__ import annotations

import getpass
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from prunelab.errors import LaunchError

# PENDING after NODE_FAIL or PREEMPTED is just PENDING again; the others are on their way there
LIVE = frozenset(
    {"PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED",
     "RESIZING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "RESV_DEL_HOLD"}
)  # fmt: skip
_TIMEOUT_S = 60


@dataclass(frozen=True)
class Row:
    """One task as SLURM sees it. ``name`` is the job's name, which ends in the submission's uid."""

    id: str
    state: str
    name: str
    elapsed: str = ""
    node: str = ""
    reason: str = ""
    exit: str = ""

    @property
    def live(self) -> bool:
        """True if the job runs or will run."""
        return self.state in LIVE

    @property
    def task(self) -> tuple[str, int]:
        """The submission's uid and the task's index in its array."""
        index = self.id.partition("_")[2]
        return self.name.rpartition("-")[2], int(index) if index.isdigit() else 0


Rows = dict[tuple[str, int], Row]


def queued() -> Rows:
    """Return the tasks that ``squeue`` knows of, finished ones that it still remembers included.

    Raises LaunchError if it gives no answer: that says nothing about the jobs.
    """
    words = ["squeue", "-h", "-r", "-t", "all", "-u", getpass.getuser(), "-o", "%i|%T|%j|%M|%N|%r"]
    code, out, error = _call(words)
    if code:
        raise LaunchError(f"squeue: {error.strip() or f'exit code {code}'}")
    found: Rows = {}
    for line in out.splitlines():
        cells = line.split("|")
        if len(cells) == 6:
            row = Row(*cells)
            # a requeued task can be listed twice while its first run is cleaned up; the living one counts
            if row.task not in found or row.live:
                found[row.task] = row
    return found


def accounted(ids: Sequence[str] = (), names: Sequence[str] = (), days: int = 30) -> Rows:
    """Return the tasks that ``sacct`` knows by these ids, or by these job names; {} where there is no accounting."""
    found: Rows = {}
    for option, words in (("-j", list(ids)), ("--name", list(names))):
        if not words:
            continue
        since = time.strftime("%Y-%m-%d", time.localtime(time.time() - days * 86400))
        period = ["-S", since] if option == "--name" else []
        code, out, _ = _call(
            [
                "sacct",
                "-n",
                "-P",
                *period,
                option,
                ",".join(words),
                "-o",
                "JobID,State,JobName%200,Elapsed,NodeList,Reason,ExitCode",
            ]
        )
        if code:
            return found
        found |= parse_accounting(out)
    return found


def parse_accounting(text: str) -> Rows:
    """Read sacct's lines; a step that ran out of memory says so where its job only says FAILED."""
    rows: dict[str, Row] = {}
    for line in text.splitlines():
        cells = line.split("|")
        if len(cells) != 7:
            continue
        job, _, step = cells[0].partition(".")
        state = cells[1].split(" ")[0]  # CANCELLED by 1000
        if not step:
            rows[job] = Row(job, state, cells[2], cells[3], cells[4], cells[5], cells[6])
        elif state == "OUT_OF_MEMORY" and job in rows:
            rows[job] = replace(rows[job], state=state)
    return {row.task: row for row in rows.values()}


def cancel(ids: Iterable[str]) -> None:
    """Cancel jobs; raises LaunchError with scancel's words if it refuses."""
    words = list(ids)
    for start in range(0, len(words), 500):
        code, _, error = _call(["scancel", *words[start : start + 500]])
        if code and "already completing or completed" not in error:
            raise LaunchError(f"scancel: {error.strip() or f'exit code {code}'}")


def state_of(job_id: str) -> str:
    """Return the state of one job, seen from inside it; an empty string if there is no answer."""
    code, out, _ = _call(["squeue", "-h", "-t", "all", "-j", job_id, "-o", "%T"])
    return out.split("\n")[0].strip() if not code else ""


def requeue(job_id: str) -> str:
    """Ask for a job to be queued again; return an empty string, or why not."""
    code, _, error = _call(["scontrol", "requeue", job_id])
    return "" if not code else error.strip() or f"scontrol requeue: exit code {code}"


def _call(words: Sequence[str], env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT_S, env=env, check=False)
    except FileNotFoundError:
        return (
            127,
            "",
            f"there is no command {words[0]!r} here: is this a login node, is SLURM's module loaded?",
        )
    except subprocess.TimeoutExpired:
        return 124, "", f"no answer in {_TIMEOUT_S} s"
    return done.returncode, done.stdout, done.stderr
