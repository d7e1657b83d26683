"""Small studies on the embedded Llama: seconds, not minutes, and the whole path."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_automatic_config_search_path

from prunelab.config.compose import Composer
from prunelab.config.place import conf_folder
from prunelab.launch.command.plugin import register
from prunelab.launch.command.study import plan_study
from prunelab.plan.study import Plan

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "calibration.n_samples=4", "calibration.seq_len=32", "evaluation.corpora=[austen]", "evaluation.held_out=[kjv]",
    "evaluation.seq_len=32", "evaluation.max_samples=4", "evaluation.error_samples=2",
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


@pytest.fixture
def plan_of(tmp_path: Path) -> Callable[..., Plan]:
    """``plan_of(*words, seeds=1)`` plans a trial for each seed under tmp_path; nothing runs."""
    register()
    composer = Composer(ConfigLoaderImpl(create_automatic_config_search_path(None, None, str(conf_folder()))))

    def plan(*words: str, seeds: int = 1) -> Plan:
        common = [f"paths.root={tmp_path}/plans", *COMMON, *words]
        return plan_study(composer, [[*common, f"seed={seed}"] for seed in range(seeds)], ["test"])

    return plan
