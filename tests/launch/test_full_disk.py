"""A disk that is really full: the reason and the place are told, and with space again the same command finishes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from prunelab.errors import StoreError
from prunelab.tracking.jsonl import JsonlWriter

ROOT = Path(__file__).resolve().parents[2]
FULL = Path("/dev/full")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, check=False
    ) if sys.platform == "linux" and os.geteuid() == 0 else None  # fmt: skip
    if mounted is None or mounted.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def somebody_elses(disk: Path, once: str) -> Iterator[Path]:
    """Once a path matches ``once``, take every byte of the disk that is free or becomes free, until the end."""
    over, file = threading.Event(), disk / "others"

    def fill() -> None:
        with file.open("ab", buffering=0) as into:
            while not over.wait(0.001):
                with suppress(OSError):
                    while any(disk.glob(once)) and not over.is_set():
                        into.write(bytes(4096))

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield file
    finally:
        over.set()
        thread.join()
        file.unlink()


def study(home: Path, small: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    words = ["study=s", "method=magnitude", "sparsity.ratio=0.5", "hydra.launcher.report=false", *small]
    return subprocess.run(
        [sys.executable, "-m", "prunelab", *words], capture_output=True, text=True, timeout=240, cwd=cwd, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PRUNELAB_HOME": str(home), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def found(home: Path) -> dict[str, Any]:
    (path,) = home.glob("store/evaluate/*/record.json")
    return json.loads(path.read_text())["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("once", ["home/studies/s/logs/mag*", "home/store/prune/*/spec.json"])
def test_a_study_on_a_full_disk_says_so_and_finishes_when_there_is_space(
    disk: Path, tmp_path: Path, small: list[str], once: str
) -> None:
    home = disk / "home"
    with somebody_elses(disk, once):
        done = study(home, small, tmp_path)
        said = done.stdout + done.stderr
        assert done.returncode == 1, said
        assert "magnitude-0.5-austen-s0: " in said
        assert "No space left on device" in said
        assert f"Free space in {home / 'store'}" in said
        assert "the worker ended" not in said
        assert "Traceback" not in said
    again = study(home, small, tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert not list((home / "studies" / "s" / "failures").glob("*.json"))
    elsewhere = study(tmp_path / "roomy", small, tmp_path)
    assert elsewhere.returncode == 0, elsewhere.stdout
    assert found(home) == found(tmp_path / "roomy")


def test_a_study_that_finds_no_space_at_all_says_so_before_anything_starts(
    disk: Path, tmp_path: Path, small: list[str]
) -> None:
    with somebody_elses(disk, "*"):
        done = study(disk / "home", small, tmp_path)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert str(disk / "home") in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_row_that_a_full_disk_does_not_take_names_its_file() -> None:
    with (
        JsonlWriter(FULL) as writer,
        pytest.raises(StoreError, match="/dev/full cannot be written: No space") as e,
    ):
        writer.write({"a": 1})
    assert isinstance(e.value.__cause__, OSError)
    assert e.value.__cause__.errno == errno.ENOSPC
