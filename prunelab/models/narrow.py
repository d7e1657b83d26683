"""Narrow layers: a transformers causal LM whose blocks have fewer heads and hidden units than its config says.

The text of this file is also the first part of the modelling file that is written beside the weights of such a model
(``prunelab/structures/checkpoint.py``), which has to run where prunelab is not installed: it imports torch alone.

Query head q is served by key-value head ``q // (heads / kv_heads)``, the order of transformers' ``repeat_kv``. The width
of a head stays, and with it what is per channel of a head: rotary tables, norms of query and key, the scale of the
scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

QUERY_COUNTS = ("num_heads", "num_attention_heads", "n_heads")
KEY_VALUE_COUNTS = ("num_key_value_heads", "num_kv_heads")
HEAD_WIDTHS = ("head_dim", "head_size")
RATIOS = ("num_key_value_groups",)
WIDTHS = ("intermediate_size",)


def narrow(model: nn.Module, names: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]]) -> None:
    """Give every block of ``model`` the widths and biases that ``blocks`` lists, in place; new weights mean nothing yet.

    ``names``: "blocks" (path of the block list), "attention" (paths of query, key, value and output map inside a block,
    or None), "mlp" (paths of its maps, the last one reads the hidden units, or None). An entry of ``blocks``: "heads",
    "kv_heads", "ffn" (numbers that stay; None where there is no such part), "added_biases" and "removed_biases" (paths).
    """
    for block, shape in zip(model.get_submodule(names["blocks"]).children(), blocks, strict=True):
        rows, columns = {}, {}
        if names["attention"] is not None and shape["heads"] is not None:
            query, key, value, output = names["attention"]
            attention = parent(block, output)
            width = attention.head_dim
            rows |= {
                query: shape["heads"] * width,
                key: shape["kv_heads"] * width,
                value: shape["kv_heads"] * width,
            }
            columns[output] = shape["heads"] * width
            count_heads(attention, shape["heads"], shape["kv_heads"])
        if names["mlp"] is not None and shape["ffn"] is not None:
            *writers, reader = names["mlp"]
            rows |= dict.fromkeys(writers, shape["ffn"])
            columns[reader] = shape["ffn"]
            count_units(parent(block, reader), shape["ffn"])
        added, removed = shape["added_biases"], shape["removed_biases"]
        for path in dict.fromkeys([*rows, *columns, *added, *removed]):
            old = block.get_submodule(path)
            bias = path in added or (old.bias is not None and path not in removed)
            wide = rows.get(path, old.out_features), columns.get(path, old.in_features)
            if wide != (old.out_features, old.in_features) or bias != (old.bias is not None):
                like = {"device": old.weight.device, "dtype": old.weight.dtype}
                place(block, path, nn.Linear(wide[1], wide[0], bias=bias, **like))


def count_heads(attention: nn.Module, heads: int, kv_heads: int) -> None:
    """Set those attributes of an attention module that say how many heads it has, in place."""
    _set(attention, QUERY_COUNTS, heads)
    _set(attention, KEY_VALUE_COUNTS, kv_heads)
    _set(attention, RATIOS, heads // kv_heads)


def count_units(mlp: nn.Module, width: int) -> None:
    """Set those attributes of an MLP that say how many hidden units it has, in place."""
    _set(mlp, WIDTHS, width)


def parent(block: nn.Module, path: str) -> Any:
    """Return the module inside ``block`` that holds the layer at ``path``."""
    return block.get_submodule(path.rpartition(".")[0])


def place(block: nn.Module, path: str, layer: nn.Module) -> None:
    """Put ``layer`` at ``path`` of ``block``, in the mode of what was there."""
    layer.train(block.get_submodule(path).training)
    setattr(parent(block, path), path.rpartition(".")[2], layer)


def _set(module: nn.Module, names: Sequence[str], value: int) -> None:
    for name in names:
        if isinstance(getattr(module, name, None), int):
            setattr(module, name, value)
