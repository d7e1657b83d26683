"""Text that a model writes: tokens appended one by one with a key-value cache, many rows side by side.

The draw is by inversion of the cumulative distribution in float64 on the CPU, from one uniform number per row
and step that the caller gives: no random state of torch is read, so a row's text depends on its own numbers
alone (and, in the last bits of the logits, on the shape of the batch).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunelab.errors import DataError
from prunelab.models.decoder import Decoder

Pick = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sampling:
    """softmax(logits / ``temperature``) of the ``top_k`` likeliest tokens, of which the likeliest that together
    reach ``top_p``; None: all of them."""

    temperature: float
    top_k: int | None
    top_p: float | None


@torch.no_grad()
def extend(decoder: Decoder, start: Tensor, n_tokens: int, pick: Pick, ends: Collection[int] = ()) -> Tensor:
    """Return ``start`` (b, k) int64 with up to ``n_tokens`` more tokens per row, on the CPU.

    ``pick`` maps logits (b, V) to tokens (b,). Once every row has a token of ``ends`` among its new ones, no
    more are added; what follows such a token in a row means nothing.
    """
    if start.shape[1] < 1 or start.shape[1] + n_tokens > decoder.max_len:
        raise DataError(
            f"{decoder.name} takes 1 to {decoder.max_len} tokens; a text of {start.shape[1]} + {n_tokens} "
            "does not fit. Lower reconstruction_data.text_len or calibration.seq_len."
        )
    tokens, cache, fresh = [start.cpu()], None, start.to(decoder.device)
    ended = torch.zeros(start.shape[0], dtype=torch.bool)
    for _ in range(n_tokens):
        found = decoder.model(input_ids=fresh, past_key_values=cache, use_cache=True)
        cache, chosen = found.past_key_values, pick(found.logits[:, -1]).cpu()
        tokens.append(chosen[:, None])
        ended |= torch.isin(chosen, torch.tensor(sorted(ends), dtype=chosen.dtype))
        if ended.all():
            break
        fresh = chosen[:, None].to(decoder.device)
    return torch.cat(tokens, 1)


def likeliest(logits: Tensor, banned: Tensor) -> Tensor:
    """Return the token (b,) with the highest logit (b, V) that is not ``banned`` (ids)."""
    return _without(logits.float().cpu(), banned).argmax(-1)


def sample(logits: Tensor, sampling: Sampling, uniform: np.ndarray, banned: Tensor) -> Tensor:
    """Return one token (b,) per row of ``logits`` (b, V), drawn by the row's number ``uniform`` (b,) in [0, 1)."""
    logits = _without(logits.double().cpu(), banned) / sampling.temperature
    width = logits.shape[-1]
    k = min(sampling.top_k or width, width)
    ids = None
    if k < width or sampling.top_p is not None:
        logits, ids = logits.sort(dim=-1, descending=True, stable=True)
        logits = logits[:, :k]
    shares = logits.softmax(-1)
    if sampling.top_p is not None:
        before = shares.cumsum(-1) - shares  # the likeliest token always stays: nothing stands before it
        shares = shares.masked_fill(before >= sampling.top_p, 0.0)
    upto = shares.cumsum(-1)
    goal = torch.from_numpy(np.asarray(uniform, dtype=np.float64))[:, None] * upto[:, -1:]
    place = torch.searchsorted(upto, goal, right=True)
    # rounding may put the goal on the total itself: then the last token that has a share
    last = (shares > 0).long().mul(torch.arange(1, shares.shape[1] + 1)).argmax(-1, keepdim=True)
    place = torch.minimum(place, last)
    return (place if ids is None else ids.gather(-1, place))[:, 0]


def _without(logits: Tensor, banned: Tensor) -> Tensor:
    return logits.index_fill(-1, banned, -torch.inf) if banned.numel() else logits
