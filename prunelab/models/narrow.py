"""Narrow layers: a transformers causal LM whose blocks have fewer heads and hidden units than its config says.

The text of this file is also the first part of the modelling file that is written beside the weights of such a model
(``prunelab/structures/checkpoint.py``), which has to run where prunelab is not installed: it imports torch alone.

Query head q is served by key-value head ``q // (heads / kv_heads)``, the order of transformers' ``repeat_kv``. The width
of a head stays, and with it what is per channel of a head: rotary tables, norms of query and key, the scale of the
scores. A block that has no attention, or no hidden units, has modules in their place that pass nothing on. A map that
lost single inputs from the residual stream or outputs to it, or parts of heads, picks what it reads and places what it
gives; which ones are tensors beside its weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

QUERY_COUNTS = ("num_heads", "num_attention_heads", "n_heads")
KEY_VALUE_COUNTS = ("num_key_value_heads", "num_kv_heads")
HEAD_WIDTHS = ("head_dim", "head_size")
QUERY_WIDTHS = ("split_size",)
RATIOS = ("num_key_value_groups",)
WIDTHS = ("intermediate_size",)
CACHES = ("cache", "past_key_values", "past_key_value", "layer_past")


def narrow(model: nn.Module, names: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]]) -> None:
    """Give every block of ``model`` the widths and biases that ``blocks`` lists, in place; new weights mean nothing yet.

    ``names``: "blocks" (path of the block list), "attention" (paths of query, key, value and output map inside a block,
    or None; one map under three names is all of them), "mlp" (paths of its maps, the last one reads the hidden units, or
    None), "halves" (whether its one writer holds gate and up). An entry of ``blocks``: "heads",
    "kv_heads", "ffn" (numbers that stay; None where there is no such part, 0 where it is gone as a whole), "added_biases"
    and "removed_biases" (paths), and where there are any "picked": of maps by path how many "inputs" they pick and how many
    "outputs" they place (None: all). An MLP of 0 hidden units whose maps are picked stays, and gives its bias.
    """
    for block, shape in zip(model.get_submodule(names["blocks"]).children(), blocks, strict=True):
        rows, columns, picked = {}, {}, shape.get("picked", {})
        if names["attention"] is not None and shape["heads"] == 0:
            drop_attention(block, names["attention"][3])
        elif names["attention"] is not None and shape["heads"] is not None:
            query, key, value, output = names["attention"]
            attention = parent(block, output)
            width = next(getattr(attention, name) for name in HEAD_WIDTHS if hasattr(attention, name))
            of_query, of_value = shape["heads"] * width, shape["kv_heads"] * width
            rows |= {query: of_query, key: of_value, value: of_value}
            if query == key:
                rows[query] = of_query + 2 * of_value
            columns[output] = of_query
            count_heads(attention, shape["heads"], shape["kv_heads"], query == key)
        if names["mlp"] is not None and shape["ffn"] == 0 and names["mlp"][-1] not in picked:
            drop_mlp(block, names["mlp"])
        elif names["mlp"] is not None and shape["ffn"] is not None:
            *writers, reader = names["mlp"]
            rows |= dict.fromkeys(writers, shape["ffn"] * (1 + names["halves"]))
            columns[reader] = shape["ffn"]
            count_units(parent(block, reader), shape["ffn"])
        added, removed = shape["added_biases"], shape["removed_biases"]
        for path in dict.fromkeys([*rows, *columns, *added, *removed, *picked]):
            old = block.get_submodule(path)
            linear = isinstance(old, nn.Linear)
            before = (old.out_features, old.in_features) if linear else (old.nf, old.nx)  # GPT-2's Conv1D
            after = rows.get(path, before[0]), columns.get(path, before[1])
            bias = path in added or (old.bias is not None and path not in removed)
            if after == before and bias == (old.bias is not None) and path not in picked:
                continue
            like = {"device": old.weight.device, "dtype": old.weight.dtype}
            of = picked.get(path, {"inputs": None, "outputs": None})
            own = not linear and not (bias and all(after))  # Conv1D has to have a bias, and something to read
            if of["inputs"] is not None or of["outputs"] is not None or own:
                new: Any = _picking(after, of["inputs"], of["outputs"], bias, not linear, like)
            elif linear and all(after):
                new = nn.Linear(after[1], after[0], bias=bias)
            elif linear:
                values = torch.empty(after, **like), torch.empty(after[0], **like) if bias else None
                new = linear_of(*values)
            else:
                new = type(old)(*after)
            place(block, path, new.to(**like).requires_grad_())


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return the linear layer that has ``weight`` (out, in) and ``bias`` (out,); it asks for no gradient."""
    with torch.device("meta"):
        plain = nn.Linear(1, 1, bias=bias is not None)  # its own widths may be 0, at which initialisers warn
    plain.out_features, plain.in_features = weight.shape
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias, requires_grad=False)
    return plain


class CompactLinear(nn.Module):
    """A linear layer without its removed rows and columns, with the same interface to the outside.

    weight (p, q), with ``turned`` (q, p); bias (p,) or None; ``inputs`` (q,) int64: features of x (..., in_features) to
    use, None = x is already that narrow; ``outputs`` (p,) int64: places in the result (..., out_features), zero elsewhere,
    None = the result is (..., p). ``in_features`` and ``out_features`` count where something is picked or placed.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        inputs: Tensor | None,
        outputs: Tensor | None,
        in_features: int,
        out_features: int,
        turned: bool = False,
    ) -> None:
        super().__init__()
        rows, columns = weight.shape[::-1] if turned else weight.shape
        self.in_features = columns if inputs is None else in_features
        self.out_features = rows if outputs is None else out_features
        self.turned = turned
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.inputs: Tensor | None
        self.outputs: Tensor | None
        self.register_buffer("inputs", inputs)
        self.register_buffer("outputs", outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        if self.inputs is not None:
            x = x.index_select(-1, self.inputs)
        y = F.linear(x, self.weight.t() if self.turned else self.weight, self.bias)
        if self.outputs is None:
            return y
        full = y.new_zeros(*y.shape[:-1], self.out_features)
        return full.index_copy(-1, self.outputs, y)


def _picking(
    width: tuple[int, int],
    inputs: int | None,
    outputs: int | None,
    bias: bool,
    turned: bool,
    like: Mapping[str, Any],
) -> CompactLinear:
    """Return a layer that is ``width`` (out, in) to the outside, picks ``inputs`` and places ``outputs``: the first ones,
    until it is filled."""
    rows, columns = width[0] if outputs is None else outputs, width[1] if inputs is None else inputs
    weight = torch.empty((columns, rows) if turned else (rows, columns), **like)
    picks, places = (None if n is None else torch.arange(n, device=like["device"]) for n in (inputs, outputs))
    own = torch.empty(rows, **like) if bias else None
    return CompactLinear(weight, own, picks, places, width[1], width[0], turned)


class NoAttention(nn.Module):
    """Stands where a block's attention was: adds nothing to the residual stream.

    The cache is told how many tokens went by, one number each: models ask its first layer for their place in the text.
    """

    def __init__(self, layer_idx: int | None) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, None]:
        """Return zeros like ``hidden_states`` (batch, tokens, d), or the residual that BLOOM hands over to be added to."""
        cache = next((named[name] for name in CACHES if named.get(name) is not None), None)
        if cache is not None and self.layer_idx is not None:
            seen = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(seen, seen, self.layer_idx)
        residual = next((one for one in rest if isinstance(one, Tensor)), named.get("residual"))
        return hidden_states.new_zeros(hidden_states.shape) if residual is None else residual, None


class NoMap(nn.Module):
    """Stands where a linear map of an MLP was: ``width`` zeros for any input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros (..., width)."""
        return x.new_zeros(*x.shape[:-1], self.width)


def drop_attention(block: nn.Module, output: str) -> None:
    """Put nothing in the place of the attention module whose output map is at ``output``, in place."""
    path = output.rpartition(".")[0]
    place(block, path, NoAttention(getattr(block.get_submodule(path), "layer_idx", None)))


def drop_mlp(block: nn.Module, maps: Sequence[str]) -> None:
    """Put nothing in the place of an MLP's ``maps``, of which the last writes to the residual stream, in place."""
    *writers, reader = maps
    width = block.get_submodule(reader).get_parameter("weight").shape[0]
    if not isinstance(block.get_submodule(reader), nn.Linear):
        width = block.get_submodule(reader).get_parameter("weight").shape[1]  # GPT-2's Conv1D
    for path in writers:
        place(block, path, NoMap(2))  # two, since Phi-3 halves what its one writer gives
    place(block, reader, NoMap(width))


def is_gone(block: nn.Module, path: str) -> bool:
    """Whether the layer at ``path`` of ``block`` belonged to a part that is gone as a whole."""
    module = block
    for name in path.split("."):
        module = getattr(module, name, None)
        if module is None or isinstance(module, NoAttention | NoMap):
            return module is not None
    return False


def count_heads(attention: Any, heads: int, kv_heads: int, fused: bool) -> None:
    """Set those attributes of an attention module that say how many heads it has, in place; ``fused``: query, key and
    value are one map, which it may split by the number that its config gives."""
    width = next(getattr(attention, name) for name in HEAD_WIDTHS if hasattr(attention, name))
    _set(attention, QUERY_COUNTS, heads)
    _set(attention, KEY_VALUE_COUNTS, kv_heads)
    _set(attention, RATIOS, heads // kv_heads)
    _set(attention, QUERY_WIDTHS, heads * width)
    config = getattr(attention, "config", None)
    if fused and getattr(config, "num_attention_heads", heads) != heads:  # Phi-3
        attention.config = _Seen(config, heads, kv_heads)


class _Seen:
    """A config as an attention module of other numbers of heads sees it; all else is read from the model's."""

    def __init__(self, config: Any, heads: int, kv_heads: int) -> None:
        self.whole = config.whole if isinstance(config, _Seen) else config
        self.num_attention_heads, self.num_key_value_heads = heads, kv_heads

    def __getattr__(self, name: str) -> Any:
        if name == "whole":  # while a copy is made
            raise AttributeError(name)
        return getattr(self.whole, name)


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
