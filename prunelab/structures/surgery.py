"""From zeros to smaller matrices: a pruned decoder that computes the same with fewer parameters.

First, what removal in one layer makes useless in another is dropped too: a hidden unit of the MLP whose
output column is gone, or that is always zero; a value channel that no query head reads, and the reverse; query and
key rows of a head whose output is gone, or whose scores are all zero. Then
each linear layer becomes the smallest one that computes the same: a plain Linear where neighbours agree on
the width (inside the MLP, and inside the attention where whole heads are gone), otherwise a CompactLinear that
picks its inputs and puts its outputs among zeros (the residual stream, of which every layer uses its own part,
and parts of heads, whose width the attention code fixes). Within a head that stays, query and key
channels are not dropped beyond their own rows: rotary pairs and per-head norms couple them.

Heads are gone as a whole where query, key and value lost their rows and the output map their columns, and every
key-value head that stays serves equally many query heads, as transformers' ``repeat_kv`` has it (query head q reads
key-value head q // (heads / kv_heads)). Blocks that went as a whole are taken out; in the place of an attention or an MLP
that did, its block has modules that pass nothing on, so that places in a cache stay. A decoder that got plain layers only
is one like any other: it is walked, pruned and repaired again. Either is saved (prunelab.structures.checkpoint).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from prunelab.models import shape
from prunelab.models.decoder import Decoder
from prunelab.models.narrow import (
    CompactLinear,
    count_heads,
    count_units,
    drop_attention,
    drop_mlp,
    linear_of,
    parent,
    place,
)
from prunelab.models.shape import Heads
from prunelab.models.transposed import is_turned, turn
from prunelab.pattern.base import ATTENTION, FFN
from prunelab.structures.blocks import drop_blocks, is_removed, removed_parts
from prunelab.structures.layout import attention_rows, heads_of, mlp_rows
from prunelab.structures.state import StateReader, apply_state


@dataclass(frozen=True, eq=False)
class Plan:
    """What is left of one linear layer: rows (R,), columns (C,) bool, and whether there still is a bias.

    ``narrow_output``, ``narrow_input``: the neighbours have the same width, so nothing is picked or placed.
    """

    rows: Tensor
    columns: Tensor
    bias: bool
    narrow_output: bool
    narrow_input: bool

    @property
    def n_parameters(self) -> int:
        """Parameters of the compacted layer."""
        rows = int(self.rows.sum())
        return rows * (int(self.columns.sum()) + self.bias)


def compact(decoder: Decoder, state: StateReader) -> None:
    """Apply ``state`` to ``decoder`` and make its linear layers physically smaller, in place.

    Logits stay those of the zero-filled model up to rounding (1e-5 in float32). Layers with masks of single
    weights keep their shape. Where whole heads and hidden units are gone, every layer is a plain Linear again and the
    decoder an ordinary one of other widths; otherwise (:func:`is_compact`) it runs, is measured and saved, but
    ``sites()`` refuses it: replaced layers are no longer what its family describes.
    """
    apply_state(decoder, state)
    gone = []
    for index, block in enumerate(decoder.blocks):
        sites = decoder.sites(index)
        found = _plans(decoder, state, index)
        if found is None:
            gone.append(index)
            continue
        plans, left, parts = found
        family = decoder.family
        if ATTENTION in parts and family.attention is not None:
            drop_attention(block, family.attention[3])
        if FFN in parts and family.mlp is not None:
            drop_mlp(block, [*family.mlp[0], family.mlp[1]])
        for path, plan in plans.items():
            linear = next(site.linear for site in sites if site.path == path)
            place(block, path, _smaller(linear, plan))
        if left is not None and decoder.family.attention is not None:
            query, key, _, output = decoder.family.attention
            count_heads(parent(block, output), left.heads, left.kv_heads, query == key)
        if decoder.family.mlp is not None and decoder.family.mlp[1] in plans:
            reader = decoder.family.mlp[1]
            count_units(parent(block, reader), block.get_submodule(reader).get_parameter("weight").shape[1])
    drop_blocks(decoder, gone)


def is_compact(decoder: Decoder) -> bool:
    """Whether ``decoder`` has layers that pick their inputs or place their outputs, as :func:`compact` puts in: no config
    of its architecture describes such a model."""
    return any(isinstance(module, CompactLinear) for module in decoder.blocks.modules())


def compact_parameters(state: StateReader, decoder: Decoder) -> int:
    """Return how many parameters ``decoder`` would hold once compacted, without building anything."""
    count = decoder.n_parameters()
    for index in range(len(decoder.blocks)):
        found = _plans(decoder, state, index)
        if found is None:
            count -= sum(parameter.numel() for parameter in decoder.blocks[index].parameters())
            continue
        block, attention = decoder.blocks[index], decoder.family.attention
        if ATTENTION in found[2] and attention is not None:
            count -= sum(parameter.numel() for parameter in parent(block, attention[3]).parameters())
        for site in decoder.sites(index):
            if site.path not in found[0]:
                in_mlp = decoder.family.mlp is not None and site.path in {
                    *decoder.family.mlp[0],
                    decoder.family.mlp[1],
                }
                count -= sum(parameter.numel() for parameter in site.linear.parameters()) if in_mlp else 0
                continue
            now = sum(parameter.numel() for parameter in site.linear.parameters())
            count += found[0][site.path].n_parameters - now
    return count


def _plans(
    decoder: Decoder, state: StateReader, index: int
) -> tuple[dict[str, Plan], Heads | None, frozenset[str]] | None:
    """What is left of each linear layer of block ``index``, by path; and of its heads, None unless all that goes of the
    attention is whole heads; and which parts (``attention``, ``ffn``) went as wholes, whose layers have no plan. None where
    the block itself is gone."""
    rows, columns, biases, masks = {}, {}, {}, {}
    for site in decoder.sites(index):
        stored = state.site(site.name)
        masks[site.path] = stored.mask
        rows[site.path], columns[site.path], bias = stored.mask.lines()
        biases[site.path] = stored.bias is not None and bias
    if is_removed(masks):
        return None
    parts = removed_parts(decoder, masks)
    narrow_outputs: set[str] = set()
    narrow_inputs: set[str] = set()
    left = None
    if decoder.family.mlp is not None and FFN not in parts and decoder.family.mlp[1] in masks:
        writers, reader = decoder.family.mlp
        gate, up = mlp_rows(decoder.family.halves, columns[reader].numel())
        alive = _living_units(decoder, rows[writers[0]][gate], rows[writers[-1]][up], columns[reader])
        for path in writers:
            rows[path] = torch.cat([alive, alive]) if decoder.family.halves else alive
        columns[reader] = alive
        narrow_outputs |= set(writers)
        narrow_inputs.add(reader)
    if (
        decoder.family.attention is not None
        and ATTENTION not in parts
        and decoder.family.attention[3] in masks
    ):
        query, key, value, output = decoder.family.attention
        n_q, n_kv, d_h = heads_of(decoder, index)
        at = attention_rows(decoder.family.layout, n_q, n_kv, d_h)
        for path in {query, key, value}:  # other rows of a fused map stay as they are
            rows[path] = rows[path].clone()
        rows[value][at[2]], columns[output] = _living_channels(rows[value][at[2]], columns[output])
        rows[query][at[0]], rows[key][at[1]] = _living_scores(
            rows[query][at[0]], rows[key][at[1]], columns[output], _scores_keep_zero(decoder, index)
        )
        now = shape.heads_of(decoder, index)
        if now is not None:
            lines = rows[query][at[0]], rows[key][at[1]], rows[value][at[2]]
            left = _whole_heads(now, *lines, columns[output])
        if left is not None:
            narrow_outputs |= {query, key, value}
            narrow_inputs.add(output)
    dropped = _paths(decoder, parts)
    plans = {
        path: Plan(rows[path], columns[path], biases[path], path in narrow_outputs, path in narrow_inputs)
        for path in rows
        if path not in dropped
    }
    return plans, left, parts


def _paths(decoder: Decoder, parts: frozenset[str]) -> set[str]:
    """The paths of the layers of ``parts``."""
    attention = decoder.family.attention if ATTENTION in parts else None
    mlp = decoder.family.mlp if FFN in parts else None
    return {*(attention or ()), *((*mlp[0], mlp[1]) if mlp else ())}


def _whole_heads(now: Heads, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> Heads | None:
    """The heads that stay, if rows (of query, key, value, by key-value head) and columns (of output) go by whole heads and
    each key-value head that stays serves equally many query heads, at least one; else None."""
    by_query, by_output = query.reshape(now.heads, now.width), output.view(now.heads, now.width)
    by_key, by_value = key.reshape(now.kv_heads, now.width), value.reshape(now.kv_heads, now.width)
    for lines in (by_query, by_output, by_key, by_value):
        if not torch.equal(lines.all(1), lines.any(1)):
            return None
    queries, keys = by_query[:, 0], by_key[:, 0]
    if not (torch.equal(queries, by_output[:, 0]) and torch.equal(keys, by_value[:, 0])):
        return None
    served = queries.view(now.kv_heads, -1).sum(1)  # query heads that stay, of each key-value head
    if not bool(keys.any()) or bool(served[~keys].any()):
        return None
    each = int(served[keys][0])
    if each == 0 or not bool((served[keys] == each).all()):
        return None
    return Heads(int(queries.sum()), int(keys.sum()), now.width)


def _living_units(decoder: Decoder, gate: Tensor, up: Tensor, reader: Tensor) -> Tensor:
    """Hidden units (n,) bool that are read and not always zero. ``gate``, ``up``: the maps' rows; without a gate
    both are the only map's."""
    gated = decoder.family.halves or len(cast(tuple, decoder.family.mlp)[0]) == 2
    alive = reader.clone()
    if gated:
        alive &= up  # the gate multiplies: a zero there is a zero
    if _activation_keeps_zero(decoder):
        alive &= gate
    return alive


def _living_channels(value: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """Value channels (n_kv, d_h) and columns of the output map (n_q * d_h,) that matter; query heads share grouped
    value heads."""
    channels = value.unsqueeze(1)
    readers = output.view(value.shape[0], -1, value.shape[1])
    return (channels & readers.any(1, keepdim=True)).squeeze(1), (readers & channels).reshape(-1)


def _living_scores(query: Tensor, key: Tensor, output: Tensor, keeps_zero: bool) -> tuple[Tensor, Tensor]:
    """Query rows (n_kv, r * d_h) and key rows (n_kv, d_h) that matter, by whole heads: those of a head whose output columns
    (n_q * d_h,) are gone do not, nor, where queries and keys of zeros stay so, those that meet nothing but zeros: their
    scores are all zero.

    Within a head nothing more goes: rotary positions mix its channels, in an order that only the model's code knows.
    """
    n_kv, width = key.shape
    read = output.view(n_kv, -1, width).any(2)  # by query head
    queries = query.view(n_kv, -1, width) & read[:, :, None]
    keys = key & read.any(1, keepdim=True)
    if keeps_zero:
        asked, answered = queries.flatten(1).any(1), keys.any(1)
        queries, keys = queries & answered[:, None, None], keys & asked[:, None]
    return queries.reshape(query.shape), keys


def _scores_keep_zero(decoder: Decoder, index: int) -> bool:
    """Whether queries and keys of zeros stay zeros up to the scores: no norm between has a bias."""
    query, key, value, output = cast(tuple, decoder.family.attention)
    attention, name = parent(decoder.blocks[index], output), output.rpartition(".")[0]
    own = {path.removeprefix(f"{name}.") for path in (query, key, value, output)}
    return not any(
        path.endswith("bias") and path.removesuffix(".bias") not in own
        for path, _ in attention.named_parameters()
    )


def _activation_keeps_zero(decoder: Decoder) -> bool:
    """Whether the MLP's activation maps 0 to 0; unknown ones are taken not to."""
    config = decoder.model.config
    names = [
        getattr(config, key, None)
        for key in ("hidden_activation", "hidden_act", "activation_function", "activation")
    ]
    for name in (*names, decoder.family.activation):
        if name in ACT2FN:
            return float(ACT2FN[name](torch.zeros(1))) == 0.0
    return False


def _smaller(linear: nn.Linear, plan: Plan) -> nn.Module:
    if bool(plan.rows.all()) and bool(plan.columns.all()) and plan.bias == (linear.bias is not None):
        return linear  # nothing goes: it stays the architecture's own kind
    device = linear.weight.device
    rows, columns = plan.rows.to(device), plan.columns.to(device)
    weight = linear.weight.detach()[rows][:, columns].contiguous()
    bias = linear.bias.detach()[rows] if plan.bias else None
    inputs = None if plan.narrow_input or bool(columns.all()) else columns.nonzero()[:, 0]
    outputs = None if plan.narrow_output or bool(rows.all()) else rows.nonzero()[:, 0]
    if inputs is None and outputs is None:
        small: nn.Module = linear_of(weight, bias)
    else:
        small = CompactLinear(weight, bias, inputs, outputs, linear.in_features, linear.out_features)
    if is_turned(linear):
        turn(small)
    return small
