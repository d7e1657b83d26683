"""Entropies and information against matrices written out, in float64, and what is known of them in closed form."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.information.renyi import Renyi
from prunelab.information.samples import standardised


def _pair(rho: float, n: int = 256, seed: int = 0) -> Tensor:
    """Return two Gaussian columns whose correlation is exactly ``rho``, standardised."""
    x, y = torch.randn(2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean()
    y = y - y.mean()
    y = y - (x @ y) / (x @ x) * x
    x, y = x / x.norm(), y / y.norm()
    return standardised(torch.stack([x, rho * x + math.sqrt(1 - rho**2) * y], 1)).columns


def _kernel(z: Tensor, sigma: float) -> Tensor:
    n = len(z)
    K = torch.empty(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            K[i, j] = math.exp(-(float(z[i] - z[j]) ** 2) / (2 * sigma**2))
    return K


def _entropy(A: Tensor, alpha: float) -> float:
    spectrum = torch.linalg.eigvalsh(A).clamp(min=0)
    if alpha == 1:
        return -sum(float(x) * math.log2(float(x)) for x in spectrum if x > 0)
    return math.log2(float(spectrum.pow(alpha).sum())) / (1 - alpha)


def _information(K: Tensor, L: Tensor, alpha: float) -> float:
    joint = K * L / (K * L).trace()
    return _entropy(K / len(K), alpha) + _entropy(L / len(L), alpha) - _entropy(joint, alpha)


def _samples(n: int = 24, m: int = 7, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    Z = torch.randn(n, m, generator=generator, dtype=torch.float64)
    Z[:, 1] += Z[:, 0]
    Z[:, 2] = Z[:, 0].square()
    return standardised(Z).columns


@pytest.mark.parametrize("alpha", [0.7, 1.0, 1.01, 2.0, 3.0])
def test_all_ways_to_a_value_agree_with_matrices_written_out(alpha: float) -> None:
    Z, sigma = _samples(), 0.5
    m = Z.shape[1]
    kernels = [_kernel(z, sigma) for z in Z.T]
    expected = torch.tensor([[_information(K, L, alpha) for L in kernels] for K in kernels])
    estimator = Renyi(sigma, alpha, normalize="none")
    pairs = torch.cartesian_prod(torch.arange(m), torch.arange(m))
    assert torch.equal(estimator.matrix(Z), estimator.matrix(Z).T)
    torch.testing.assert_close(estimator.matrix(Z), expected.double().clamp(min=0), rtol=0, atol=1e-6)
    torch.testing.assert_close(estimator.values(Z)(pairs).view(m, m), estimator.matrix(Z), rtol=0, atol=1e-9)
    torch.testing.assert_close(
        estimator.information(Z, pairs).clamp(min=0).view(m, m), estimator.matrix(Z), rtol=0, atol=1e-9
    )


def test_at_alpha_2_product_frobenius_and_eigenvalues_agree_to_1e9_and_chunks_do_not_matter() -> None:
    Z, sigma = _samples(n=24, m=5), 0.4
    n, m = Z.shape
    found = Renyi(sigma, normalize="none").matrix(Z)
    frobenius, spectral = torch.empty(2, m, m, dtype=torch.float64)
    kernels = [_kernel(z, sigma) for z in Z.T]
    for k, K in enumerate(kernels):
        for l, L in enumerate(kernels):
            s = [-math.log2(float((A / n).square().sum())) for A in (K, L, K * L)]
            frobenius[k, l] = s[0] + s[1] - s[2]
            spectral[k, l] = _information(K, L, 2.0)
    torch.testing.assert_close(found, frobenius.clamp(min=0), rtol=0, atol=1e-9)
    torch.testing.assert_close(found, spectral.clamp(min=0), rtol=0, atol=1e-9)
    for chunk_bytes in (1, 3000, 10**9):
        other = Renyi(sigma, normalize="none", chunk_bytes=chunk_bytes)
        torch.testing.assert_close(other.matrix(Z), found, rtol=0, atol=1e-9)
        torch.testing.assert_close(other.entropies(Z), Renyi(sigma).entropies(Z), rtol=0, atol=1e-9)


def test_bands_of_rows_and_float32_give_the_same_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    Z = _samples(n=32, m=11)
    whole = Renyi(0.5).matrix(Z)
    fast = Renyi(0.5, precise=False).matrix(Z)
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast.double(), whole, rtol=0, atol=2e-5)
    monkeypatch.setattr("prunelab.information.renyi.BAND", 5)
    torch.testing.assert_close(Renyi(0.5).matrix(Z), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(Renyi(0.5, null_draws=2).matrix(Z), _corrected(Z, 0.5, 2), rtol=0, atol=1e-9)


def _corrected(Z: Tensor, sigma: float, draws: int) -> Tensor:
    """Return the normalised information less the mean over shuffled pairs, both of a pair shuffled in turn."""
    m = Z.shape[1]
    generator = torch.Generator().manual_seed(0)
    estimator = Renyi(sigma, normalize="none")
    total = torch.zeros(m, m, dtype=torch.float64)
    for _ in range(draws):
        order = torch.randperm(len(Z), generator=generator)
        both = torch.cat([Z, Z[order]], 1)
        for k in range(m):
            for l in range(m):
                pairs = torch.tensor([[k, m + l], [m + k, l]])
                total[k, l] += estimator.information(both, pairs).sum() / 2
    every = torch.cartesian_prod(torch.arange(m), torch.arange(m))
    bits = (estimator.information(Z, every).view(m, m) - total / draws).clamp(min=0)
    return bits / torch.outer(bits.diagonal(), bits.diagonal()).sqrt()


@pytest.mark.parametrize("alpha", [1.01, 2.0])
def test_null_correction_of_pairs_is_that_of_the_matrix_and_copies_stay_at_1(alpha: float) -> None:
    Z = _samples(n=16, m=4)
    estimator = Renyi(0.5, alpha, null_draws=3)
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    found = estimator.matrix(Z)
    torch.testing.assert_close(estimator.values(Z)(every).view(4, 4), found, rtol=0, atol=1e-9)
    torch.testing.assert_close(found, _corrected(Z, 0.5, 3), rtol=0, atol=1e-9) if alpha == 2 else None
    torch.testing.assert_close(found.diagonal(), torch.ones(4, dtype=torch.float64))
    # what chance gives is gone
    free = standardised(torch.randn(64, 12, generator=torch.Generator().manual_seed(1))).columns
    off = ~torch.eye(12, dtype=torch.bool)
    assert (
        Renyi(0.3, alpha, null_draws=4).matrix(free)[off].mean()
        < Renyi(0.3, alpha).matrix(free)[off].mean() / 3
    )


@pytest.mark.parametrize("alpha", [1.0, 1.01, 2.0])
def test_entropy_is_between_0_and_log2_n_and_reaches_both(alpha: float) -> None:
    Z = _samples(n=32)
    found = Renyi(0.5, alpha).entropies(Z)
    assert bool((found > 0).all())
    assert bool((found < 5).all())
    still = torch.zeros(32, 1, dtype=torch.float64)
    torch.testing.assert_close(Renyi(0.5, alpha).entropies(still), torch.zeros(1).double(), rtol=0, atol=1e-9)
    apart = Renyi(1e-9, alpha).entropies(Z)
    torch.testing.assert_close(apart, torch.full_like(apart, 5.0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("alpha", [1.01, 2.0])
def test_information_is_symmetric_and_1_for_copies_and_affine_copies(alpha: float) -> None:
    z, other = torch.randn(2, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    Z = standardised(torch.stack([z, z, -3 * z + 2, other], 1)).columns
    found = Renyi(0.5, alpha).matrix(Z)
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found[:3, :3], torch.ones(3, 3).double(), rtol=0, atol=1e-6)
    assert float(found[0, 3]) < 0.6
    values = Renyi(0.5, alpha).values(Z)
    there, back = values(torch.tensor([[0, 3], [3, 0]]))
    assert float((there - back).abs()) < 1e-12


def test_information_rises_with_correlation_and_has_the_reference_values() -> None:
    rhos = (0.0, 0.3, 0.6, 0.9, 0.99)
    means = []
    for rho in rhos:
        draws = [float(Renyi(0.5).matrix(_pair(rho, seed=seed))[0, 1]) for seed in range(8)]
        means.append(sum(draws) / len(draws))
    assert all(low < high for low, high in itertools.pairwise(means))
    assert means[0] < 0.2
    # one draw each, as measured when the estimator was chosen
    assert means == pytest.approx([0.05, 0.08, 0.23, 0.61, 0.94], abs=0.05)


def test_dependence_without_correlation_is_seen() -> None:
    z = torch.randn(128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.cat([z, -z])
    Z = standardised(torch.stack([z, z.square()], 1)).columns
    assert float((Z[:, 0] * Z[:, 1]).mean().abs()) < 1e-12
    assert float(Renyi(0.5).matrix(Z)[0, 1]) > 0.5


def test_around_alpha_1_the_value_hardly_changes() -> None:
    for rho in (0.3, 0.9):
        Z = _pair(rho, n=64)
        low, middle, high = (float(Renyi(0.5, a, "none").matrix(Z)[0, 1]) for a in (0.99, 1.0, 1.01))
        assert abs(low - high) < 0.05 * middle
        assert min(low, high) <= middle <= max(low, high)


def test_self_and_smaller_entropy_divide_as_they_say_and_nothing_is_said_of_a_constant() -> None:
    Z = _samples()
    Z[:, 3] = 0
    bits = Renyi(0.5, normalize="none").matrix(Z)
    S = Renyi(0.5).entropies(Z)
    own = bits.diagonal()
    by_self, by_entropy = Renyi(0.5).matrix(Z), Renyi(0.5, normalize="min_entropy").matrix(Z)
    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    for k, l in pairs.tolist():
        constant = 3 in (k, l)
        expected = 0.0 if constant else float(bits[k, l] / (own[k] * own[l]).sqrt())
        assert float(by_self[k, l]) == pytest.approx(expected, abs=1e-12)
        expected = 0.0 if constant else float(bits[k, l] / torch.minimum(S[k], S[l]))
        assert float(by_entropy[k, l]) == pytest.approx(expected, abs=1e-12)
    for normalize in ("self", "min_entropy", "none"):
        estimator = Renyi(0.5, normalize=normalize)
        torch.testing.assert_close(
            estimator.values(Z)(pairs).view(7, 7), estimator.matrix(Z), rtol=0, atol=1e-9
        )


@pytest.mark.parametrize("alpha", [1.01, 2.0])
def test_variables_of_several_channels_have_kernels_of_distances_between_vectors(alpha: float) -> None:
    Z = _samples(n=20, m=12).view(20, 4, 3)
    K = torch.empty(4, 20, 20, dtype=torch.float64)
    for k in range(4):
        for i in range(20):
            for j in range(20):
                K[k, i, j] = math.exp(-float((Z[i, k] - Z[j, k]).square().sum()) / 2)
    expected = torch.tensor([[_information(K[k], K[l], alpha) for l in range(4)] for k in range(4)]).double()
    estimator = Renyi(1.0, alpha, normalize="none", chunk_bytes=5000)
    torch.testing.assert_close(estimator.matrix(Z), expected.clamp(min=0), rtol=0, atol=1e-6)
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    torch.testing.assert_close(estimator.values(Z)(every).view(4, 4), estimator.matrix(Z), rtol=0, atol=1e-9)


def test_what_cannot_be_is_refused() -> None:
    Z = _samples()
    with pytest.raises(ConfigError, match="one of self, min_entropy, none"):
        Renyi(0.5, normalize="max").matrix(Z)
    for wrong in (Renyi(0.0), Renyi(0.5, alpha=-1.0)):
        with pytest.raises(ConfigError, match="numbers > 0"):
            wrong.matrix(Z)
