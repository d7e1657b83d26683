"""Terminals that cannot show every character, and Python without docstrings and assertions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SAY = "from prunelab.terminal import write_what_can_be_shown as w; w(); print('✓ 1 ± 2 → ▶ é 漢')"


def python(*words: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", "✓ 1 ± 2 → ▶ é 漢"), ("latin-1", "+ 1 ± 2 -> > é ?"), ("ascii", "+ 1 +- 2 -> > ? ?")],
)
def test_what_an_encoding_lacks_is_written_in_plain_characters(encoding: str, shown: str) -> None:
    done = python("-c", SAY, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding).strip() == shown


def test_a_closed_stdout_is_left_alone() -> None:
    code = "import sys; sys.stdout = sys.stderr = None; " + SAY.partition("; print")[0]
    assert python("-c", code).returncode == 0


def test_help_and_mistakes_without_docstrings_and_assertions() -> None:
    done = python("-OO", "-m", "prunelab.cli", "--help")
    assert done.returncode == 0
    assert b"a line per trial" in done.stdout
    wrong = python("-OO", "-m", "prunelab", "sparsity.ratio=1.5")
    assert wrong.returncode == 1
    assert b"sparsity.ratio=1.5" in wrong.stderr
