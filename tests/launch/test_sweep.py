"""Whole sweeps through the real command line, the real pool and the real store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prunelab.report.table import results_csv
from prunelab.store.layout import WORK, is_done

Run = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[2]
SWEEP = ["study=s", "method=surgeon,magnitude", "method.step=0.1", "sparsity.ratio=0.1,0.2", "-m"]


def records(home: Path, kind: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((home / "store" / kind).glob("*/record.json"))]


def stamps(home: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (home / "store").glob("*/*/record.json")}


def numbers(folder: Path) -> str:
    """The results without what a clock or a place decides."""
    lines = [line.split(",") for line in results_csv(folder).splitlines()]
    kept = [i for i, name in enumerate(lines[0]) if not name.startswith("cost/")]
    return "\n".join(",".join(line[i] for i in kept) for line in lines)


def test_a_sweep_runs_once_and_grows(prunelab: Run, here: Run, home: Path) -> None:
    first = prunelab(*SWEEP, "runtime.workers=2", "hydra.launcher.report=true")
    assert first.returncode == 0, first.stdout + first.stderr
    folder = home / "studies" / "s"
    assert (folder / "report" / "index.html").is_file()
    prunes = {
        tuple(r["identity"]["schedule"]): r
        for r in records(home, "prune")
        if r["identity"]["method"]["name"] == "surgeon"
    }
    assert {schedule: r["cost"]["shots"] for schedule, r in prunes.items()} == {(0.1,): 1, (0.1, 0.2): 1}
    assert [row["shot"] for row in prunes[(0.1, 0.2)]["tables"]["shots"]] == [1, 2]
    before, table = stamps(home), numbers(folder)

    again = here(*SWEEP)
    assert "ran no stage" in again.stdout
    assert stamps(home) == before
    assert numbers(folder) == table

    preview = here("study=s", "method=surgeon,magnitude", "method.step=0.1", "sparsity.ratio=0.1,0.2,0.3",
                   "hydra.launcher.dry_run=true", "-m")  # fmt: skip
    assert preview.returncode == 0
    prune = next(line.split("│") for line in preview.stdout.splitlines() if line.startswith("│ prune"))
    assert [cell.strip() for cell in prune[2:7]] == ["6", "0", "4", "2", "2"]
    assert stamps(home) == before

    more = here("study=s", "method=surgeon,magnitude", "method.step=0.1", "sparsity.ratio=0.1,0.2,0.3", "-m")
    assert "ran 2 prune, 2 evaluate" in more.stdout or "ran 2 evaluate, 2 prune" in more.stdout, more.stdout
    after = stamps(home)
    assert {path: after[path] for path in before} == before


@pytest.mark.slow
def test_pool_and_inline_give_the_same_numbers(prunelab: Run, home: Path) -> None:
    words = ["method=surgeon", "sparsity.ratio=0.1", "runtime.threads=1"]
    pool = prunelab(*words)
    inline = prunelab(*words, "hydra/launcher=inline", f"paths.root={home}/other")
    assert pool.returncode == inline.returncode == 0, pool.stderr + inline.stderr
    assert numbers(home / "studies" / "trial") == numbers(home / "other" / "studies" / "trial")


def test_ratio_zero_is_the_dense_model(here: Run, home: Path) -> None:
    done = here("method=surgeon", "sparsity.ratio=0")
    assert done.returncode == 0, done.stdout + done.stderr
    (dense,), (pruned,) = records(home, "dense"), records(home, "evaluate")
    assert pruned["metrics"]["ppl/austen"] == dense["metrics"]["ppl/austen"]
    assert pruned["metrics"]["error/calibration"] == 0.0
    assert records(home, "prune")[0]["metrics"]["ratio/weights"] == 0.0


METHOD = '''
"""A method of one file, outside the repository."""
from __future__ import annotations
from dataclasses import dataclass
from typing import Annotated
import torch

@dataclass(frozen=True)
class LastFirst:
    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]
    power: Annotated[float, "x > 0"]
    scope = "linear"
    needs = ()
    supports = ("rows_columns",)

    def costs(self, site):
        rows, columns = site.W.shape
        return (
            torch.arange(rows, 0, -1, dtype=torch.float64) ** self.power,
            torch.arange(columns, 0, -1, dtype=torch.float64) ** self.power,
        )

    def update(self, site, keep_rows, keep_columns):
        if self.power > 3:
            raise RuntimeError("power is too much for me")
        return None
'''


@pytest.fixture
def own_method(tmp_path: Path) -> list[str]:
    (tmp_path / "mine.py").write_text(METHOD)
    group = tmp_path / "my_conf" / "method"
    group.mkdir(parents=True)
    (group / "last_first.yaml").write_text(
        "_target_: mine.LastFirst\nname: last_first\nrevision: 1\nstep: null\npower: 2.0\n"
    )
    return ["--config-dir", str(tmp_path / "my_conf")]


def test_a_failed_trial_stops_no_other(prunelab: Run, here: Run, home: Path, own_method: list[str]) -> None:
    done = prunelab(
        "study=s", "method=last_first", "method.power=2,4", "sparsity.ratio=0.2", "-m", *own_method
    )
    assert done.returncode == 1
    assert "RuntimeError: power is too much for me" in done.stdout
    assert len(records(home, "evaluate")) == 1
    log = next(line.split("log: ")[1] for line in done.stdout.splitlines() if "log: " in line)
    assert "power is too much for me" in Path(log).read_text()
    status = here("status", "s", module="prunelab.cli")
    assert status.returncode == 1
    assert "1 done, 1 failed" in " ".join(status.stdout.split())


def test_a_damaged_input_is_quarantined_and_made_again(here: Run, home: Path) -> None:
    words = ["study=s", "method=magnitude"]
    assert here(*words, "sparsity.ratio=0.2").returncode == 0
    state = next((home / "store" / "prune").glob("*/outputs/state.safetensors"))
    before = state.read_bytes()
    state.write_bytes(before[:-7])
    # another evaluation of the same pruned model reads the damaged state
    again = here(*words, "sparsity.ratio=0.2", "evaluation.error_samples=1")
    assert again.returncode == 0, again.stdout + again.stderr
    assert list((home / "store" / "quarantine").iterdir())
    assert state.read_bytes() == before


@pytest.mark.slow
def test_two_drivers_at_once_run_nothing_twice(home: Path, tmp_path: Path, small: list[str]) -> None:
    words = ["method=magnitude,random", "sparsity.ratio=0.1,0.2", "-m", *small]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    drivers = [
        subprocess.Popen(
            [sys.executable, "-m", "prunelab", f"study=s{i}", *words], cwd=tmp_path, env=environment,
            stdout=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    outs = [driver.communicate(timeout=240)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], outs
    ran = [line for out in outs for line in out.splitlines() if line.startswith("ran ")]
    counted = sum(int(word) for line in ran for word in line.partition(" in ")[0].split() if word.isdigit())
    assert counted == len(stamps(home))


def test_ctrl_c_stops_and_the_same_command_goes_on(
    here: Run, home: Path, tmp_path: Path, small: list[str]
) -> None:
    words = [
        "study=s",
        "method=magnitude",  # quick shots
        "method.step=0.005",  # enough shots that the signal comes before the last, however busy the machine
        "sparsity.ratio=0.2",
        "runtime.threads=1",
        *small,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "prunelab", *words],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        # tests that run in a shell's background inherit that SIGINT is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as driver:
        until = time.monotonic() + 120
        while time.monotonic() < until and not list((home / "store").glob(f"prune/*/{WORK}/progress.json")):
            time.sleep(0.05)
        driver.send_signal(signal.SIGINT)
        out = driver.communicate(timeout=60)[0]
    assert driver.returncode == 130
    assert "the same command goes on from there" in out
    assert not [f for f in (home / "store" / "prune").iterdir() if is_done(f)]
    assert here(*words[: -len(small)]).returncode == 0
    shots = records(home, "prune")[0]
    assert len(shots["tables"]["shots"]) == 40
    assert shots["cost"]["shots"] < 40  # it went on from its own progress
