"""LLM-Pruner: importance from stored gradients, unit by unit and head by head; what no score may depend on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prunelab.methods.llm_pruner import LLMPruner
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.pattern.base import HEADS, NEURONS
from prunelab.stats.unit_view import UnitView

TAYLOR = ("vector", "element1", "second", "mixed")


def pruner(taylor: str = "element1", reduction: str = "sum", bias: bool = True) -> LLMPruner:
    return LLMPruner("llm_pruner", 1, None, taylor, reduction, bias)


def line(terms: dict[str, Tensor], kind: str, axis: int, at: int, bias: bool) -> float:
    of = terms["signed" if kind == "vector" else kind]
    total = float(of[at, : None if bias else -1].sum() if axis == 0 else of[:, at].sum())
    return abs(total) if kind == "vector" else total


def neurons_by_hand(
    decoder: Decoder, block: int, terms: dict[str, dict[str, Tensor]], kind: str, bias: bool
) -> list[list[float]]:
    """Of every neuron its members' scores, in forward order."""
    assert decoder.family.mlp is not None
    writers, reader = decoder.family.mlp
    prefix = f"{decoder.family.blocks}.{block}."
    width = decoder.site(prefix + reader).linear.in_features
    return [
        [line(terms[prefix + path], kind, 0, i, bias) for path in writers] + [line(terms[prefix + reader], kind, 1, i, bias)]
        for i in range(width)
    ]  # fmt: skip


def heads_by_hand(
    decoder: Decoder, block: int, terms: dict[str, dict[str, Tensor]], kind: str, bias: bool
) -> list[list[list[float]]]:
    """Of every KV group and channel of its key head its members' scores; query head q belongs to key head q // r."""
    assert decoder.family.attention is not None
    query, key, value, output = (f"{decoder.family.blocks}.{block}.{p}" for p in decoder.family.attention)
    config = decoder.model.config
    n_q = config.num_attention_heads
    n_kv = getattr(config, "num_key_value_heads", None) or n_q
    d_h = decoder.site(key).linear.out_features // n_kv
    found = []
    for group in range(n_kv):
        served = [q for q in range(n_q) if q // (n_q // n_kv) == group]
        found.append(
            [
                [
                    sum(line(terms[query], kind, 0, q * d_h + c, bias) for q in served),
                    line(terms[key], kind, 0, group * d_h + c, bias),
                    line(terms[value], kind, 0, group * d_h + c, bias),
                    sum(line(terms[output], kind, 1, q * d_h + c, bias) for q in served),
                ]
                for c in range(d_h)
            ]
        )
    return found


PLAIN = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "opt")  # a linear map for each of query, key, value


@pytest.mark.parametrize("family", PLAIN)
def test_importance_is_that_of_stored_gradients(family: str, tokens: Tensor, taylor: Any) -> None:
    decoder = random_decoder(family, dtype=torch.float64)
    views, terms = taylor.views(decoder, tokens), taylor.terms(decoder, tokens)
    for (block, kind), view in views.items():
        for order, bias in ((one, flag) for one in TAYLOR for flag in (True, False)):
            if kind == NEURONS:
                channels = [[unit] for unit in neurons_by_hand(decoder, block, terms, order, bias)]
            else:
                channels = heads_by_hand(decoder, block, terms, order, bias)
            for reduction, combine in (("sum", sum), ("max", max), ("last", lambda members: members[-1])):
                expected = torch.tensor([sum(map(combine, unit)) for unit in channels]).double()
                found = pruner(order, reduction, bias).importance(view)
                assert found.dtype == torch.float64
                scale = float(expected.abs().max())
                torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * scale)


def changed(taylor: Any, family: str, tokens: Tensor, change: Any) -> tuple[dict, dict]:
    """Views of a random decoder before and after ``change(decoder)``."""
    decoder = random_decoder(family, dtype=torch.float64)
    before = taylor.views(decoder, tokens)
    with torch.no_grad():
        change(decoder)
    return before, taylor.views(decoder, tokens)


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5 * float(right.max()))


@pytest.mark.parametrize("order", TAYLOR)
def test_permuted_neurons_and_groups_have_permuted_scores(order: str, tokens: Tensor, taylor: Any) -> None:
    shuffle = torch.randperm(40, generator=torch.Generator().manual_seed(0))

    def permute(decoder: Decoder) -> None:
        mlp, attention = decoder.blocks[1].mlp, decoder.blocks[1].self_attn
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight.copy_(linear.weight[shuffle])
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, shuffle])
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):  # two groups: swap them
            linear.weight.copy_(linear.weight.view(2, -1, 24).flip(0).reshape(linear.weight.shape))
        out = attention.o_proj.weight
        out.copy_(out.view(24, 2, -1).flip(1).reshape(out.shape))

    before, after = changed(taylor, "llama", tokens, permute)
    score = pruner(order).importance
    close(score(after[1, NEURONS]), score(before[1, NEURONS])[shuffle])
    close(score(after[1, HEADS]), score(before[1, HEADS]).flip(0))
    close(score(after[0, NEURONS]), score(before[0, NEURONS]))


@pytest.mark.parametrize("order", TAYLOR)
def test_a_dead_neuron_has_importance_0(order: str, tokens: Tensor, taylor: Any) -> None:
    decoder = random_decoder("llama")
    with torch.no_grad():
        decoder.blocks[0].mlp.down_proj.weight[:, 3] = 0  # nothing goes out
        decoder.blocks[0].mlp.up_proj.weight[7] = 0  # nothing comes in
    scores = pruner(order).importance(taylor.views(decoder, tokens)[0, NEURONS])
    assert scores.nonzero()[:, 0].tolist() == [i for i in range(40) if i not in (3, 7)]
    decoder = random_decoder("opt")
    with torch.no_grad():
        decoder.blocks[0].fc1.weight[5] = 0
        decoder.blocks[0].fc1.bias[5] = -1  # never above 0
    scores = pruner(order).importance(taylor.views(decoder, tokens)[0, NEURONS])
    assert float(scores[5]) == 0


@pytest.mark.parametrize("order", TAYLOR)
def test_up_and_down_may_trade_a_factor(order: str, tokens: Tensor, taylor: Any) -> None:
    def trade(decoder: Decoder) -> None:
        decoder.blocks[1].mlp.up_proj.weight[4] *= 5
        decoder.blocks[1].mlp.down_proj.weight[:, 4] /= 5

    before, after = changed(taylor, "llama", tokens, trade)
    for key in before:
        close(pruner(order).importance(after[key]), pruner(order).importance(before[key]))


def test_vector_is_never_above_element1(tokens: Tensor, taylor: Any) -> None:
    for view in taylor.views(random_decoder("qwen2"), tokens).values():
        vector, element1 = (pruner(order).importance(view) for order in ("vector", "element1"))
        assert bool((vector <= element1 * (1 + 1e-6)).all())
        assert float(vector.sum()) < 0.9 * float(element1.sum())


def test_the_bias_of_the_output_map_belongs_to_no_unit(tokens: Tensor, taylor: Any) -> None:
    def scale(view: UnitView) -> Tensor:
        return pruner().importance(view)

    before, after = changed(taylor, "opt", tokens, lambda decoder: None)
    for block in (0, 1):
        sums = after[block, NEURONS].value(after[block, NEURONS].output, "taylor")
        sums.bias.fill_(1e6)
        assert torch.equal(scale(after[block, NEURONS]), scale(before[block, NEURONS]))
