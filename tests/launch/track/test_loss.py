"""What did not arrive at W&B is said at the end of a study, by its status and by its sync, with reason and remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import wandb
from by_conf import composer
from rich.console import Console

from prunelab.launch.command.study import plan_study
from prunelab.launch.monitor.status import show_status
from prunelab.launch.run.base import Event, Launcher, Order
from prunelab.launch.run.drive import drive
from prunelab.launch.track.loss import losses
from prunelab.launch.track.mirror import Mirror, tracking_folder
from prunelab.launch.track.sync_view import show_sync
from prunelab.plan.study import Plan, load_plan
from prunelab.tracking.base import run_id
from prunelab.tracking.note import Note, live_lock
from prunelab.tracking.wandb import server


class Silent(Launcher):
    """Runs jobs whose trackers say nothing."""

    def run(self, order: Order, listen: Callable[[Event], None]) -> None:
        for job in order.jobs:
            listen(Event("done", job.name))


def said(call: Callable[[Console], object]) -> str:
    console = Console(width=250, file=StringIO())
    call(console)
    return console.file.getvalue()


def end(plan: Plan) -> str:
    return said(lambda console: drive(plan, Silent(), console, dry_run=False, report=False))


def status(plan: Plan) -> str:
    return said(lambda console: show_status(plan, console, whole=True))


def sync(plan: Plan) -> str:
    wandb.teardown()  # a command is a process of its own
    return said(lambda console: show_sync(plan, console, 20))


def tell(plan: Plan, number: int) -> str:
    """Tell a trial's tracker all of it; return the name."""
    Mirror(plan, plan.trials[number], own=()).finish(True)
    return plan.trials[number].name


def changed(plan: Plan, number: int, **tracking: object) -> Plan:
    """The plan with other values of tracking for one trial."""
    path = plan.folder / "plan.json"
    plain = json.loads(path.read_text())
    plain["trials"][number]["config"]["tracking"] |= tracking
    path.write_text(json.dumps(plain))
    return load_plan(plan.folder)


def test_a_run_that_never_opened_and_one_that_nobody_told(loopback, lab, finished, tmp_path: Path) -> None:
    plan = changed(lab.tracked(finished, tmp_path / "on"), 0, tags=["x" * 65])
    name, other = tell(plan, 0), plan.trials[1].name
    for text in (end(plan), status(plan)):
        assert "W&B lacks 2 of 2 runs, or a part of them\n" in text
        assert f"    1 ({name}): no run could be opened: " in text
        assert "65 characters. Tags must be between 1 and 64 characters" in text
        assert f"    1 ({other}): no run was opened; the trial's log may say why\n" in text
        assert (
            "    first put right what the reason names (the key; or tracking.*, and run the study again); "
            in text
        )
        assert f"    send them with: prunelab sync {plan.folder}\n" in text

    text = sync(plan)
    assert f"failed: {name}  " in text
    assert "Tags must be between 1 and 64 characters" in text
    assert f"sent: {other}  from the store\n" in text
    assert "lab: 1 sent, 1 failed\n" in text
    assert "W&B lacks 1 of 2 runs, or a part of them\n" in end(plan)
    plan = changed(plan, 0, tags=[])
    assert "lab: 1 sent, 1 sent before\n" in sync(plan)
    assert losses(plan) == []
    assert "W&B" not in end(plan) + status(plan)
    assert loopback.unknown == []


def test_a_run_that_the_server_refuses_is_kept_and_sent_when_it_does_not(
    loopback, lab, finished, tmp_path: Path
) -> None:
    plan = changed(lab.tracked(finished, tmp_path / "on"), 1, name="none")
    loopback.refused = {"UpsertBucket"}
    name = tell(plan, 0)
    reason = "Error: Error initializing run: input: permission denied"
    for text in (end(plan), status(plan)):
        assert "W&B lacks 1 of 1 runs" in text  # the other was not to be tracked
        assert f"    1 ({name}): not sent: {reason}\n" in text
        assert "first put right what the reason names" in text
    text = sync(plan)
    assert f"failed: {name}  {reason}\n" in text
    assert "first put right what the reason names" in end(plan)
    loopback.refused = set()
    assert sync(plan) == f"sent: {name}  from the store\nlab: 1 sent\n"
    assert losses(plan) == []


@pytest.mark.parametrize(
    ("refused", "reason"),
    [("file_stream", "the server has 0 of 7 rows"),
     ("CreateArtifact", "ValueError: ArtifactSaver.createArtifact: input: permission denied")],
)  # fmt: skip
def test_a_run_that_opened_and_of_which_a_part_was_refused(
    loopback, lab, finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str, reason: str
) -> None:
    monkeypatch.setattr(server, "LAG_S", 0.1)
    plan = changed(lab.tracked(finished, tmp_path / "on"), 1, name="none")
    loopback.refused = {refused}
    name = tell(plan, 0)
    text = status(plan)
    assert f"    1 ({name}): {reason}\n    send them with: prunelab sync {plan.folder}\n" in text
    assert f"failed: {name}  {reason}\nlab: 1 failed\n" in sync(plan)
    assert [loss.reason for loss in losses(plan)] == [reason]  # also after the server took a part of it
    loopback.refused = set()
    assert f"sent: {name}  from the store\nlab: 1 sent\n" in sync(plan)
    assert losses(plan) == []
    assert loopback.unknown == []


def test_offline_runs_and_those_whose_process_died(lab, finished, wandb_env, tmp_path: Path) -> None:
    plan = lab.tracked(finished, tmp_path / "off", mode="offline")
    folder = tracking_folder(plan)
    folder.mkdir()
    ids = [run_id(trial.key) for trial in plan.trials]
    Note(ids[0], "offline", "ok", whole=True, reason="offline was asked for").save(folder)
    Note(ids[1], "online").save(folder)
    assert [(loss.reason, loss.trials) for loss in losses(plan)] == [
        ("not sent: offline was asked for", (plan.trials[0].name,)),
        ("the process that told it ended before it", (plan.trials[1].name,)),
    ]
    assert {loss.mend for loss in losses(plan)} == {f"send them with: prunelab sync {plan.folder}"}
    with live_lock(folder, ids[1]):
        assert len(losses(plan)) == 1  # it is being told
    Note(ids[1], "offline", "ok", whole=True, reason="offline was asked for").save(folder)
    (loss,) = losses(plan)
    assert loss.trials == tuple(trial.name for trial in plan.trials)


def test_a_finished_trial_is_done_once_its_tracker_was_told(lab, finished, wandb_env, tmp_path: Path) -> None:
    given = [word for word in lab.SWEEP if "=" in word and not word.startswith(("hydra.", "reconstruction="))]
    words = [f"paths.root={tmp_path}", f"paths.store={finished / 'store'}", "tracking=wandb", *given]
    plan = plan_study(composer(), [[*words, f"reconstruction={repair}"] for repair in ("none", "layer")], [])
    end(plan)
    text = status(plan)
    assert "track" in text
    assert "2 waiting" in text
    assert "W&B lacks 2 of 2 runs" in text
    tracking_folder(plan).mkdir()
    for trial in plan.trials:
        Note(run_id(trial.key), "offline", "ok", whole=True).save(tracking_folder(plan))
    assert "2 done" in status(plan)


def test_trials_to_come_and_trials_without_tracking_lack_nothing(lab, finished, wandb_env, tmp_path) -> None:
    assert losses(lab.tracked(finished, tmp_path / "none", name="none")) == []
    assert losses(lab.tracked(finished, tmp_path / "disabled", mode="disabled")) == []
    plan = lab.tracked(finished, tmp_path / "begun")
    path = plan.folder / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"store": str(tmp_path / "empty")}))
    begun = load_plan(plan.folder)
    assert losses(begun) == []
    tracking_folder(begun).mkdir()
    Note(run_id(begun.trials[0].key), "online").save(tracking_folder(begun))
    assert losses(begun) == []  # another start goes on with it
    for path in tracking_folder(begun).glob("*.run.json"):
        path.unlink()
    assert sync(begun) == "lab: no trial has anything to tell W&B yet\n"
