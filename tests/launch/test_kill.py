"""SIGKILL at random moments changes nothing in the end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPAIR = [
    "method=sparsegpt", "sparsity=unstructured", "sparsity.ratio=0.5", "reconstruction=block_gp,cross_block",
    "reconstruction.masks=before,between", "reconstruction.epochs=2", "reconstruction.min_updates=0",
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


def struck(said: str) -> Counter[str]:
    """Stages that were at work when a kill came, by kind."""
    (line,) = [line for line in said.splitlines() if line.startswith("stages killed: ")]
    return Counter({kind: int(count) for count, kind in re.findall(r"(\d+) (\w+)", line)})


LINES = ["--kills", "10", "method=surgeon,kobd,magnitude", "method.step=0.02", "sparsity.ratio=0.1,0.2"]
# every shot makes biases, or walks back through the model
UNITS = [
    "--kills",
    "4",
    "method=flap,llm_pruner",
    "sparsity=units",
    "method.step=0.05",
    "sparsity.ratio=0.2,0.4",
]
# what one shot leaves is trained before the next
CORRECTED = [
    "--kills", "4", "method=surgeon_elements", "sparsity=unstructured", "between_shots=lora_surgeon",
    "method.step=0.1", "sparsity.ratio=0.2,0.4",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "words", [LINES, UNITS, CORRECTED], ids=["rows and columns", "units", "weights, corrected"]
)
def test_kills_at_random_moments(words: list[str], tmp_path: Path, small: list[str]) -> None:
    assert struck(finish(tmp_path, *words, "-m", *small))["prune"] >= int(words[1]) / 2


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_kills_in_generation_pruning_and_repair(tmp_path: Path, small: list[str]) -> None:
    killed = struck(finish(tmp_path, "--kills", "6", *REPAIR, *small))
    for kind in ("generation", "prune", "reconstruct"):
        assert killed[kind] >= 1, killed
