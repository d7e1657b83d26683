"""Choosing single weights: exact counts, ties to the lower index, groups of m, one threshold over layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunelab.errors import ConfigError, ModelError
from prunelab.sparsity.element import lowest, removed_in_matrix, removed_in_row, select, select_global


def by_sorting(score: Tensor, count: int) -> Tensor:
    """The first ``count`` of each row in a stable sort."""
    order = torch.sort(score, dim=1, stable=True).indices[:, :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, order, True)


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_lowest_is_a_stable_sort_with_and_without_ties(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    score = torch.randint(0, levels, (7, 33), generator=generator).float()
    counts = (0, 1, 16, 32, 33)
    for count, together in zip(counts, lowest(score, counts), strict=True):
        assert torch.equal(together, by_sorting(score, count))
        assert torch.equal(lowest(score, [count])[0], together)


def test_counts_mean_what_decimals_say() -> None:
    assert removed_in_row(160, 0.5) == 80
    assert removed_in_row(15, 0.5) == 8  # 15 - int(15 x 0.5)
    assert removed_in_row(10, 0.9) == 9  # 10 x (1 - 0.9) is 0.9999999999999998
    assert removed_in_matrix(1000, 0.3) == 300  # 1000 x 0.3 is 299.99999999999994
    assert removed_in_matrix(15, 0.5) == 7


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("constant", [False, True], ids=["random", "all ties"])
def test_select_meets_the_count_whatever_the_ties(ratio: float, constant: bool) -> None:
    score = torch.rand(12, 20, generator=torch.Generator().manual_seed(0))
    score = torch.ones_like(score) if constant else score
    published = select(score, ratio, "row", "published")
    assert set((~published).sum(1).tolist()) == {removed_in_row(20, ratio)}
    row = select(score, ratio, "row")
    assert int((~row).sum()) == removed_in_matrix(240, ratio)
    counts = (~row).sum(1)
    assert int(counts.max() - counts.min()) <= 1
    matrix = select(score, ratio, "matrix")
    assert int((~matrix).sum()) == removed_in_matrix(240, ratio)
    if not constant and not bool(matrix.all()):
        assert score[~matrix].max() < score[matrix].min()


def test_rows_that_lose_one_more_are_those_whose_next_weight_is_lowest() -> None:
    score = torch.tensor([[5.0, 6.0, 7.0], [1.0, 9.0, 8.0], [4.0, 3.0, 9.0]])
    keep = select(score, 4 / 9, "row")  # 4 of 9 weights: one of every row, and one more
    assert (~keep).nonzero().tolist() == [[0, 0], [1, 0], [2, 0], [2, 1]]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 2), (1, 4), (3, 5), (7, 10)])
def test_every_group_of_m_keeps_its_n_highest(n: int, m: int) -> None:
    score = torch.randint(0, 6, (9, m * 3), generator=torch.Generator().manual_seed(m)).float()
    keep = select(score, (n, m))
    gone = by_sorting(score.view(-1, m), m - n).view(score.shape)
    assert torch.equal(keep, ~gone)
    assert set(keep.view(-1, m).sum(1).tolist()) == {n}


@pytest.mark.parametrize("levels", [3, 10_000_000])
def test_global_choice_is_one_stable_sort_over_all_layers(levels: int) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = [torch.randint(0, levels, shape, generator=generator) / 7 for shape in ((5, 8), (3, 4), (6, 11))]
    for ratio in (0.0, 0.25, 0.5, 0.93):
        keep = select_global(scores, ratio)
        flat = torch.cat([score.flatten() for score in scores])[None]
        expected = ~by_sorting(flat, removed_in_matrix(flat.numel(), ratio))[0]
        assert torch.equal(torch.cat([mask.flatten() for mask in keep]), expected)


def test_mistakes_are_named() -> None:
    score = torch.ones(2, 6)
    with pytest.raises(ConfigError, match=r"sparsity\.ratio=1\.0"):
        select(score, 1.0)
    with pytest.raises(ConfigError, match="divisor of 6"):
        select(score, (2, 4))
    with pytest.raises(ModelError, match="not finite"):
        select(score * float("nan"), 0.5)
    with pytest.raises(ModelError, match="negative"):
        select_global([-score], 0.5)
