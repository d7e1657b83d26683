"""Methods, a statistic and an allocation from outside the package: a file and a YAML each, one sweep."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from prunelab.launch.track.mirror import Mirror, run_info
from prunelab.plan.study import load_plan

Run = Callable[..., subprocess.CompletedProcess[str]]
LINEAR = '''
"""Single weights by their size times the largest input their channel saw."""
from dataclasses import dataclass
import torch

class Peak:
    """The largest size of every input channel in each sequence, summed over sequences, (C,)."""
    name = "mine_linear.Peak"
    reads = "input"

    def start(self, name, width, *, ones, device):
        return Running(width, device)

    def live(self, value):
        return None

    def restrict(self, value, kept):
        return value[kept]

    def is_finite(self, value):
        return bool(torch.isfinite(value).all())

    def pack(self, value):
        return value

    def unpack(self, stored, width, name):
        return stored

class Running:
    def __init__(self, width, device):
        self.total, self.n_tokens = torch.zeros(width, dtype=torch.float64, device=device), 0

    def add(self, x):
        for sequence in x:
            self.total += sequence.abs().amax(0).double()
            self.n_tokens += len(sequence)

    def finish(self):
        return self.total.float()

@dataclass(frozen=True)
class Peaks:
    name: str
    revision: int
    step: None
    scope = "linear"
    needs = ("mine_linear.Peak",)
    supports = ("unstructured", "n:m")
    within = "row"

    def score(self, view):
        return view.W.abs().float() * view.value("mine_linear.Peak")
'''
LINES = '''
"""Rows and columns by the power of their inputs."""
from dataclasses import dataclass
from typing import Annotated

@dataclass(frozen=True)
class InputPower:
    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]
    power: Annotated[float, "x > 0"]
    scope = "linear"
    needs = ("input_gram",)
    supports = ("rows_columns",)

    def costs(self, view):
        energy = view.A.diagonal() ** self.power
        return (view.W.square() * energy).sum(1), view.W.square().sum(0) * energy

    def update(self, view, keep_rows, keep_columns):
        return None
'''
ALLOCATION = '''
"""Early blocks keep more."""
from dataclasses import dataclass

@dataclass(frozen=True)
class Slope:
    name: str
    revision: int

    def share(self, scores):
        return 0.0

    def ratios(self, shares, ratio):
        middle = (len(shares) - 1) / 2
        return [ratio + 0.05 * (index - middle) / middle for index in range(len(shares))]
'''


@pytest.fixture
def mine(tmp_path: Path) -> list[str]:
    for name, text in (("mine_linear", LINEAR), ("mine_lines", LINES), ("mine_spread", ALLOCATION)):
        (tmp_path / f"{name}.py").write_text(text)
    for path, text in {
        "method/peaks": "_target_: mine_linear.Peaks\nname: peaks\nrevision: 1\nstep: null\n",
        "method/power": "_target_: mine_lines.InputPower\nname: power\nrevision: 1\nstep: null\npower: 1.0\n",
        "allocation/slope": "_target_: mine_spread.Slope\nname: slope\nrevision: 1\n",
    }.items():
        file = tmp_path / "conf" / f"{path}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return ["--config-dir", str(tmp_path / "conf")]


def test_they_run_in_a_sweep_and_are_shown_everywhere(prunelab: Run, home: Path, mine: list[str]) -> None:
    for study, words in {
        "single": ["method=peaks,magnitude", "sparsity=unstructured", "allocation=slope,uniform"],
        "lines": ["method=power", "sparsity.ratio=0.1,0.2"],
    }.items():
        done = prunelab(
            f"study={study}", *words, *mine, "runtime.threads=1", "-m", "hydra.launcher.report=true"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        plan = load_plan(home / "studies" / study)
        with (plan.folder / "report" / "results.csv").open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["method"] != "dense"]
        status = prunelab("status", study, "--all", module="prunelab.cli").stdout
        for trial in plan.trials:
            row = next(row for row in rows if row["name"] == trial.name)
            assert float(row["ppl/austen"]) > 1
            ratio = trial.config["sparsity"]["ratio"]
            assert float(row["ratio/weights"]) == pytest.approx(ratio, abs=2e-3)
            assert trial.name[:12] in status.replace("\n", "")
            info = run_info(plan, trial)
            assert info.config["method"] == trial.config["method"]["name"]
            assert info.config["allocation"] == trial.config["allocation"]["name"]
            Mirror(plan, trial, own=())  # every record is there to be told
    again = prunelab("study=single", "method=peaks", "sparsity=unstructured", "allocation=slope", *mine,
                     "runtime.threads=1")  # fmt: skip
    assert "ran no stage" in again.stdout, again.stdout + again.stderr


def test_a_statistic_counts_by_its_source(prunelab: Run, home: Path, tmp_path: Path, mine: list[str]) -> None:
    words = ["method=peaks", "sparsity=2of4", "runtime.threads=1", *mine]
    assert prunelab(*words).returncode == 0
    (tmp_path / "mine_linear.py").write_text(LINEAR.replace("amax(0)", "mean(0)"))
    again = prunelab(*words)
    assert "1 prune" in again.stdout, again.stdout + again.stderr


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('needs = ("mine_linear.Peak",)', 'needs = ("mine_linear.Peek",)', "a class of mine_linear.py: Peak"),
        ('needs = ("mine_linear.Peak",)', 'needs = ("peak",)', "or the dotted name of a statistic's class"),
        ('reads = "input"', 'reads = "inputs"', "a class with reads = one of input, output, output_gradient"),
        ('    scope = "linear"\n', "", "method.scope='(nothing)'"),
        ('scope = "linear"', 'scope = "page"', "method.scope='page': allowed is linear"),
    ],
)
def test_mistakes_in_a_method_or_statistic_are_told_before_anything_starts(
    prunelab: Run, home: Path, tmp_path: Path, mine: list[str], old: str, new: str, says: str
) -> None:
    (tmp_path / "mine_linear.py").write_text(LINEAR.replace(old, new))
    done = prunelab("method=peaks", "sparsity=unstructured", *mine)
    assert done.returncode == 1
    assert says in done.stderr, done.stderr
    assert not (home / "store").exists()
