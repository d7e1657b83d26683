"""What a config can switch within one family: the walk stays the forward, and what is saved loads in plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from prunelab.errors import ModelError
from prunelab.family import family_named
from prunelab.models.decoder import Decoder
from prunelab.models.load import load_decoder, restore
from prunelab.models.random import random_decoder
from prunelab.models.stream import advance, head, open_stream
from prunelab.models.transposed import hold_as_linear, is_transposed

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "opt_post_norm": ("opt", {"do_layer_norm_before": False}),  # OPT-350m
    "falcon_multi_query": ("falcon", {"new_decoder_architecture": False, "multi_query": True}),  # Falcon-7B
    "falcon_alibi": (  # Falcon-RW
        "falcon",
        {"new_decoder_architecture": False, "multi_query": False, "num_kv_heads": 4, "alibi": True, "bias": True,
         "parallel_attn": False},
    ),
    "gpt_neox_sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "bloom_post_norm": ("bloom", {"apply_residual_connection_post_layernorm": True}),
}  # fmt: skip


def local(folder: Path, **changes: Any) -> dict[str, Any]:
    fields = {"name": "test", "source": "local", "id": str(folder), "revision": None, "digest": None}
    return {**fields, "dtype": "float32", "max_len": None, "trust_remote_code": False, **changes}


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Decoder:
    family, config = VARIANTS[request.param]
    return random_decoder(family, **config)


def test_walk_is_forward(variant: Decoder, tokens: Tensor) -> None:
    assert not torch.equal(
        logits(variant.model, tokens), logits(random_decoder(variant.family.name).model, tokens)
    )
    stream = open_stream(variant, tokens, 3)
    for index in range(len(variant.blocks)):
        advance(variant, index, stream)
    for rows in stream.batches():
        expected = logits(variant.model, tokens[rows])
        assert torch.equal(head(variant, stream.read(rows), tokens[rows]), expected)


def test_saved_and_loaded(variant: Decoder, tokens: Tensor, tmp_path: Path) -> None:
    variant.model.save_pretrained(tmp_path)
    expected = logits(variant.model, tokens)
    assert torch.equal(logits(load_decoder(local(tmp_path)).model, tokens), expected)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval(), tokens), expected)


def test_what_a_decoder_saves_is_an_ordinary_checkpoint(
    family_name: str, tokens: Tensor, tmp_path: Path
) -> None:
    """Also with weights changed in place; and the dense ones come back."""
    decoder = random_decoder(family_name)
    dense = logits(decoder.model, tokens)
    decoder.model.save_pretrained(tmp_path / "dense")
    for site in decoder.sites():
        site.linear.weight[:: site.shared + 2] = 0
    changed = logits(decoder.model, tokens)
    assert not torch.allclose(changed, dense)
    decoder.model.save_pretrained(tmp_path / "pruned")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").eval()
    torch.testing.assert_close(logits(reference, tokens), changed)
    again = load_decoder(local(tmp_path / "pruned"))
    assert torch.equal(logits(again.model, tokens), changed)
    restore(again, local(tmp_path / "dense"))
    assert torch.equal(logits(again.model, tokens), dense)
    again.model.load_state_dict(decoder.model.state_dict())
    assert torch.equal(logits(again.model, tokens), changed)


def test_gpt2_is_linear_inside_and_conv1d_on_disk(tmp_path: Path) -> None:
    decoder = random_decoder("gpt2")
    decoder.model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for site in decoder.sites():
        assert type(site.linear) is nn.Linear
        assert site.linear.weight.is_contiguous()
        assert site.linear.weight.shape == (site.linear.out_features, site.linear.in_features)
        assert torch.equal(stored[f"{site.name}.weight"], site.linear.weight.t())
    inside = {name for name in stored if is_transposed(decoder.family, name)}
    assert inside == {f"{site.name}.weight" for site in decoder.sites()}


def test_transposed_names_what_stores_no_such_weight() -> None:
    decoder = random_decoder("gpt2")
    with pytest.raises(
        ModelError, match=r"transformer\.h\.0\.attn\.c_attn is Linear.*take it off transposed"
    ):
        hold_as_linear(decoder.model, family_named("gpt2"))


def test_old_causal_masks_of_a_bare_gpt2_are_ignored(tmp_path: Path, tokens: Tensor) -> None:
    """As the checkpoint that the hub calls gpt2: names without ``transformer.``, masks among the weights."""
    decoder = random_decoder("gpt2")
    decoder.model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in stored.items()}
    for name in ("h.0.attn.bias", "h.1.attn.masked_bias"):
        bare[name] = torch.ones(1)
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits(load_decoder(local(tmp_path)).model, tokens), logits(decoder.model, tokens))


def test_a_model_without_an_end_of_its_positions_is_told_a_length(tmp_path: Path) -> None:
    random_decoder("bloom").model.save_pretrained(tmp_path)
    assert load_decoder(local(tmp_path)).max_len == 64
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["seq_length"]
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"does not say how many tokens.*set model\.max_len"):
        load_decoder(local(tmp_path))
    assert load_decoder(local(tmp_path, max_len=100)).max_len == 100
