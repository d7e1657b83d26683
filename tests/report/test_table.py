import csv
import io

from prunelab.metric import number
from prunelab.report.collect import collect
from prunelab.report.table import markdown_table, result_tables, results_csv


def parse(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_exact_floats_and_costs_last(fabricate):
    folder = fabricate(methods=("surgeon", "lobd"), ratios=(0.1, 0.2))
    text = results_csv(folder)
    assert text == results_csv(folder)
    columns = text.splitlines()[0].split(",")
    placed = [column.startswith("cost/") for column in columns]
    assert placed == sorted(placed)
    assert any(placed)
    frame = collect(folder).frame
    for row, (_, true) in zip(parse(text), frame.iterrows(), strict=True):
        assert float(row["ppl/kjv"]) == true["ppl/kjv"]
        assert row["parameters/dense"] == "1240320"


def test_deterministic_columns_do_not_move_with_the_store(fabricate):
    first, second = (results_csv(fabricate(at=at, methods=("kobd",), sources=("kjv",))) for at in ("a", "b"))
    assert first == second


def test_gaps_are_empty_and_whole_numbers_stay_whole(fabricate):
    folder = fabricate(methods=("kobd",), sources=("kjv",), fail=["kobd-0.2-kjv-s0"])
    rows = parse(results_csv(folder))
    assert [row["status"] for row in rows] == ["done", "failed", "done", "done", "done"]
    assert (rows[1]["ppl/kjv"], rows[1]["parameters/dense"]) == ("", "")
    assert rows[0]["parameters/dense"] == "1240320"
    assert rows[1]["cost/log"].endswith(".out")


def test_best_of_each_ratio_is_marked_once(fabricate):
    (table,) = result_tables(collect(fabricate(sources=("austen",))))
    at = table.header.index("jargon")
    assert [row[1].text for row in table.rows if row[at].best] == ["surgeon"] * 5
    assert [row[0].text for row, start in zip(table.rows, table.starts, strict=True) if start] == [
        "0", "0.1", "0.2", "0.3", "0.4", "0.5",
    ]  # fmt: skip
    assert sum(width for _, width in table.groups) == len(table.header)
    assert {len(row) for row in table.rows} == {len(table.header)}


def test_seeds_show_spread_and_how_many(fabricate):
    folder = fabricate(
        methods=("kobd", "lobd"), ratios=(0.3,), sources=("kjv",), seeds=(0, 1, 2), fail=["lobd-0.3-kjv-s1"]
    )
    (table,) = result_tables(collect(folder))
    asides = {row[1].text: row[1].aside for row in table.rows}
    assert asides["kobd"] == "3 seeds"
    assert asides["lobd"].startswith("2 of 3 seeds; prune: ModelError")
    assert table.rows[1][2].aside.startswith("± ")


def test_missing_cells_are_listed_with_their_reason(fabricate):
    folder = fabricate(methods=("kobd", "lobd"), ratios=(0.3,), sources=("kjv",), skip=["lobd-0.3-kjv-s0"])
    (table,) = result_tables(collect(folder))
    row = next(row for row in table.rows if row[1].text == "lobd")
    assert row[2].text == "—"
    assert row[1].aside == "prune is not finished"


def test_markdown_is_literal(fabricate):
    folder = fabricate(methods=("a|b*<i>", "lobd"), ratios=(0.3,), sources=("kjv",))
    (table,) = result_tables(collect(folder))
    text = markdown_table(table)
    assert r"a\|b\*&lt;i>" in text
    widths = {line.replace(r"\|", "").count("|") for line in text.splitlines()}
    assert len(widths) == 1


def test_numbers_as_people_read_them():
    values = [21.4, 1234.5, 5.6e7, float("inf"), float("nan")]
    assert [number(value) for value in values] == ["21.40", "1,234", "5.6e+07", "∞", "—"]
