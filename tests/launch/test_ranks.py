"""Several tasks of one job, without SLURM: what srun sets is set here, and the processes work on one plan."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from by_conf import composer

from prunelab.launch.command.study import plan_study
from prunelab.launch.run.failure import failure_path
from prunelab.launch.run.log import log_path
from prunelab.launch.run.worker import run_job
from prunelab.launch.slurm.estimate import need
from prunelab.launch.slurm.files import Files
from prunelab.launch.slurm.settings import Settings
from prunelab.plan.graph import Job
from prunelab.plan.study import Plan, save_plan
from prunelab.sparsity.mask import Elementwise, Structured
from prunelab.store.layout import is_done, locate
from prunelab.store.record import Record, read_record
from prunelab.structures.state import State, open_state, state_digest

ROOT = Path(__file__).parents[2]
METHOD = '''
"""A method that fails where it is told to."""
import os
from dataclasses import dataclass
from typing import Annotated

@dataclass(frozen=True)
class Faulty:
    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]
    scope = "linear"
    needs = ("input_gram",)
    supports = ("rows_columns",)

    def costs(self, site):
        if os.environ.get("PRUNELAB_TEST_FAULT") == os.environ["SLURM_PROCID"]:
            raise ValueError("told to fail")
        energy = site.A.diagonal()
        return (site.W.square() * energy).sum(1), site.W.square().sum(0) * energy

    def update(self, site, keep_rows, keep_columns):
        return None
'''


@dataclass
class Ranked:
    """A study of one trial whose job prunes in four shots, in a folder of its own."""

    folder: Path
    plan: Plan
    job: Job
    runs: int = 0

    def start(self, size: int, **env: str) -> list[subprocess.Popen[str]]:
        """Start the tasks of one submission, as srun does."""
        self.runs += 1
        asked = need(self.plan, self.job, Settings(tasks_per_node=size))
        file = Files(self.plan.folder).intend(
            f"u{self.runs}", save_plan(self.plan), [self.job], asked, time.time()
        )
        here = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{self.folder}", "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "7",
                "SLURM_NTASKS": str(size), "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}  # fmt: skip
        words = [sys.executable, "-m", "prunelab.launch.slurm.task", str(file)]
        return [
            subprocess.Popen(
                words, env={**here, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), **env}, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            for rank in range(size)
        ]  # fmt: skip

    def end(self, tasks: list[subprocess.Popen[str]]) -> list[int]:
        """Wait for the tasks; return their exit codes."""
        for task in tasks:
            task.communicate(timeout=150)
        return [task.returncode for task in tasks]

    def at_shot(self, number: int) -> None:
        """Wait until a shot is on disk."""
        self.at_step("prune", number)

    def at_step(self, kind: str, number: int) -> None:
        """Wait until a step of a stage is on disk."""
        path = self.stage(kind) / "work" / "progress.json"
        end = time.monotonic() + 120
        while not path.exists() or json.loads(path.read_text())["step"] < number:
            assert time.monotonic() < end, self.log()
            time.sleep(0.005)

    def stage(self, kind: str) -> Path:
        key = self.plan.trials[0].stages[kind]
        return locate(self.plan.store, kind, key, self.plan.stages[key].folder)

    def record(self, kind: str) -> Record:
        return read_record(self.stage(kind))

    def state(self) -> State:
        return open_state(self.stage("prune") / "outputs" / "state.safetensors").load()

    def reason(self) -> str:
        return json.loads(failure_path(self.plan, self.plan.trials[0].stages["prune"]).read_text())["reason"]

    def log(self, rank: int = 0) -> str:
        name = self.job.name + (f".rank{rank}" if rank else "")
        path = log_path(self.plan, name)
        return path.read_text() if path.exists() else ""


@pytest.fixture
def study(tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ranked]:
    """``study(name, *overrides)``: the folder ``name`` with a plan in it, and the tokens it needs."""

    def make(name: str, *more: str) -> Ranked:
        folder = tmp_path / name
        (folder / "bin").mkdir(parents=True)
        for command, says in (("squeue", "RUNNING"), ("scontrol", "")):
            (folder / "bin" / command).write_text(f"#!/bin/sh\necho {says}\n")
            (folder / "bin" / command).chmod(0o755)
        (folder / "faulty_method.py").write_text(METHOD)
        monkeypatch.syspath_prepend(folder)
        words = [f"paths.root={folder}", "study=s", *small, "method=surgeon", "sparsity.ratio=0.2", *more]
        plan = plan_study(composer(), [words], [])
        trial = plan.trials[0]
        tokens = Job("tokens", (trial.stages["calibrate"],), None, (), ())
        assert run_job(plan, tokens, {"threads": 1}, lambda what, values: None)
        keys = tuple(trial.stages[role] for role in ("statistics", "prune") if role in trial.stages)
        return Ranked(folder, plan, Job(trial.name, keys, 0, (), ()))

    return make


def same_masks(left: State, right: State) -> bool:
    for name, item in left.items.items():
        one, other = item.mask, right.items[name].mask
        assert isinstance(one, Structured)
        assert isinstance(other, Structured)
        if not torch.equal(one.keep_rows, other.keep_rows):
            return False
        if not torch.equal(one.joined_columns(), other.joined_columns()):
            return False
    return True


@pytest.mark.slow
def test_a_rank_that_is_killed_fails_the_job_and_the_next_try_equals_one_process(
    study: Callable[..., Ranked],
) -> None:
    two = study("two")
    tasks = two.start(2)
    two.at_shot(1)
    tasks[1].send_signal(signal.SIGKILL)
    assert two.end(tasks) == [1, -9], two.log()
    assert "rank 1 of 2 is gone" in two.reason()
    assert two.end(two.start(2)) == [0, 0], two.log() + two.log(1)
    assert "helps with prune" in two.log(1)
    record = two.record("prune")
    assert record.cost["ranks"] == 2
    assert record.cost["shots"] < 4  # it went on from the shot before the kill
    assert len(record.tables["shots"]) == 4
    assert not list(two.plan.folder.glob("slurm/*/*.ranks"))

    one = study("one")
    assert run_job(one.plan, one.job, {"threads": 1}, lambda what, values: None)
    assert same_masks(one.state(), two.state())
    assert record.metrics == one.record("prune").metrics
    assert "ranks" not in one.record("prune").cost


@pytest.mark.slow
def test_a_signal_ends_all_ranks_at_one_shot_and_the_rest_gives_the_same_bits(
    study: Callable[..., Ranked],
) -> None:
    whole, cut = study("whole"), study("cut")
    assert whole.end(whole.start(2)) == [0, 0], whole.log()
    tasks = cut.start(2)
    cut.at_shot(1)
    for task in reversed(tasks):  # the order must not matter
        task.send_signal(signal.SIGUSR2)
    assert cut.end(tasks) == [75, 0], cut.log()
    assert "SIGUSR2: ended after step" in cut.log()
    assert "rank 0 says: ended after step" in cut.log(1)
    assert not is_done(cut.stage("prune"))
    assert cut.end(cut.start(2)) == [0, 0], cut.log()
    assert state_digest(cut.state()) == state_digest(whole.state())


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_exception_in_one_rank_ends_both(study: Callable[..., Ranked], rank: int) -> None:
    # magnitude has the same fields
    two = study("two", "method=magnitude", "method._target_=faulty_method.Faulty", "method.name=faulty")
    tasks = two.start(2, PRUNELAB_TEST_FAULT=str(rank))
    assert two.end(tasks) == [1, 0], two.log() + two.log(1)
    assert two.reason() == ("rank 1 of 2: " if rank else "") + "ValueError: told to fail"
    assert 'raise ValueError("told to fail")' in two.log(rank)
    assert two.end(two.start(2)) == [0, 0], two.log()


@pytest.mark.slow
def test_statistics_of_the_dense_model_are_shared_and_go_on_where_they_stopped(
    study: Callable[..., Ranked],
) -> None:
    words = ["method=sparsegpt", "sparsity=unstructured", "sparsity.propagation=dense", "sparsity.ratio=0.5",
             "calibration.n_samples=8", "calibration.seq_len=128"]  # fmt: skip
    whole, cut, one = study("whole", *words), study("cut", *words), study("one", *words)
    assert whole.end(whole.start(2)) == [0, 0], whole.log()
    assert whole.record("statistics").cost["ranks"] == 2
    assert "ranks" not in whole.record("prune").cost  # it reads what was collected
    tasks = cut.start(2)
    cut.at_step("statistics", 1)
    for task in tasks:
        task.send_signal(signal.SIGUSR2)
    assert cut.end(tasks) == [75, 0], cut.log()
    assert cut.end(cut.start(2)) == [0, 0], cut.log() + cut.log(1)
    assert state_digest(cut.state()) == state_digest(whole.state())
    assert run_job(one.plan, one.job, {"threads": 1}, lambda what, values: None)
    for name, item in one.state().items.items():
        mine, other = item.mask, whole.state().items[name].mask
        assert isinstance(mine, Elementwise)
        assert isinstance(other, Elementwise)
        assert torch.equal(mine.keep_weight, other.keep_weight)


@pytest.mark.slow
def test_nothing_to_share_needs_no_other_rank(study: Callable[..., Ranked]) -> None:
    alone = study("alone", "method=magnitude")
    assert alone.end(alone.start(2)) == [0, 0], alone.log()
    assert "ranks" not in alone.record("prune").cost
