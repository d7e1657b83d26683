"""What methods say of units, and how fast compacted models are, on the page: what is shown, what is said to be left out."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from prunelab.report.collect import Study, collect
from prunelab.report.page import page
from prunelab.report.redundancy import has_ranked
from prunelab.report.render import draw, markdown, render_report
from prunelab.report.speed_table import speed_tables
from prunelab.report.units import MOST_ROWS, has_spectrum, told, units_csv

QUANTILES = ("q5", "q25", "q50", "q75", "q95")


def explained(name: str, record: dict[str, Any]) -> None:
    """Give surgeon's trials what a method that explains itself says, lobd's another table, and both speeds."""
    where = [{"shot": 1, "block": block, "kind": "neurons"} for block in range(4)]
    if name.startswith("surgeon"):
        removed = [{**one, "unit": u, "partner": None if u else 9, "nmi": 0.5, "r2": None, "reason": "<dead>"}
                   for one in where for u in range(40)]  # fmt: skip
        redundancy = [
            {**one, **{q: 0.1 * at for at, q in enumerate(QUANTILES)}, "floor": 0.05} for one in where
        ]
        cut = [{**one, "table": "units/removed", "rows": 100, "kept": 40} for one in where]
        ranked = [{**one, "rank": r, "share": r / 8, "nmi": 0.8 / r} for one in where for r in range(1, 9)]
        record["tables"] |= {"units/removed": removed, "units/redundancy": redundancy, "units/cut": cut}
        record["tables"] |= {"units/spectrum": ranked}
    if name.startswith("lobd"):
        record["tables"]["units/own"] = [{**where[0], "zeal": 2}]
    if not name.startswith("magnitude"):
        low = 1.1 if name.endswith("s0") else 1.3
        record["metrics"] |= {
            f"{kind}/{phase}": value
            for phase in ("prefill", "decode")
            for kind, value in (("speed", 1200.0), ("speed/dense", 1000.0), ("speedup", low + 0.1), ("speedup/low", low),
                                ("speedup/high", low + 0.2))
        } | {"bytes/compact": 3_000_000, "bytes/dense": 5_000_000}  # fmt: skip


@pytest.fixture
def folder(fabricate) -> Path:
    methods = ("surgeon", "lobd", "magnitude")
    return fabricate(methods=methods, ratios=(0.2, 0.5), sources=("austen",), seeds=(0, 1), change=explained)


@pytest.fixture
def study(folder: Path) -> Study:
    return collect(folder)


def test_the_first_rows_of_every_block_are_shown_and_what_is_left_out_is_said(study: Study) -> None:
    tables = told(study, 0.5)
    assert [(t.table, t.trial.split("-")[0]) for t in tables] == [
        ("removed", "surgeon"), ("removed", "surgeon"), ("redundancy", "surgeon"), ("redundancy", "surgeon"),
        ("spectrum", "surgeon"), ("spectrum", "surgeon"), ("own", "lobd"), ("own", "lobd"),
    ]  # fmt: skip
    removed = tables[0]
    assert removed.header == (
        "shot",
        "block",
        "kind",
        "unit",
        "partner",
        "nmi",
        "reason",
    )  # r2 is nowhere known
    assert len(removed.rows) == MOST_ROWS
    assert [row[1] for row in removed.rows] == [
        str(block) for block in range(4) for _ in range(MOST_ROWS // 4)
    ]
    assert removed.rows[0][3:6] == ("0", "9", "0.5")
    assert removed.rows[1][4] == "—"
    assert (removed.total, removed.cut) == (
        160,
        "240 more rows were not recorded, which keeps 40 of a kind in a block.",
    )
    assert (tables[-1].title, tables[-1].header[-1], tables[-1].cut) == ("own", "zeal", "")
    html = page(study, [])
    assert f"{MOST_ROWS} of 160 rows" in html
    assert "&lt;dead&gt;" in html
    assert "<dead>" not in html


def test_every_recorded_row_is_in_a_csv_file(study: Study) -> None:
    files = dict(units_csv(study))
    assert set(files) == {f"units_{name}.csv" for name in ("removed", "redundancy", "spectrum", "own", "cut")}
    rows = list(csv.DictReader(io.StringIO(files["units_removed.csv"])))
    assert len(rows) == 4 * 160  # two ratios, two seeds
    assert {(row["variant"], row["ratio"]) for row in rows} == {("surgeon", "0.2"), ("surgeon", "0.5")}


def test_the_spectrum_is_drawn_where_one_is_known(study: Study, fabricate) -> None:
    assert has_spectrum(study, 0.5)
    assert has_ranked(study, 0.5)
    assert {"spectrum", "ranked"} <= {picture.name for picture in draw(study)}
    without = collect(fabricate(at="without", methods=("lobd",), ratios=(0.2,), change=explained))
    assert not has_spectrum(without, 0.2)
    assert not has_ranked(without, 0.2)
    assert told(without, 0.2)


def test_speeds_stand_in_a_table_with_seeds_as_their_mean(study: Study) -> None:
    (table,) = speed_tables(study)
    assert [(row[0].text, row[1].text) for row in table.rows] == [
        ("0.2", "surgeon"), ("0.2", "lobd"), ("0.5", "surgeon"), ("0.5", "lobd"),
    ]  # fmt: skip
    texts = [cell.text for cell in table.rows[0][2:]]
    assert texts[:4] == ["1,200", "1.30×", "1,200", "1.30×"]
    assert texts[4:6] == ["3 MB", "60.0%"]
    assert table.rows[0][3].aside == "± 0.14× · 1.20× – 1.40×"
    assert "## Speed and size, " in markdown(study, [])


def test_a_study_without_either_shows_nothing_of_them(fabricate) -> None:
    study = collect(fabricate(methods=("magnitude",), ratios=(0.2,)))
    assert not speed_tables(study)
    assert "Speed and size" not in page(study, [])
    assert "What methods say" not in page(study, [])


def test_the_folder_has_the_files(folder: Path) -> None:
    made = render_report(folder).parent
    assert (made / "units_removed.csv").is_file()
    assert (made / "spectrum.png").is_file()
    assert (made / "results.csv").read_text().splitlines()[0].endswith("speedup/prefill")


def test_what_is_said_of_the_whole_model_needs_no_block(fabricate) -> None:
    def compared(name: str, record: dict[str, Any]) -> None:
        record["tables"]["units/runs"] = [
            {"shot": 1, "run": r, "kl": 0.5 - r, "kept": r == 1} for r in (0, 1)
        ]

    place = fabricate(methods=("surgeon",), ratios=(0.5,), sources=("austen",), seeds=(0,), change=compared)
    (table,) = told(collect(place), 0.5)
    assert table.title == "Searches compared"
    assert table.header == ("shot", "run", "kl", "kept")
    assert [row[2] for row in table.rows] == ["0.5", "-0.5"]
