import numpy as np
import pandas as pd
import pytest

from prunelab.errors import StoreError
from prunelab.report.aggregate import at_ratio, by_cell, common_ratio, pareto


def frame(rows):
    return pd.DataFrame(rows, columns=["facet", "variant", "ratio", "ppl"], dtype=object)


def test_seeds_become_mean_and_sample_deviation():
    cells = by_cell(
        frame([("f", "m", 0.1, 1.0), ("f", "m", 0.1, 3.0), ("f", "m", 0.2, 5.0)]), ["ppl", "none"]
    )
    assert cells["ppl"].tolist() == [2.0, 5.0]
    assert cells["ppl/spread"].iloc[0] == pytest.approx(2**0.5)
    assert np.isnan(cells["ppl/spread"].iloc[1])
    assert cells["n"].tolist() == [2, 1]


def test_rows_without_a_value_are_left_out():
    assert len(by_cell(frame([("f", "m", 0.1, None), ("f", "m", 0.2, 5.0)]), ["ppl"])) == 1


def test_achieved_ratio_stands_in_for_a_missing_one():
    data = frame([("f", "2:4", None, 4.0)]).assign(**{"ratio/weights": 0.5})
    assert by_cell(data, ["ppl"])["ratio"].tolist() == [0.5]


def test_what_went_is_told_beside_what_was_asked_for():
    data = frame([("f", "shortgpt", 0.1, 4.0), ("f", "flap", 0.1, 5.0)]).assign(
        **{"ratio/weights": [0.0, 0.1]}
    )
    cells = by_cell(data, ["ppl"]).assign(error=[1.0, 1.1])
    assert cells["removed"].tolist() == [0.0, 0.1]
    assert pareto(cells, "error", "ppl").tolist() == [True, True]  # a model that lost nothing beats nobody


def test_pareto_front_counts_the_ratio_as_a_gain():
    points = [(0.5, 0.3, 90.0), (0.1, 0.1, 20.0), (0.1, 0.2, 20.0), (0.5, 0.2, 95.0), (0.4, 0.3, 90.0)]
    cells = pd.DataFrame(points, columns=["removed", "error", "ppl"])
    assert pareto(cells, "error", "ppl").tolist() == [True, True, False, True, False]


def test_equal_points_share_the_front_and_gaps_never_win():
    cells = pd.DataFrame(
        [(0.1, 1.0, 1.0), (0.1, 1.0, 1.0), (0.9, np.nan, 1.0)], columns=["removed", "error", "ppl"]
    )
    assert pareto(cells, "error", "ppl").tolist() == [True, True, False]


def test_largest_ratio_that_all_reached():
    rows = [
        ("f", "a", 0.1, 1),
        ("f", "b", 0.1, 1),
        ("f", "a", 0.3, 1),
        ("f", "b", 0.3, 1),
        ("f", "a", 0.5, 1),
    ]
    cells = by_cell(frame(rows), ["ppl"])
    assert common_ratio(cells) == 0.3
    assert len(at_ratio(cells, 0.3)) == 2
    assert common_ratio(cells.iloc[:0]) is None


def test_n_is_the_number_of_seeds_and_a_trial_planned_twice_counts_once():
    data = frame([("f", "m", 0.1, 1.0), ("f", "m", 0.1, 3.0), ("f", "m", 0.1, 3.0)])
    cells = by_cell(data.assign(seed=[0, 1, 1], key=["a", "b", "b"], name=["x", "y", "y"]), ["ppl"])
    assert cells["n"].tolist() == [2]
    assert cells["ppl"].tolist() == [2.0]


def test_trials_of_one_seed_that_differ_in_nothing_shown_are_not_averaged():
    data = frame([("f", "m", 0.1, 1.0), ("f", "m", 0.1, 3.0)])
    with pytest.raises(StoreError, match="nothing shown: x, y"):
        by_cell(data.assign(seed=[0, 0], key=["a", "b"], name=["x", "y"]), ["ppl"])
