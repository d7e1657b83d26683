"""Least squares of some inputs on others, written out on samples."""

from __future__ import annotations

import pytest
import torch

from prunelab.errors import ModelError
from prunelab.linalg.regression import regression


def test_it_is_the_least_squares_fit_of_centred_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    Z = torch.randn(300, 6, generator=generator).double() @ torch.randn(6, 6, generator=generator).double()
    Z = Z - Z.mean(0)
    using, removed = torch.tensor([4, 0, 2]), torch.tensor([5, 1])
    found = regression(Z.T @ Z / len(Z), using, removed, 0.0)
    torch.testing.assert_close(found, torch.linalg.lstsq(Z[:, using], Z[:, removed]).solution)


def test_inputs_that_cannot_be_told_apart_are_an_error_without_damping() -> None:
    one = torch.ones(3, 3).double()
    with pytest.raises(ModelError, match="not positive definite"):
        regression(one - 1e-9 * torch.eye(3).double(), torch.tensor([0, 1]), torch.tensor([2]), 0.0)
    assert bool(torch.isfinite(regression(one, torch.tensor([0, 1]), torch.tensor([2]), 1e-3)).all())
