"""The Gaussian screen against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from prunelab.errors import ConfigError
from prunelab.information.gaussian import Gaussian


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9])
def test_of_gaussian_columns_it_is_their_information(rho: float) -> None:
    x, y = torch.randn(2, 2048, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    Z = torch.stack([x, rho * x + math.sqrt(1 - rho**2) * y], 1)
    expected = -0.5 * math.log2(1 - rho**2)
    assert float(Gaussian().matrix(Z)[0, 1]) == pytest.approx(expected, abs=0.1)
    assert float(Gaussian().values(Z)(torch.tensor([[1, 0]]))) == pytest.approx(
        float(Gaussian().matrix(Z)[0, 1])
    )


def test_it_follows_numpys_correlations_whatever_the_dtype_and_band(monkeypatch: pytest.MonkeyPatch) -> None:
    Z = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) + 5
    Z[:, 5] = 2
    rho = torch.corrcoef(Z[:, :5].double().T).fill_diagonal_(math.sqrt(1 - 1e-12))
    expected = torch.zeros(6, 6, dtype=torch.float64)
    expected[:5, :5] = -torch.log2(1 - rho.square()) / 2
    monkeypatch.setattr("prunelab.information.gaussian.BAND", 4)
    torch.testing.assert_close(Gaussian().matrix(Z.double()), expected, rtol=1e-3, atol=1e-9)
    assert Gaussian().matrix(Z).dtype == torch.float32
    shares = Gaussian("self").matrix(Z.double())
    torch.testing.assert_close(shares, expected / expected[0, 0], rtol=1e-3, atol=1e-9)


def test_a_parabola_is_not_seen_and_there_is_no_entropy_to_divide_by() -> None:
    z = torch.linspace(-1, 1, 101, dtype=torch.float64)
    Z = torch.stack([z, z.square()], 1)
    assert float(Gaussian().matrix(Z)[0, 1]) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ConfigError, match="one of self, none"):
        Gaussian("min_entropy").matrix(Z)
