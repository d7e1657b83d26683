"""The written report: whole, offline, escaped, without torch, for finished, odd and empty studies."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from prunelab.errors import StoreError
from prunelab.report.amount import amounts, over_amount
from prunelab.report.collect import collect
from prunelab.report.finding import duration, findings, integrity
from prunelab.report.render import render_report
from prunelab.report.table import result_tables

FIGURES = {"tradeoff", "tradeoff_corpora", "sparsity", "blocks", "overfit", "layers", "cost"}


class Page(HTMLParser):
    """Checks nesting and gathers tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_everything_is_written_and_nothing_is_fetched(fabricate):
    folder = fabricate()
    index = render_report(folder)
    assert index == folder / "report" / "index.html"
    files = {path.name for path in index.parent.iterdir()}
    assert files == {f"{name}.png" for name in FIGURES} | {
        "index.html", "report.md", "results.csv", "blocks.csv", "long.csv", "protocols.csv"
    }  # fmt: skip
    text = index.read_text(encoding="utf-8")
    page = Page(text)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert page.tags.count("img") == len(FIGURES)
    assert page.tags.count("details") == 40 + 1
    assert "script" not in page.tags
    assert not re.search(r"@import|url\(|https?://", text)
    assert "violations: 0" in page.text
    assert "surgeon has the lowest geometric-mean perplexity over 4 corpora" in page.text
    shown = (index.parent / "report.md").read_text(encoding="utf-8")
    assert all(f"({name}.png)" in shown for name in FIGURES)


def with_tasks(name: str, record: dict) -> None:
    """Accuracies of two tasks that fall as perplexity rises."""
    ppl = record["metrics"]["ppl/austen"]
    record["metrics"] |= {"acc/piqa": 0.5 + 2 / ppl, "acc/rte": 0.4 + 2 / ppl, "acc/mean": 0.45 + 2 / ppl}


def test_accuracies_are_shown_wherever_perplexity_is(fabricate, repaired):
    folder = fabricate(methods=("surgeon", "lobd"), sources=("austen",), change=with_tasks)
    index = render_report(folder)
    assert (index.parent / "tradeoff_accuracy.png").is_file()
    (table,) = result_tables(collect(folder))
    assert ("accuracy", 3) in table.groups
    at = table.titles.index("accuracy: mean")
    assert table.rows[1][at].text.endswith("%")
    assert [row[1].text for row in table.rows if row[at].best] == ["surgeon"] * 5
    assert "accuracy: piqa" in (index.parent / "report.md").read_text(encoding="utf-8")
    study = collect(repaired(at="amounts", change=with_tasks))
    (axis,) = amounts(study, 0.5)
    titles = [axes.get_title() for axes in over_amount(study, axis).axes]
    assert "accuracy" in titles


def test_names_and_configs_are_text_never_markup(fabricate):
    evil = '<script>alert(1)</script> $x^2 & "q" | [red]'
    folder = fabricate(
        methods=(evil, "lobd"), ratios=(0.1, 0.3), sources=("<b>bold",), fail=[f"{evil}-0.1-<b>bold-s0"]
    )
    text = render_report(folder).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert "<script>alert(1)</script>" in page.text
    assert "A is <singular> after damping" in page.text


def test_unfinished_study_has_a_report(fabricate, tmp_path):
    folder = fabricate(methods=("lobd",), ratios=(0.1,), sources=("kjv",), skip=["lobd-0.1-kjv-s0"])
    page = Page(render_report(folder, tmp_path / "elsewhere").read_text(encoding="utf-8"))
    assert "prune is not finished" in page.text
    assert "No trial has finished yet" in page.text


def test_odd_studies_are_drawn(fabricate):
    def odd(name, record):
        record["metrics"] |= {"ppl/kjv": "inf", "error/calibration": 0.0, "integrity/violations": 3}
        record["tables"]["blocks"][0]["error"] = "nan"

    many = [f"method_{number}_with_long_name" for number in range(11)]
    folder = fabricate(methods=many, ratios=(0.0, 0.5), sources=("kjv",), seeds=(0, 1), change=odd, blocks=1)
    page = Page(render_report(folder).read_text(encoding="utf-8"))
    assert "not to be trusted" in page.text
    assert "∞" in page.text
    assert integrity(collect(folder))[:2] == (3 * 44, 44)


def test_findings_name_the_best_and_the_fit(fabricate):
    said = findings(collect(fabricate(sources=("austen",))))
    assert said[0].startswith("At ratio 0.5, calibrated on austen: surgeon has the lowest")
    assert said[1].startswith("That is not one amount of removed weights: surgeon 50.7%")
    assert "surgeon has the smallest error on calibration" in said[2]


def test_durations():
    assert [duration(s) for s in (5, 700, 12_000, float("nan"))] == [
        "5 s",
        "12 min",
        "3 h 20 min",
        "unknown time",
    ]


def test_unwritable_place_is_a_store_error(fabricate, tmp_path):
    (tmp_path / "file").write_text("")
    folder = fabricate(methods=("lobd",), ratios=(0.1,), sources=("kjv",), skip=["lobd-0.1-kjv-s0"])
    with pytest.raises(StoreError, match="cannot be written"):
        render_report(folder, tmp_path / "file" / "report")


def test_neither_torch_nor_pyplot_is_imported(fabricate):
    folder = fabricate(methods=("lobd",), ratios=(0.1,), sources=("kjv",))
    code = (
        "import sys, pathlib, prunelab.report\nfrom prunelab.report.render import render_report\n"
        f"render_report(pathlib.Path({str(folder)!r}))\n"
        "assert not {'torch', 'transformers', 'wandb', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=root)
