"""Per-token factors: explicit loops, batches, merging, and the Fisher they stand for."""

from __future__ import annotations

import pytest
import torch

from prunelab.stats.gram import BLOCK, GramSum


@pytest.mark.parametrize("ones", [False, True])
def test_sum_equals_an_explicit_loop_and_no_bit_depends_on_the_batch(ones: bool) -> None:
    sequences = torch.randn(10, 5, 6, generator=torch.Generator().manual_seed(0))
    sums = []
    for batch in (1, 3, 7, 10):
        total = GramSum(6, ones=ones)
        for part in sequences.split(batch):
            total.add(part)
        sums.append(total.total.clone())
    assert all(torch.equal(one, sums[0]) for one in sums)
    X = sequences.reshape(50, 6)
    joined = torch.cat([X, torch.ones(50, 1)], 1) if ones else X
    expected = sum(torch.outer(x, x) for x in joined.double()) / 50
    torch.testing.assert_close(total.mean().double(), expected, rtol=1e-5, atol=1e-6)


def test_wide_factors_are_summed_by_blocks() -> None:
    X = torch.randn(10, 2 * BLOCK + 3, generator=torch.Generator().manual_seed(0))
    total = GramSum(X.shape[1], ones=True)
    total.add(X[None, :4])
    total.add(X[None, 4:])
    joined = torch.cat([X, torch.ones(10, 1)], 1).double()
    found = total.mean()
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found.double(), joined.T @ joined / 10, rtol=1e-5, atol=1e-6)


def test_tokens_of_all_sequences_count_and_half_precision_is_summed_in_float32() -> None:
    X = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    total = GramSum(6)
    total.add(X)
    flat = X.double().reshape(20, 6)
    assert total.n_tokens == 20
    torch.testing.assert_close(total.mean().double(), flat.T @ flat / 20, rtol=1e-5, atol=1e-6)


def test_merge_equals_one_sum() -> None:
    X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    left, right, whole = GramSum(3, ones=True), GramSum(3, ones=True), GramSum(3, ones=True)
    left.add(X[None, :8])
    right.add(X[None, 8:])
    whole.add(X[None])
    left.merge(right)
    torch.testing.assert_close(left.mean(), whole.mean())


def test_an_empty_sum_averages_to_zero() -> None:
    assert torch.equal(GramSum(2, ones=True).mean(), torch.zeros(3, 3))


def test_factors_converge_to_the_sampled_fisher_of_a_linear_layer() -> None:
    """Squared loss with Gaussian residuals: g is independent of a, so E[gg' (x) aa'] = G (x) A."""
    generator = torch.Generator().manual_seed(0)
    errors = []
    for n in (1_000, 100_000):
        a = torch.randn(n, 3, generator=generator) @ torch.tensor([[1.0, 0.5, 0], [0, 1, 0.2], [0, 0, 2]])
        g = torch.randn(n, 2, generator=generator) @ torch.tensor([[1.0, 0.3], [0, 0.5]])
        A, G = GramSum(3), GramSum(2)
        A.add(a[None])
        G.add(g[None])
        samples = (g[:, :, None] * a[:, None, :]).reshape(n, 6)  # per-token gradient of W, row-major
        fisher = samples.T @ samples / n
        errors.append((torch.kron(G.mean(), A.mean()) - fisher).norm() / fisher.norm())
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 3
