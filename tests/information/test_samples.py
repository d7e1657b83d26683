"""Columns that can be compared: by the formula, with dead, rare and far-out values where they are."""

from __future__ import annotations

import pytest
import torch

from prunelab.errors import ModelError
from prunelab.information.samples import standardised


def test_columns_are_centred_and_divided_and_dead_ones_are_0() -> None:
    Z = torch.randn(50, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 10, 1e-9, 3, 0]) + 7
    found = standardised(Z)
    exact = Z.double()
    assert found.dead.tolist() == [False, False, True, False, True]
    for i in (0, 1, 3):
        z = exact[:, i] - exact[:, i].sum() / 50
        deviation = (z * z).sum().div(50).sqrt()
        torch.testing.assert_close(found.columns[:, i], z / deviation)
        torch.testing.assert_close(found.deviation[i], deviation)
    assert not found.columns[:, [2, 4]].any()


def test_one_scale_for_all_keeps_their_proportions() -> None:
    Z = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([1, 10, 0])
    found = standardised(Z, each=False)
    assert float(found.columns[:, :2].square().mean()) == pytest.approx(1)
    spread = found.columns.std(0, correction=0)
    torch.testing.assert_close(spread[1] / spread[0], found.deviation[1] / found.deviation[0])


def test_a_layer_most_of_which_is_silent_has_live_neurons_all_the_same() -> None:
    Z = torch.zeros(10, 5)
    Z[:, 4] = torch.arange(10)
    assert standardised(Z).dead.tolist() == [True, True, True, True, False]
    assert bool(standardised(torch.zeros(10, 2)).dead.all())


def test_clipping_is_symmetric_and_rare_neurons_are_told() -> None:
    Z = torch.zeros(100, 2)
    Z[:3, 0] = torch.tensor([1.0, 2.0, 300.0])
    Z[:, 1] = torch.arange(100)
    found = standardised(Z, clip=6.0, min_active=4)
    assert float(found.columns.max()) == 6
    assert found.rare.tolist() == [True, False]
    torch.testing.assert_close(standardised(-Z, clip=6.0).columns, -found.columns)


def test_too_little_and_what_is_not_finite_are_refused() -> None:
    with pytest.raises(ModelError, match="Take more tokens"):
        standardised(torch.zeros(1, 3))
    with pytest.raises(ModelError, match="not finite"):
        standardised(torch.tensor([[1.0], [torch.nan]]))
