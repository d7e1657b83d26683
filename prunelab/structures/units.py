"""Units of a decoder: which lines of which linear maps vanish together, traced from what its family says.

Gated FFN: row i of gate and up, column i of down; ungated: row i of up, column i of down. Attention: a KV group, rows
of its key and value head, rows of the r query heads that it serves (query head q belongs to KV head q // r, the layout
of ``repeat_kv``), and the output map's columns of those heads. The output map's bias belongs to no unit. A whole block is
one unit of its own kind: all rows, biases with them, of all its linear maps, so that nothing is added to the residual
stream (see prunelab.structures.blocks). So is a block's whole attention, and its whole MLP.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from prunelab.errors import ModelError
from prunelab.models.block import LinearSite
from prunelab.models.decoder import Decoder
from prunelab.pattern.base import ATTENTION, BLOCKS, FFN, HEADS, NEURONS
from prunelab.sparsity.mask import Mask
from prunelab.stats.unit_view import Member
from prunelab.structures.layout import attention_rows, heads_of, mlp_rows

Members = tuple[tuple[LinearSite, Member], ...]


def trace_units(decoder: Decoder, block: int, kinds: Collection[str]) -> dict[str, Members]:
    """Return the members of the units of each kind in one block, with their layers; of a kind that the block has no more,
    nothing.

    Raises ModelError for a kind that the decoder's family does not say how to find.
    """
    sites = {site.path: site for site in decoder.sites(block)}
    trace = {NEURONS: _neurons, HEADS: _heads, BLOCKS: _block, ATTENTION: _attention, FFN: _ffn}
    found = {kind: tuple(trace[kind](decoder, block, sites)) for kind in kinds}
    return {kind: members for kind, members in found.items() if members}


def _neurons(
    decoder: Decoder, block: int, sites: Mapping[str, LinearSite]
) -> Iterator[tuple[LinearSite, Member]]:
    family = decoder.family
    if family.mlp is None:
        raise _unknown(decoder, "mlp", NEURONS)
    writers, reader = family.mlp
    if reader not in sites:
        return
    width = sites[reader].linear.in_features
    gate, up = mlp_rows(family.halves, width)
    if family.halves or len(writers) == 2:
        yield _member("gate", sites[writers[0]], 0, gate[:, None])
    yield _member("up", sites[writers[-1]], 0, up[:, None])
    yield _member("down", sites[reader], 1, torch.arange(width)[:, None])


def _heads(
    decoder: Decoder, block: int, sites: Mapping[str, LinearSite]
) -> Iterator[tuple[LinearSite, Member]]:
    family = decoder.family
    if family.attention is None:
        raise _unknown(decoder, "attention", HEADS)
    if family.attention[3] not in sites:
        return
    n_q, n_kv, d_h = heads_of(decoder, block)
    *writers, output = family.attention
    rows = attention_rows(family.layout, n_q, n_kv, d_h)
    for role, path, index in zip(("query", "key", "value"), writers, rows, strict=True):
        yield _member(role, sites[path], 0, index)
    yield _member("output", sites[output], 1, torch.arange(n_q * d_h).view(n_kv, -1))


def _block(
    decoder: Decoder, block: int, sites: Mapping[str, LinearSite]
) -> Iterator[tuple[LinearSite, Member]]:
    yield from _block_of(sites)


def _block_of(sites: Mapping[str, LinearSite]) -> Iterator[tuple[LinearSite, Member]]:
    for path, site in sites.items():
        yield _member(path, site, 0, torch.arange(site.linear.out_features)[None])


def _attention(
    decoder: Decoder, block: int, sites: Mapping[str, LinearSite]
) -> Iterator[tuple[LinearSite, Member]]:
    if decoder.family.attention is None:
        raise _unknown(decoder, "attention", ATTENTION)
    if "." not in decoder.family.attention[3]:
        raise ModelError(
            f"{decoder.name}: the attention's maps lie in the block itself, beside what is no attention, so it cannot go "
            f"as a whole. Leave {ATTENTION!r} out of sparsity.kinds."
        )
    yield from _rows(decoder.family.attention, sites)


def _ffn(
    decoder: Decoder, block: int, sites: Mapping[str, LinearSite]
) -> Iterator[tuple[LinearSite, Member]]:
    if decoder.family.mlp is None:
        raise _unknown(decoder, "mlp", FFN)
    writers, reader = decoder.family.mlp
    yield from _rows((*writers, reader), sites)


def _rows(paths: Sequence[str], sites: Mapping[str, LinearSite]) -> Iterator[tuple[LinearSite, Member]]:
    """All rows, biases with them, of the maps that are there; the map to the residual stream comes last."""
    yield from _block_of({path: sites[path] for path in dict.fromkeys(paths) if path in sites})


def _member(role: str, site: LinearSite, axis: int, index: Tensor) -> tuple[LinearSite, Member]:
    linear = site.linear
    bias = None if linear.bias is None else linear.bias.detach()
    return site, Member(role, site.name, linear.weight.detach(), bias, axis, index)


def _unknown(decoder: Decoder, field: str, kind: str) -> ModelError:
    return ModelError(
        f"{decoder.name}: family {decoder.family.name!r} says nothing of {field}, so it has no {kind}. "
        f"Add {field} to the family, or leave {kind!r} out of sparsity.kinds."
    )


def alive_units(output: Member, mask: Mask) -> Tensor:
    """Return which units (count,) bool still have a line of the output map."""
    rows, columns, _ = mask.lines()
    return (rows, columns)[output.axis].cpu()[output.index].any(1)
