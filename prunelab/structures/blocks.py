"""Whole decoder blocks and sub-layers: where one may go, which of a state are gone, and a model without the blocks.

In a block that adds to the residual stream and does nothing else to it, zero linear maps add nothing, so the block
without weights is no block. Where a norm stands after the sum (OPT-350m) it would still change what passes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from prunelab.errors import ModelError
from prunelab.models.decoder import Decoder
from prunelab.models.stream import call_block, open_stream, silence
from prunelab.pattern.base import ATTENTION, FFN
from prunelab.sparsity.mask import Mask

_BY_DEPTH = "scale_attn_by_inverse_layer_idx"  # GPT-2's: scores are divided by the block's number


@torch.no_grad()
def check_passing(decoder: Decoder) -> None:
    """Raise ModelError for a decoder with a block that is more than its linear maps: run on two tokens with the maps'
    outputs at zero, it does not give back its input to the bit."""
    tokens = torch.full((1, 2), int(decoder.model.config.vocab_size) - 1, device=decoder.device)
    stream = open_stream(decoder, tokens, 1)
    silent = [site.linear.register_forward_hook(silence) for site in decoder.sites()]
    try:
        hidden = stream.read(slice(0, 1)).clone()
        for index in range(len(decoder.blocks)):
            if not torch.equal(call_block(decoder, index, stream, hidden), hidden):
                raise ModelError(
                    f"{decoder.name}: block {index} changes what passes through it even where its linear maps give "
                    "nothing, as one with a norm after the sum does, so no block and no sub-layer can be "
                    "removed. Use sparsity.kinds=[neurons,heads]."
                )
    finally:
        for handle in silent:
            handle.remove()


def is_removed(masks: Mapping[str, Mask]) -> bool:
    """Whether the layers ``masks`` (those of a block or of a part of one, in forward order) went as one unit: one ends in the
    last layer and is gone, and no row of any is left."""
    *_, last = masks.values()
    if (last.units, last.units_removed) != (1, 1):
        return False
    return not any(bool(mask.lines()[0].any()) for mask in masks.values())


def removed_parts(decoder: Decoder, masks: Mapping[str, Mask]) -> frozenset[str]:
    """Return which parts of a block went as wholes, of ``attention`` and ``ffn``; ``masks``: of its layers, by path."""
    family = decoder.family
    parts = {
        ATTENTION: () if family.attention is None else family.attention,
        FFN: () if family.mlp is None else (*family.mlp[0], family.mlp[1]),
    }
    own = {part: {path: masks[path] for path in paths if path in masks} for part, paths in parts.items()}
    return frozenset(part for part, found in own.items() if found and is_removed(found))


def drop_blocks(decoder: Decoder, gone: Collection[int]) -> None:
    """Take the blocks ``gone`` out of ``decoder``, in place; those that stay are numbered anew, in the modules (whose
    numbers are places in a cache) and in the config's number and lists of layers.

    Raises ModelError where what stays would compute something else under another number.
    """
    if not gone:
        return
    config: Any = decoder.model.config
    if getattr(config, _BY_DEPTH, False):
        raise ModelError(
            f"{decoder.name}: {_BY_DEPTH} divides attention scores by a block's number, which removal changes. Keep the "
            "zeros: save it before compact(), or export it without --compact."
        )
    stays = [index for index in range(len(decoder.blocks)) if index not in set(gone)]
    blocks, count = [decoder.blocks[index] for index in stays], len(decoder.blocks)
    for number, block in enumerate(blocks):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = number  # type: ignore[assignment]
    lists = {
        key: [value[index] for index in stays]
        for key, value in vars(config).items()
        if "layer" in key and isinstance(value, list | tuple) and len(value) == count
    }
    for key, value in {**lists, _depth_key(config, count): len(stays)}.items():
        vars(config)[key] = value  # past the checks of single values: number and lists change together
    path, _, name = decoder.family.blocks.rpartition(".")
    setattr(decoder.model.get_submodule(path), name, nn.ModuleList(blocks))


def _depth_key(config: Any, count: int) -> str:
    """The config's own name of the number of blocks."""
    key = getattr(config, "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers")
    if vars(config).get(key) != count:
        raise ModelError(
            f"config.{key} is {vars(config).get(key)}, but the model has {count} blocks: it says nothing of their number, so "
            "none can be taken out. Keep the zeros: save it before compact(), or export it without --compact."
        )
    return key
