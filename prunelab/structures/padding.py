"""Blocks of unequal widths, filled up with zeros to widths that a config can say: the same function, an ordinary model.

A hidden unit whose row and column are zero gives nothing, and so does a query head whose rows and output columns are; a
key-value head of zeros is read by such query heads alone. A part that is gone as a whole becomes one of zeros. A block
with n_kv key-value heads, each read by r query heads, keeps these places among more: its key-value head g stays number g,
its query heads the first r of that group (the layout of ``repeat_kv``).

Padding gives back some of what compaction saved: it is for software that reads the base architecture and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunelab.errors import ModelError
from prunelab.models.checkpoint import Weights
from prunelab.models.decoder import Decoder, freeze
from prunelab.models.load import fill
from prunelab.models.shape import BlockShape, Heads, block_shapes, dense_twin, heads_of
from prunelab.structures.layout import attention_rows, mlp_rows
from prunelab.structures.surgery import is_compact
from prunelab.structures.uniform import build_as, uniform_config

INSTEAD = "Save it as it is, or before compact(): the checkpoint then holds the same function."


def pad_to_uniform(decoder: Decoder) -> Decoder:
    """Return a new decoder of the base architecture, every block as wide as the widest of each kind, with the same logits.

    Where the config cannot say as few heads, or hidden units, there are as many as it says: OPT, GPT-2, GPT-NeoX, Falcon
    and BLOOM take the width of a head from their number. Its weights are copies. Raises ModelError for layers that pick
    single inputs or outputs, for a class that is not transformers' own, and for added biases that the config cannot say.
    """
    check_class(decoder)
    dense = dense_twin(decoder)
    for wanted in _wanted(block_shapes(decoder, dense), block_shapes(dense, dense)[0]):
        changes = uniform_config(decoder, [wanted] * len(decoder.blocks), dense)
        if changes is None:
            continue
        target = build_as(decoder, changes | bias_keys(decoder, dense))
        if target is None or any(_widths(one) != _widths(wanted) for one in block_shapes(target, target)):
            continue
        fill(target.model, padded_weights(decoder, target), decoder.device)
        target.model.generation_config = decoder.model.generation_config
        freeze(target.model)
        return target
    raise ModelError(
        f"{decoder.name}: no config of {type(decoder.model).__name__} says these widths. {INSTEAD}"
    )


def gained_biases_alone(decoder: Decoder) -> bool:
    """Whether ``decoder`` is as wide as its dense model, with biases besides that the architecture's config can say.

    Without their being said, transformers would load such a checkpoint and drop them.
    """
    if is_compact(decoder) or not type(decoder.model).__module__.startswith("transformers."):
        return False
    dense = dense_twin(decoder)
    pairs = zip(block_shapes(decoder, dense), block_shapes(dense, dense), strict=False)
    if len(decoder.blocks) != len(dense.blocks) or any(_widths(own) != _widths(one) for own, one in pairs):
        return False
    with suppress(ModelError):
        return bool(bias_keys(decoder, dense))
    return False


def check_class(decoder: Decoder) -> None:
    """Raise ModelError for a decoder of which nothing but its own class describes the layers."""
    kind = type(decoder.model)
    if is_compact(decoder):
        raise ModelError(
            f"{decoder.name} is compacted to layers that pick single inputs or outputs, which only a checkpoint of form own can "
            "say. Take that form, or keep the zeros: save it before compact(), or export it without --compact."
        )
    if not kind.__module__.startswith("transformers."):
        raise ModelError(
            f"{decoder.name}: its class {kind.__name__} comes with its checkpoint; other widths can only be written for "
            f"classes of transformers. {INSTEAD}"
        )


def _wanted(shapes: Sequence[BlockShape], dense: BlockShape) -> list[BlockShape]:
    """Shapes to try, narrowest first: the widest block's heads and hidden units, or the config's of one or of both."""
    plain = replace(dense, added_biases=(), removed_biases=())
    kv_heads = max((one.kv_heads or 0 for one in shapes), default=0)
    share = max((one.heads // one.kv_heads for one in shapes if one.heads and one.kv_heads), default=0)
    ffn = max((one.ffn or 0 for one in shapes), default=0)
    narrow = replace(plain, heads=kv_heads * share, kv_heads=kv_heads) if plain.heads and kv_heads else plain
    found = [narrow, plain]
    if plain.ffn and ffn:
        found = [replace(narrow, ffn=ffn), replace(plain, ffn=ffn), narrow, plain]
    return list(dict.fromkeys(found))


def _widths(shape: BlockShape) -> tuple[int | None, ...]:
    return shape.heads, shape.kv_heads, shape.ffn


def bias_keys(decoder: Decoder, dense: Decoder) -> dict[str, bool]:
    """The config's keys for biases that ``decoder`` has and its dense model has not; ModelError where there are none.

    They add biases to other maps too, which are zeros then.
    """
    config, family, keys = decoder.model.config, decoder.family, dict[str, bool]()
    had = {site.path for site in dense.sites(0) if site.linear.bias is not None}
    added = {site.path for site in decoder.sites() if site.linear.bias is not None} - had
    of_mlp = set() if family.mlp is None else {*family.mlp[0], family.mlp[1]}
    for path in sorted(added):
        key = "mlp_bias" if path in of_mlp else "attention_bias"
        if getattr(config, key, None) is not False:
            raise ModelError(
                f"{decoder.name}: {path} got a bias in the place of what was removed, and the config of "
                f"{type(decoder.model).__name__} cannot say one there. Use sparsity.compensation=none, or another than bias. "
                f"{INSTEAD}"
            )
        keys[key] = True
    return keys


def padded_weights(decoder: Decoder, target: Decoder) -> Weights:
    """Return the weights of ``target``, a wider decoder on the meta device, made of those of ``decoder`` and zeros.

    Raises ModelError, when it reads, for a bias that ``target`` has no place for.
    """
    sources = {site.name: site for site in decoder.sites()}
    own = decoder.model.state_dict().keys()
    wider: dict[str, tuple[str, str, int]] = {}
    for site in target.sites():
        wider[f"{site.name}.weight"] = site.name, site.path, site.block
        if site.linear.bias is not None:
            wider[f"{site.name}.bias"] = site.name, site.path, site.block
        elif site.name in sources and sources[site.name].linear.bias is not None:
            raise ModelError(f"{decoder.name}: {site.name} has a bias that there is no place for. {INSTEAD}")

    def read(name: str) -> Tensor:
        like = target.model.get_parameter_or_buffer(name)
        if name not in wider:  # a norm of an attention that is gone is of zeros alone
            return (
                decoder.model.get_parameter_or_buffer(name).detach() if name in own else _zeros(like, decoder)
            )
        site, path, block = wider[name]
        full = _zeros(like, decoder)
        if site not in sources:
            return full
        linear = sources[site].linear
        rows, columns = _places(decoder, target, path, block, linear)
        if name.endswith(".bias"):
            if linear.bias is not None:
                full[rows] = linear.bias.detach()
            return full
        full[rows[:, None], columns] = linear.weight.detach()
        return full

    tied = target.model.all_tied_weights_keys
    names = frozenset(name for name in target.model.state_dict() if name not in tied)
    # what a model writes as (in, out) is held as (out, in), in memory as in what is read here
    return Weights(names, read, lambda name: tuple(read(name).shape), decoder.name)


def _zeros(like: Tensor, decoder: Decoder) -> Tensor:
    return torch.zeros(like.shape, dtype=like.dtype, device=decoder.device)


def _places(
    decoder: Decoder, target: Decoder, path: str, block: int, linear: nn.Linear
) -> tuple[Tensor, Tensor]:
    """Where in the wider map the rows and the columns of ``linear`` go, int64."""
    family = decoder.family
    rows, columns = (torch.arange(n, device=decoder.device) for n in linear.weight.shape)
    wide = target.blocks[block].get_submodule(path).get_parameter("weight").shape
    if family.mlp is not None and path in family.mlp[0] and family.halves:
        n = len(rows) // 2
        gate, up = mlp_rows(True, wide[0] // 2)
        rows = torch.cat([gate[:n], up[:n]]).to(decoder.device)
    now, then = heads_of(decoder, block), heads_of(target, block)
    if family.attention is None or path not in family.attention or now is None or then is None:
        return rows, columns
    share = now.heads // now.kv_heads
    if path == family.attention[3]:
        places = torch.arange(then.heads * then.width).view(then.kv_heads, -1)
        return rows, places[: now.kv_heads, : share * now.width].reshape(-1).to(decoder.device)
    narrow, wider = _rows(decoder, now), _rows(decoder, then)
    found = torch.empty(len(rows), dtype=torch.int64)
    for own, name, more in zip(narrow, family.attention, wider, strict=False):
        if name == path:
            found[own] = more[: now.kv_heads, : own.shape[1]]
    return found.to(decoder.device), columns


def _rows(decoder: Decoder, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    return attention_rows(decoder.family.layout, heads.heads, heads.kv_heads, heads.width)
