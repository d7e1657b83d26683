"""How far the next-token distributions of a pruned model are from the dense one's: divergence and change of loss, in nats.

    KL = mean over tokens of  sum_v p_dense(v | x) (log p_dense(v | x) - log p_pruned(v | x))

over all positions that have a next token. arXiv:2406.00030 chooses among pruned models by a KL divergence; which of its
two directions is not public, and this one is a reconstruction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.models.activation import Activations
from prunelab.models.compare import exact_sum
from prunelab.models.decoder import Decoder
from prunelab.models.stream import LOGIT_VALUES, Stream, head


@dataclass(frozen=True)
class Divergence:
    """``kl``: of the dense distribution from the pruned one, >= 0; ``loss_change``: mean next-token loss, pruned minus dense.

    Both ``inf`` where a model gives no finite number.
    """

    kl: float
    loss_change: float


@torch.no_grad()
def divergence(decoder: Decoder, pruned: Stream, dense: Activations) -> Divergence:
    """Compare the last block's outputs, those in the stream ``pruned`` with ``dense``, (n, seq_len, d) each.

    What follows the blocks is not pruned and the same for both. Logits exist for a few positions at a time; sums are float64,
    a sequence at a time and then exact.
    """
    kls, changes, count = list[float](), list[float](), 0
    for rows in pruned.batches():
        tokens = pruned.tokens[rows]
        own, other = dense.read(rows, pruned.like), pruned.read(rows)
        kl, change = _per_token(decoder, own, other, tokens)
        kls += [float(window.sum()) for window in kl]
        changes += [float(window.sum()) for window in change]
        count += kl.numel()
    if not count:
        return Divergence(math.inf, math.inf)
    return Divergence(_finite(exact_sum(kls) / count), _finite(exact_sum(changes) / count))


def _per_token(decoder: Decoder, dense: Tensor, pruned: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return divergence and change of loss of each position with a next token, (b, seq_len - 1) float64."""
    b, length = tokens.shape
    vocabulary = int(decoder.model.config.get_text_config().vocab_size)
    columns = max(1, LOGIT_VALUES // (8 * vocabulary * b))  # four float64 tensors at once
    kls, changes = [], []
    for at in range(0, length - 1, columns):
        stop = min(at + columns, length - 1)
        here, targets = tokens[:, at:stop], tokens[:, at + 1 : stop + 1, None]
        p, q = (
            F.log_softmax(head(decoder, hidden[:, at:stop], here).double(), -1) for hidden in (dense, pruned)
        )
        changes.append((p.gather(2, targets) - q.gather(2, targets))[..., 0])
        # rounding may leave a sum of 0 a little below
        kls.append((p.exp() * (p - q)).sum(-1).clamp(min=0))
    if not kls:
        return dense.new_zeros(b, 0).double(), dense.new_zeros(b, 0).double()
    return torch.cat(kls, 1), torch.cat(changes, 1)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf
