"""A store that two users share, with real users: what one makes, the other reads, goes on with, and adds to."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

STAGE = """
import sys
from pathlib import Path
from prunelab.config.fingerprint import fingerprint
from prunelab.store.artefact import begin, commit, quarantine, stage_lock, verified_record
from prunelab.store.context import Context
from prunelab.store.layout import is_done, locate
from prunelab.store.record import Record

store, name, what = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
key = fingerprint("prune", {"a": name}, {})

def stage(finish):
    with stage_lock(store, key, "a stage", None):
        folder = locate(store, "prune", key, f"prune/{name}-{key[:16]}")
        work = begin(folder, {"key": key})
        nothing = lambda *a: None
        context = Context(folder, work, work / "outputs", {}, {}, None, nothing, nothing)
        step, _ = context.resume()
        print("from step", step)
        context.log({"step": step})
        context.checkpoint(step + 1)
        (work / "outputs" / "state").write_bytes(b"x")
        if finish:
            commit(folder, Record("prune", key, name, {"a": name}, {}, {"m": 1.0}, {}, {"seconds": 1.0}))

folder = locate(store, "prune", key, f"prune/{name}-{key[:16]}")
if what == "read":
    print(verified_record(folder, key).metrics)
elif what == "quarantine":
    with stage_lock(store, key, "a stage", None):
        quarantine(store, folder)
else:
    stage(what == "finish")
"""


@pytest.fixture(params=["setgid", "plain"])
def store(people: Any, request: pytest.FixtureRequest) -> Path:
    """A folder of the lab, with and without the bit that hands its group down."""
    return people.folder("store", 0o2775 if request.param == "setgid" else 0o775)


def ok(done: Any) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077], ids=lambda mask: f"{mask:03o}")
def test_two_users_work_in_one_store(people: Any, store: Path, umask: int) -> None:
    def stage(user: str, name: str, what: str) -> str:
        return ok(people.python(user, "-c", STAGE, str(store), name, what, umask=umask))

    assert stage("A", "one", "begin") == "from step 0\n"
    assert stage("B", "one", "finish") == "from step 1\n"  # goes on where A stopped
    assert stage("A", "one", "read") == "{'m': 1.0}\n"
    assert stage("B", "two", "finish") == "from step 0\n"
    assert stage("A", "two", "read") == "{'m': 1.0}\n"
    stage("A", "two", "quarantine")
    assert stage("A", "two", "finish") == "from step 0\n"
    for path in store.rglob("*"):
        mode = path.stat()
        assert mode.st_gid == people.lab, path
        wanted = 0o070 if path.is_dir() else 0o060
        assert stat.S_IMODE(mode.st_mode) & wanted == wanted, path


def test_who_may_only_read_reads_and_is_told_so_when_something_is_to_be_written(people: Any) -> None:
    store = people.folder("store", 0o2775)
    ok(people.python("A", "-c", STAGE, str(store), "one", "finish"))
    assert ok(people.python("B", "-c", STAGE, str(store), "one", "read", member=False)) == "{'m': 1.0}\n"
    done = people.python("B", "-c", STAGE, str(store), "one", "finish", member=False)
    assert "StoreError" in done.stderr
    assert "Permission denied. See to the permissions of" in done.stderr


LEASE = """
import os, signal, sys
from pathlib import Path
from prunelab import lock

lock.LEASE_S, lock._SAID_S = 3.0, (0.5, 60.0)
with lock.locked(Path(sys.argv[1]), "a stage"):
    print("held")
    if sys.argv[2] == "die":
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_lease_of_a_dead_colleague_is_taken_over(people: Any) -> None:
    path = people.folder("store", 0o2775) / "locks" / "x.lock"
    dead = people.python("A", "-c", LEASE, str(path), "die", umask=0o077, PRUNELAB_LOCKS="lease")
    assert dead.stdout == "held\n"
    for user in ("B", "A"):
        said = ok(people.python(user, "-c", LEASE, str(path), "end", umask=0o077, PRUNELAB_LOCKS="lease"))
        assert said.endswith("held\n")
