"""The table of metrics: names, directions, formats; and the protocol beside a number."""

from __future__ import annotations

from dataclasses import fields

import pytest

from prunelab.metric import ACC, ERROR, METRICS, PPL, RATIO, Metric, Protocol, digest_of, is_clock, metric_of
from prunelab.report.protocol import TITLES

INF, NAN = float("inf"), float("nan")


def test_names_are_built_and_taken_apart() -> None:
    assert PPL.at("austen") == "ppl/austen"
    assert PPL.rest("ppl/austen") == "austen"
    assert ERROR.found(["ratio", "error/calibration", "error/held_out/kjv", "errors/x"]) == [
        "calibration",
        "held_out/kjv",
    ]


@pytest.mark.parametrize(
    ("name", "metric"),
    [("ppl/kjv", "ppl"), ("delta/ppl/kjv", "delta/ppl"), ("acc/mean", "acc/mean"), ("acc/piqa", "acc"), ("shots", "shots"),
     ("acc_norm/piqa", "acc_norm"), ("mean/ppl", "mean/ppl")],
)  # fmt: skip
def test_the_longest_name_that_fits_is_the_metric(name: str, metric: str) -> None:
    found = metric_of(name)
    assert found is not None
    assert found.name == metric


def test_what_no_row_knows_has_no_metric_but_one_from_outside_may() -> None:
    assert metric_of("census/alive") is None
    top = Metric("top5", "among the five likeliest", "higher")
    assert metric_of("top5/kjv", {"top5": top}) == top


def test_clocks_are_what_a_second_run_need_not_give_again() -> None:
    assert [is_clock(name) for name in ("cost/seconds", "speed/dense/decode", "speedup/prefill", "bytes/dense", "x")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_best_is_what_reads_best() -> None:
    assert PPL.best([2.001, 2.004, 3.0]) == [True, True, False]
    assert PPL.best([INF, NAN, 5.0]) == [False, False, True]
    assert PPL.best([1.0]) == [False]
    assert PPL.best([INF, INF]) == [False, False]
    assert ACC.best([0.4121, 0.4124, 0.39]) == [True, True, False]
    assert RATIO.best([0.1, 0.2]) == [False, False]


def test_values_read_as_their_form_says() -> None:
    assert [METRICS[name].text(0.12345) for name in ("ppl", "error", "acc", "ratio")] == [
        "0.12",
        "0.1235",
        "12.3%",
        "12.35%",
    ]
    assert METRICS["parameters"].text(1234567.0) == "1,234,567"
    assert METRICS["speedup"].text(1.5) == "1.50×"
    sizes = [METRICS["bytes"].text(value) for value in (512.0, 4_961_280.0, 999_900.0, 1.35e10, 3e12)]
    assert sizes == ["512 B", "4.96 MB", "1 MB", "13.5 GB", "3 TB"]
    assert {row.text(NAN) for row in METRICS.values()} == {"—"}


def test_a_protocol_is_its_fields_and_a_report_shows_all_of_them() -> None:
    one = Protocol("ppl/kjv", "a@1", "float32", windows=64)
    assert one.plain() == {"metric": "ppl/kjv", "model": "a@1", "dtype": "float32", "windows": 64}
    assert digest_of(one.plain()) == digest_of(dict(reversed(one.plain().items())))
    assert digest_of(one.plain()) != digest_of({**one.plain(), "windows": 32})
    assert {"metric", *TITLES} == {field.name for field in fields(Protocol)}
