"""Mistakes in a metric from outside the package are told before anything starts; that one works is in test_additions.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunelab.launch.command.entry import run

METRIC = """
from typing import Annotated

class TopK:
    k: Annotated[int, "x >= 1"]
    title = "among the k likeliest"
    better = "higher"
    form = "percent"

    def measure(self, decoder, tokens, batch_size):
        return 0.5

class Untold:
    title = ""
    better = "up"

    def measure(self, decoder, tokens, batch_size):
        return 0.0
"""
TOP = "+evaluation.metrics.top={_target_:own_metric.TopK,k:5}"


@pytest.fixture
def own_metric(tmp_path: Path) -> None:
    (tmp_path / "own_metric.py").write_text(METRIC)


@pytest.mark.usefixtures("own_metric")
@pytest.mark.parametrize(
    ("word", "says"),
    [
        (TOP.replace("k:5", "k:0"), "evaluation.metrics.top.k=0: allowed is an integer, x >= 1"),
        (TOP.replace("k:5", "kk:5"), "Did you mean 'k'?"),
        (TOP.replace("metrics.top", "metrics.ppl"), "'ppl': allowed is small letters"),
        (TOP.replace("metrics.top", "metrics.dense"), "'dense': allowed is small letters"),
        ("+stages.ppl={_target_:own_metric.TopK,k:1}", "'ppl': allowed is small letters"),  # its columns would be ppl/...
        ("+stages.mean={_target_:own_metric.TopK,k:1}", "'mean': allowed is small letters"),
        (f"{TOP} +stages.top={{_target_:own_metric.TopK,k:1}}", "evaluation.metrics.top (its name)='top'"),
        ("evaluation.corpora=austen", "evaluation.corpora='austen': allowed is a list"),
        ("seed=range(3,0)", "no trial"),
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
    assert run(["prunelab", f"paths.root={tmp_path / 'home'}", *word.split(" "), "-m"]) == 1
    said = capsys.readouterr().err
    assert says in said
    assert "ptb" not in said  # a word that is no list is not told letter by letter
    assert not (tmp_path / "home" / "store").exists()
