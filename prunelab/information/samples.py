"""What a layer's neurons did on a few tokens, made comparable: one column per neuron, standardised.

Mutual information does not change when a neuron is moved or scaled, but a kernel's width means something only beside
a spread, so columns are centred and divided by their standard deviation. A neuron that (nearly) never moves is dead:
it has nothing to be divided by, says nothing, and can go before any other (arXiv:2406.00030; its treatment of such
neurons is not published and the rule here, ``1e-6`` of the median deviation, is a reconstruction).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.errors import ModelError

DEAD = 1e-6  # of the median standard deviation


@dataclass(frozen=True, eq=False)
class Samples:
    """``columns`` (n, m): centred and, where ``alive``, divided by the deviation; a dead column is all 0.

    ``deviation`` (m,) float64 of the raw columns, over n. ``dead`` (m,) bool. ``rare`` (m,) bool: alive, but different
    from 0 in so few samples that an estimate of its information is not reliable.
    """

    columns: Tensor
    deviation: Tensor
    dead: Tensor
    rare: Tensor


def standardised(
    Z: Tensor,
    *,
    each: bool = True,
    clip: float | None = None,
    min_active: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Samples:
    """Return the columns of ``Z`` (n, m), n samples of m neurons, as Samples in ``dtype``.

    ``each``: every column by its own deviation; otherwise all by the root mean square of the live ones' deviations,
    so that a kernel's width stays in units of the layer's spread. ``clip``: what lies more deviations away is moved to
    there (heavy tails). ``min_active``: a live neuron that differs from 0 in fewer samples is rare. Raises ModelError
    for less than two samples or values that are not finite.
    """
    if Z.ndim != 2 or Z.shape[0] < 2:
        raise ModelError(
            f"samples of neurons have shape {tuple(Z.shape)}; allowed is (n, m) with n >= 2. Take more tokens."
        )
    if not bool(torch.isfinite(Z).all()):
        raise ModelError(
            "samples of neurons are not finite. Check the checkpoint, or use model.dtype=float32."
        )
    exact = Z.to(torch.float64)
    centred = exact - exact.mean(0)
    deviation = centred.square().mean(0).sqrt()
    dead = deviation <= DEAD * deviation.median()
    live = deviation[~dead]
    scale = deviation if each else live.square().mean().sqrt().expand_as(deviation)
    columns = torch.where(dead, 0.0, centred / scale.masked_fill(dead, 1.0))
    if clip is not None:
        columns = columns.clamp(-clip, clip)
    rare = ~dead & ((Z != 0).sum(0) < min_active)
    return Samples(columns.to(dtype), deviation, dead, rare)
