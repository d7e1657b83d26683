"""Studies of two real users on one store, and a study that one of them may only read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunelab.plan.study import Plan, save_plan

INLINE = ["sparsity.ratio=0.5", "hydra/launcher=inline"]


def run(people: Any, user: str, home: Path, *words: str, code: int = 0, **more: Any) -> str:
    done = people.python(user, "-m", "prunelab", *words, PRUNELAB_HOME=str(home), **more)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def prunelab(people: Any, user: str, *words: object, code: int = 0, **more: Any) -> str:
    done = people.python(user, "-m", "prunelab.cli", *map(str, words), **more)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def ran(said: str) -> str:
    (words,) = re.findall(r"^ran (.*) in ", said, re.MULTILINE)
    return words


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("umask", [0o022, 0o077], ids=lambda mask: f"{mask:03o}")
def test_each_goes_on_from_what_the_other_has_made(people: Any, small: list[str], umask: int) -> None:
    store = people.folder("store", 0o2775)
    words = [*INLINE, *small, f"paths.store={store}"]
    homes = {user: people.place / user / "home" for user in people.ids}

    first = run(people, "A", homes["A"], "study=a", "method=magnitude", *words, umask=umask)
    assert ran(first) == "3 calibrate, 1 dense, 1 prune, 1 evaluate"
    again = run(people, "B", homes["B"], "study=b", "method=magnitude", *words, umask=umask)
    assert ran(again) == "no stage"
    own = run(
        people, "B", homes["B"], "study=b", "method=wanda", "sparsity=unstructured", *words, umask=umask
    )
    assert ran(own) == "1 prune, 1 evaluate"
    both = ["method=wanda", "sparsity=unstructured", "study=both"]
    assert ran(run(people, "A", homes["A"], *both, *words, umask=umask)) == "no stage"
    for path in store.rglob("*"):
        assert path.stat().st_gid == people.lab, path
        assert path.stat().st_mode & 0o060 == 0o060, path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_that_may_only_be_read_and_one_that_is_shared(people: Any, small: list[str]) -> None:
    """B is no member of the lab at first, and reads; then a member, who works in the lab's own studies."""
    home = people.folder("home", 0o2775)
    words = ["study=s", "method=magnitude", *INLINE, *small]
    run(people, "A", home, *words)
    study, other = home / "studies" / "s", {"member": False}
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}

    assert "1 done" in prunelab(people, "B", "status", study, **other)
    assert f"{study}/report cannot be written" in prunelab(people, "B", "report", study, code=1, **other)
    assert "index.html" in prunelab(people, "B", "report", study, "--out", "seen", **other)
    name = "magnitude-0.5-austen-s0"
    assert "model" in prunelab(people, "B", "export", study, name, "model", **other)
    assert "no W&B runs here" in prunelab(people, "B", "sync", study, **other)
    assert ran(prunelab(people, "B", "retry", study, **other)) == "no stage"
    said = run(people, "B", home, *words, **other)
    assert ran(said) == "no stage"
    assert "no report: " in said
    said = run(people, "B", home, *words, "seed=1", code=1, **other)
    assert "paths.store=" in said
    assert "cannot be written: Permission denied" in said
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before

    assert ran(run(people, "B", home, *words, umask=0o077)) == "no stage"
    assert ran(run(people, "A", home, *words, "seed=0,1", umask=0o077)) == "1 calibrate, 1 prune, 1 evaluate"
    assert "2 done" in prunelab(people, "B", "status", study)


def test_the_files_of_a_study_are_the_groups_of_its_folder(
    people: Any, plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    code = """
import sys
from pathlib import Path
from prunelab.launch.run.failure import keep_failure
from prunelab.launch.run.log import log_path, log_to
from prunelab.launch.slurm.files import Files
from prunelab.launch.slurm.task import Note
from prunelab.plan.study import load_plan, save_plan

plan = load_plan(Path(sys.argv[1]))
save_plan(plan)
keep_failure(plan, {"key": next(iter(plan.stages)), "reason": "none"})
note = Note(plan.folder / "slurm" / "x", 0)
note.start("")
note.event("started", {})
log_to(log_path(plan, "j"), "hello")
"""
    home = people.folder("home", 0o775)
    planned = plan_of("method=magnitude", f"paths.root={home}")
    (kept,) = [save_plan(planned)]
    for path in (home, *home.rglob("*")):  # as A would have made it
        os.chown(path, people.ids["A"], people.lab)
    for user in ("A", "B", "A"):
        done = people.python(user, "-c", code, str(planned.folder), umask=0o077)
        assert done.returncode == 0, done.stderr
    assert kept.is_file()
    for path in home.rglob("*"):
        assert path.stat().st_gid == people.lab, path
        assert path.stat().st_mode & 0o060 == 0o060, path
