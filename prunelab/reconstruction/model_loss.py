"""The language-model loss of whole sequences and its gradient, with the graph of one block in memory at a time.

Activation checkpointing by hand: the blocks run without a graph and their inputs are kept; then each block, last to
first, runs again on its input with autograd, as in the walk back of :mod:`prunelab.passes.collect`. A block must compute
the same both times, so whatever is random in it has to be drawn from seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunelab.distributed.group import ALONE, Group
from prunelab.models.compare import exact_sum
from prunelab.models.decoder import Decoder
from prunelab.models.stream import Arguments, capture, run_block, token_losses


def in_parts(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return ``rows`` (n,) in parts of ``size``, the last one of what is left; of none there are none."""
    return torch.split(rows, size) if len(rows) else ()


@torch.no_grad()
def mean_loss(decoder: Decoder, tokens: Tensor, batch_size: int, group: Group = ALONE) -> float:
    """Return the mean next-token loss in nats of ``tokens`` (n, seq_len), every sequence counting the same.

    Summed in float64, a sequence at a time and then exactly: neither the size of a batch nor ranks, which take a share
    each, leave a trace but the rounding of products.
    """
    share = group.share(len(tokens))
    found = torch.zeros(len(tokens), dtype=torch.float64, device=decoder.device)
    for rows in in_parts(torch.arange(len(tokens))[share], batch_size):
        batch = tokens[rows].to(decoder.device)
        hidden, arguments = capture(decoder, batch)
        hidden = _forward(decoder, hidden, arguments)[-1]
        found[rows] = token_losses(decoder, hidden, batch).double().mean(1)
    group.sum([found])
    return exact_sum(found.tolist()) / len(tokens)


def backward(decoder: Decoder, tokens: Tensor, scale: float, first: int = 0) -> Tensor:
    """Add the gradient of ``scale`` times the summed losses of ``tokens`` (b, seq_len) to all that asks for one in
    blocks ``first`` and later; return those losses (b,), float64.

    A sequence's loss is the mean over its tokens. Memory: the inputs of all blocks, the graph of one, a chunk of logits.
    """
    with torch.no_grad():
        hidden, arguments = capture(decoder, tokens)
        entering = _forward(decoder, hidden, arguments)
    with torch.enable_grad():
        leaf = entering.pop().detach().requires_grad_()
        losses = token_losses(decoder, leaf, tokens).double().mean(1)
        (slope,) = torch.autograd.grad(losses.sum() * scale, leaf)
        for index in reversed(range(first, len(decoder.blocks))):
            leaf = entering.pop().detach().requires_grad_(index > first)
            torch.autograd.backward(run_block(decoder, index, arguments[index], leaf), slope)
            slope = leaf.grad
    return losses.detach()


def _forward(decoder: Decoder, hidden: Tensor, arguments: Sequence[Arguments]) -> list[Tensor]:
    """Return the input of every block, and the output of the last one."""
    states = [hidden]
    for index in range(len(decoder.blocks)):
        states.append(run_block(decoder, index, arguments[index], states[-1]))
    return states
