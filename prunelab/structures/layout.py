"""Where query, key, value, gate and up lie inside the linear maps of a block, separate or fused.

Architectures fuse maps that share an input in different orders; :class:`prunelab.family.Family` says which. Here
that becomes row numbers, so that whoever removes heads or neurons need not know the order. With n_q query heads,
n_kv key-value heads and heads of d_h channels, r = n_q / n_kv query heads share one key-value head: query head q
is served by key-value head q // r (grouped-query attention, arXiv:2305.13245, as every transformers model that has
it orders its heads). The output map reads the query heads in order: its columns of group g are
``torch.arange(n_q * d_h).view(n_kv, r * d_h)[g]`` in every layout.

The fused orders are those of the models' own code (transformers): Phi-3 ``stacked``, GPT-2 ``stacked``, GPT-NeoX and
BLOOM ``per_head``, Falcon ``per_group`` in all its three forms (grouped, multi-query with n_kv = 1, and one key-value
head per query head).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunelab.errors import ModelError
from prunelab.family import Layout
from prunelab.models.decoder import Decoder
from prunelab.models.shape import head_width


def attention_rows(layout: Layout, n_q: int, n_kv: int, d_h: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the query (n_kv, r * d_h), key (n_kv, d_h) and value (n_kv, d_h) channels, int64, by key-value head.

    Rows count within the map that holds them: with ``separate`` each from 0 in its own, otherwise all in the fused
    one, of (n_q + 2 n_kv) d_h rows. Raises ValueError for numbers of heads that do not go together.
    """
    if min(n_q, n_kv, d_h) < 1 or n_q % n_kv:
        raise ValueError(f"n_q={n_q}, n_kv={n_kv}, d_h={d_h}: all are 1 or more, and n_kv divides n_q")
    if layout == "per_head" and n_q != n_kv:
        raise ValueError(f"per_head: n_q={n_q} and n_kv={n_kv} differ; groups are per_group")
    wide, narrow = n_q // n_kv * d_h, d_h  # channels of one group: its queries; its keys, its values
    if layout == "separate":
        keys = torch.arange(n_kv * narrow).view(n_kv, narrow)
        return torch.arange(n_kv * wide).view(n_kv, wide), keys, keys.clone()
    rows = torch.arange((n_q + 2 * n_kv) * d_h)
    if layout == "stacked":
        query, key, value = rows.split([n_kv * wide, n_kv * narrow, n_kv * narrow])
        return query.view(n_kv, wide), key.view(n_kv, narrow), value.view(n_kv, narrow)
    query, key, value = rows.view(n_kv, wide + 2 * narrow).split([wide, narrow, narrow], dim=1)
    return query.contiguous(), key.contiguous(), value.contiguous()


def mlp_rows(halves: bool, width: int) -> tuple[Tensor, Tensor]:
    """Rows (width,) int64 of the gate and of the up map, by hidden unit: in one fused map if ``halves``, else in each."""
    units = torch.arange(width)
    return units, units + (width if halves else 0)


def heads_of(decoder: Decoder, block: int) -> tuple[int, int, int]:
    """Numbers (n_q, n_kv, d_h) of block ``block``, by the maps' own widths and the width of a head that its attention
    module keeps; for a module that keeps none the config gives the number of query heads.

    Configs call the number of key-value heads by many names, or imply it; the maps cannot. Raises ModelError where
    config and maps do not go together, or the family names no attention.
    """
    family = decoder.family
    if family.attention is None:
        raise ModelError(
            f"{decoder.name}: family {family.name!r} names no attention maps; add attention to it."
        )
    linears = {site.path: site.linear for site in decoder.sites(block)}
    query, key, value, output = (linears[path] for path in family.attention)
    width = head_width(decoder, block)
    if width is None:
        n_q = int(decoder.model.config.num_attention_heads)
        d_h, left = divmod(output.in_features, n_q)
    else:  # a pruned model has fewer heads than its config says, or other ones in every block; their width stays
        d_h = width
        n_q, left = divmod(output.in_features, d_h)
    if family.layout == "separate":
        n_kv = value.out_features // max(d_h, 1)
        fits = query.out_features == n_q * d_h and key.out_features == value.out_features == n_kv * d_h
    else:
        n_kv = (query.out_features // max(d_h, 1) - n_q) // 2
        fits = query.out_features == (n_q + 2 * n_kv) * d_h
    if left or not fits or min(n_q, n_kv) < 1 or n_q % n_kv or (family.layout == "per_head" and n_q != n_kv):
        raise ModelError(
            f"{decoder.name}: block {block} has maps {_shape(query)}, {_shape(key)}, {_shape(value)} and {_shape(output)} "
            f"(out, in) for query, key, value and output, which {n_q} heads of {d_h} with layout {family.layout!r} cannot "
            f"have. "
            f"Does family {family.name!r} describe this model?"
        )
    return n_q, n_kv, d_h


def _shape(linear: nn.Linear) -> tuple[int, int]:
    return linear.out_features, linear.in_features
