"""What a config of an architecture can say of widths: the values for equal blocks, and the model that they would build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig

from prunelab.models.decoder import Decoder
from prunelab.models.narrow import parent
from prunelab.models.shape import ENTRY, UNBUILDABLE, BlockShape, block_shapes, head_width
from prunelab.models.transposed import hold_as_linear

_FFN_KEYS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")


def uniform_config(decoder: Decoder, shapes: Sequence[BlockShape], dense: Decoder) -> dict[str, Any] | None:
    """The config's values for widths that are the same in every block; None where they differ or no key says them.

    ``dense``: the model of the config as it is, see :func:`prunelab.models.shape.dense_twin`.
    """
    first, config = shapes[0], decoder.model.config
    if (
        len(set(shapes)) > 1
        or 0 in (first.heads, first.ffn)
        or first.added_biases
        or first.removed_biases
        or first.picked
    ):
        return None
    was = block_shapes(dense, dense)[0]
    changes: dict[str, Any] = {}
    if first.ffn != was.ffn:
        keys = [key for key in _FFN_KEYS if isinstance(getattr(config, key, None), int)]
        if len(keys) != 1:
            return None
        changes[keys[0]] = first.ffn
    if first.heads is not None and (first.heads, first.kv_heads) != (was.heads, was.kv_heads):
        if isinstance(getattr(type(config), "head_dim", None), property):
            return None  # computed from the number of heads
        changes |= {"num_attention_heads": first.heads, "head_dim": head_width(dense, 0)}
        if hasattr(config, "num_key_value_heads"):
            changes["num_key_value_heads"] = first.kv_heads
    return changes


def build_as(decoder: Decoder, changes: Mapping[str, Any]) -> Decoder | None:
    """The model of the changed config, without memory for weights; None where the architecture refuses it."""
    config = decoder.model.config
    values = {k: v for k, v in config.to_dict().items() if k not in (ENTRY, "auto_map", "model_type")}
    try:
        changed = AutoConfig.for_model(config.model_type, **{**values, **changes})
        with torch.device("meta"):
            model = type(decoder.model)._from_config(changed, dtype=decoder.dtype)
        hold_as_linear(model, decoder.family)
    except UNBUILDABLE:
        return None
    return Decoder(model, decoder.family, decoder.name, decoder.max_len)


def is_same(decoder: Decoder, other: Decoder | None) -> bool:
    """Whether both have the same tensors by name and shape, and attention that reads them as the same heads."""
    if other is None:
        return False
    shapes = [{k: v.shape for k, v in d.model.state_dict().items()} for d in (decoder, other)]
    return shapes[0] == shapes[1] and _constants(decoder) == _constants(other)


def _constants(decoder: Decoder) -> list[dict[str, object]]:
    """The plain numbers that the attention modules keep, such as the width of a head and the scale of the scores."""
    if decoder.family.attention is None:
        return []
    modules = [parent(block, decoder.family.attention[3]) for block in decoder.blocks]
    return [{k: v for k, v in vars(m).items() if type(v) in (int, float)} for m in modules]
