"""Locks say who holds them, and work where the file system has none."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prunelab import lock
from prunelab.errors import ConfigError, StoreError
from prunelab.lock import holder, is_locked, locked

HOLD = """
import sys, time
from pathlib import Path
from prunelab.lock import locked
with locked(Path(sys.argv[1]), "a stage"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(params=["flock", errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "flock":
        return

    def refused(fd: int, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refused)
    monkeypatch.setenv(lock.SETTING, "lease")  # of the other process, whose flock works


def test_a_lock_is_held_by_one(tmp_path: Path, file_system: None, capsys: pytest.CaptureFixture[str]) -> None:
    os.environ.pop(lock.SETTING, None)
    path = tmp_path / "locks" / "x.lock"
    with locked(path, "a stage"):
        assert is_locked(path)
        assert f"(process {os.getpid()}) since 20" in holder(path)
        held = r"a stage is in use: .* holds it on .* \(process \d+\) since"
        with pytest.raises(StoreError, match=held), locked(path, "a stage", timeout=0):
            pass
    assert not is_locked(path)
    with locked(path, "a stage", timeout=0):
        pass


def test_a_wait_is_told_at_once_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr(lock, "_SAID_S", (0.5, 60.0))
    path, words = tmp_path / "x.lock", list[str]()
    with another_process(path) as other:

        def waiting(text: str) -> None:
            words.append(text)
            if len(words) == 2:
                other.kill()  # the kernel lets go of its lock

        with locked(path, "dense llama", waiting):
            pass
    assert words[0].startswith("waiting for dense llama: ")
    assert f"(process {other.pid})" in words[0]
    assert capsys.readouterr().out.count(f"({path})") == 1


def test_a_lease_of_the_dead_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the holder cannot be asked, since it was on another machine: an untouched lease ends."""
    monkeypatch.setenv(lock.SETTING, "lease")
    path, words = tmp_path / "x.lock", list[str]()
    with another_process(path) as other:
        other.kill()
        other.wait()
    marker = path.with_name("x.lock.lease")
    text = marker.read_text()
    marker.write_text(text.replace(socket.gethostname(), "a-machine-that-died"))
    monkeypatch.setattr(lock, "LEASE_S", 60.0)
    clock, start = time.monotonic, time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: start + (clock() - start) * 100)
    with locked(path, "dense llama", words.append):
        pass
    assert "taken over after 60 s" in words[0]


def test_a_setting_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(lock.SETTING, "nfs")
    with pytest.raises(ConfigError, match=r"auto \| lease"), locked(tmp_path / "x.lock", "a stage"):
        pass
