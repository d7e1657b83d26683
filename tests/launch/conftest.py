"""Small studies on the embedded Llama: seconds, not minutes, and the whole path."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from by_conf import composer

from prunelab.cli import main
from prunelab.launch.command import entry
from prunelab.launch.command.study import plan_study
from prunelab.plan.study import Plan

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "calibration.n_samples=4", "calibration.seq_len=32", "evaluation.corpora=[austen]", "evaluation.held_out=[kjv]",
    "evaluation.seq_len=32", "evaluation.max_samples=4", "evaluation.error_samples=2",
    # masks from the shortest split: all of it is tokenized for four windows
    "calibration.split={mask:validation,held_out:train,test:test}",
    "runtime.workers=1",  # importing torch twice costs more than the study
]  # fmt: skip

COMMON = ["study=s", "sparsity.ratio=0.5", "evaluation.corpora=[austen]", "evaluation.held_out=[kjv]"]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root for store and studies."""
    monkeypatch.setenv("PRUNELAB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def small() -> list[str]:
    """Overrides that make a study small."""
    return SMALL


@pytest.fixture
def prunelab(home: Path, tmp_path: Path) -> Run:
    """``prunelab(*words)`` runs ``python -m prunelab`` as a user does, in an empty folder."""

    def run(
        *words: str, module: str = "prunelab", small: bool = True, **env: str
    ) -> subprocess.CompletedProcess[str]:
        home.mkdir(exist_ok=True)
        own = [*SMALL, "hydra.launcher.report=false"] if small and module == "prunelab" else []
        command = [sys.executable, "-m", module, *own, *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
        )

    return run


def run_here(folder: Path, *words: str, module: str = "prunelab") -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, with ``folder`` as ``python -m prunelab`` has its working folder.

    A sweep's jobs run here as well: torch is not imported again by a driver and by each worker. What was imported from
    the folder is forgotten in the end, as by a process that ends.
    """
    (folder / "home").mkdir(exist_ok=True)
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setenv("PRUNELAB_HOME", str(folder / "home"))
        patch.setenv("COLUMNS", "200")  # names of trials in one piece
        patch.setattr(sys, "argv", sys.argv)  # Hydra's words go there
        patch.setattr(
            sys, "dont_write_bytecode", True
        )  # a file edited within a second would be taken for the one before
        try:
            if module == "prunelab":
                own = [*SMALL, "hydra.launcher.report=false", "hydra/launcher=inline", "runtime.threads=1"]
                sweep = [] if "-m" in words else ["-m"]  # the same; told so, Hydra composes once less
                code = entry.run(["prunelab", *own, *words, *sweep])
            else:
                code = main(list(words))
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            for name, known in list(sys.modules.items()):
                if (getattr(known, "__file__", None) or "").startswith(f"{folder}{os.sep}"):
                    del sys.modules[name]
    return subprocess.CompletedProcess(list(words), code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def run_in() -> Run:
    """``run_in(folder, *words)`` runs the command line in this process, for fixtures of a module; see `run_here`."""
    return run_here


@pytest.fixture
def here(home: Path, tmp_path: Path) -> Run:
    """``here(*words)`` does what ``prunelab(*words)`` does, in this process."""
    assert home == tmp_path / "home"

    def run(*words: str, module: str = "prunelab") -> subprocess.CompletedProcess[str]:
        return run_here(tmp_path, *words, module=module)

    return run


@pytest.fixture
def plan_of(tmp_path: Path) -> Callable[..., Plan]:
    """``plan_of(*words, seeds=1)`` plans a trial for each seed under tmp_path; nothing runs."""

    def plan(*words: str, seeds: int = 1) -> Plan:
        common = [f"paths.root={tmp_path}/plans", *COMMON, *words]
        return plan_study(composer(), [[*common, f"seed={seed}"] for seed in range(seeds)], ["test"])

    return plan
