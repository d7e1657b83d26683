"""Factors: the block-wise walk equals full-model autograd with one float64 outer product per token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.errors import ConfigError, ModelError
from prunelab.methods.lobd import LOBD
from prunelab.models.activation import Placement
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.passes.collect import collect_all

BOTH = ("input_gram", "output_gram")


def collect_factors(
    decoder: Decoder, tokens: Tensor, needs: tuple[str, ...], batch_size: int, **options: Any
) -> dict[str, dict[str, Tensor]]:
    """Matrices by layer and need; inputs with the bias' column. Layers with one input share them."""
    values = collect_all(decoder, tokens, needs, batch_size, ones=True, **options)
    return {
        site.name: {need: gram.matrix for need, gram in values[site.name].items()} for site in decoder.sites()
    }


def by_hand(decoder: Decoder, tokens: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """A and G of every layer in float64: whole model, one sequence at a time, one outer product per token."""
    sites = decoder.sites()
    sums = {
        s.name: [
            torch.zeros(n, n).double()
            for n in (s.linear.in_features + (s.linear.bias is not None), s.linear.out_features)
        ]
        for s in sites
    }
    caught: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        s.linear.register_forward_hook(
            lambda _, args, out, name=s.name: caught.update({name: (args[0], out)})
        )
        for s in sites
    ]
    embedding = decoder.model.get_input_embeddings()
    handles.append(embedding.register_forward_hook(lambda _, __, out: out.clone().requires_grad_()))
    for sequence in tokens:
        logits = decoder.model(input_ids=sequence[None], use_cache=False).logits[0]
        loss = F.cross_entropy(logits[:-1].float(), sequence[1:], reduction="sum")
        slopes = torch.autograd.grad(loss, [caught[s.name][1] for s in sites])
        for s, slope in zip(sites, slopes, strict=True):
            a = caught[s.name][0].detach().reshape(-1, s.linear.in_features)
            for token, g in zip(a.double(), slope.reshape(-1, s.linear.out_features).double(), strict=True):
                if s.linear.bias is not None:
                    token = torch.cat([token, torch.ones(1).double()])
                sums[s.name][0] += torch.outer(token, token)
                sums[s.name][1] += torch.outer(g, g)
    for handle in handles:
        handle.remove()
    return {name: (A / tokens.numel(), G / tokens.numel()) for name, (A, G) in sums.items()}


def close(left: Tensor, right: Tensor, tolerance: float = 2e-5) -> None:
    scale = right.double().abs().max()
    torch.testing.assert_close(left.double() / scale, right.double() / scale, rtol=0, atol=tolerance)


@pytest.mark.typical_families
def test_walk_equals_full_model_autograd_for_any_batch_size(decoder: Decoder, tokens: Tensor) -> None:
    expected = by_hand(decoder, tokens)
    for batch_size in (1, 2, 5):  # 2 leaves a last batch of one
        factors = collect_factors(decoder, tokens, BOTH, batch_size)
        assert list(factors) == [site.name for site in decoder.sites()]
        for name, (A, G) in expected.items():
            close(factors[name]["input_gram"], A)
            close(factors[name]["output_gram"], G)


def test_layers_of_one_input_share_one_factor(decoder: Decoder, tokens: Tensor) -> None:
    factors = collect_factors(decoder, tokens, BOTH, 2)
    for site in decoder.sites():
        for other in decoder.sites(site.block):
            same = factors[site.name]["input_gram"] is factors[other.name]["input_gram"]
            assert same == (site.shared == other.shared)


@pytest.mark.typical_families
def test_only_what_is_needed_is_collected(decoder: Decoder, tokens: Tensor) -> None:
    whole = collect_factors(decoder, tokens, BOTH, 2)
    inputs = collect_factors(decoder, tokens, ("input_gram",), 2)
    outputs = collect_factors(decoder, tokens, ("output_gram",), 2)
    for name, both in whole.items():
        assert set(inputs[name]) == {"input_gram"}
        assert set(outputs[name]) == {"output_gram"}
        assert torch.equal(inputs[name]["input_gram"], both["input_gram"])
        assert torch.equal(outputs[name]["output_gram"], both["output_gram"])


def test_model_is_left_as_it_was(decoder: Decoder, tokens: Tensor) -> None:
    before = {name: p.clone() for name, p in decoder.model.named_parameters()}
    rows: list[dict] = []
    collect_factors(decoder, tokens, BOTH, 2, progress=rows.append)
    for name, parameter in decoder.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert not parameter.requires_grad
    assert not any(site.linear._forward_hooks or site.linear._forward_pre_hooks for site in decoder.sites())
    done = [(row["phase"], row["done"], row["total"]) for row in rows]
    assert done == [("forward", 1, 2), ("forward", 2, 2), ("backward", 1, 2), ("backward", 2, 2)]


def test_lobd_statistics_cover_every_sequence() -> None:
    """The published code overwrites A with each sequence; here it is their average."""
    decoder = random_decoder("llama")
    tokens = torch.randint(3, 64, (3, 12), generator=torch.Generator().manual_seed(1))
    whole = collect_factors(decoder, tokens, LOBD.needs, 1)
    single = [collect_factors(decoder, row[None], LOBD.needs, 1) for row in tokens]
    for name, factors in whole.items():
        close(factors["input_gram"], sum(part[name]["input_gram"] for part in single) / 3)
        assert not torch.allclose(factors["input_gram"], single[-1][name]["input_gram"], rtol=1e-2)


@pytest.mark.parametrize("n_sequences", [3, 7])
def test_where_block_inputs_wait_changes_no_bit(n_sequences: int, tmp_path: Path) -> None:
    tokens = torch.randint(3, 64, (n_sequences, 12), generator=torch.Generator().manual_seed(1))
    expected = collect_factors(random_decoder("opt"), tokens, BOTH, 2)
    for placement in (Placement("disk", None, tmp_path), Placement("auto", 1e-9, tmp_path), Placement("ram")):
        elsewhere = collect_factors(random_decoder("opt"), tokens, BOTH, 2, placement=placement)
        for name, both in expected.items():
            assert all(torch.equal(elsewhere[name][need], both[need]) for need in BOTH)
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_name_their_block() -> None:
    decoder = random_decoder("llama")
    tokens = torch.randint(3, 64, (2, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        decoder.site("model.layers.1.mlp.down_proj").linear.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"activations after block 1 .*float32"):
        collect_factors(decoder, tokens, BOTH, 2)


def test_unknown_need_is_refused() -> None:
    decoder = random_decoder("llama")
    with pytest.raises(ConfigError, match=r"method.needs='hessian'.*input_gram, output_gram"):
        collect_factors(decoder, torch.zeros(1, 4, dtype=torch.int64), ("hessian",), 1)
