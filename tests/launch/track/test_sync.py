"""``prunelab sync`` against every way a run can have ended: killed, torn, cut off by the server, failed."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prunelab.launch.run.failure import failure_path
from prunelab.launch.track.mirror import Mirror, tracking_folder
from prunelab.launch.track.sync_view import show_sync
from prunelab.plan.study import Plan
from prunelab.tracking.base import run_id
from prunelab.tracking.note import live_lock, read_note
from prunelab.tracking.wandb.file import read_fragment, run_files


def tell(plan: Plan, *numbers: int) -> None:
    for trial in [plan.trials[number] for number in numbers] or plan.trials:
        Mirror(plan, trial, own=()).finish(True)


def say(plan: Plan, timeout_s: float | None = None) -> tuple[int, str]:
    console = Console(record=True, width=400, file=io.StringIO())
    code = show_sync(plan, console, timeout_s)
    return code, console.export_text()


@pytest.fixture(scope="module")
def once() -> dict[str, dict[str, Any]]:
    """What tests of this module share, made by the first that asks."""
    return {}


@pytest.fixture
def whole(loopback, lab, finished, once: dict[str, dict[str, Any]], tmp_path: Path) -> dict[str, Any]:
    """What the server holds of an undisturbed online study."""
    if "whole" not in once:
        tell(lab.tracked(finished, tmp_path / "whole"))
        once["whole"] = lab.held(loopback.held)
        loopback.forget()
    return once["whole"]


def test_torn_files_are_skipped_and_named_and_their_runs_told_from_the_store(
    loopback, lab, finished, whole, tmp_path
):
    plan = lab.tracked(finished, tmp_path / "off", mode="offline")
    tell(plan)
    torn = run_files(tracking_folder(plan))[run_id(plan.trials[0].key)][-1]
    torn.write_bytes(torn.read_bytes()[:7])
    stranger = (
        torn.parent.with_name("offline-run-20200101_000000-feedfeedfeedfeed") / "run-feedfeedfeedfeed.wandb"
    )
    stranger.parent.mkdir()
    stranger.write_bytes(b":W&B")
    code, text = say(plan)
    assert code == 0
    assert f"torn: {torn} " in text
    assert f"torn: {stranger} " in text
    assert f"sent: {plan.trials[0].name}  from the store" in text
    assert f"sent: {plan.trials[1].name}  from its folder" in text
    assert "lab: 2 sent, 2 torn files skipped" in text
    assert lab.held(loopback.held) == whole
    assert loopback.unknown == []


@pytest.mark.slow  # its twin below, online, is not
def test_a_killed_start_and_another_are_one_run_offline(loopback, lab, finished, whole, tmp_path):
    plan = lab.tracked(finished, tmp_path / "off", mode="offline")
    killed(plan, lab.child_environment())
    tell(plan)
    files = run_files(tracking_folder(plan))[run_id(plan.trials[0].key)]
    assert len(files) == 2
    assert [read_fragment(file).torn for file in files] == [False, False]
    assert say(plan)[0] == 0
    assert lab.held(loopback.held) == whole


def test_a_killed_start_and_another_are_one_run_online(loopback, lab, finished, whole, tmp_path):
    plan = lab.tracked(finished, tmp_path / "on", mode="online")
    killed(
        plan,
        lab.child_environment(),
        until=lambda: loopback.held.runs and next(iter(loopback.held.runs.values())).history,
    )
    tell(plan)
    assert lab.held(loopback.held) == whole
    (first,) = [run for run in loopback.held.runs.values() if run.name == run_id(plan.trials[0].key)]
    assert first.rewritten == 0
    code, text = say(plan)
    assert (code, text) == (0, "lab: 2 sent before, nothing to do\n")


def killed(plan: Plan, environment: dict[str, str], until=None) -> None:
    """Tell the first trial without its end in a process that is killed, as a node that fails would."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom prunelab.launch.track.mirror import Mirror\n"
        "from prunelab.plan.study import load_plan\nplan = load_plan(Path(sys.argv[1]))\n"
        "mirror = Mirror(plan, plan.trials[0], own=())\nprint('told', flush=True)\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(plan.folder)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "told\n"
    end = time.monotonic() + 20
    while time.monotonic() < end and not (until() if until else False):
        if until is None and time.monotonic() > end - 19:
            break  # the transaction log is flushed twice a second
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "hang"])
def test_an_outage_in_the_middle_delays_no_trial_beyond_its_bound_and_sync_repairs_it(
    loopback, lab, finished, whole, tmp_path, fault
):
    bound = 4
    plan = lab.tracked(finished, tmp_path / "on", finish_timeout=bound)
    trial = plan.trials[0]
    mirror = Mirror(plan, trial, own=(trial.stages["evaluate"],))
    until(lambda: loopback.held.runs[run_id(trial.key)].history)  # the rows of dense and prune are there
    loopback.fault = fault
    start = time.monotonic()
    mirror.stage_done(trial.stages["evaluate"])
    assert time.monotonic() - start < 1
    mirror.finish(True)
    assert time.monotonic() - start < bound + 2
    note = read_note(tracking_folder(plan), run_id(trial.key))
    assert note is not None
    assert (note.ended, note.sent) == ("ok", False)
    loopback.heal()
    tell(plan, 1)
    code, text = say(plan, timeout_s=60)
    assert code == 0, text
    assert "lab: 1 sent, 1 sent before" in text
    assert lab.held(loopback.held) == whole
    assert loopback.held.runs[run_id(trial.key)].rewritten == 0
    assert say(plan)[1] == "lab: 2 sent before, nothing to do\n"


def until(said, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("fault", ["500", "hang"])
def test_a_server_that_never_answers_is_known_within_two_seconds(loopback, lab, finished, tmp_path, fault):
    plan = lab.tracked(finished, tmp_path / "on")
    loopback.fault = fault
    start = time.monotonic()
    mirror = Mirror(plan, plan.trials[0], own=())
    assert time.monotonic() - start < 2 + 4  # offline within two seconds, and what W&B itself takes to start
    mirror.finish(True)
    note = read_note(tracking_folder(plan), run_id(plan.trials[0].key))
    assert note is not None
    assert (note.mode, note.whole, note.sent) == ("offline", True, False)


def test_a_failed_trial_alerts_without_secrets_and_keeps_its_rows(
    loopback, lab, finished, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MY_SECRET_TOKEN", "zq-tok-7719-qx")
    plan = lab.fresh_store(lab.tracked(finished, tmp_path / "on"), tmp_path / "on")
    trial = plan.trials[0]
    key = trial.stages["evaluate"]
    for folder in (plan.store / "evaluate").glob(f"*-{key[:16]}"):
        (folder / "DONE").unlink()
    failure_path(plan, key).parent.mkdir()
    failure_path(plan, key).write_text(json.dumps({"reason": "no memory, zq-tok-7719-qx"}))
    Mirror(plan, trial, own=(key,)).failed("no memory, zq-tok-7719-qx")
    (alert,) = loopback.run.alerts
    assert (alert["title"], alert["severity"]) == (f"{trial.name} failed", "ERROR")
    assert alert["text"] == "lab: no memory, ***"
    assert loopback.run.exitcode == 1
    rows = len(loopback.run.history)
    assert rows > 0
    (tracking_folder(plan) / f"{run_id(trial.key)}.run.json").unlink()
    loopback.forget()
    code, text = say(plan)
    assert code == 0, text  # without its note, and without the server's memory
    run = loopback.held.runs[run_id(trial.key)]
    assert (len(run.history) >= rows, run.exitcode, len(run.alerts)) == (True, 1, 1)


def test_without_key_or_server_it_says_so_at_once(
    loopback, lab, finished, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    plan = lab.tracked(finished, tmp_path / "off", mode="offline")
    tell(plan)
    monkeypatch.delenv("WANDB_API_KEY")
    start = time.monotonic()
    done = lab.sync(tmp_path / "off")
    seconds = time.monotonic() - start
    assert (done.returncode, done.stdout) == (1, "")
    assert "2 runs wait for a W&B server: no API key: set WANDB_API_KEY or run `wandb login`" in done.stderr
    assert "Traceback" not in done.stderr
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    loopback.fault = "hang"
    done = lab.sync(tmp_path / "off")
    assert done.returncode == 1
    assert f"{loopback.url} did not answer within 2 s" in done.stderr
    assert (
        seconds < 10
    )  # an interpreter's start on a busy machine; the decision is bounded in wandb/test_probe


def test_a_run_that_lives_is_left_alone_and_an_untracked_study_says_so(loopback, lab, finished, tmp_path):
    none = lab.tracked(finished, tmp_path / "none", name="none")
    assert say(none) == (0, "lab: no W&B runs here; tracking=wandb makes them\n")
    plan = lab.tracked(finished, tmp_path / "off", mode="offline")
    tell(plan, 0)
    names = [trial.name for trial in plan.trials]
    with live_lock(tracking_folder(plan), run_id(plan.trials[0].key)):
        code, text = say(plan)
    assert code == 0
    assert text == (
        f"live: {names[0]}  its trial is running\nsent: {names[1]}  from the store\n"
        "lab: 1 sent, 1 running, left alone\n"
    )


def test_what_the_sdk_refuses_is_failed_with_its_reason(loopback, lab, finished, tmp_path):
    plan = lab.tracked(finished, tmp_path / "off", mode="offline")
    tell(plan, 0)
    file = run_files(tracking_folder(plan))[run_id(plan.trials[0].key)][-1]
    moved = file.parent.with_name("offline-run-20200101_000000-feedfeedfeedfeed")
    shutil.copytree(file.parent, moved)
    (moved / file.name).rename(moved / "run-feedfeedfeedfeed.wandb")
    loopback.held.run("feedfeedfeedfeed", "prunelab").stream(
        {"files": {"wandb-history.jsonl": {"offset": 0, "content": ["{}"]}}}
    )
    loopback.held.runs["feedfeedfeedfeed"].variables = {"name": "feedfeedfeedfeed"}
    code, text = say(plan)
    assert code == 1
    assert (
        "failed: feedfeedfeedfeed  the server has 1 rows of it, and no plan of this study knows the rest"
        in text
    )
    assert "lab: 2 sent, 1 failed" in text
