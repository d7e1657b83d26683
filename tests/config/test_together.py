"""What only several trials show."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunelab.config.compose import Composer
from prunelab.launch.command.study import StudyError, checked_trials, plan_study

FLIPPED = """
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Flipped:
    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]
    scope = "linear"
    needs = ()
    supports = ("rows_columns",)

    def costs(self, site):
        return -site.W.square().sum(1), -site.W.square().sum(0)

    def update(self, site, keep_rows, keep_columns):
        return None
"""


def said(composer: Composer, *jobs: list[str]) -> list[str]:
    return [str(problem.error) for problem in checked_trials(composer, jobs)[2]]


@pytest.fixture
def flipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Words that take somebody's class under the name of ours."""
    (tmp_path / "flipped_magnitude.py").write_text(FLIPPED)
    monkeypatch.syspath_prepend(tmp_path)
    return ["method=magnitude", "method._target_=flipped_magnitude.Flipped"]


def test_a_class_under_the_name_of_another_has_its_own_keys(
    composer: Composer, flipped: list[str], tmp_path: Path
) -> None:
    home = f"paths.root={tmp_path}"
    ours, theirs = (plan_study(composer, [[home, *words]], []) for words in (["method=magnitude"], flipped))
    for role in ("prune", "evaluate"):
        assert ours.trials[0].stages[role] != theirs.trials[0].stages[role]
    identity = theirs.stages[theirs.trials[0].stages["prune"]].identity["method"]
    assert identity["_target_"] == "flipped_magnitude.Flipped"
    assert len(identity["_source_"]) == 64


def test_two_classes_under_one_name_in_a_study_are_refused(composer: Composer, flipped: list[str]) -> None:
    (text,) = said(composer, ["method=magnitude"], flipped)
    assert "method.name='magnitude': allowed is one class for a name in a study" in text
    assert "prunelab.methods.magnitude.Magnitude" in text
    assert "flipped_magnitude.Flipped" in text
    assert not said(composer, ["method=magnitude"], [*flipped, "method.name=flipped"])


def test_two_files_of_one_stem_are_two_columns_or_refused(composer: Composer, tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "x.txt").write_text("a few words " * 999)
    one, two = (f"{tmp_path}/{place}/x.txt" for place in ("a", "b"))
    (text,) = said(composer, [f"evaluation.corpora=[{one}]"], [f"evaluation.corpora=[{two}]"])
    assert "evaluation.corpora='x': allowed is one file for a name in a study" in text
    assert not said(
        composer, [f"evaluation.corpora=[{one},{two}]"], [f"evaluation.corpora=[{one},{two}]", "seed=1"]
    )


@pytest.mark.parametrize("key", ["study", "paths.root", "paths.store", "paths.study"])
def test_what_is_one_per_study_cannot_be_swept(composer: Composer, key: str) -> None:
    with pytest.raises(StudyError, match="nothing was started") as caught:
        plan_study(composer, [[f"{key}=one"], [f"{key}=two"]], [])
    assert f"{key}='one,two': allowed is one value in all trials of a study" in str(caught.value)
    assert "(trial 1)" in str(caught.value)
