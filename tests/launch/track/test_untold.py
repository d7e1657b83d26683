"""A trial whose tracker could not be told is said to be so, at the end of the study and by its status."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_automatic_config_search_path
from rich.console import Console

from prunelab.config.compose import Composer
from prunelab.config.place import conf_folder
from prunelab.launch.command.study import plan_study
from prunelab.launch.monitor.status import show_status
from prunelab.launch.run.base import Event, Launcher, Order
from prunelab.launch.run.drive import drive
from prunelab.tracking.base import run_id
from prunelab.tracking.note import Note


class Silent(Launcher):
    """Runs jobs whose tracker says nothing."""

    def run(self, order: Order, listen: Callable[[Event], None]) -> None:
        for job in order.jobs:
            listen(Event("done", job.name))


def test_a_finished_trial_that_no_tracker_knows(
    lab: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    lab.write_finished(tmp_path)
    composer = Composer(ConfigLoaderImpl(create_automatic_config_search_path(None, None, str(conf_folder()))))
    given = [word for word in lab.SWEEP if "=" in word and not word.startswith(("hydra.", "reconstruction="))]
    words = [f"paths.root={tmp_path}", "tracking=wandb", *given]
    plan = plan_study(composer, [[*words, f"reconstruction={repair}"] for repair in ("none", "layer")], [])

    def said(call: Callable[[Console], object]) -> str:
        console = Console(width=250, file=StringIO())
        call(console)
        return console.file.getvalue()

    text = said(lambda console: drive(plan, Silent(), console, dry_run=False, report=False))
    assert "2 finished trials were not tracked" in text
    assert f"prunelab retry {plan.folder}" in text
    status = said(lambda console: show_status(plan, console, whole=True))
    assert "track" in status
    assert "2 waiting" in status

    (plan.folder / "tracking").mkdir()
    for trial in plan.trials:
        Note(run_id(trial.key), "offline", "ok", whole=True).save(plan.folder / "tracking")
    assert "not tracked" not in said(
        lambda console: drive(plan, Silent(), console, dry_run=False, report=False)
    )
    assert "2 done" in said(lambda console: show_status(plan, console, whole=True))
