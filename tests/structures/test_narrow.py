"""Compaction by whole heads and hidden units: plain narrow layers, the same function, an ordinary decoder after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from by_conf import build
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from prunelab.evaluation.integrity import check
from prunelab.evaluation.perplexity import perplexity
from prunelab.evaluation.ratios import ratios
from prunelab.models.bias import is_added
from prunelab.models.decoder import Decoder
from prunelab.models.generate import extend, likeliest
from prunelab.models.load import restore
from prunelab.models.random import random_decoder
from prunelab.models.shape import heads_of, units_of
from prunelab.passes.shots import prune
from prunelab.pattern.table import build_pattern
from prunelab.reconstruction.walk import RepairReport, reconstruct
from prunelab.sparsity.mask import Structured
from prunelab.structures.checkpoint import save_checkpoint
from prunelab.structures.state import (
    State,
    apply_state,
    open_state,
    read_state,
    save_state,
    state_digest,
)
from prunelab.structures.surgery import CompactLinear, compact, compact_parameters, is_compact

Remove = Callable[..., State]
NO_HEADS = (
    "bloom"  # its ALiBi is made for all heads of the config, so heads that go are picked from as before
)


def deep(family: str, **config: Any) -> Decoder:
    """A random decoder of three blocks; of four query heads and two key-value heads where the family has groups."""
    types = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    layers = {"n_layer" if family in ("gpt2", "bloom") else "num_hidden_layers": 3}
    return random_decoder(family, **layers, **types if family == "gemma3" else {}, **config)


def logits(decoder: Decoder, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return decoder.model(input_ids=tokens, use_cache=False).logits


def written(decoder: Decoder, tokens: Tensor) -> Tensor:
    """Ten tokens more of each row by our own loop with a cache."""
    nothing = torch.tensor([], dtype=torch.int64)
    return extend(decoder, tokens[:, :6], 10, lambda scores: likeliest(scores, nothing))


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_masked_is_compact_with_other_widths_in_every_block(
    family_name: str, seed: int, biases: bool, tokens: Tensor, remove_at_random: Remove, with_added_biases: Remove
) -> None:  # fmt: skip
    decoder = deep(family_name)
    n_dense = decoder.n_parameters()
    state = remove_at_random(decoder, seed)
    if biases:
        state = with_added_biases(decoder, state)
    check(decoder, state)
    expected, predicted, text = (
        logits(decoder, tokens),
        compact_parameters(state, decoder),
        written(decoder, tokens),
    )
    masks = {name: site.mask for name, site in state.sites()}
    compact(decoder, state)
    torch.testing.assert_close(logits(decoder, tokens), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(written(decoder, tokens), text)
    assert decoder.n_parameters() == predicted < n_dense
    assert not is_compact(decoder)
    for site in decoder.sites():  # plain, and really as narrow as what the masks keep
        mask = masks[site.name]
        assert isinstance(site.linear, nn.Linear)
        assert site.linear.weight.shape == (int(mask.keep_rows.sum()), int(mask.keep_columns.sum()))
        assert not site.linear.weight.requires_grad
    assert len({units_of(decoder, index) for index in range(3)}) == 3
    if family_name != NO_HEADS:
        assert len({heads_of(decoder, index) for index in range(3)}) > 1


def test_generate_of_transformers_goes_through_blocks_of_unequal_heads(
    family_name: str, tokens: Tensor, remove_at_random: Remove
) -> None:
    decoder = deep(family_name)
    state = remove_at_random(decoder)
    ask = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = decoder.model.generate(tokens[:, :5], attention_mask=torch.ones_like(tokens[:, :5]), **ask)
    compact(decoder, state)
    for cache in ("dynamic", "static") if decoder.model._can_compile_fullgraph else ("dynamic",):
        found = decoder.model.generate(
            tokens[:, :5], attention_mask=torch.ones_like(tokens[:, :5]), cache_implementation=cache, **ask
        )
        assert torch.equal(found, expected), cache


def test_a_group_is_a_key_value_head_with_the_query_heads_it_serves(
    tokens: Tensor, remove_units: Remove
) -> None:
    """Query head q reads key-value head q // r: heads 2 and 3 go with key-value head 1, not 1 and 3 (q mod n_kv)."""
    decoder, dense = random_decoder("llama"), random_decoder("llama")
    heads = heads_of(dense, 0)
    assert heads is not None
    assert (heads.heads, heads.kv_heads) == (4, 2)
    wrong = logits(decoder, tokens)
    compact(decoder, remove_units(decoder, {0: ((), (1,))}))
    output = dense.blocks[0].self_attn.o_proj

    def without(gone: list[int]) -> Tensor:
        """Logits of the dense model whose attention in block 0 says nothing by the heads ``gone``."""

        def silence(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            context = args[0].clone().view(*args[0].shape[:-1], heads.heads, heads.width)
            context[..., gone, :] = 0
            return (context.flatten(-2),)

        with output.register_forward_pre_hook(silence):
            return logits(dense, tokens)

    found = logits(decoder, tokens)
    torch.testing.assert_close(found, without([2, 3]), rtol=1e-5, atol=1e-5)
    for other in ([1, 3], [0, 1], [0, 2]):
        assert not torch.allclose(found, without(other), atol=1e-3)
    assert not torch.allclose(found, wrong, atol=1e-3)
    attention = decoder.blocks[0].self_attn
    assert attention.k_proj.out_features == heads.width
    assert attention.num_key_value_groups == 2


def of_heads(decoder: Decoder, queries: list[int], groups: list[int]) -> State:
    """Block 0 without these query heads and key-value heads, whatever belongs together."""
    width = heads_of(decoder, 0).width
    masks = {}
    for site in decoder.sites():
        rows, columns = (torch.ones(n, dtype=torch.bool) for n in site.linear.weight.shape)
        query, key, value, output = decoder.family.attention
        for gone, path, lines in (
            (queries, query, rows), (groups, key, rows), (groups, value, rows), (queries, output, columns),
        ):  # fmt: skip
            if site.block == 0 and site.path == path:
                lines.view(-1, width)[gone] = False
        masks[site.name] = Structured(rows, columns, None if site.linear.bias is None else True)
        site.linear.weight.data *= masks[site.name].keep()
        if site.linear.bias is not None:
            site.linear.bias.data *= rows
    return read_state(decoder, masks)


@pytest.mark.parametrize(
    ("queries", "groups", "plain"),
    [([0, 3], [], True), ([2, 3], [1], True), ([1, 3], [1], True), ([0], [], False), ([0, 1, 2, 3], [0, 1], False)],
)  # fmt: skip
def test_heads_that_do_not_fit_together_keep_the_dense_width(
    queries: list[int], groups: list[int], plain: bool, tokens: Tensor
) -> None:
    """One query head less in each group is as good as a whole group, and a query head whose values are gone goes with them;
    all else picks and places, and computes the same."""
    decoder = random_decoder("qwen3")
    state = of_heads(decoder, queries, groups)
    expected = logits(decoder, tokens)
    compact(decoder, state)
    torch.testing.assert_close(logits(decoder, tokens), expected, rtol=1e-5, atol=1e-5)
    assert is_compact(decoder) is not plain
    assert isinstance(decoder.blocks[0].self_attn.q_proj, nn.Linear if plain else CompactLinear)
    if plain:
        assert decoder.blocks[0].self_attn.num_key_value_groups == (2 if queries == [2, 3] else 1)


def test_heads_beside_alibi_are_picked_from(tokens: Tensor, tmp_path: Path) -> None:
    decoder = random_decoder("bloom")
    rows, columns = (torch.ones(n, dtype=torch.bool) for n in (72, 24))
    rows.view(4, 3, 6)[1] = False
    columns[6:12] = False
    masks = {}
    for site in decoder.sites():
        lines = [torch.ones(n, dtype=torch.bool) for n in site.linear.weight.shape]
        if site.block == 1 and site.path == decoder.family.attention[0]:
            lines[0] = rows
        elif site.block == 1 and site.path == decoder.family.attention[3]:
            lines[1] = columns
        masks[site.name] = Structured(*lines, True)
        site.linear.weight.data *= masks[site.name].keep()
        site.linear.bias.data *= lines[0]
    state = read_state(decoder, masks)
    expected = logits(decoder, tokens)
    compact(decoder, state)
    assert is_compact(decoder)
    torch.testing.assert_close(logits(decoder, tokens), expected, rtol=1e-5, atol=1e-5)
    save_checkpoint(decoder, tmp_path, {"id": "bloom", "revision": None})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    torch.testing.assert_close(theirs(input_ids=tokens).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "line", "plain"), [("v_proj", 0, True), ("q_proj", 0, True), ("k_proj", 0, True), ("o_proj", 0, False)]
)  # fmt: skip
def test_half_a_head_is_a_head_where_it_is_heard(
    path: str, line: int, plain: bool, tokens: Tensor, remove_units: Remove
) -> None:
    """A row of a head that nothing reads goes with the rest, so the head is whole again; one that is read stays."""
    decoder = random_decoder("llama")
    state = remove_units(decoder, {0: ((), (0,))})
    for name in {path, "v_proj"} if path == "o_proj" else {path}:
        mask = state.site(f"model.layers.0.self_attn.{name}").mask
        (mask.keep_columns if name == "o_proj" else mask.keep_rows)[line] = True
        weight = getattr(decoder.blocks[0].self_attn, name).weight.data
        (weight.t() if name == "o_proj" else weight)[line] = 1.0
    state = read_state(decoder, {name: one.mask for name, one in state.items.items()})
    expected = logits(decoder, tokens)
    compact(decoder, state)
    assert is_compact(decoder) is not plain
    torch.testing.assert_close(logits(decoder, tokens), expected, rtol=1e-5, atol=1e-5)


def test_the_small_decoder_is_walked_pruned_and_repaired_again(
    family_name: str, tokens: Tensor, remove_at_random: Remove, with_added_biases: Remove
) -> None:
    decoder = deep(family_name)
    compact(decoder, with_added_biases(decoder, remove_at_random(decoder)))
    before = logits(decoder, tokens)
    assert perplexity(decoder, tokens, 2) > 1
    weights = {name: value.clone() for name, value in decoder.model.state_dict().items()}
    method, pattern = build("method", "sparsegpt"), build_pattern("unstructured")
    state = prune(decoder, method, tokens, [0.5], pattern=pattern, seed=0, batch_size=4)
    assert ratios(state, decoder)["ratio/weights"] == pytest.approx(0.5, abs=0.01)
    kept = state.clone()
    decoder.model.load_state_dict(weights)
    repaired = reconstruct(decoder, kept, tokens, build("reconstruction", "layer"), seed=0, batch_size=4)
    check(decoder, repaired)
    far = (logits(random_decoder(family_name), tokens) - before).square().mean()
    assert (logits(decoder, tokens) - before).square().mean() < far
    # and units go from it again
    decoder.model.load_state_dict(weights)
    again = remove_at_random(decoder, 9)
    expected = logits(decoder, tokens)
    compact(decoder, again)
    torch.testing.assert_close(logits(decoder, tokens), expected, rtol=1e-5, atol=1e-5)


def test_an_added_bias_comes_and_goes(
    tokens: Tensor, tmp_path: Path, remove_at_random: Remove, with_added_biases: Remove
) -> None:  # fmt: skip
    spec = {"source": "random", "id": "llama", "name": "r", "dtype": "float32"}
    decoder, dense = random_decoder("llama"), logits(random_decoder("llama"), tokens)
    plain = remove_at_random(decoder).clone()
    state = with_added_biases(decoder, plain)
    expected = logits(decoder, tokens)
    digest = save_state(state, tmp_path / "s")
    stored = open_state(tmp_path / "s")
    assert state_digest(stored) == digest
    output = decoder.blocks[0].self_attn.o_proj
    assert is_added(output)
    measured = ratios(state, decoder)
    restore(decoder, spec)
    assert output.bias is None
    assert torch.equal(logits(decoder, tokens), dense)
    apply_state(decoder, stored)
    assert torch.equal(logits(decoder, tokens), expected)
    assert ratios(stored, decoder) == measured
    n_added = sum(site.linear.bias.numel() for site in decoder.sites() if site.linear.bias is not None)
    assert n_added == 4 * 24
    without = ratios(plain, random_decoder("llama"))
    n_blocks = sum(parameter.numel() for parameter in random_decoder("llama").blocks.parameters())
    lost = without["ratio/parameters"] - measured["ratio/parameters"]
    assert lost == pytest.approx(n_added / n_blocks)
    apply_state(decoder, plain)  # a state without it takes it away again
    assert output.bias is None
    apply_state(decoder, state)
    compact(decoder, state)
    assert decoder.blocks[0].self_attn.o_proj.bias is not None
    torch.testing.assert_close(logits(decoder, tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("repair", ["layer", "block", "cross_block"])
def test_a_repair_takes_added_biases_along(
    repair: str, tokens: Tensor, tmp_path: Path, remove_at_random: Remove, with_added_biases: Remove
) -> None:
    """Exact and by gradient; and a repair that was broken off after block 0 ends in the same bits."""
    short = {} if repair == "layer" else {"epochs": 4, "min_updates": 0, "batch": 2, "learning_rate": 1e-2}
    spec = replace(build("reconstruction", repair), **short)
    decoder = deep("llama")
    state = with_added_biases(decoder, remove_at_random(decoder)).clone()
    dense = deep("llama")
    before = logits(dense, tokens)
    pruned = (logits(decoder, tokens) - before).square().mean()
    parts = []

    def keep(report: RepairReport, part: State) -> None:
        path = tmp_path / str(report.done)
        save_state(part, path)
        parts.append((report.done, open_state(path)))

    repaired = reconstruct(dense, state, tokens, spec, seed=0, batch_size=4, on_block=keep)
    check(dense, repaired)
    for site in dense.sites():
        if site.path in ("self_attn.o_proj", "mlp.down_proj"):
            assert is_added(site.linear)
            assert not torch.equal(repaired.site(site.name).bias, state.site(site.name).bias)
    assert (logits(dense, tokens) - before).square().mean() < pruned
    (done, part), *_ = parts
    again = reconstruct(
        deep("llama"), state, tokens, spec, seed=0, batch_size=4, start=part, start_block=done
    )
    assert state_digest(again) == state_digest(repaired)
    compact(dense, repaired)
    assert not is_compact(dense)


def test_units_are_traced_pruned_and_compacted_again(family_name: str, tokens: Tensor) -> None:
    """The pattern of units on a model that has fewer in every block: it counts what is there, not what the config says."""
    decoder = deep(family_name)
    for ratio in (0.2, 0.3):
        n_before, before = decoder.n_parameters(), [units_of(decoder, index) for index in range(3)]
        kinds = ["neurons"] if family_name == NO_HEADS else ["neurons", "heads"]
        pattern = build_pattern("units", compensation="bias", kinds=kinds)
        method = build("method", "flap")
        state = prune(
            decoder,
            method,
            tokens,
            [ratio],
            pattern=pattern,
            seed=0,
            batch_size=4,
            allocation="global",
            propagation="dense",
        )
        check(decoder, state)
        expected, predicted = logits(decoder, tokens), compact_parameters(state, decoder)
        measured = ratios(state, decoder)
        compact(decoder, state)
        torch.testing.assert_close(logits(decoder, tokens), expected, rtol=1e-5, atol=1e-5)
        assert decoder.n_parameters() == predicted < n_before
        assert not is_compact(decoder)
        assert [units_of(decoder, index) for index in range(3)] != before
        assert 0 < measured["ratio/parameters"] < ratio + 0.05
