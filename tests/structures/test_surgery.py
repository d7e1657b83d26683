"""Compaction: which parameters go, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.sparsity import mask as masking
from prunelab.sparsity.mask import Elementwise, Mask, Structured
from prunelab.structures.layout import attention_rows, heads_of, mlp_rows
from prunelab.structures.state import State, read_state
from prunelab.structures.surgery import CompactLinear, compact, compact_parameters
from prunelab.structures.units import trace_units


def remove(decoder: Decoder, gone: Mapping[str, tuple[list[int], list[int]]], biases: bool = False) -> State:
    """Zero rows and columns of block 0 by path; every bias column too if ``biases``."""
    masks: dict[str, Mask] = {}
    for site in decoder.sites():
        mask = masking.full(site.linear.weight, site.linear.bias)
        rows, columns = gone.get(site.path, ([], [])) if site.block == 0 else ([], [])
        mask.keep_rows[rows] = False
        mask.keep_columns[columns] = False
        keep_bias = mask.keep_bias if mask.keep_bias is None else not biases
        masks[site.name] = Structured(mask.keep_rows, mask.keep_columns, keep_bias)
        masking.apply(masks[site.name], site.linear.weight, site.linear.bias)
    return read_state(decoder, masks)


def logits(decoder: Decoder, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return decoder.model(input_ids=tokens, use_cache=False).logits


def saved(decoder: Decoder, state: State, tokens: Tensor) -> int:
    """Compact, check the logits, return how many parameters went."""
    before, expected, predicted = (
        decoder.n_parameters(),
        logits(decoder, tokens),
        compact_parameters(state, decoder),
    )
    compact(decoder, state)
    torch.testing.assert_close(logits(decoder, tokens), expected, rtol=1e-5, atol=1e-5)
    assert decoder.n_parameters() == predicted
    return before - predicted


def test_nothing_removed_changes_nothing(decoder: Decoder, tokens: Tensor) -> None:
    types = [type(module) for module in decoder.model.modules()]
    assert saved(decoder, remove(decoder, {}), tokens) == 0
    assert [type(module) for module in decoder.model.modules()] == types


def test_a_hidden_unit_goes_from_both_sides_whichever_was_removed(decoder: Decoder, tokens: Tensor) -> None:
    writers, reader = decoder.family.mlp
    sites = {site.path: site.linear for site in decoder.sites(0)}
    # unit 0 by the first map (gate), unit 1 by the second (up) where there is one, units 5 and 6 by the reader
    _, up = mlp_rows(decoder.family.halves, sites[reader].in_features)
    if decoder.family.halves:
        gone = {writers[0]: ([0, int(up[1])], [])}
    else:
        gone = {path: ([i], []) for i, path in enumerate(writers)}
    maps = len(writers) + decoder.family.halves
    per_unit = maps * (sites[writers[0]].in_features + (sites[writers[0]].bias is not None))
    expected = (maps + 2) * (per_unit + sites[reader].out_features)
    gone |= {reader: ([], [5, 6])}
    assert saved(decoder, remove(decoder, gone), tokens) == expected
    block = decoder.blocks[0]
    for path in (*writers, reader):  # no gather or scatter inside the MLP
        assert type(block.get_submodule(path)) is nn.Linear


def test_a_value_channel_goes_from_both_sides(decoder: Decoder, tokens: Tensor) -> None:
    _, _, value, output = decoder.family.attention
    sites = {site.path: site.linear for site in decoder.sites(0)}
    n_q, n_kv, width = heads_of(decoder, 0)
    rows = attention_rows(decoder.family.layout, n_q, n_kv, width)[2]
    repeat = n_q // n_kv
    readers = [h * width + 1 for h in range(repeat)]  # channel 1 of the first value head
    state = remove(decoder, {value: ([int(rows[0, 0])], []), output: ([], readers)})
    per_row = sites[value].in_features + (sites[value].bias is not None)
    assert saved(decoder, state, tokens) == 2 * per_row + 2 * repeat * sites[output].out_features


def test_every_role_of_fused_maps_can_lose_rows(decoder: Decoder, tokens: Tensor) -> None:
    """Rows at random in every map, of whatever role: only what the layout says is coupled goes with them."""
    generator = torch.Generator().manual_seed(3)
    gone = {
        site.path: tuple(
            torch.randperm(n, generator=generator)[: n // 3].tolist()
            for n in (site.linear.out_features, site.linear.in_features)
        )
        for site in decoder.sites(0)
    }
    assert saved(decoder, remove(decoder, gone), tokens) > 0


@pytest.mark.parametrize("role", ["query", "key", "output"])
def test_query_and_key_rows_of_a_head_that_says_nothing_go(
    decoder: Decoder, tokens: Tensor, role: str
) -> None:
    """Those of the first group: its outputs are gone, or its scores are all zero (its values are averaged then)."""
    query, key, _, output = decoder.family.attention
    sites = {site.path: site.linear for site in decoder.sites(0)}
    n_q, n_kv, width = heads_of(decoder, 0)
    rows = attention_rows(decoder.family.layout, n_q, n_kv, width)
    share = n_q // n_kv * width
    per_row = sites[query].in_features + (sites[query].bias is not None)
    gone = {
        "query": {query: (rows[0][0].tolist(), [])},
        "key": {key: (rows[1][0].tolist(), [])},
        "output": {output: ([], list(range(share)))},
    }[role]
    expected = (share + width) * per_row
    if role == "output":
        expected += width * per_row + share * sites[output].out_features
    assert saved(decoder, remove(decoder, gone), tokens) == expected


@pytest.mark.parametrize("kind", ["neurons", "heads"])
def test_whole_units_go_with_all_their_lines(decoder: Decoder, tokens: Tensor, kind: str) -> None:
    """The first and the last unit: what goes is what their lines held, in fused maps too."""
    gone: dict[str, tuple[list[int], list[int]]] = {site.path: ([], []) for site in decoder.sites(0)}
    expected = 0
    for site, member in trace_units(decoder, 0, (kind,))[kind]:
        lines = torch.cat([member.index[0], member.index[-1]]).tolist()
        gone[site.path][member.axis].extend(lines)
        per_line = site.linear.out_features
        if member.axis == 0:
            per_line = site.linear.in_features + (site.linear.bias is not None)
        expected += len(lines) * per_line
    assert saved(decoder, remove(decoder, gone), tokens) == expected


def test_one_of_several_readers_does_not_take_the_value_row(tokens: Tensor) -> None:
    decoder = random_decoder("llama")
    sites = {site.path: site.linear for site in decoder.sites(0)}
    assert sites["self_attn.o_proj"].in_features > sites["self_attn.v_proj"].out_features
    state = remove(decoder, {"self_attn.o_proj": ([], [0])})
    assert saved(decoder, state, tokens) == sites["self_attn.o_proj"].out_features


@pytest.mark.parametrize("path_kind", ["inputs", "outputs"])
def test_residual_sides_gather_and_scatter(decoder: Decoder, tokens: Tensor, path_kind: str) -> None:
    writers, reader = decoder.family.mlp
    path = writers[0] if path_kind == "inputs" else reader
    linear = next(site.linear for site in decoder.sites(0) if site.path == path)
    gone = {path: ([], [0, 3])} if path_kind == "inputs" else {path: ([0, 3], [])}
    expected = 2 * (
        linear.out_features if path_kind == "inputs" else linear.in_features + (linear.bias is not None)
    )
    assert saved(decoder, remove(decoder, gone), tokens) == expected
    assert isinstance(decoder.blocks[0].get_submodule(path), CompactLinear)


def test_removed_biases_go_and_the_other_entries_stay(tokens: Tensor) -> None:
    decoder = random_decoder("opt")
    biases = sum(site.linear.bias.numel() for site in decoder.sites())
    assert saved(decoder, remove(decoder, {}, biases=True), tokens) == biases


def test_whole_layers_can_be_empty(decoder: Decoder, tokens: Tensor) -> None:
    gone = {
        site.path: (list(range(site.linear.out_features)), list(range(site.linear.in_features)))
        for site in decoder.sites(0)
    }
    n_weights = sum(p.numel() for site in decoder.sites(0) for p in site.linear.parameters())
    assert saved(decoder, remove(decoder, gone), tokens) == n_weights


def test_units_with_an_activation_that_does_not_keep_zero_stay(tokens: Tensor) -> None:
    decoder = random_decoder("opt", activation_function="sigmoid")
    linear = next(site.linear for site in decoder.sites(0) if site.path == "fc1")
    assert saved(decoder, remove(decoder, {"fc1": ([2], [])}), tokens) == 0
    assert decoder.blocks[0].fc1.out_features == linear.out_features


def test_masks_of_single_weights_keep_shapes(tokens: Tensor) -> None:
    decoder = random_decoder("llama")
    masks = {site.name: Elementwise(site.linear.weight > 0) for site in decoder.sites()}
    for site in decoder.sites():
        masking.apply(masks[site.name], site.linear.weight, None)
    assert saved(decoder, read_state(decoder, masks), tokens) == 0
