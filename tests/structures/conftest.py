"""States of which whole hidden units and key-value groups are removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from prunelab.models import shape
from prunelab.models.decoder import Decoder
from prunelab.models.shape import units_of
from prunelab.sparsity import mask as masking
from prunelab.sparsity.mask import Mask, Structured
from prunelab.structures.layout import attention_rows, heads_of, mlp_rows
from prunelab.structures.state import State, apply_state, read_state

Gone = Mapping[int, tuple[Sequence[int], Sequence[int]]]  # block -> hidden units, key-value heads


def remove_units(decoder: Decoder, gone: Gone) -> State:
    """Remove hidden units and key-value groups by block, in place: their weights are zero afterwards."""
    masks: dict[str, Mask] = {}
    for site in decoder.sites():
        rows, columns = (torch.ones(n, dtype=torch.bool) for n in site.linear.weight.shape)
        units, groups = (list(lines) for lines in gone.get(site.block, ((), ())))
        writers, reader = decoder.family.mlp
        *maps, output = decoder.family.attention
        n_q, n_kv, d_h = heads_of(decoder, site.block)
        gate, up = mlp_rows(decoder.family.halves, units_of(decoder, site.block))
        for path, lines in ((writers[0], gate), (writers[-1], up)):
            if site.path == path:
                rows[lines[units]] = False
        if site.path == reader:
            columns[units] = False
        for path, lines in zip(maps, attention_rows(decoder.family.layout, n_q, n_kv, d_h), strict=True):
            if site.path == path:
                rows[lines[groups].reshape(-1)] = False
        if site.path == output:  # query heads group * r ... group * r + r - 1
            columns.view(n_kv, -1)[groups] = False
        masks[site.name] = Structured(rows, columns, None if site.linear.bias is None else True)
        masking.apply(masks[site.name], site.linear.weight, site.linear.bias)
    return read_state(decoder, masks)


def remove_at_random(decoder: Decoder, seed: int = 0, uniform: bool = False) -> State:
    """Remove another number of units from every block (with ``uniform`` the same), which ones is random.

    Where the attention cannot run with fewer heads (ALiBi), hidden units alone.
    """
    generator = torch.Generator().manual_seed(seed)
    gone = {}
    for index in range(len(decoder.blocks)):
        at = 0 if uniform else index
        units = torch.randperm(units_of(decoder, index), generator=generator)[: 5 + 3 * at].tolist()
        groups = heads_of(decoder, index)[1] if shape.heads_of(decoder, index) else 1
        n_groups = min(1 + at % 2, groups - 1) if uniform else min(at % 3, groups - 1)
        gone[index] = units, torch.randperm(groups, generator=generator)[:n_groups].tolist()
    return remove_units(decoder, gone)


def with_added_biases(decoder: Decoder, state: State) -> State:
    """The state with a bias added to every output map that has none, and laid over the decoder."""
    items = dict(state.items)
    generator = torch.Generator().manual_seed(5)
    for site in decoder.sites():
        if site.path in (decoder.family.attention[3], decoder.family.mlp[1]) and site.linear.bias is None:
            old = items[site.name]
            bias = torch.randn(site.linear.out_features, generator=generator).to(old.weight.dtype)
            items[site.name] = type(old)(old.weight, bias, old.mask)
    added = State(state.model, items, state.parameters)
    apply_state(decoder, added)
    return added


@pytest.fixture(name="remove_units")
def _remove_units() -> Callable[..., State]:
    return remove_units


@pytest.fixture(name="remove_at_random")
def _remove_at_random() -> Callable[..., State]:
    return remove_at_random


@pytest.fixture(name="with_added_biases")
def _with_added_biases() -> Callable[..., State]:
    return with_added_biases
