"""How numbers were measured: rows for what was measured alike, a sentence where numbers side by side were not."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from prunelab.metric import Protocol, digest_of
from prunelab.report.collect import LONG, Study, collect
from prunelab.report.finding import findings
from prunelab.report.protocol import measured, unlike


@pytest.fixture
def study(fabricate) -> Study:
    return collect(fabricate(methods=("surgeon", "lobd"), ratios=(0.1,), sources=("austen",)))


def with_numbers(study: Study, *numbers: tuple[int, str, str, Protocol]) -> Study:
    """The study with these numbers: trial, metric, of what, protocol."""
    rows = [
        (number, "t", 0, "evaluate", metric, of, 1.0, "", "lower", digest_of(how.plain()))
        for number, metric, of, how in numbers
    ]
    protocols = {digest_of(how.plain()): how.plain() for *_, how in numbers}
    return replace(study, long=pd.DataFrame(rows, columns=list(LONG), dtype=object), protocols=protocols)


def on(name: str, windows: int, text: str = "kjv") -> Protocol:
    return Protocol(name, "llama@1", "float32", text=text, split="test", windows=windows, joiner="\n")


def test_what_was_measured_alike_is_one_row_and_what_is_the_same_is_said_once(study: Study) -> None:
    names = ("ppl/kjv", "delta/ppl/kjv")
    found = with_numbers(study, *((0, name.rpartition("/")[0], "kjv", on(name, 64)) for name in names),
                         (0, "mse", "held_out/kjv", on("mse/held_out/kjv", 8)))  # fmt: skip
    same, header, rows = measured(found)
    assert same == "model llama@1; dtype float32; text kjv; split test; joiner '\\n'"
    assert header == ["numbers", "windows"]
    assert rows == [["ppl/kjv, delta/ppl/kjv", "64"], ["mse/held_out/kjv", "8"]]


def test_numbers_of_one_column_that_were_measured_in_two_ways_are_named(study: Study) -> None:
    found = with_numbers(study, (0, "ppl", "kjv", on("ppl/kjv", 64)), (1, "ppl", "kjv", on("ppl/kjv", 32)))
    (said,) = unlike(found)
    assert said.endswith("ppl/kjv (evaluate) was not measured alike in all rows: windows 64 | 32.")
    assert findings(found)[0] == said


def test_text_that_seeds_draw_is_no_other_way_of_measuring(study: Study) -> None:
    drawn = [
        (number, "error", "calibration", on("error/calibration", 8, text)) for number, text in enumerate("ab")
    ]
    assert not unlike(with_numbers(study, *drawn))
    apart = [
        (number, "error", "held_out/kjv", on("error/held_out/kjv", 8, text))
        for number, text in enumerate("ab")
    ]
    assert len(unlike(with_numbers(study, *apart))) == 1
