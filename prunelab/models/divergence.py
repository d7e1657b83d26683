"""How far what a model says at each token is from what another one says: from two sets of last hidden states.

Logits exist for some tokens at a time, as in :func:`prunelab.models.stream.token_losses`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.models.decoder import Decoder
from prunelab.models.stream import LOGIT_VALUES, head


@torch.no_grad()
def divergences(
    decoder: Decoder, hidden: Tensor, reference: Tensor, tokens: Tensor, *, reverse: bool = False, chunk: int | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return KL(reference || hidden) at every position, (b, seq_len) float32 in nats, and the gradient (b, seq_len, d) of
    their sum for ``hidden``.

    ``hidden``, ``reference`` (b, seq_len, d): outputs of the last block. ``reverse``: KL(hidden || reference). ``chunk``:
    tokens at a time; None: as many as keep all logits under 256 MiB.
    """
    if chunk is None:
        chunk = max(1, LOGIT_VALUES // int(decoder.model.config.vocab_size))
    columns = max(1, chunk // max(1, hidden.shape[0]))
    values, slopes = [], torch.zeros_like(hidden)
    for at in range(0, hidden.shape[1], columns):
        part = slice(at, at + columns)
        theirs = head(decoder, reference[:, part], tokens[:, part]).float().log_softmax(-1)
        with torch.enable_grad():
            leaf = hidden[:, part].detach().requires_grad_()
            ours = head(decoder, leaf, tokens[:, part]).float().log_softmax(-1)
            pair = (theirs, ours) if reverse else (ours, theirs)
            found = F.kl_div(*pair, log_target=True, reduction="none").sum(-1)
            (slopes[:, part],) = torch.autograd.grad(found.sum(), leaf)
        values.append(found.detach())
    return torch.cat(values, dim=1), slopes
