"""A study that was moved or copied with its store finds it; a report without its store writes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from prunelab.config.version import SCHEMA
from prunelab.errors import StoreError
from prunelab.plan.study import Plan, load_plan, save_plan
from prunelab.report.collect import collect


def planned(root: Path, store: Path) -> Path:
    folder = root / "studies" / "lab"
    store.mkdir(parents=True)
    save_plan(Plan("lab", store, folder, (), {}))
    return folder


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
