"""Kernel widths against their rules written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.information.bandwidth import GRID, choose_width
from prunelab.information.samples import standardised


def _gaussian_columns(n: int = 256, m: int = 8) -> Tensor:
    return standardised(torch.randn(n, m, generator=torch.Generator().manual_seed(0)).double()).columns


def _rng() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_numbers_silverman_and_median() -> None:
    Z = _gaussian_columns()
    assert choose_width(0.25, Z, 2.0, _rng()).sigma == 0.25
    assert choose_width("silverman", Z, 2.0, _rng()).sigma == pytest.approx(1.06 * 256**-0.2)
    assert choose_width("silverman", 3 * Z, 2.0, _rng()).sigma == pytest.approx(3 * 1.06 * 256**-0.2)
    distances = sorted(
        abs(float(z[i] - z[j])) for z in Z.T[:, :20] for i in range(20) for j in range(i + 1, 20)
    )
    found = choose_width("median", Z[:20], 2.0, _rng()).sigma
    assert found == pytest.approx(distances[(len(distances) - 1) // 2] / math.sqrt(2))


def test_contrast_has_its_optimum_inside_the_grid_and_a_lighter_null_moves_it_down() -> None:
    Z = _gaussian_columns(m=3)
    width = choose_width("contrast", Z, 2.0, _rng())
    assert [sigma for sigma, _ in width.objective] == pytest.approx(GRID)
    assert width.sigma == max(width.objective, key=lambda row: row[1])[0]
    assert 0.2 < width.sigma < 0.45  # about 0.3 for Gaussian columns
    assert choose_width("contrast", Z, 2.0, _rng(), null_weight=1.0).sigma < 0.15
    assert choose_width("contrast", Z, 2.0, _rng()) == width


def test_contrast_is_the_difference_that_its_formula_says() -> None:
    """At alpha 2, from distances written out, with the shuffles the rule draws."""
    Z = _gaussian_columns(n=20, m=3)
    width = choose_width("contrast", Z, 2.0, _rng(), null_weight=2.0)
    generator = _rng()
    columns = Z[:, torch.randperm(3, generator=generator)]
    orders = torch.rand(4, 20, 3, generator=generator).argsort(1)
    for sigma, found in width.objective[::6]:
        total = 0.0
        for k in range(3):
            z = columns[:, k]
            shuffled = [float(_bits(z, z[order[:, k]], sigma)) for order in orders]
            total += float(_bits(z, z, sigma)) - 2 * sum(shuffled) / 4
        assert found == pytest.approx(total / 3, abs=1e-9)


def _bits(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    K, L = (torch.exp(-((z[:, None] - z[None]) ** 2) / (2 * sigma**2)) / len(z) for z in (x, y))
    joint = K * L / (K * L).trace()
    return torch.log2(joint.square().sum() / K.square().sum() / L.square().sum())


def test_alignment_takes_the_width_whose_kernels_resemble_that_of_the_outputs() -> None:
    Z = _gaussian_columns(n=40, m=4)
    Y = Z @ torch.randn(4, 3, generator=_rng(), dtype=torch.float64)
    width = choose_width("alignment", Z, 2.0, _rng(), outputs=Y)
    Y = (Y - Y.mean(0)) / Y.std(0, correction=0)
    distance = torch.stack([torch.stack([(a - b).norm() for b in Y]) for a in Y])
    first, second = torch.triu_indices(40, 40, 1)
    sigma_y = distance[first, second].median() / math.sqrt(2)
    K_Y = torch.exp(-distance.square() / (2 * sigma_y**2))
    for sigma, found in width.objective[::4]:
        scores = []
        for z in Z.T:
            K = torch.exp(-((z[:, None] - z[None]) ** 2) / (2 * sigma**2))
            scores.append((K * K_Y).sum() / K.norm() / K_Y.norm())
        assert found == pytest.approx(float(torch.stack(scores).mean()), abs=1e-9)
    assert width.sigma == max(width.objective, key=lambda row: row[1])[0]


def test_of_several_channels_distances_are_lengths() -> None:
    Z = _gaussian_columns(n=30, m=6).view(30, 2, 3)
    lengths = sorted(
        float((z[i] - z[j]).norm()) for z in Z.unbind(1) for i in range(30) for j in range(i + 1, 30)
    )
    found = choose_width("median", Z, 2.0, _rng()).sigma
    assert found == pytest.approx(lengths[(len(lengths) - 1) // 2] / math.sqrt(2))
    assert choose_width("silverman", Z, 2.0, _rng()).sigma == pytest.approx(1.06 * 30 ** (-1 / 7))
    one, flat = (choose_width("contrast", z, 2.0, _rng()) for z in (Z[:, :, :1], Z[:, :, 0]))
    assert one == flat
    wide = choose_width("contrast", Z, 2.0, _rng())
    assert [sigma for sigma, _ in wide.objective] == pytest.approx([s * math.sqrt(3) for s in GRID])


def test_what_cannot_be_is_refused() -> None:
    Z = _gaussian_columns(n=8)
    with pytest.raises(ConfigError, match="Did you mean 'silverman'"):
        choose_width("silvermann", Z, 2.0, _rng())
    with pytest.raises(ConfigError, match="a number > 0"):
        choose_width(0.0, Z, 2.0, _rng())
    with pytest.raises(ConfigError, match="outputs are not known"):
        choose_width("alignment", Z, 2.0, _rng())
