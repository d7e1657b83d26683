"""Values of pairs of neurons: what all estimators give, how they are normalised, and what chance alone gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from prunelab.errors import ConfigError, ModelError

SILENT = 1e-6  # bits: a neuron with no more than that about itself says nothing, and all its values are 0
BAND = 1024  # rows of a matrix at a time
NORMALIZE = ("self", "min_entropy", "none")
Values = Callable[[Tensor], Tensor]  # pairs (p, 2) int64 -> values (p,) float64


class Estimator(Protocol):
    """Mutual information of the columns of samples (n, m), normalised; a larger value means more redundant."""

    def matrix(self, Z: Tensor) -> Tensor:
        """Return the values of all pairs, (m, m), symmetric, >= 0."""
        ...

    def values(self, Z: Tensor) -> Values:
        """Return a function that computes the values of the pairs it is given."""
        ...


def normalised(
    bits: Tensor, own: Tensor, entropy: Tensor | None, normalize: str, pairs: Tensor | None = None
) -> Tensor:
    """Return information ``bits`` divided as ``normalize`` says; 0 where that would be 0 / 0.

    ``bits``: (m, m), then changed in place, or (p,) of ``pairs`` (p, 2). ``own`` (m,): the information of a neuron
    about itself. ``entropy`` (m,), or None for an estimator without one. Raises ConfigError for another ``normalize``.
    """
    allowed = NORMALIZE if entropy is not None else ("self", "none")
    if normalize not in allowed:
        raise ConfigError(
            "method.normalize", normalize, f"one of {', '.join(allowed)}", "The default is self."
        )
    if normalize == "none":
        return bits
    size = own if normalize == "self" else entropy
    assert size is not None
    factor = torch.where(size > SILENT, 1 / size.clamp(min=SILENT), 0.0)
    if pairs is not None:
        return bits * _scale(factor[pairs[:, 0]], factor[pairs[:, 1]], normalize)
    for start in range(0, len(bits), BAND):
        rows = slice(start, start + BAND)
        bits[rows] *= _scale(factor[rows, None], factor, normalize).to(bits.dtype)
    return bits


def _scale(left: Tensor, right: Tensor, normalize: str) -> Tensor:
    """Return ``1 / sqrt(I_k I_l)`` or ``1 / min(S_k, S_l)`` from reciprocals; 0 if one of them is 0."""
    if normalize == "self":
        return left.sqrt() * right.sqrt()
    return torch.where((left > 0) & (right > 0), torch.maximum(left, right), 0.0)


def lookup(matrix: Tensor) -> Values:
    """Return a function that reads the values of pairs from a matrix (m, m) of all of them."""
    return lambda pairs: matrix[pairs[:, 0], pairs[:, 1]].double()


def remembered(values: Values, m: int) -> Values:
    """Return ``values`` of pairs of ``m`` neurons so that a pair is computed once, in either order, however often it is
    asked for: random pairs come back, and an eigenvalue problem takes milliseconds."""
    known: dict[int, float] = {}

    def value(pairs: Tensor) -> Tensor:
        low, high = pairs.cpu().aminmax(dim=1)
        keys = (low * m + high).tolist()
        new = {key: row for row, key in enumerate(keys) if key not in known}
        if new:
            rows = torch.tensor(list(new.values()))
            known.update(zip(new, values(pairs[rows]).tolist(), strict=True))
        return torch.tensor([known[key] for key in keys], dtype=torch.float64)

    return value


def draw_pairs(eligible: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` pairs (count, 2) of two different of ``eligible`` (m,) int64, each pair equally likely.

    Raises ModelError if there are not two.
    """
    m = len(eligible)
    if m < 2:
        raise ModelError(
            f"{m} neurons to draw pairs of, which are not dead; at least 2 are needed. Use other calibration text."
        )
    first = torch.randint(m, (count,), generator=generator)
    second = torch.randint(m - 1, (count,), generator=generator)
    return eligible[torch.stack([first, second + (second >= first)], 1)]


def chance(
    Z: Tensor, estimator: Estimator, eligible: Tensor, n_pairs: int, generator: torch.Generator
) -> Tensor:
    """Return the values (n_pairs,) of random pairs of columns of ``Z``, (n, m) or (n, m, d), the second one shuffled.

    Their mean and deviation say how large a value is that chance alone gives; ``eligible`` (m,) are the columns taken.
    """
    pairs = draw_pairs(eligible, n_pairs, generator)
    order = torch.rand(n_pairs, len(Z), generator=generator).argsort(1).T.to(Z.device)
    left, right = Z[:, pairs[:, 0]], Z[:, pairs[:, 1]]
    right = right.gather(0, order.view(order.shape + (1,) * (Z.ndim - 2)).expand_as(right))
    numbers = torch.arange(n_pairs, device=Z.device)
    return estimator.values(torch.cat([left, right], 1))(torch.stack([numbers, numbers + n_pairs], 1))
