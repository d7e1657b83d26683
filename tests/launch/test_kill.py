"""SIGKILL at random moments changes nothing in the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPAIR = [
    "method=sparsegpt", "sparsity=unstructured", "sparsity.ratio=0.5", "reconstruction=block_gp,cross_block",
    "reconstruction.epochs=2", "reconstruction.min_updates=0",
    "reconstruction_data=self_generated_mix", "reconstruction_data.parts.self_generated=6",
    "reconstruction_data.batch=2", "reconstruction_data.text_len=64", "-m",
]  # fmt: skip


def finish(root: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "experiments/reliability/kill.py"), "--root", str(root), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 of them ran twice; results equal; " in done.stdout
    assert done.stdout.splitlines()[-1].endswith(" files, 0 differ")
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_kills_at_random_moments(tmp_path: Path, small: list[str]) -> None:
    words = ["method=surgeon,kobd,magnitude", "method.step=0.02", "sparsity.ratio=0.1,0.2", "-m", *small]
    assert "kill 10 " in finish(tmp_path, *words)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_kills_in_generation_pruning_and_repair(tmp_path: Path, small: list[str]) -> None:
    said = finish(tmp_path, "--kills", "6", *REPAIR, *small)
    for kind in ("generation", "prune", "reconstruct"):
        assert said.count(f"(aim: {kind})") == 2
