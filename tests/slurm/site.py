"""A person at a login node: studies on the real local cluster, and looks at what became of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from prunelab.store.layout import WORK

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "slurm" / "local_cluster.sh"
SMALL = [
    "calibration.n_samples=4", "calibration.seq_len=32", "evaluation.corpora=[austen]", "evaluation.held_out=[kjv]",
    "evaluation.seq_len=32", "evaluation.max_samples=4", "evaluation.error_samples=2", "runtime.threads=1",
]  # fmt: skip
FAST = ["hydra/launcher=slurm", "hydra.launcher.poll_s=1", "hydra.launcher.mem_gib=1.5"]
SLOW = ["method=slow", "sparsity.ratio=0.4"]  # eight shots

# as slow, as greedy and as faulty as files in a folder say; what it computes depends on none of them
METHOD = '''
"""A method that does as it is told by flags."""
from __future__ import annotations
import os, time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
import torch

FLAGS = Path(os.environ["PRUNELAB_TEST_FLAGS"])

@dataclass(frozen=True)
class Slow:
    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]
    scope = "linear"
    needs = ()
    supports = ("rows_columns",)

    def costs(self, site):
        if site.name.endswith(".0.self_attn.q_proj"):
            if (FLAGS / "fail").exists():
                raise RuntimeError("told to fail")
            if (FLAGS / "eat").exists():
                eaten = torch.ones(int((FLAGS / "eat").read_text()) << 18)
                time.sleep(10)
            if (FLAGS / "pause").exists():
                time.sleep(float((FLAGS / "pause").read_text()))
        rows, columns = site.W.shape
        return torch.arange(rows, 0, -1, dtype=torch.float64), torch.arange(columns, 0, -1, dtype=torch.float64)

    def update(self, site, keep_rows, keep_columns):
        return None
'''


class Cluster:
    """The SLURM of slurm/local_cluster.sh in one folder."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.settings = {"PRUNELAB_CLUSTER": str(folder), **settings}
        self.env = {"SLURM_CONF": str(folder / "slurm.conf")}

    def control(self, *words: str, **more: str) -> str:
        """Run the script, which must succeed."""
        env = {**os.environ, **self.settings, **more}
        done = subprocess.run(
            [SCRIPT, *words], env=env, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def call(self, *words: str) -> str:
        """Run one of SLURM's commands and return what it says."""
        done = subprocess.run(
            words, env={**os.environ, **self.env}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def wait_idle(self) -> None:
        """Cancel everything and wait until both nodes are free."""
        self.call("scancel", "-u", os.environ.get("USER", "root"))
        until(
            lambda: self.call("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").count("n") == 2, 60
        )


@dataclass
class Site:
    """A folder to work in, with its own store, on a cluster."""

    folder: Path
    cluster: Cluster
    flags: Path = field(init=False)

    def __post_init__(self) -> None:
        self.flags = self.folder / "flags"
        self.flags.mkdir(parents=True, exist_ok=True)
        (self.folder / "slow_method.py").write_text(METHOD)
        group = self.folder / "my_conf" / "method"
        group.mkdir(parents=True, exist_ok=True)
        (group / "slow.yaml").write_text("_target_: slow_method.Slow\nname: slow\nrevision: 1\nstep: 0.05\n")

    def env(self, **more: str) -> dict[str, str]:
        """Return what the shell of this person has."""
        here = {"PRUNELAB_HOME": str(self.folder / "home"), "PRUNELAB_TEST_FLAGS": str(self.flags), "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT), "COLUMNS": "200"}  # fmt: skip
        return {**os.environ, **self.cluster.env, **here, **more}

    def flag(self, name: str, value: object = "") -> None:
        """Tell the slow method something."""
        (self.flags / name).write_text(str(value))

    def words(self, *words: str, launcher: list[str] | None = None) -> list[str]:
        """Return the command that starts a study."""
        return [sys.executable, "-m", "prunelab", "study=s", *(FAST if launcher is None else launcher), *SMALL, *words,
                "--config-dir", "my_conf", "-m"]  # fmt: skip

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """Start a driver and leave it running."""
        return subprocess.Popen(
            self.words(*words),
            cwd=self.folder,
            env=self.env(**env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(
        self, *words: str, launcher: list[str] | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a study to its end."""
        return subprocess.run(
            self.words(*words, launcher=launcher), cwd=self.folder, env=self.env(**env), capture_output=True, text=True,
            timeout=280, check=False,
        )  # fmt: skip

    def cli(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run ``prunelab WORDS``."""
        command = [sys.executable, "-m", "prunelab.cli", *words]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.env(**env),
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    @property
    def study(self) -> Path:
        """The folder of study ``s``."""
        return self.folder / "home" / "studies" / "s"

    @property
    def store(self) -> Path:
        """The store."""
        return self.folder / "home" / "store"

    def records(self, kind: str) -> list[dict]:
        """Return the records of the finished stages of a kind."""
        return [json.loads(path.read_text()) for path in sorted(self.store.glob(f"{kind}/*/record.json"))]

    def stamps(self) -> dict[str, int]:
        """Return when each finished stage was written."""
        return {str(path): path.stat().st_mtime_ns for path in self.store.glob("*/*/record.json")}

    def ids(self) -> list[str]:
        """Return the cluster's ids of all submissions."""
        return [path.read_text().strip() for path in self.study.glob("slurm/*/id")]

    def notes(self) -> dict[str, dict]:
        """Return what the tasks noted, by job; a job that was submitted twice has its last one."""
        found = {}
        for path in sorted(self.study.glob("jobs/*.json")):
            attempts = json.loads(path.read_text())["attempts"]
            if not attempts:
                continue
            last = attempts[-1]
            note = self.study / "slurm" / last["uid"] / f"{last['index']}.json"
            found[path.stem] = json.loads(note.read_text()) if note.exists() else {}
        return found

    def at_shot(self, number: int, seconds: float = 90) -> Path:
        """Wait until a prune stage has ``number`` shots on disk; return its folder."""

        def there() -> bool:
            return any(_step(path) >= number for path in self.store.glob(f"prune/*/{WORK}/progress.json"))

        until(there, seconds)
        return next(p.parent.parent for p in self.store.glob(f"prune/*/{WORK}/progress.json"))

    def running(self) -> tuple[str, dict]:
        """Return name and note of the one job that runs."""
        ((name, note),) = [(n, note) for n, note in self.notes().items() if note.get("state") == "running"]
        return name, note


def _step(path: Path) -> int:
    try:
        return int(json.loads(path.read_text())["step"])
    except (OSError, ValueError):
        return 0


def until(true: Callable[[], bool], seconds: float, tick: float = 0.1) -> None:
    """Wait until something is true; fail if it takes longer."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(tick)


def free_port(low: int) -> str:
    """Return a port for a cluster whose controller, accounting and two nodes find theirs free; others may test as well."""
    for base in range(low + 20 * (os.getpid() % 40), low + 1000, 20):
        with ExitStack() as stack:
            try:
                for offset in (0, 1, 11, 12):
                    taken = stack.enter_context(socket.socket())
                    taken.bind(("127.0.0.1", base + offset))
            except OSError:
                continue
            return str(base)
    raise AssertionError(f"no free ports from {low} on")


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL a driver."""
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    if process.stdout is not None:
        process.stdout.close()
