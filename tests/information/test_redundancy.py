"""Groups of units that say the same, and a layer's spectrum, against the definitions written out."""

from __future__ import annotations

import torch

from prunelab.information.redundancy import (
    POINTS,
    group_rows,
    groups,
    level_of,
    spectrum_rows,
    strongest,
    token_rows,
)
from prunelab.information.search import Removals


def _matrix(m: int, seed: int = 0) -> torch.Tensor:
    values = torch.rand(m, m, generator=torch.Generator().manual_seed(seed)).double()
    return (values + values.T) / 2


def test_a_level_is_the_quantile_of_all_pairs() -> None:
    matrix = _matrix(9)
    pairs = [float(matrix[i, j]) for i in range(9) for j in range(9) if i != j]
    for share in (0.0, 0.3, 0.99, 1.0):
        expected = float(torch.quantile(torch.tensor(pairs, dtype=torch.float64), share))
        assert level_of(matrix, share) == expected


def test_any_two_of_a_group_share_more_than_the_level_and_none_is_in_two() -> None:
    live = torch.ones(30, dtype=torch.bool)
    live[4] = False
    for seed in range(5):
        matrix, level = _matrix(30, seed), 0.6
        found = groups(matrix, level, live)
        everyone = torch.cat([group.members for group in found]).tolist()
        assert len(everyone) == len(set(everyone))
        assert 4 not in everyone
        assert [len(group.members) for group in found] == sorted(
            (len(group.members) for group in found), reverse=True
        )
        for group in found:
            units = group.members.tolist()
            values = [float(matrix[i, j]) for i in units for j in units if i < j]
            assert min(values) > level
            assert abs(group.mean - sum(values) / len(values)) < 1e-12
        left = [unit for unit in range(30) if live[unit] and unit not in everyone]
        assert not any(float(matrix[i, j]) > level for i in left for j in left if i != j)


def test_planted_groups_are_found_with_their_numbers() -> None:
    matrix = torch.full((8, 8), 0.1).double()
    for units in ([1, 5, 6], [0, 3]):
        for i in units:
            for j in units:
                matrix[i, j] = 0.9
    found = groups(matrix, 0.5, torch.ones(8, dtype=torch.bool))
    gone = torch.zeros(20, dtype=torch.bool)
    gone[[15, 16]] = True
    rows = group_rows(found, torch.arange(10, 18), gone)
    assert [(row["units"], row["gone"], row["members"]) for row in rows] == [
        (3, 2, "11 15 16"),
        (2, 0, "10 13"),
    ]
    assert abs(rows[0]["mean_nmi"] - 0.9) < 1e-12


def test_a_spectrum_falls_from_the_largest_to_the_smallest_value() -> None:
    values = torch.rand(500, generator=torch.Generator().manual_seed(0)).double()
    rows = spectrum_rows(values)
    assert len(rows) == POINTS
    assert rows[0] == {"rank": 1, "share": 1 / 500, "nmi": float(values.max())}
    assert (rows[-1]["rank"], rows[-1]["nmi"]) == (500, float(values.min()))
    for row in rows:  # so many have as much
        assert int((values >= row["nmi"]).sum()) == row["rank"]
    assert [row["rank"] for row in spectrum_rows(values[:3])] == [1, 2, 3]
    assert spectrum_rows(values[:0]) == []


def test_the_samples_that_move_a_pair_most_are_told_with_how_many_they_share() -> None:
    Z = torch.zeros(20, 4)
    Z[[3, 7, 9, 11, 2, 5], 0] = torch.tensor([9.0, -8.0, 7.0, 6.0, -5.0, 4.0])
    Z[[3, 7, 9, 0, 1, 4], 1] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.5])
    top = strongest(Z, torch.arange(4)[:, None])
    assert top[:, 0].tolist() == [3, 7, 9, 11, 2, 5]
    assert top[:, 1].tolist() == [4, 1, 0, 9, 7, 3]
    assert strongest(Z, torch.tensor([[0, 1], [2, 3]]))[:, 0].tolist() == [3, 7, 9, 4, 11, 1]
    some = torch.tensor([0, 2])
    removals = Removals(
        some, torch.tensor([1, -1]), torch.tensor([0.5, float("nan")]).double(), torch.ones(2), some, ("a", "dead"), 0, None
    )  # fmt: skip
    (row,) = token_rows(removals, torch.tensor([True, False, True, False]), top)
    assert row == {
        "unit": 0, "partner": 1, "nmi": 0.5, "shared": 3, "unit_samples": "3 7 9 11 2 5", "partner_samples": "4 1 0 9 7 3",
    }  # fmt: skip
    assert token_rows(removals, torch.zeros(4, dtype=torch.bool), top) == []
