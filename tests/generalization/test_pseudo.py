"""Pseudo-domains: planted kinds of sequences are found, every set has two and more, all runs give the same."""

from __future__ import annotations

import pytest
import torch

from prunelab.errors import ModelError
from prunelab.generalization.pseudo import clusters


def test_planted_kinds_are_found_whatever_their_order() -> None:
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(24) % 3
    centres = torch.eye(3, 10).double() * torch.tensor([[4.0], [6.0], [9.0]]).double()
    points = centres[kind] + 0.1 * torch.randn(24, 10, generator=generator).double()
    found = clusters(points, 3)
    assert [members.tolist() for members in found] == [list(range(at, 24, 3)) for at in range(3)]
    for members, same in zip(found, clusters(points.clone(), 3), strict=True):
        assert torch.equal(members, same)


@pytest.mark.parametrize("k", [2, 4, 8])
def test_sets_are_a_partition_and_none_has_a_single_sequence(k: int) -> None:
    points = torch.randn(16, 5, generator=torch.Generator().manual_seed(k)).double()
    points[3] += 20  # one of its own kind joins others
    found = clusters(points, k)
    assert sorted(torch.cat(found).tolist()) == list(range(16))
    assert 1 <= len(found) <= k
    assert min(map(len, found)) >= 2


def test_sequences_that_are_all_alike_are_no_domains() -> None:
    with pytest.raises(ModelError, match="all alike"):
        clusters(torch.ones(8, 5).double(), 4)
