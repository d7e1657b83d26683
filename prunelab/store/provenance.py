"""Where a number comes from: commit, host, versions. Never secrets: the environment is not recorded."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

_LIBRARIES = (
    "prunelab",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "datasets",
    "lm_eval",
    "wandb",
)


@lru_cache(maxsize=1)
def provenance() -> dict[str, Any]:
    """Return commit, host and library versions of this process, read once, without importing the libraries."""
    return {
        "commit": _commit(),
        "host": socket.gethostname(),
        "cpu": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _LIBRARIES},
        "job": os.environ.get("SLURM_JOB_ID"),
        "argv": sys.argv[:1],
    }


def _commit() -> str | None:
    """Return the checkout's commit, with ``+changed`` if files differ; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+changed" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    return subprocess.run(
        # the checkout may be a colleague's, whose code runs here anyway; git would refuse to say its commit
        ["git", "-c", f"safe.directory={root}", *words],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    ).stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
