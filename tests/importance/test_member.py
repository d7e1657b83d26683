"""Scores of units from gradients, against sums over stored gradients written out weight by weight."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from prunelab.importance.member import REDUCTIONS, coarse, coherence, combine, fold
from prunelab.stats.taylor import SUMS, terms


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_four_terms_are_those_of_the_paper() -> None:
    w, g, F = draw(4, 6), draw(4, 6, seed=1), draw(4, 6, seed=2).square()
    found = terms(w, g, F)
    for r in range(4):
        for c in range(6):
            x, y, z = float(w[r, c]), float(g[r, c]), float(F[r, c])
            expected = [x * y, abs(x * y), abs(x * x * z), abs(x * y - 0.5 * x * x * z)]
            assert found[:, r, c].tolist() == pytest.approx(expected, rel=1e-14)


def test_vector_is_at_most_element1_and_equal_where_signs_agree() -> None:
    w, g, F = draw(50, 7), draw(50, 7, seed=1), torch.zeros(50, 7).double()
    g[:10] = w[:10].sign() * g[:10].abs()  # every term >= 0
    g[10:20] = -w[10:20].sign() * g[10:20].abs()
    of = dict(zip(SUMS, terms(w, g, F), strict=True))
    vector, element1 = of["signed"].sum(1).abs(), of["element1"].sum(1)
    assert bool((vector <= element1 * (1 + 1e-12)).all())
    same = ((w * g) >= 0).all(1) | ((w * g) <= 0).all(1)
    assert torch.equal(torch.isclose(vector, element1, rtol=1e-12), same)
    assert 20 <= int(same.sum()) < 50
    ratio = coherence(vector, element1)
    assert bool(((ratio >= 0) & (ratio <= 1 + 1e-12)).all())
    assert coherence(torch.zeros(3), torch.zeros(3)).tolist() == [0, 0, 0]
    one = terms(w[:, :1], g[:, :1], F[:, :1])  # a slice of one weight
    assert torch.equal(one[0].sum(1).abs(), one[1].sum(1))


def by_hand(members: list[Tensor], reduction: str) -> list[float]:
    """Channel by channel, folded to the shortest member, as nested loops."""
    width = min(member.shape[1] for member in members)
    scores = []
    for unit in range(len(members[0])):
        total = 0.0
        for channel in range(width):
            at = [sum(float(x) for x in member[unit, channel::width]) for member in members]
            total += {
                "sum": sum(at), "mean": sum(at) / len(at), "max": max(at), "prod": math.prod(at),
                "first": at[0], "last": at[-1],
            }[reduction]  # fmt: skip
        scores.append(total)
    return scores


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("lines", [(1, 1, 1), (1, 1), (6, 6, 6, 6), (6, 3, 3, 6)])
def test_members_are_combined_channel_by_channel(reduction: str, lines: tuple[int, ...]) -> None:
    members = [draw(5, n, seed=i).abs() for i, n in enumerate(lines)]
    assert combine(members, reduction).tolist() == pytest.approx(by_hand(members, reduction), rel=1e-12)


def test_query_heads_are_folded_to_their_own_key_head() -> None:
    """Two key heads of width 2, each serving two query heads: q // r, where q mod n_kv would mix them up."""
    heads = torch.tensor([[1.0, 2], [10, 20], [100, 200], [1000, 2000]])  # query heads 0..3, two lines each
    units = heads.reshape(2, 4)
    assert fold(units, 2).tolist() == [[11, 22], [1100, 2200]]
    with pytest.raises(ValueError, match="5 lines"):
        fold(torch.zeros(2, 5), 2)


def test_coarse_slices_of_rows_or_of_the_unit() -> None:
    lines = torch.tensor([[1.0, -1.0], [-2.0, -3.0]])
    assert coarse(lines, "row").tolist() == [2, 5]
    assert coarse(lines, "unit").tolist() == [0, 5]
    neuron = draw(6, 1)
    assert torch.equal(coarse(neuron, "row"), coarse(neuron, "unit"))
    with pytest.raises(ValueError, match="'column'"):
        coarse(lines, "column")
