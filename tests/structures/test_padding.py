"""Ragged widths filled up with zeros: ordinary checkpoints of the base architecture, with the same logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from prunelab import api
from prunelab.errors import ConfigError, ModelError
from prunelab.models.decoder import Decoder
from prunelab.models.narrow import drop_attention, drop_mlp
from prunelab.models.random import random_decoder
from prunelab.models.shape import block_shapes, dense_twin
from prunelab.structures.checkpoint import save_form
from prunelab.structures.padding import pad_to_uniform
from prunelab.structures.state import State
from prunelab.structures.surgery import CompactLinear, compact

Remove = Callable[..., State]
ORIGIN = {"id": "r", "revision": None}
SAYS_HEADS = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3")


def deep(family: str, **config: Any) -> Decoder:
    types = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]}
    layers = {"n_layer" if family in ("gpt2", "bloom") else "num_hidden_layers": 4}
    return random_decoder(family, **layers, **types if family == "gemma3" else {}, **config)


def logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


def ragged(family: str, remove_at_random: Remove, **config: Any) -> Decoder:
    """Other widths in every block, one without attention and one without an MLP; the widest is narrower than the dense."""
    decoder = deep(family, **config)
    compact(decoder, remove_at_random(decoder))
    attention, (writers, reader) = decoder.family.attention, decoder.family.mlp
    drop_attention(decoder.blocks[0], attention[3])
    drop_mlp(decoder.blocks[3], [*writers, reader])
    return decoder


def check_padded(family: str, tokens: Tensor, folder: Path, remove_at_random: Remove) -> None:
    decoder = ragged(family, remove_at_random)
    expected = logits(decoder.model, tokens)
    save_form(decoder, folder, ORIGIN, "padded")
    assert not (folder / "modeling_pruned.py").exists()
    config = json.loads((folder / "config.json").read_text())
    assert "pruned" not in config
    assert "auto_map" not in config
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert type(plain) is type(decoder.model)
    torch.testing.assert_close(logits(plain, tokens), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(decoder.model, tokens), expected, rtol=0, atol=0)
    padded = pad_to_uniform(decoder)
    dense = block_shapes(dense_twin(decoder), dense_twin(decoder))[0]
    (shape,) = set(block_shapes(padded, padded))
    widest = max(one.ffn for one in block_shapes(decoder, dense_twin(decoder)))
    assert shape.ffn == (dense.ffn if family == "bloom" else widest)
    assert (shape.heads, shape.kv_heads) == (dense.heads, dense.kv_heads)  # of block 3, which lost none


@pytest.mark.parametrize("family", ["phi3", "opt", "gpt2"])
def test_a_padded_model_is_an_ordinary_one(
    family: str, tokens: Tensor, tmp_path: Path, remove_at_random: Remove
) -> None:
    check_padded(family, tokens[:2, :9], tmp_path, remove_at_random)


@pytest.mark.slow
def test_so_is_one_of_every_family(
    family_name: str, tokens: Tensor, tmp_path: Path, remove_at_random: Remove
) -> None:
    check_padded(family_name, tokens, tmp_path, remove_at_random)


@pytest.mark.parametrize("family", ["qwen3", "phi3", "gpt_neox", "falcon"])
def test_heads_are_as_many_as_the_widest_block_has_where_a_config_can_say_so(
    family: str, tokens: Tensor, remove_units: Remove
) -> None:
    more = {} if family in ("gpt_neox", "falcon") else {"num_key_value_heads": 4, "num_attention_heads": 4}
    decoder = deep(family, **more)
    groups = 2 if family == "falcon" else 4
    lost = [(0,), (1,)] if groups == 2 else [(0,), (1, 3)]
    compact(decoder, remove_units(decoder, {i: (tuple(range(3 + i)), lost[i % 2]) for i in range(4)}))
    padded = pad_to_uniform(decoder)
    (shape,) = set(block_shapes(padded, padded))
    assert (shape.heads, shape.ffn) == (3 if family in SAYS_HEADS else 4, 37)


def test_added_biases_are_padded_where_a_config_can_say_them(
    tokens: Tensor, tmp_path: Path, remove_at_random: Remove, with_added_biases: Remove
) -> None:
    for family, can in (("llama", True), ("mistral", False), ("qwen3", False)):
        decoder = deep(family)
        compact(decoder, with_added_biases(decoder, remove_at_random(decoder)))
        if not can:
            with pytest.raises(ModelError, match=r"got a bias in the place of .* cannot say one there"):
                pad_to_uniform(decoder)
            continue
        save_form(decoder, tmp_path, ORIGIN, "padded")
        plain = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert plain.config.attention_bias
        assert plain.config.mlp_bias
        torch.testing.assert_close(logits(plain, tokens), logits(decoder.model, tokens), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_padded_is_said(tokens: Tensor) -> None:
    decoder = random_decoder("llama")
    weight = decoder.blocks[0].self_attn.q_proj.weight
    decoder.blocks[0].self_attn.q_proj = CompactLinear(weight, None, torch.arange(24), None, 24, 24)
    with pytest.raises(ModelError, match="pick single inputs or outputs"):
        pad_to_uniform(decoder)


def test_a_form_that_there_is_not_is_named(tmp_path: Path) -> None:
    model = api.Model(random_decoder("llama"), None, {"name": "r", "source": "random"})
    with pytest.raises(ConfigError, match=r"own \| padded \| decilm"):
        api.save(model, tmp_path, "pad")
