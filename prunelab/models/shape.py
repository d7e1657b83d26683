"""How wide every block of a decoder really is: heads, key-value heads, hidden units, biases; and that as JSON.

Widths are read from the modules, never from the config, which describes the dense model. A narrow model's config.json
has an entry ``pruned`` with a shape per block, from which prunelab builds the model without running the modelling file
beside it. The entry comes from a disk: every value is checked against the dense model before anything is built. Which
inputs and outputs a map picks is in tensors beside its weight, and checked once they are read (prunelab.models.picked).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from prunelab.errors import nearest
from prunelab.family import Family
from prunelab.models.bias import may_add
from prunelab.models.decoder import Decoder
from prunelab.models.narrow import HEAD_WIDTHS, is_gone, narrow, parent
from prunelab.models.picked import (
    ENTRY,
    PICKED,
    Picked,
    linear_maps,
    picked_maps,
    read_picked,
    width_of,
    wrong,
)
from prunelab.models.transposed import hold_as_linear, is_turned, turn

VERSION = 1
UNBUILDABLE = (
    ValueError,
    AttributeError,
    TypeError,
    KeyError,
    OSError,
    StrictDataclassError,
    RuntimeError,
    ZeroDivisionError,
)
_FIELDS = ("heads", "kv_heads", "ffn", "added_biases", "removed_biases")


@dataclass(frozen=True)
class Heads:
    """Query heads, key-value heads, and the width in channels of each."""

    heads: int
    kv_heads: int
    width: int


@dataclass(frozen=True)
class BlockShape:
    """One block: how many query heads, key-value heads and hidden units it has (None: it has no such part, or its heads
    cannot be counted; 0: the part is gone as a whole), and which linear maps (paths) have a bias that the dense model has
    not, or the reverse. ``picked``: maps that pick single inputs or outputs of these widths; beside 0 hidden units also
    all maps of an MLP that is still there for its bias."""

    heads: int | None
    kv_heads: int | None
    ffn: int | None
    added_biases: tuple[str, ...] = ()
    removed_biases: tuple[str, ...] = ()
    picked: tuple[Picked, ...] = ()

    def entry(self) -> dict[str, Any]:
        """As JSON-ready data."""
        values = {key: getattr(self, key) for key in _FIELDS}
        found = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        picked = {one.path: {"inputs": one.inputs, "outputs": one.outputs} for one in self.picked}
        return found | ({PICKED: picked} if picked else {})


def head_width(decoder: Decoder, block: int) -> int | None:
    """Channels of a head as the attention module of ``block`` keeps them; None where it, or the family, names none."""
    if decoder.family.attention is None or is_gone(decoder.blocks[block], decoder.family.attention[3]):
        return None
    attention = parent(decoder.blocks[block], decoder.family.attention[3])
    widths = (getattr(attention, name, None) for name in HEAD_WIDTHS)
    return next((width for width in widths if isinstance(width, int) and width > 0), None)


def heads_of(decoder: Decoder, block: int) -> Heads | None:
    """Count the heads of ``block`` by its layers' widths; None where its attention is not known to run with fewer of
    them: it keeps no width of a head, or its biases of distance (ALiBi) are made for all heads of the config."""
    width = head_width(decoder, block)
    if decoder.family.attention is None or width is None or _has_distance_biases(decoder, block):
        return None
    module = decoder.blocks[block]
    query, key, value, output = decoder.family.attention
    rows = [width_of(module.get_submodule(path))[0] for path in (query, key, value)]
    columns = width_of(module.get_submodule(output))[1]
    heads = columns // width
    separate = decoder.family.layout == "separate"
    kv_heads = rows[1] // width if separate else (rows[0] // width - heads) // 2
    of_kv = kv_heads * width
    wanted = [heads * width, of_kv, of_kv] if separate else [heads * width + 2 * of_kv] * 3
    if rows != wanted or columns != heads * width:
        return None
    return Heads(heads, kv_heads, width) if kv_heads > 0 and heads % kv_heads == 0 else None


def _has_distance_biases(decoder: Decoder, block: int) -> bool:
    assert decoder.family.attention is not None
    attention = parent(decoder.blocks[block], decoder.family.attention[3])
    takes = "alibi" in inspect.signature(attention.forward).parameters
    return bool(getattr(decoder.model.config, "alibi", takes))


def units_of(decoder: Decoder, block: int) -> int | None:
    """Count the hidden units of ``block``; None where the family names no MLP, 0 where it is gone."""
    if decoder.family.mlp is None:
        return None
    if is_gone(decoder.blocks[block], decoder.family.mlp[1]):
        return 0
    return width_of(decoder.blocks[block].get_submodule(decoder.family.mlp[1]))[1]


def dense_twin(decoder: Decoder) -> Decoder:
    """The dense model of the decoder's config, without memory for weights (on the meta device)."""
    with torch.device("meta"):
        model = type(decoder.model)._from_config(decoder.model.config, dtype=decoder.dtype)
    hold_as_linear(model, decoder.family)
    return Decoder(model, decoder.family, decoder.name, decoder.max_len)


def block_shapes(decoder: Decoder, dense: Decoder) -> tuple[BlockShape, ...]:
    """Return the shape of every block of ``decoder`` beside those of its dense model (see :func:`dense_twin`).

    Raises ModelError for layers that are neither torch.nn.Linear nor CompactLinear.
    """
    shapes = []
    for index in range(len(decoder.blocks)):
        maps = linear_maps(decoder, index)
        has = {path: linear.bias is not None for path, linear in maps.items()}
        had = {site.path: site.linear.bias is not None for site in dense.sites(index)}
        heads = heads_of(decoder, index)
        attention = decoder.family.attention
        none = 0 if attention is not None and is_gone(decoder.blocks[index], attention[3]) else None
        shapes.append(
            BlockShape(
                none if heads is None else heads.heads,
                none if heads is None else heads.kv_heads,
                units_of(decoder, index),
                tuple(path for path in has if has[path] and not had[path]),
                tuple(path for path in has if had[path] and not has[path]),
                picked_maps(decoder.family, maps),
            )
        )
    return tuple(shapes)


def names_of(family: Family) -> dict[str, Any]:
    """The family's names as :func:`prunelab.models.narrow.narrow` takes them."""
    mlp = None if family.mlp is None else [*family.mlp[0], family.mlp[1]]
    attention = None if family.attention is None else list(family.attention)
    return {"blocks": family.blocks, "attention": attention, "mlp": mlp, "halves": family.halves}


def narrow_as(model: Any, family: Family, entry: object, where: str) -> None:
    """Make the dense ``model``, on the meta device, as narrow as ``entry`` (of config.json) says, in place.

    Raises ModelError naming ``where`` and the value that cannot be.
    """
    dense = Decoder(model, family, where, 1)
    shapes = read_entry(entry, dense, where)
    narrow(model, names_of(family), [shape.entry() for shape in shapes])
    for index in range(len(dense.blocks)):
        for path, linear in linear_maps(dense, index).items():
            if path in family.transposed and not is_turned(linear):
                turn(linear)


def read_entry(entry: object, dense: Decoder, where: str) -> tuple[BlockShape, ...]:
    """Return the checked shapes of ``entry``; ModelError names ``where`` and the first value that cannot be."""
    if not isinstance(entry, Mapping) or set(entry) - {"version", "blocks", "parent"}:
        raise wrong(where, ENTRY, entry, 'a mapping {"version", "parent", "blocks"}')
    if entry.get("version") != VERSION or isinstance(entry["version"], bool):
        raise wrong(where, "version", entry.get("version"), f"{VERSION}")
    blocks, count = entry.get("blocks"), len(dense.blocks)
    if not isinstance(blocks, list) or len(blocks) != count:
        found = f"{len(blocks)} entries" if isinstance(blocks, list) else blocks
        raise wrong(where, "blocks", found, f"a list of {count}, one for each block")
    return tuple(_read_block(block, index, dense, where) for index, block in enumerate(blocks))


def _read_block(block: object, index: int, dense: Decoder, where: str) -> BlockShape:
    at = f"blocks[{index}]"
    if not isinstance(block, Mapping) or set(block) - {PICKED} != set(_FIELDS):
        raise wrong(where, at, block, f"a mapping with exactly {', '.join(_FIELDS)}")
    heads, ffn = heads_of(dense, index), units_of(dense, index)
    mlp = () if dense.family.mlp is None else (*dense.family.mlp[0], dense.family.mlp[1])
    picked: object = block.get(PICKED, {})
    no_units = ffn is not None and _is_zero(block["ffn"])
    no_mlp = no_units and not (isinstance(picked, Mapping) and mlp and mlp[-1] in picked)
    if _is_zero(block["heads"]) and no_mlp:
        raise wrong(where, f"{at}.ffn", 0, "1 or more where heads is 0: a block without both is none")
    if dense.family.attention is not None and _is_zero(block["heads"]) and _is_zero(block["kv_heads"]):
        of_query = of_value = 0
    else:
        of_query = _count(block["heads"], heads and heads.heads, f"{at}.heads", where)
        of_value = _count(block["kv_heads"], heads and heads.kv_heads, f"{at}.kv_heads", where)
    if heads is not None and of_query and of_value and of_query % of_value:
        raise wrong(where, f"{at}.heads", of_query, f"kv_heads ({of_value}) times a whole number")
    attention = () if dense.family.attention is None or of_query != 0 else dense.family.attention
    gone = {*attention, *(mlp if no_mlp else ())}
    maps = {site.path: site.linear for site in dense.sites(index) if site.path not in gone}
    had = {path: linear.bias is not None for path, linear in maps.items()}
    addable = [path for path in had if not had[path] and may_add(dense.family, path)]
    return BlockShape(
        of_query,
        of_value,
        0 if no_units else _count(block["ffn"], ffn, f"{at}.ffn", where),
        _paths(block["added_biases"], addable, f"{at}.added_biases", where),
        _paths(block["removed_biases"], [p for p in had if had[p]], f"{at}.removed_biases", where),
        read_picked(picked, maps, mlp if no_units else (), f"{at}.{PICKED}", where)
        if PICKED in block
        else (),
    )


def _is_zero(value: object) -> bool:
    return type(value) is int and value == 0


def _count(value: object, dense: int | None, key: str, where: str) -> int | None:
    if dense is None:
        if value is not None:
            raise wrong(where, key, value, "null, as the family names no such part")
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= dense:
        raise wrong(where, key, value, f"an integer from 1 to {dense}, the dense model's")
    return value


def _paths(value: object, allowed: Sequence[str], key: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(path, str) for path in value):
        raise wrong(where, key, value, "a list of paths")
    for path in value:
        if path not in allowed:
            known = f"paths among {', '.join(allowed)}" if allowed else "an empty list"
            raise wrong(where, key, path, f"{known}. {nearest(path, allowed)}".rstrip(" ."))
    if len(set(value)) < len(value):
        raise wrong(where, key, value, "each path once")
    return tuple(value)
