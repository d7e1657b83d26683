"""Kronecker factors of every linear layer of a decoder, from one walk forward and one walk back.

Forward: the blocks run one by one and the input of each is kept. Backward: the loss gives the gradient at the
last block's output; each block, last to first, is then run again with autograd, which yields the gradients at
its linear layers' outputs and at its own input. Weights stay frozen, so no weight gradient is ever built (the
published code builds all of them), q/k/v and gate/up share one input factor, and sequences go through in
batches.

Peak memory: the inputs of all blocks (blocks x tokens x width) + all factors + the graph of one block on one
batch. Methods that need no output factor get a forward walk only: two block inputs + the input factors.
Gradients are of summed losses, so a token's do not shrink with the number of tokens; in float16 the smallest
may still underflow to zero, which reads as dead: prefer bfloat16 or float32. Normalisation: see
prunelab.stats.kronecker.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.errors import ConfigError, ModelError
from prunelab.models.block import LinearSite
from prunelab.models.decoder import Decoder
from prunelab.models.stream import Stream, advance, call_block, open_stream, token_losses
from prunelab.stats.group import ALONE, Group, sum_over
from prunelab.stats.kronecker import Factors, GramSum

Progress = Callable[[Mapping[str, Any]], None]
KNOWN = ("input_gram", "output_gram")


def collect_factors(
    decoder: Decoder,
    tokens: Tensor | None,
    needs: Collection[str],
    batch_size: int,
    progress: Progress | None = None,
    hold: torch.device | str | None = None,
    group: Group = ALONE,
) -> dict[str, Factors]:
    """Return the factors of every linear layer on ``tokens`` (n, seq_len) int64, by layer name.

    ``needs``: which of 'input_gram' and 'output_gram' to collect; without any nothing runs, ``tokens`` may be
    None and the factors are None. ``hold``: device where factors and block inputs wait; None = the model's
    own. ``progress`` gets one mapping per block and direction. Of several ranks in ``group``, all of which call
    this with the same tokens, each walks its share, and all get the factors of the whole. Raises ModelError
    naming the block where an activation or gradient is not finite.
    """
    unknown = set(needs) - set(KNOWN)
    if unknown:
        raise ConfigError("method.needs", sorted(unknown), " | ".join(KNOWN))
    if not needs:
        return {site.name: Factors(None, None, 0) for site in decoder.sites()}
    if tokens is None:
        raise ConfigError("calibration", None, "a token set", f"The method needs {', '.join(sorted(needs))}.")
    say = progress or (lambda row: None)
    place = decoder.device if hold is None else torch.device(hold)
    stream = open_stream(decoder, tokens, batch_size, group=group)
    inputs: dict[tuple[int, int], Tensor] = {}
    outputs: dict[str, Tensor] = {}
    entering: list[list[Tensor]] = []
    n_blocks = len(decoder.blocks)
    for index in range(n_blocks):
        if "output_gram" in needs:
            entering.append([stream.read(rows).to(place, copy=True) for rows in stream.batches()])
        with _catch_inputs(decoder, index, "input_gram" in needs) as sums:
            advance(decoder, index, stream)
        _check(stream, f"activations after block {index} of {decoder.name}")
        sum_over(group, sums.values())
        inputs |= {(index, shared): gram.mean().to(place) for shared, gram in sums.items()}
        say({"event": "progress", "phase": "forward", "done": index + 1, "total": n_blocks})
    if "output_gram" in needs:
        _start_back(decoder, stream)
        for index in reversed(range(n_blocks)):
            _check(stream, f"gradients at the output of block {index} of {decoder.name}")
            sums = _walk_back(decoder, index, stream, entering.pop())
            sum_over(group, sums.values())
            outputs |= {name: gram.mean().to(place) for name, gram in sums.items()}
            say({"event": "progress", "phase": "backward", "done": n_blocks - index, "total": n_blocks})
    return {
        site.name: Factors(_input_factor(site, inputs), outputs.get(site.name), tokens.numel())
        for site in decoder.sites()
    }


def _start_back(decoder: Decoder, stream: Stream) -> None:
    """Put the gradients of the summed token losses at the last block's output in the place of that output."""
    for rows in stream.batches():
        leaf = stream.read(rows).detach().requires_grad_()
        losses = token_losses(decoder, leaf, stream.tokens[rows])
        stream.write(rows, torch.autograd.grad(losses.sum(), leaf)[0])


def _walk_back(decoder: Decoder, index: int, stream: Stream, entering: list[Tensor]) -> dict[str, GramSum]:
    """Return the output sums of block ``index``; the stream's gradients become those at its input (if not
    block 0)."""
    sums = {s.name: _gram(s.linear.out_features, s.linear.weight) for s in decoder.sites(index)}
    for rows, inputs in zip(stream.batches(), entering, strict=True):
        slope = stream.read(rows)
        leaf = inputs.to(slope.device).detach().requires_grad_()
        with _catch_outputs(decoder, index) as caught:
            result = call_block(decoder, index, stream, leaf)
        wanted = list(caught.values())
        found = torch.autograd.grad(result, [*wanted, leaf] if index else wanted, slope, allow_unused=True)
        for name, output, at_output in zip(caught, wanted, found, strict=False):
            sums[name].add(torch.zeros_like(output) if at_output is None else at_output)
        if index:
            stream.write(rows, found[-1])
    return sums


def _gram(width: int, like: Tensor, ones: bool = False) -> GramSum:
    return GramSum(width, ones=ones, device=like.device)


def _adding(add: Callable[[Tensor], None]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    return lambda _, args: add(args[0])


@contextmanager
def _catch_inputs(decoder: Decoder, index: int, wanted: bool) -> Iterator[dict[int, GramSum]]:
    """While open, sum what enters each input group of block ``index``: one sum per group of ``shared``."""
    groups: dict[int, list[LinearSite]] = {}
    for site in decoder.sites(index):
        groups.setdefault(site.shared, []).append(site)
    sums: dict[int, GramSum] = {}
    handles = []
    for shared, members in groups.items() if wanted else ():
        linear = members[0].linear
        ones = any(site.linear.bias is not None for site in members)
        sums[shared] = _gram(linear.in_features, linear.weight, ones)
        add = sums[shared].add
        handles.append(linear.register_forward_pre_hook(_adding(add)))
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _catch_outputs(decoder: Decoder, index: int) -> Iterator[dict[str, Tensor]]:
    """While open, keep the output tensor of every linear layer of block ``index``, in the graph."""
    caught: dict[str, Tensor] = {}
    handles = [
        site.linear.register_forward_hook(lambda _, __, out, name=site.name: caught.update({name: out}))
        for site in decoder.sites(index)
    ]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _check(stream: Stream, what: str) -> None:
    if not all(bool(torch.isfinite(stream.read(rows)).all()) for rows in stream.batches()):
        raise ModelError(
            f"{what} are not finite. Check the checkpoint and the calibration text, "
            "or use model.dtype=float32."
        )


def _input_factor(site: LinearSite, inputs: Mapping[tuple[int, int], Tensor]) -> Tensor | None:
    A = inputs.get((site.block, site.shared))
    columns = site.linear.in_features + (site.linear.bias is not None)
    if A is None or A.shape[0] == columns:
        return A
    return A[:columns, :columns]  # a layer without bias in a group where another has one
