"""What a study must not lose or hide when something about it is odd: told with its reason, nothing overwritten by less."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prunelab.cli import main
from prunelab.errors import StoreError
from prunelab.launch.command import entry
from prunelab.launch.run import pool, worker
from prunelab.launch.run.base import Event, Launcher, Order, Resources
from prunelab.launch.run.drive import drive
from prunelab.launch.run.failure import failure_path
from prunelab.launch.run.log import log_path, opened_log
from prunelab.launch.run.queue import Queue
from prunelab.launch.run.worker import Runner, reason_of, run_job, worker_environment
from prunelab.plan.graph import jobs
from prunelab.plan.stage import Stage
from prunelab.plan.study import Plan, save_plan

Run = Callable[..., subprocess.CompletedProcess[str]]
MakePlan = Callable[..., Plan]
ROOT = Path(__file__).resolve().parents[2]


class Meanwhile(Launcher):
    """Runs nothing; while it does, another command plans under the study's name."""

    def __init__(self, other: Plan) -> None:
        self._other = other

    def run(self, order: Order, listen: Callable[[Event], None]) -> None:
        save_plan(self._other)


def test_the_closing_table_is_that_of_the_own_plan(plan_of: MakePlan, tmp_path: Path) -> None:
    mine, theirs = plan_of("method=magnitude"), plan_of("method=random")
    console = Console(width=200, file=StringIO())
    drive(mine, Meanwhile(theirs), console, dry_run=False, report=True)
    said = console.file.getvalue()
    assert "magnitude-0.5-austen-s0" in said
    assert "random" not in said
    assert "magnitude" in (mine.folder / "report" / "results.csv").read_text()
    assert json.loads((mine.folder / "plan.json").read_text())["trials"][0]["name"].startswith("random")


def failing(plan: Plan) -> Plan:
    """The plan with a store that cannot be one."""
    plan.store.parent.mkdir(parents=True, exist_ok=True)
    plan.store.write_text("a file")
    return plan


def told(plan: Plan, **more: Any) -> list[tuple[str, Mapping[str, Any]]]:
    events: list[tuple[str, Mapping[str, Any]]] = []
    run_job(
        plan, jobs(plan, set())[0], {"threads": 1}, lambda what, values: events.append((what, values)), **more
    )
    return events


def test_a_reason_is_told_also_where_no_note_of_it_can_be_written(plan_of: MakePlan) -> None:
    plan = failing(plan_of("method=magnitude"))
    plan.folder.mkdir(parents=True)
    (plan.folder / "failures").write_text("not a folder")
    what, values = told(plan)[-1]
    assert what == "failed"
    assert "Not a directory" in values["reason"]


def test_a_reason_is_sent_before_it_is_noted_and_told_to_a_tracker(
    plan_of: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    monkeypatch.setattr(worker, "keep_failure", lambda plan, note: order.append("noted"))
    plan = failing(plan_of("method=magnitude"))
    run_job(plan, jobs(plan, set())[0], {"threads": 1}, lambda what, values: order.append(what))
    assert order == ["started", "failed", "noted"]


def test_a_full_disk_is_told_with_its_place_also_where_the_error_names_none(
    plan_of: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Runner, stage: Stage, folder: Path, inputs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write to an open file does

    monkeypatch.setattr(Runner, "_run", full)
    plan = plan_of("method=magnitude")
    values = told(plan)[-1][1]
    stage = plan.stages[jobs(plan, set())[0].stages[0]]
    assert values["reason"].startswith(
        f"{plan.store / str(stage.folder)} cannot be written: No space left on"
    )
    assert "Free space in" in values["reason"]
    assert "permissions" not in values["reason"]
    quota = OSError(errno.EDQUOT, "Disk quota exceeded", "/some/file")
    assert reason_of(quota, [plan.store]).startswith(
        "/some/file cannot be written: Disk quota exceeded. Free"
    )


def test_a_worker_that_dies_after_its_job_failed_takes_the_reason_from_nobody(plan_of: MakePlan) -> None:
    plan = plan_of("method=magnitude")
    (job, *_) = todo = jobs(plan, set())
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"], text=True)
    one = pool.Worker(0, process, job)
    order, queue = Order(plan, plan.folder, todo, Resources(1, 1)), Queue(todo)
    assert queue.take() is job
    failed = {"what": "failed", "job": job.name, "values": {"reason": "no space"}}
    events = list(pool.told(order, queue, [one], one, failed))
    assert one.job is job  # it may be writing a note
    events += list(pool.told(order, queue, [one], one, None))
    assert [event.values["reason"] for event in events if event.what == "failed"] == ["no space"]
    one.told = False
    assert [event.what for event in pool.told(order, queue, [one], one, {"what": "idle"})] == []
    assert one.job is None


def test_a_log_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    with pytest.raises(StoreError, match=r"logs/x\.log cannot be written: Not a directory"):
        opened_log(tmp_path / "logs" / "x.log")


def test_without_a_log_none_is_named(plan_of: MakePlan) -> None:
    plan = failing(plan_of("method=magnitude"))
    values = told(plan)[-1][1]
    note = json.loads(failure_path(plan, jobs(plan, set())[0].stages[0]).read_text())
    assert "log" not in {**values, **note}
    log = log_path(plan, "x")
    assert told(plan, log=log)[-1][1]["log"] == str(log)


def test_a_worker_that_cannot_start_says_why(prunelab: Run, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open it')\n")
    done = prunelab("study=s", "method=magnitude", PYTHONPATH=f"{tmp_path / 'broken'}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert "the worker ended with exit code 1: ImportError: libcudart.so.12: cannot open it" in done.stdout
    log = next(line.split("log: ")[1] for line in done.stdout.splitlines() if "log: " in line)
    assert Path(log).is_file()


def test_workers_keep_docstrings_and_write_utf8_whatever_the_terminal_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    code = "import sys; print(sys.flags.optimize, sys.stdout.encoding)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **worker_environment(1)}, capture_output=True, text=True
    )  # fmt: skip
    assert done.stdout.split() == ["0", "utf-8"]


def test_inline_without_docstrings_is_refused_before_anything_starts(prunelab: Run, home: Path) -> None:
    done = prunelab("method=magnitude", "hydra/launcher=inline", small=False, PYTHONOPTIMIZE="2")
    assert done.returncode == 1
    assert "takes away the docstrings that transformers reads" in done.stderr
    assert not list((home / "store").rglob("spec.json"))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_status_on_a_terminal_that_lacks_its_marks(plan_of: MakePlan, encoding: str) -> None:
    plan = plan_of("method=magnitude")
    save_plan(plan)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "prunelab.cli", "status", str(plan.folder)], capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 waiting" in done.stdout.decode(encoding)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("name", ["org/data", "../../../up", "50%j", "n" * 240, ".."])
def test_a_log_of_an_odd_name_lies_in_the_study(plan_of: MakePlan, name: str) -> None:
    plan = plan_of("method=magnitude")
    trial = replace(plan.trials[0], name=f"{name}-s0")
    odd = replace(plan, trials=(trial,))
    for job in jobs(odd, set()):
        log = log_path(odd, job.name)
        assert log.resolve().parent == odd.folder.resolve() / "logs"
        assert len(log.name) < 200


@pytest.mark.parametrize(
    ("words", "given", "says"),
    [
        ([], "/proc/nope", "paths.study=/proc/nope/studies/s cannot be written"),
        (["paths.root=/proc/nope"], "", "paths.study=/proc/nope/studies/s cannot be written"),
        (["paths.root="], "", "paths.root='': allowed is a folder"),
    ],
)
def test_a_place_that_is_none_is_told_before_anything_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    given: str,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNELAB_HOME", given)
    assert entry.run(["prunelab", "study=s", *words, "hydra.launcher.dry_run=true"]) == 1
    text = capsys.readouterr().err
    assert says in text
    assert "Traceback" not in text


@pytest.mark.parametrize(("given", "place"), [("", "outputs"), ("~/lab", "me/lab")])
def test_an_empty_home_is_none_and_a_tilde_is_a_home(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: str,
    place: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNELAB_HOME", given)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert entry.run(["prunelab", "study=s", "hydra.launcher.dry_run=true"]) == 0
    assert f"study {tmp_path / place / 'studies' / 's'}" in capsys.readouterr().out
    assert not (tmp_path / "~").exists()
    monkeypatch.setenv("PRUNELAB_HOME", given)  # each command settles it for itself
    assert main(["status", "s"]) == 1
    assert str(tmp_path / place / "studies") in capsys.readouterr().err
