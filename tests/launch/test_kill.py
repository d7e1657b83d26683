"""SIGKILL at random moments changes nothing in the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_kills_at_random_moments(tmp_path: Path, small: list[str]) -> None:
    words = ["method=surgeon,kobd,magnitude", "method.step=0.02", "sparsity.ratio=0.1,0.2", "-m", *small]
    done = subprocess.run(
        [sys.executable, str(ROOT / "experiments/reliability/kill.py"), "--root", str(tmp_path), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of them ran twice; results equal" in done.stdout
