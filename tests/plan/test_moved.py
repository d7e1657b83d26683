"""A study that was moved or copied with its store finds it; a report without its store writes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from by_conf import composer

from prunelab import cli
from prunelab.config.version import SCHEMA
from prunelab.errors import StoreError
from prunelab.launch.command.study import plan_study
from prunelab.plan.study import Plan, load_plan, require_store, save_plan
from prunelab.report.collect import collect


def planned(root: Path, store: Path) -> Path:
    folder = root / "studies" / "lab"
    store.mkdir(parents=True)
    save_plan(Plan("lab", store, folder, (), {}))
    return folder


def ran(root: Path, store: Path) -> Path:
    """The folder of a study of one trial, of which nothing is finished."""
    words = [
        "study=lab",
        f"paths.root={root}",
        f"paths.store={store}",
        "method=magnitude",
        "sparsity.ratio=0.5",
    ]
    plan = plan_study(composer(), [words], ["test"])
    save_plan(plan)
    return plan.folder


def test_a_study_and_its_store_move_together(tmp_path: Path) -> None:
    folder = planned(tmp_path / "old", tmp_path / "old" / "store")
    assert load_plan(folder).store == tmp_path / "old" / "store"
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    assert load_plan(tmp_path / "new" / "studies" / "lab").store == tmp_path / "new" / "store"
    (kept,) = (folder / "plans").iterdir()
    assert load_plan(kept).store == tmp_path / "old" / "store"


def test_a_store_of_elsewhere_that_is_not_there_any_more_is_looked_for_beside_the_study(
    tmp_path: Path,
) -> None:
    folder = planned(tmp_path / "home", tmp_path / "elsewhere")
    assert load_plan(folder).store == tmp_path / "elsewhere"
    (tmp_path / "elsewhere").rename(tmp_path / "home" / "store")
    assert load_plan(folder).store == tmp_path / "home" / "store"


def test_a_report_whose_store_is_not_there_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "lab"
    folder.mkdir(parents=True)
    trial = {"number": 0, "name": "a", "key": "k", "overrides": [], "config": {}, "stages": {}}
    plan = {"schema": SCHEMA, "study": "lab", "store": str(tmp_path / "x"), "trials": [trial], "stages": {}}
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(StoreError, match=r"store of .*lab is not there: .*/x\. Nothing was written"):
        collect(folder)


def tree(root: Path) -> set[Path]:
    return set(root.rglob("*"))


@pytest.mark.parametrize("command", ["status", "report", "sync", "retry", "attach"])
def test_a_copied_study_whose_store_is_gone_is_none_of_which_nothing_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    folder = ran(tmp_path / "home", tmp_path / "elsewhere")
    shutil.copytree(folder, tmp_path / "copy" / "studies" / "lab")
    shutil.rmtree(tmp_path / "elsewhere")
    before = tree(tmp_path)
    assert cli.main([command, str(tmp_path / "copy" / "studies" / "lab")]) == 1
    said = capsys.readouterr().err
    assert f"lab is not there: {tmp_path / 'elsewhere'}. Nothing was written" in said
    assert f"as {tmp_path / 'copy' / 'store'}, and ask again" in said
    assert tree(tmp_path) == before


def test_an_export_without_its_store_says_that_and_not_that_the_trial_is_unfinished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ran(tmp_path, tmp_path / "elsewhere")
    (tmp_path / "elsewhere").rename(tmp_path / "moved")
    assert cli.main(["export", str(folder), "a", str(tmp_path / "out")]) == 1
    assert "is not there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_place_of_a_store_is_taken_by_an_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ran(tmp_path / "home", tmp_path / "elsewhere")
    (tmp_path / "elsewhere").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    # what holds nothing of any kind may be anybody's folder: an empty report would take the place of a full one
    assert cli.main(["report", str(folder), "--store", "moved"]) == 1
    assert "moved is no store: it has no results of any kind. Nothing was written" in capsys.readouterr().err
    (tmp_path / "moved" / "calibrate").mkdir()
    for place in (str(tmp_path / "moved"), "moved"):
        assert cli.main(["status", str(folder), "--store", place]) == 0
        assert cli.main(["sync", str(folder), "--store", place]) == 0
        assert cli.main(["report", str(folder), "--store", place, "--out", str(tmp_path / "out")]) == 0
        assert load_plan(folder, Path(place)).store == tmp_path / "moved"
        assert collect(folder, Path(place)).store == tmp_path / "moved"
    capsys.readouterr()
    assert cli.main(["status", str(folder), "--store", str(tmp_path / "nowhere")]) == 1
    assert f"is not there: {tmp_path / 'nowhere'}." in capsys.readouterr().err


def test_a_study_that_waits_for_its_first_job_has_an_empty_store(tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "lab"
    save_plan(Plan("lab", tmp_path / "store", folder, (), {}))
    require_store(folder, load_plan(folder).store)
    assert not list((tmp_path / "store").iterdir())


def test_a_plan_whose_store_cannot_be_made_is_not_saved(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file/store cannot be written: Not a directory"):
        save_plan(Plan("lab", tmp_path / "file" / "store", tmp_path / "studies" / "lab", (), {}))
    assert not (tmp_path / "studies").exists()
