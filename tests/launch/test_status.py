"""What ``prunelab status`` shows of a study, from files alone."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO

from rich.console import Console

from prunelab.launch.monitor.job_table import lines
from prunelab.launch.monitor.status import local_views, show_status
from prunelab.launch.run.failure import failure_path, keep_failure
from prunelab.launch.run.log import log_path
from prunelab.plan.graph import jobs
from prunelab.plan.kind import DENSE
from prunelab.plan.study import Plan
from prunelab.store.artefact import stage_lock


def shown(plan: Plan) -> str:
    console = Console(width=200, file=StringIO())
    show_status(plan, console, whole=True)
    return console.file.getvalue()


def header(text: str) -> list[str]:
    return [cell.strip() for cell in next(line for line in text.splitlines() if "trial " in line).split("┃")][
        1:-1
    ]


def test_a_column_for_every_kind_of_stage_that_the_study_has(plan_of: Callable[..., Plan]) -> None:
    plain = plan_of("method=magnitude")
    assert header(shown(plain)) == ["trial", "state", "dense", "prune", "evaluate", "reason"]
    repaired = plan_of(
        "method=wanda", "sparsity=unstructured", "reconstruction=layer", "reconstruction.masks=before"
    )
    assert header(shown(repaired)) == [
        "trial",
        "state",
        "dense",
        "prune",
        "reconstruct",
        "evaluate",
        "reason",
    ]


def test_a_failure_and_what_waits_for_it_have_reasons_also_on_this_machine(
    plan_of: Callable[..., Plan],
) -> None:
    plan = plan_of("method=magnitude", seeds=2)
    (dense,) = [job for job in jobs(plan, set()) if plan.stages[job.stages[-1]].kind == DENSE]
    key = dense.stages[-1]
    log = log_path(plan, dense.name)
    log.parent.mkdir(parents=True)
    log.write_text("loading\nValueError: no such weights\n")
    keep_failure(plan, {"key": key, "reason": "ValueError: no such weights", "log": str(log), "time": 1.0})
    found = {line.name: line for line in lines(plan, local_views(plan, set()), set())}
    assert (found[dense.name].state, found[dense.name].reason) == ("failed", "ValueError: no such weights")
    trial = found[plan.trials[0].name]
    assert (trial.state, trial.reason) == ("skipped", f"dependency: {dense.name} failed")
    assert trial.stages[DENSE] == "failed"
    text = shown(plan)
    assert f"log: {log}" in text
    assert "2 skipped" in text
    assert "prunelab retry" in text


def test_what_runs_here_is_shown_as_running(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of("method=magnitude", seeds=2)
    key = jobs(plan, set())[0].stages[0]
    (plan.store / plan.stages[key].folder).mkdir(parents=True)
    with stage_lock(plan.store, key):
        states = {view.name: view.state for view in local_views(plan, set()).values()}
    assert states[jobs(plan, set())[0].name] == "running"
    assert set(states.values()) == {"running", "waiting"}


def test_an_unreadable_note_is_a_failure_still(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of("method=magnitude")
    key = jobs(plan, set())[0].stages[0]
    failure_path(plan, key).parent.mkdir(parents=True)
    failure_path(plan, key).write_text("{")
    view = local_views(plan, set())[jobs(plan, set())[0].name]
    assert (view.state, view.reason) == ("failed", "unknown: its note cannot be read")
