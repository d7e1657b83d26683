import numpy as np

from prunelab.tracking.wandb.row import axis_of, columns_and_data, flat_config, flat_row, short


def test_block_row_becomes_flat_names_on_its_own_axis():
    row = {"event": "block", "block": 2, "stream": "held_out/kjv", "error": np.float32(0.5)}
    assert flat_row(row) == {"block": 2, "block/error/held_out/kjv": 0.5}
    assert axis_of(row) == ("block/*", "block")


def test_rows_without_axis_or_event():
    assert flat_row({"ppl": 3.5, "ok": True, "none": None}) == {"ppl": 3.5, "ok": 1}
    assert axis_of({"event": "done", "seconds": 1.0}) is None
    assert axis_of({"shot": 1}) is None


def test_names_have_no_dots():
    row = {"event": "a.b", "shot": 1, "x.y": 1.0, "stream": "v1.5"}
    assert flat_row(row) == {"shot": 1, "a_b/x_y/v1_5": 1.0}
    assert flat_config({"model.name": "m", "nested": {"a.b": (1, 2)}}) == {
        "model_name": "m",
        "nested": {"a.b": [1, 2]},
    }


def test_table_holds_every_column_and_no_infinities():
    columns, data = columns_and_data([{"a": 1, "b": float("inf")}, {"a": 2, "c": "x"}])
    assert (columns, data) == (["a", "b", "c"], [[1, None, None], [2, None, "x"]])


def test_long_names_of_tables_are_short_and_distinct():
    assert short("sites") == "sites"
    first, second = short("t" * 200), short("t" * 201)
    assert (len(first), len(second)) == (64, 64)
    assert first != second
