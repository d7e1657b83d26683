"""A metric from outside the package: one file, one line; measured on the dense model and on each trial's, and shown."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from prunelab.launch.command.entry import run
from prunelab.launch.track.mirror import Mirror
from prunelab.plan.study import load_plan
from prunelab.tracking.base import Artefact

Run = Callable[..., subprocess.CompletedProcess[str]]
METRIC = '''
"""Share of next tokens that are among the k likeliest."""
from __future__ import annotations
from dataclasses import dataclass
from typing import Annotated
import torch

@dataclass(frozen=True)
class TopK:
    k: Annotated[int, "x >= 1"]
    title = "next token among the k likeliest"
    better = "higher"
    form = "percent"

    @torch.no_grad()
    def measure(self, decoder, tokens, batch_size):
        hits = 0
        for batch in tokens.split(batch_size):
            likeliest = decoder.model(batch).logits[:, :-1].topk(self.k).indices
            hits += int((likeliest == batch[:, 1:, None]).any(-1).sum())
        return hits / tokens[:, 1:].numel()

class Untold:
    title = ""
    better = "up"

    def measure(self, decoder, tokens, batch_size):
        return 0.0
'''
TOP = "+evaluation.metrics.top={_target_:own_metric.TopK,k:5}"


class Recorder:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.tables: dict[str, list[Mapping[str, Any]]] = {}

    def log(self, row: Mapping[str, Any]) -> None: ...

    def table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self.tables[name] = list(rows)

    def summary(self, values: Mapping[str, Any]) -> None:
        self.values |= values

    def artefact(self, item: Artefact, *, used: bool) -> None: ...

    def alert(self, title: str, text: str) -> None: ...

    def finish(self, ok: bool) -> None: ...


@pytest.fixture
def own_metric(tmp_path: Path) -> None:
    (tmp_path / "own_metric.py").write_text(METRIC)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("own_metric")
def test_it_is_measured_of_dense_and_pruned_and_shown_everywhere(prunelab: Run, home: Path) -> None:
    words = [
        "study=s",
        "method=magnitude",
        "sparsity=unstructured",
        "hydra/launcher=inline",
        "runtime.threads=1",
    ]
    done = prunelab(*words, TOP, "sparsity.ratio=0.3,0.9", "hydra.launcher.report=true", "-m")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "next token among the k likeliest" in done.stdout
    report = home / "studies" / "s" / "report"
    little, much = rows_of(report / "results.csv")
    (corpus,) = [name.removeprefix("ppl/") for name in little if name.startswith("ppl/")]
    shares = [
        float(row[f"{prefix}top/{corpus}"]) for row, prefix in ((little, "dense/"), (little, ""), (much, ""))
    ]
    assert 1 > shares[0] > shares[2] > 0
    page = (report / "index.html").read_text(encoding="utf-8")
    assert "next token among the k likeliest" in page
    assert "How each number was measured" in page
    assert f"{100 * shares[0]:.1f}%" in (report / "report.md").read_text(encoding="utf-8")

    long = [row for row in rows_of(report / "long.csv") if row["metric"] == "top"]
    assert [(row["stage"], row["of"], row["better"]) for row in long] == [
        (stage, corpus, "higher") for stage in ("dense", "evaluate") * 2
    ]
    protocols = {row["protocol"]: row for row in rows_of(report / "protocols.csv")}
    how = protocols[long[1]["protocol"]]
    assert how["metric"] == f"top/{corpus}"
    assert '"k": 5' in how["definition"]
    assert how["tokens"]
    ppl = next(
        row for row in rows_of(report / "long.csv") if (row["metric"], row["stage"]) == ("ppl", "evaluate")
    )
    assert protocols[ppl["protocol"]]["windows"] == how["windows"] != ""

    plan, recorder = load_plan(home / "studies" / "s"), Recorder()
    Mirror(plan, plan.trials[0], own=(), tracker=recorder).finish(True)
    assert recorder.values[f"top/{corpus}"] == shares[1]
    assert recorder.values[f"dense/top/{corpus}"] == shares[0]
    assert {f"ppl/{corpus}", f"top/{corpus}", "ratio/weights"} <= {
        row["number"] for row in recorder.tables["protocols"]
    }
    status = prunelab("status", "s", module="prunelab.cli")
    assert "2 done" in status.stdout

    other = prunelab(*words, TOP.replace("k:5", "k:3"), "sparsity.ratio=0.3")  # of the class all fields count
    assert "ran 1 dense, 1 evaluate in" in other.stdout, other.stdout + other.stderr


@pytest.mark.usefixtures("own_metric")
@pytest.mark.parametrize(
    ("word", "says"),
    [
        (TOP.replace("k:5", "k:0"), "evaluation.metrics.top.k=0: allowed is an integer, x >= 1"),
        (TOP.replace("k:5", "kk:5"), "Did you mean 'k'?"),
        (TOP.replace("metrics.top", "metrics.ppl"), "'ppl': allowed is small letters"),
        (TOP.replace("TopK", "TopJ"), "a class of own_metric.py: TopK, Untold"),
        ("+evaluation.metrics.x=3", "a mapping with _target_"),
        ("+evaluation.metrics.x={_target_:own_metric.Untold}", "lower | higher | neither"),
        ("+evaluation.metrics.x={_target_:prunelab.methods.wanda.Wanda}", "a method measure(self, decoder, tokens, batch_size)"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_starts(
    tmp_path: Path, word: str, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert run(["prunelab", f"paths.root={tmp_path / 'home'}", word]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "home" / "store").exists()
