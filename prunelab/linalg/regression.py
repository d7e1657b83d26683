"""Some of a layer's inputs made up for by others, from their covariance."""

from __future__ import annotations

import torch
from torch import Tensor

from prunelab.errors import ModelError


def regression(covariance: Tensor, using: Tensor, removed: Tensor, eps: float) -> Tensor:
    """Return ``(K[S, S] + eps mean(diag K[S, S]) I)^-1 K[S, R]``, (|S|, |R|) float64: how the inputs ``using`` S make up the
    inputs ``removed`` R, both int64 numbers; ``covariance`` K (C, C) float64.

    Raises ModelError if what is to be inverted is not positive definite.
    """
    kept = covariance[using][:, using]
    damped = kept + eps * kept.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny) * torch.eye(
        len(kept), dtype=torch.float64, device=kept.device
    )
    lower, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        raise ModelError(
            "the covariance of what enters an output map is not positive definite. Use more calibration tokens."
        )
    return torch.cholesky_solve(covariance[using][:, removed], lower)
