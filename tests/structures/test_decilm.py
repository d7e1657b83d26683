"""Llama as DeciLMForCausalLM: what the config says is what the weights are, and readers get the same logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from prunelab.config.files import check_model_folder, n_blocks, neurons
from prunelab.errors import ConfigError, ModelError
from prunelab.models.decilm import multiplier, n_units
from prunelab.models.decoder import Decoder
from prunelab.models.load import load_decoder, restore
from prunelab.models.narrow import drop_attention, drop_mlp
from prunelab.models.random import random_decoder
from prunelab.structures.checkpoint import save_checkpoint, save_form
from prunelab.structures.state import State
from prunelab.structures.surgery import compact

Remove = Callable[..., State]
ORIGIN = {"id": "r", "revision": None}


def spec(folder: Path) -> dict[str, Any]:
    return {"name": "s", "source": "local", "id": str(folder), "revision": None, "digest": None, "dtype": "float32",
            "max_len": None, "trust_remote_code": False}  # fmt: skip


def logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


def ragged(remove_units: Remove, **config: Any) -> Decoder:
    """Five blocks: no attention, KV heads 4, 3 and 1 of 4, no MLP; other numbers of hidden units."""
    more = {"num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 5, **config}
    decoder = random_decoder("llama", **more)
    gone = {0: ((0,), ()), 1: ((0, 1), ()), 2: ((2, 5, 7), (1,)), 3: ((), (0, 2, 3))}
    compact(decoder, remove_units(decoder, gone))
    drop_attention(decoder.blocks[0], "self_attn.o_proj")
    drop_mlp(decoder.blocks[4], ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"])
    return decoder


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def test_the_config_says_what_the_weights_are(tokens: Tensor, tmp_path: Path, remove_units: Remove) -> None:
    decoder = ragged(remove_units)
    expected = logits(decoder.model, tokens)
    save_form(decoder, tmp_path, ORIGIN, "decilm")
    config, found = json.loads((tmp_path / "config.json").read_text()), shapes(tmp_path)
    assert (config["model_type"], config["architectures"]) == ("nemotron-nas", ["DeciLMForCausalLM"])
    assert config["num_attention_heads"] == 4
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert len(config["block_configs"]) == config["num_hidden_layers"] == 5
    for index, block in enumerate(config["block_configs"]):
        at = f"model.layers.{index}."
        norms = [f"{at}{name}_layernorm.weight" in found for name in ("input", "post_attention")]
        assert norms == [not block["attention"]["no_op"], not block["ffn"]["no_op"]]
        if not block["attention"]["no_op"]:
            kv_heads = 4 // block["attention"]["n_heads_in_group"]
            assert found[f"{at}self_attn.q_proj.weight"] == (24, 24)
            assert (
                found[f"{at}self_attn.k_proj.weight"]
                == found[f"{at}self_attn.v_proj.weight"]
                == (6 * kv_heads, 24)
            )
            assert found[f"{at}self_attn.o_proj.weight"] == (24, 24)
        if not block["ffn"]["no_op"]:
            assert "ffn_mult" not in block["ffn"]  # vLLM takes the other where there is none
            n = block["ffn"]["intermediate_size"]
            assert found[f"{at}mlp.up_proj.weight"] == found[f"{at}mlp.gate_proj.weight"] == (n, 24)
            assert found[f"{at}mlp.down_proj.weight"] == (24, n)
    parts = [
        (one["attention"]["n_heads_in_group"], one["ffn"]["intermediate_size"])
        for one in config["block_configs"]
    ]
    # the first block's attention became one of zeros; 3 key-value heads need room for 4, which 4 query heads divide into
    assert parts == [(4, 39), (1, 38), (1, 37), (4, 40), (1, 0)]

    loaded = load_decoder(spec(tmp_path))
    torch.testing.assert_close(logits(loaded.model, tokens), expected, rtol=1e-5, atol=1e-5)
    restore(loaded, spec(tmp_path))
    save_checkpoint(loaded, tmp_path / "own", ORIGIN)  # and it is one like any other
    again = load_decoder(spec(tmp_path / "own"))
    assert torch.equal(logits(again.model, tokens), logits(loaded.model, tokens))
    check_model_folder("model.id", str(tmp_path), None)
    assert n_blocks(spec(tmp_path)) == 5
    assert neurons(spec(tmp_path)) == (40,)  # of the widest


def test_transformers_runs_it_with_the_files_beside_it(
    tokens: Tensor, tmp_path: Path, remove_units: Remove
) -> None:
    decoder = ragged(remove_units)
    drop_attention(decoder.blocks[3], "self_attn.o_proj")
    save_form(decoder, tmp_path, ORIGIN, "decilm")
    config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    assert config.block_configs[3].attention.no_op  # as attributes, which vLLM reads
    assert not hasattr(config.block_configs[0].ffn, "ffn_mult")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    torch.testing.assert_close(logits(model, tokens), logits(decoder.model, tokens), rtol=1e-5, atol=1e-5)
    ask = {
        "max_new_tokens": 5,
        "do_sample": False,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(tokens),
    }
    assert torch.equal(model.generate(tokens, **ask), decoder.model.generate(tokens, **ask))


def test_multiples_of_256_are_said_by_the_multiplier_that_every_reader_knows(
    tokens: Tensor, tmp_path: Path, remove_units: Remove
) -> None:
    for hidden in (24, 160, 2048, 4096, 8192):
        for n in range(256, 40 * 256, 256):
            assert n_units({"ffn_mult": multiplier(n, hidden)}, hidden) == n
    decoder = random_decoder("llama", intermediate_size=512)
    compact(decoder, remove_units(decoder, {1: (tuple(range(256)), ())}))
    save_form(decoder, tmp_path, ORIGIN, "decilm")
    blocks = json.loads((tmp_path / "config.json").read_text())["block_configs"]
    assert all("intermediate_size" not in block["ffn"] for block in blocks)
    assert [n_units(block["ffn"], 24) for block in blocks] == [512, 256]
    loaded = load_decoder(spec(tmp_path))
    torch.testing.assert_close(
        logits(loaded.model, tokens), logits(decoder.model, tokens), rtol=1e-5, atol=1e-5
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(logits(model, tokens), logits(loaded.model, tokens))


def test_added_biases_tied_embeddings_and_grouped_heads_come_along(
    tokens: Tensor, tmp_path: Path, remove_at_random: Remove, with_added_biases: Remove
) -> None:
    decoder = random_decoder("llama", tie_word_embeddings=True, num_hidden_layers=3)
    compact(decoder, with_added_biases(decoder, remove_at_random(decoder)))
    save_form(decoder, tmp_path, ORIGIN, "decilm")
    assert "lm_head.weight" not in shapes(tmp_path)
    loaded = load_decoder(spec(tmp_path))
    torch.testing.assert_close(
        logits(loaded.model, tokens), logits(decoder.model, tokens), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(block_configs=None), "block_configs cannot be read; needed is a list"),
        (lambda c: c["block_configs"].pop(), "num_hidden_layers=5"),
        (lambda c: c["block_configs"][1]["attention"].update(n_heads_in_group=3), r"block_configs\[1\].*divides 4 heads"),
        (lambda c: c["block_configs"][1]["attention"].update(n_heads_in_group=None), r"block_configs\[1\]"),
        (lambda c: c["block_configs"][2]["ffn"].update(intermediate_size=-3), "1 or more hidden units"),
        (lambda c: c["block_configs"][2]["ffn"].update(intermediate_size=36), r"\(37, 24\), config.json asks for \(36, 24\)"),
        (lambda c: c["block_configs"][2]["ffn"].update(replace_with_linear=True), "replace_with_linear is not read"),
        (lambda c: c["block_configs"].__setitem__(0, "os"), r"block_configs\[0\]"),
        (lambda c: c.update(num_attention_heads="4"), "an integer from 1"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path, remove_units: Remove
) -> None:
    save_form(ragged(remove_units), tmp_path, ORIGIN, "decilm")
    config = json.loads((tmp_path / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        load_decoder(spec(tmp_path))


def test_other_families_have_no_such_form(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a qwen3: DeciLMForCausalLM is Llama"):
        save_form(random_decoder("qwen3"), tmp_path, ORIGIN, "decilm")
    with pytest.raises(ConfigError):
        check_model_folder("model.id", str(tmp_path), None)
