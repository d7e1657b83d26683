"""A kind of stage, and a repair, from outside the package: one file, one YAML; they run, are kept, are shown."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from prunelab.launch.track.mirror import Mirror
from prunelab.plan.study import load_plan
from prunelab.tracking.base import Artefact

Run = Callable[..., subprocess.CompletedProcess[str]]
CLASS = '''
"""Counts what is left of the weights, and the tokens it was given."""
from __future__ import annotations
from dataclasses import dataclass
from typing import Annotated

@dataclass(frozen=True)
class Census:
    above: Annotated[float, "x >= 0"]
    reads = ("test",)

    def run(self, trial):
        alive = sum(int((site.linear.weight.abs() > self.above).sum()) for site in trial.decoder.sites())
        trial.context.progress("counting", 1, 1)
        return {"alive": alive, "tokens": sum(text.numel() for text in trial.tokens.values())}
'''


@pytest.fixture
def census(tmp_path: Path) -> list[str]:
    (tmp_path / "mine.py").write_text(CLASS)
    (tmp_path / "conf" / "stages").mkdir(parents=True)
    (tmp_path / "conf" / "stages" / "census.yaml").write_text(
        "census:\n  _target_: mine.Census\n  above: 0.0\n"
    )
    return ["--config-dir", str(tmp_path / "conf"), "+stages=census"]


class Recorder:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []
        self.values: dict[str, Any] = {}

    def log(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)

    def table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None: ...

    def summary(self, values: Mapping[str, Any]) -> None:
        self.values |= values

    def artefact(self, item: Artefact, *, used: bool) -> None: ...

    def alert(self, title: str, text: str) -> None: ...

    def finish(self, ok: bool) -> None: ...


def test_a_kind_of_ones_own_runs_and_is_shown_everywhere(
    prunelab: Run, home: Path, census: list[str]
) -> None:
    words = ["study=s", "method=magnitude", "sparsity.ratio=0.1,0.3", "runtime.threads=1", "-m", *census]
    done = prunelab(*words, "hydra.launcher.report=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 census" in done.stdout
    folder = home / "studies" / "s"
    with (folder / "report" / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    alive = [float(row["census/alive"]) for row in rows if row["census/alive"]]
    assert len(alive) == 2
    assert alive[0] > alive[1] > 0
    assert {float(row["census/tokens"]) for row in rows if row["census/tokens"]} == {4 * 32}

    status = prunelab("status", "s", module="prunelab.cli")
    header = next(line for line in status.stdout.splitlines() if "census" in line)
    assert header.index("evaluate") < header.index("census")

    plan, recorder = load_plan(folder), Recorder()
    Mirror(plan, plan.trials[0], own=(), tracker=recorder).finish(True)
    assert recorder.values["census/alive"] == alive[0]
    assert {"event": "census", "alive": alive[0], "tokens": 128} in recorder.rows

    again = prunelab(*words)
    assert "ran no stage" in again.stdout
    other = prunelab(*words, "stages.census.above=0.05")  # a field is part of the key; all else stays
    assert "ran 2 census in" in other.stdout, other.stdout + other.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["stages.census.above=-1"], "stages.census.above=-1: allowed is a number, x >= 0"),
        (["+stages.census.abve=1"], "Did you mean 'above'?"),
        (["+stages.prune={_target_: mine.Census, above: 1}"], "'prune': allowed is small letters"),
        (["+stages.speed={_target_: mine.Speed}"], "a class of mine.py: Census"),
        (["+stages.speed=3"], "a mapping with _target_"),
        (["+stages.speed={_target_: prunelab.methods.wanda.Wanda}"], "a class with a method run(self, trial)"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_starts(
    prunelab: Run, home: Path, census: list[str], words: list[str], says: str
) -> None:
    done = prunelab(*words, *census)
    assert done.returncode == 1
    assert says in done.stderr, done.stderr
    assert not (home / "store").exists()


REPAIR = '''
"""Gives the rows of pruned layers back some of their length."""
from __future__ import annotations
from dataclasses import dataclass
from typing import Annotated

@dataclass(frozen=True)
class Rescale:
    name: str
    revision: int
    masks: Annotated[str, "before | between"]
    share: Annotated[float, "0 <= x <= 1"]
    window = 1
    stride = 1
    early_stop = False

    def repair(self, unit, say):
        longest = 0.0
        for layer in unit.layers:
            lost = layer.weight.norm(dim=1) / layer.linear.weight.norm(dim=1).clamp_min(1e-12)
            factor = 1 + self.share * (lost - 1)
            layer.linear.weight.mul_(factor[:, None])
            longest = max(longest, float(factor.max()))
        return {"factor": longest}
'''


@pytest.fixture
def rescale(tmp_path: Path) -> list[str]:
    (tmp_path / "own_repair.py").write_text(REPAIR)
    (tmp_path / "conf" / "reconstruction").mkdir(parents=True)
    (tmp_path / "conf" / "reconstruction" / "rescale.yaml").write_text(
        "_target_: own_repair.Rescale\nname: rescale\nrevision: 1\nmasks: before\nshare: 0.5\n"
    )
    return ["--config-dir", str(tmp_path / "conf"), "reconstruction=rescale"]


def test_a_repair_of_ones_own_runs_with_masks_before_and_between_and_is_shown_everywhere(
    prunelab: Run, home: Path, rescale: list[str]
) -> None:
    words = [
        "study=s",
        "method=wanda",
        "sparsity=unstructured",
        "sparsity.ratio=0.5",
        "runtime.threads=1",
        *rescale,
    ]
    done = prunelab(*words, "reconstruction.masks=before,between", "hydra.launcher.report=true", "-m")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 prune, 2 reconstruct" in done.stdout
    folder = home / "studies" / "s"
    with (folder / "report" / "results.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["reconstruction"] == "rescale"]
    assert len(rows) == 2
    for row in rows:
        assert float(row["ratio/weights"]) == pytest.approx(0.5)
        assert float(row["repair/factor"]) > 1
        assert float(row["integrity/masked"]) > 0
    assert len({row["error/calibration"] for row in rows}) == 2
    assert len({row["integrity/masked"] for row in rows}) == 1
    with (folder / "report" / "repairs.csv").open(encoding="utf-8") as file:
        assert {row["number"] for row in csv.DictReader(file)} == {"0", "1"}
    assert "rescale" in (folder / "report" / "index.html").read_text(encoding="utf-8")

    status = prunelab("status", "s", module="prunelab.cli")
    assert "reconstruct" in status.stdout
    assert "2 done" in status.stdout

    plan = load_plan(folder)
    for trial, events in zip(plan.trials, ({"repair", "pruned"}, {"repair", "pruned"}), strict=True):
        recorder = Recorder()
        Mirror(plan, trial, own=(), tracker=recorder).finish(True)
        assert recorder.values["ratio/weights"] == pytest.approx(0.5)
        assert recorder.values["repair/factor"] > 1
        assert events <= {row.get("event") for row in recorder.rows}
    wrong = prunelab(*words, "reconstruction.masks=after")
    assert wrong.returncode == 1
    assert "reconstruction.masks='after': allowed is one of before, between" in wrong.stderr
