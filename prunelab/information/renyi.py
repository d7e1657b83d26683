"""Mutual information of neurons by the matrix-based Renyi entropy. arXiv:2406.00030; the estimator is Sanchez Giraldo,
Rao and Principe's.

For a neuron's samples z (n,), or those of several channels together (n, d), and a kernel of width sigma

    K[i, j] = exp(-|z_i - z_j|^2 / (2 sigma^2))      A = K / n, of trace 1
    S_alpha(A) = log2(sum_i lambda_i(A)^alpha) / (1 - alpha)       bits; alpha = 1: Shannon, the limit
    I(k, l) = S(A_k) + S(A_l) - S(K_k o K_l / n)     o: entry by entry

At alpha = 2, ``S = -log2 ||A||_F^2`` needs no eigenvalues, and all pairs of a layer are one product: with
``P_k = vec(K_k o K_k)``, ``S(A_k) = -log2(sum P_k / n^2)`` and ``S(A_kl) = -log2(<P_k, P_l> / n^2)``. Since K is
symmetric with ones on its diagonal only the entries above it are computed, counted twice, and n added. That costs
``m^2/2 n^2/2`` multiply-adds for m neurons.

A neuron's information about itself is not its entropy (the joint kernel is narrower), so values are divided by
``sqrt(I(k, k) I(l, l))``, which makes copies exactly 1 (``self``), or by the smaller entropy (``min_entropy``), or
left in bits (``none``). Negative estimates, which occur by a hair at alpha = 2, are 0. With few samples the estimate
is too high even for independent neurons: with ``null_draws`` the mean over that many pairs whose second neuron is
shuffled is subtracted first, from the self-information too, so that copies stay at 1.

The normalisation by self-information, the correction and the treatment of dead neurons are reconstructions: the
paper's own choices are not public.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.information.pairs import Values, normalised

BAND = 1024  # rows of the product at a time: only what is on or right of the diagonal is computed
CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Renyi:
    """``sigma``: the kernels' width, in the samples' unit. ``normalize``: self, min_entropy or none.

    Samples ``Z`` are (n, m), a column per variable, or (n, m, d): m variables of d channels each.

    ``precise``: products in float64; otherwise in float32 (kernels too), their sums in float64 all the same, which is
    right to about 1e-6 bit. ``chunk_bytes`` bounds the memory of what is computed at a time, beside the result.
    ``seed`` is of the shuffles.
    """

    sigma: float
    alpha: float = 2.0
    normalize: str = "self"
    null_draws: int = 0
    precise: bool = True
    chunk_bytes: int = CHUNK_BYTES
    seed: int = 0

    def entropies(self, Z: Tensor) -> Tensor:
        """Return S of every column of ``Z``, in bits, (m,) float64: 0 for a column that never moves."""
        Z = self._cast(Z)
        if self.alpha == 2:
            return -torch.log2(self._products(Z, None)[1])
        return torch.cat([self._spectral(Z[:, part]) for part in self._columns(Z)])

    def matrix(self, Z: Tensor) -> Tensor:
        """Return the normalised information of all pairs of columns of ``Z``: (m, m), symmetric, >= 0.

        float64 if ``precise``, else float32. Rows and columns of a column that never moves are 0.
        """
        bits, entropy = self._information(self._cast(Z))
        if self.null_draws:
            bits -= self._null(self._cast(Z), entropy)
        return normalised(bits.clamp_(min=0), bits.diagonal().double().clone(), entropy, self.normalize)

    def values(self, Z: Tensor) -> Values:
        """Return a function of pairs (p, 2) of columns that gives what :meth:`matrix` has there, (p,) float64,
        computing only those; what it needs of every single column is computed here.

        With ``null_draws`` the same shuffles are used.
        """
        Z = self._cast(Z)
        everyone = torch.arange(Z.shape[1], device=Z.device)
        entropy = self.entropies(Z)
        own = self._corrected(Z, torch.stack([everyone, everyone], 1), entropy)

        def value(pairs: Tensor) -> Tensor:
            bits = self._corrected(Z, pairs.to(Z.device), entropy)
            return normalised(bits, own, entropy, self.normalize, pairs.to(Z.device))

        return value

    def information(self, Z: Tensor, pairs: Tensor, entropy: Tensor | None = None) -> Tensor:
        """Return I of pairs (p, 2) of columns of ``Z``, in bits, (p,) float64: neither clipped nor corrected.

        ``entropy`` (m,): of the columns, if known.
        """
        known = self.entropies(Z) if entropy is None else entropy
        return self._pairs(self._cast(Z), pairs.to(Z.device), known)

    def _cast(self, Z: Tensor) -> Tensor:
        if not (self.sigma > 0 and self.alpha > 0):
            raise ConfigError("method.width, method.alpha", (self.sigma, self.alpha), "numbers > 0")
        Z = Z.to(torch.float64 if self.precise else torch.float32)
        return Z[:, :, None] if Z.ndim == 2 else Z

    def _shuffles(self, n: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        return [torch.randperm(n, generator=generator) for _ in range(self.null_draws)]

    def _corrected(self, Z: Tensor, pairs: Tensor, entropy: Tensor) -> Tensor:
        bits = self._pairs(Z, pairs, entropy)
        for order in self._shuffles(len(Z)):
            both = torch.cat([Z, Z[order.to(Z.device)]], 1)
            for shuffled in (
                0,
                1,
            ):  # I(k, shuffled l) and I(shuffled k, l), so that the correction is symmetric
                moved = pairs.clone()
                moved[:, shuffled] += Z.shape[1]
                null = self._pairs(both, moved, torch.cat([entropy, entropy]))
                bits = bits - null / (2 * self.null_draws)
        return bits.clamp(min=0)

    def _pairs(self, Z: Tensor, pairs: Tensor, entropy: Tensor) -> Tensor:
        n = len(Z)
        size = max(1, self.chunk_bytes // (4 * n * n * Z.shape[2] * Z.element_size()))
        joint = [self._joint(Z[:, some[:, 0]], Z[:, some[:, 1]]) for some in pairs.split(size)]
        found = torch.cat(joint) if joint else entropy.new_empty(0)
        return entropy[pairs[:, 0]] + entropy[pairs[:, 1]] - found

    def _joint(self, left: Tensor, right: Tensor) -> Tensor:
        """Return S of the joint matrices of columns of ``left`` and ``right`` (n, b, d), (b,) float64."""
        n = len(left)
        if self.alpha == 2:
            first, second = torch.triu_indices(n, n, 1, device=left.device)
            distance = _squared(left[first] - left[second]) + _squared(right[first] - right[second])
            total = _exp(distance.mul_(-1 / self.sigma**2)).sum(0, dtype=torch.float64)
            return -torch.log2((2 * total + n) / n**2)
        exponent = _distances(left).add_(_distances(right)).div_(-2 * self.sigma**2)
        return _spectral_entropy(_exp(exponent) / n, self.alpha)

    def _spectral(self, columns: Tensor) -> Tensor:
        """Return S of each of ``columns`` (n, b, d) by eigenvalues, (b,) float64."""
        kernel = _exp(_distances(columns).div_(-2 * self.sigma**2))
        return _spectral_entropy(kernel / len(columns), self.alpha)

    def _columns(self, Z: Tensor) -> Iterator[slice]:
        size = max(1, self.chunk_bytes // (4 * len(Z) ** 2 * Z.shape[2] * Z.element_size()))
        return (slice(start, start + size) for start in range(0, Z.shape[1], size))

    def _information(self, Z: Tensor) -> tuple[Tensor, Tensor]:
        """Return I of all pairs (m, m) in the samples' dtype, and the entropies (m,) float64."""
        if self.alpha == 2:
            joint, single = self._products(Z, Z)
            entropy = -torch.log2(single)
            for start in range(0, Z.shape[1], BAND):
                rows = joint[start : start + BAND]
                rows.log2_().add_(entropy[start : start + BAND, None] + entropy)
            return joint.to(Z.dtype), entropy
        entropy = self.entropies(Z)
        m = Z.shape[1]
        rows, columns = torch.triu_indices(m, m, device=Z.device)
        bits = Z.new_zeros(m, m)
        bits[rows, columns] = self._pairs(Z, torch.stack([rows, columns], 1), entropy).to(Z.dtype)
        return bits.triu() + bits.triu(1).T, entropy

    def _null(self, Z: Tensor, entropy: Tensor) -> Tensor:
        """Return the mean of I over shuffled pairs, (m, m): of (k, shuffled l) and (shuffled k, l), so symmetric."""
        total = torch.zeros(Z.shape[1], Z.shape[1], dtype=torch.float64, device=Z.device)
        if self.alpha == 2:
            for order in self._shuffles(len(Z)):
                joint, _ = self._products(Z, Z[order.to(Z.device)])
                total += joint.log2_().add_(entropy[:, None] + entropy)
        else:
            m = Z.shape[1]
            every = torch.cartesian_prod(torch.arange(m), torch.arange(m, 2 * m)).to(Z.device)
            for order in self._shuffles(len(Z)):
                both = torch.cat([Z, Z[order.to(Z.device)]], 1)
                total += self._pairs(both, every, torch.cat([entropy, entropy])).view(m, m)
        return ((total + total.T) / (2 * self.null_draws)).to(Z.dtype)

    def _products(self, Z: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return ``<P_k, P_l> / n^2`` for k of ``Z`` and l of ``other`` (m, m), and ``sum P_k / n^2`` (m,); float64.

        ``other`` is ``Z`` itself, whose product is symmetric, its rows in another order, or None for no product.
        """
        n, m, d = Z.shape
        both = 1 + (other is not None and other is not Z)
        joint = torch.zeros((m, m) if other is not None else (0, 0), dtype=torch.float64, device=Z.device)
        single = torch.zeros(m, dtype=torch.float64, device=Z.device)
        above = torch.triu_indices(n, n, 1, device=Z.device)
        for some in above.split(max(1, self.chunk_bytes // (2 * both * m * d * Z.element_size())), dim=1):
            P = self._kernel_squares(Z, some)
            single += P.sum(0, dtype=torch.float64)
            if other is None:
                continue
            Q = P if other is Z else self._kernel_squares(other, some)
            for start in range(0, m, BAND):
                right = start if other is Z else 0
                joint[start : start + BAND, right:].add_(P[:, start : start + BAND].T @ Q[:, right:])
        joint.mul_(2).add_(n).div_(n**2)
        if other is Z:
            for start in range(0, m, BAND):  # mirrored a band at a time: no second matrix of this size
                stop = min(start + BAND, m)
                corner = joint[start:stop, start:stop]
                corner.copy_(corner.triu() + corner.triu(1).T)
                joint[stop:, start:stop] = joint[start:stop, stop:].T
        return joint, (2 * single + n) / n**2

    def _kernel_squares(self, Z: Tensor, pairs: Tensor) -> Tensor:
        """Return ``K o K`` of every column at pairs (2, c) of samples: (c, m)."""
        return _exp(_squared(Z[pairs[0]].sub_(Z[pairs[1]])).mul_(-1 / self.sigma**2))


def _squared(difference: Tensor) -> Tensor:
    """Return the squared lengths of vectors (..., d), in place where d is 1."""
    square = difference.square_()
    return square[..., 0] if square.shape[-1] == 1 else square.sum(-1)


def _distances(columns: Tensor) -> Tensor:
    """Return the squared distances between the samples of each of ``columns`` (n, b, d): (b, n, n)."""
    rows = columns.transpose(0, 1)
    return _squared(rows[:, :, None] - rows[:, None, :])


def _exp(exponent: Tensor) -> Tensor:
    """Return exp in place, no smaller than the root of the smallest normal number, 1e-18 in float32.

    Beside the ones on a kernel's diagonal that is nothing, but a product with subnormal numbers, or whose terms are
    subnormal, takes a hundred times as long.
    """
    return exponent.clamp_(min=math.log(torch.finfo(exponent.dtype).tiny) / 2.1).exp_()


def _spectral_entropy(A: Tensor, alpha: float) -> Tensor:
    """Return S_alpha of matrices (b, n, n) of trace 1 by their eigenvalues, in bits, (b,) float64."""
    spectrum = torch.linalg.eigvalsh(A.double()).clamp_(min=0)
    if alpha == 1:
        return -torch.special.xlogy(spectrum, spectrum).sum(1) / torch.log(spectrum.new_tensor(2.0))
    return torch.log2(spectrum.pow(alpha).sum(1)) / (1 - alpha)
