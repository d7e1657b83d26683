"""Keep masks: counts equal brute force, application is exact, violations are found."""

from __future__ import annotations

import itertools

import pytest
import torch

from prunelab.sparsity.mask import Elementwise, Structured, apply, full, split, violations


@pytest.mark.parametrize("bias", [None, True, False])
def test_counts_equal_brute_force(bias: bool | None) -> None:
    for rows, columns in itertools.product(itertools.product([True, False], repeat=3), repeat=2):
        mask = Structured(torch.tensor(rows), torch.tensor(columns), bias)
        joined = mask.keep()
        entries = mask.keep_bias_entries()
        if entries is not None:
            joined = torch.cat([joined, entries[:, None]], 1)
        assert mask.removed == int((~joined).sum())
        assert mask.total == joined.numel()
        assert mask.n_columns == mask.joined_columns().numel() == joined.shape[1]
        assert mask.columns_removed == int((~mask.joined_columns()).sum())
        again = split(mask.keep_rows, mask.joined_columns(), bias is not None)
        assert torch.equal(again.keep(), mask.keep())
        assert again.keep_bias == bias


def test_apply_zeroes_exactly_the_removed_entries() -> None:
    weight, bias = torch.ones(3, 4), torch.ones(3)
    mask = Structured(torch.tensor([True, False, True]), torch.tensor([True, True, False, True]), True)
    assert violations(mask, weight, bias) == 4 + 3 - 1 + 1
    apply(mask, weight, bias)
    assert violations(mask, weight, bias) == 0
    assert weight.tolist() == [[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1]]
    assert bias.tolist() == [1, 0, 1]


def test_a_removed_bias_column_zeroes_the_whole_bias() -> None:
    weight, bias = torch.ones(2, 2), torch.ones(2)
    mask = split(torch.tensor([True, True]), torch.tensor([True, True, False]), has_bias=True)
    apply(mask, weight, bias)
    assert bias.tolist() == [0, 0]
    assert weight.sum() == 4


def test_full_keeps_everything() -> None:
    assert full(torch.ones(2, 3), None).removed == 0
    assert full(torch.ones(2, 3), torch.ones(2)).total == 8


def test_elementwise_counts_applies_and_checks() -> None:
    keep = torch.tensor([[True, False], [False, True]])
    mask = Elementwise(keep)
    weight, bias = torch.full((2, 2), float("nan")), torch.ones(2)
    assert (mask.removed, mask.total, violations(mask, weight, bias)) == (2, 4, 2)
    apply(mask, weight, bias)
    assert violations(mask, weight, bias) == 0
    assert bias.sum() == 2
    with_bias = Elementwise(keep, torch.tensor([True, False]))
    assert (with_bias.removed, with_bias.total, violations(with_bias, weight, bias)) == (3, 6, 1)
