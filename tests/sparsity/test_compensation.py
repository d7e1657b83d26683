"""Compensation of removed inputs against brute force: the mean in the bias, and the least-squares fit."""

from __future__ import annotations

import pytest
import torch

from prunelab.errors import ModelError
from prunelab.sparsity.compensation import least_squares, mean_into_bias


def case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    Z = torch.randn(200, 6, generator=generator, dtype=torch.float64) @ mix + torch.arange(6)
    W = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    bias = torch.randn(4, generator=generator, dtype=torch.float64)
    keep = torch.tensor([True, False, True, True, False, True])
    return Z, W, bias, keep


def error(
    Z: torch.Tensor,
    W: torch.Tensor,
    bias: torch.Tensor,
    W2: torch.Tensor,
    b2: torch.Tensor,
    keep: torch.Tensor,
) -> float:
    return float(((Z @ W.T + bias) - ((Z * keep) @ W2.T + b2)).square().sum())


def test_the_mean_of_removed_inputs_goes_into_the_bias() -> None:
    Z, W, bias, keep = case()
    new, shifted = mean_into_bias(W, bias, keep, Z.mean(0))
    assert torch.equal(new, W)
    torch.testing.assert_close(shifted, bias + sum(W[:, c] * Z[:, c].mean() for c in (1, 4)))
    _, made = mean_into_bias(W, None, keep, Z.mean(0))
    torch.testing.assert_close(made, shifted - bias)


def test_a_constant_input_is_replaced_without_loss() -> None:
    Z, W, bias, keep = case()
    Z[:, 1], Z[:, 4] = 3.0, -2.0
    new, shifted = mean_into_bias(W, bias, keep, Z.mean(0))
    torch.testing.assert_close((Z * keep) @ new.T + shifted, Z @ W.T + bias)


def test_least_squares_is_the_regression_on_what_is_kept_and_a_constant() -> None:
    Z, W, bias, keep = case()
    new, shifted = least_squares(W, bias, keep, Z.mean(0), Z.T @ Z / len(Z), eps=1e-14)
    design = torch.cat([Z[:, keep], torch.ones(len(Z), 1, dtype=torch.float64)], 1)
    fit = torch.linalg.lstsq(design, Z @ W.T + bias).solution
    torch.testing.assert_close(new[:, keep], fit[:-1].T, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(shifted, fit[-1], rtol=1e-6, atol=1e-8)
    assert not new[:, ~keep].any()


@pytest.mark.parametrize("seed", range(5))
def test_least_squares_is_never_worse_than_the_mean_and_that_never_worse_than_nothing(seed: int) -> None:
    Z, W, bias, keep = case(seed)
    gram = Z.T @ Z / len(Z)
    fitted = error(Z, W, bias, *least_squares(W, bias, keep, Z.mean(0), gram, eps=1e-12), keep)
    shifted = error(Z, W, bias, *mean_into_bias(W, bias, keep, Z.mean(0)), keep)
    assert fitted <= shifted <= error(Z, W, bias, W, bias, keep)


def test_a_covariance_that_is_none_is_refused() -> None:
    _, W, bias, keep = case()
    with pytest.raises(ModelError, match="positive definite"):
        least_squares(W, bias, keep, torch.ones(6), torch.zeros(6, 6))
