"""A family file for a fused map that no family of the table has: Baichuan's ``W_pack``, without code from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.llama.modeling_llama import LlamaAttention

from prunelab.evaluation.integrity import check
from prunelab.family import read_family_file
from prunelab.methods.wanda import Wanda
from prunelab.models.decoder import Decoder
from prunelab.models.load import load_decoder
from prunelab.models.stream import advance, head, open_stream
from prunelab.passes.shots import prune
from prunelab.pattern.weights import Unstructured
from prunelab.structures.layout import heads_of
from prunelab.structures.units import trace_units

FAMILY = """
model_types: [packed]
blocks: model.layers
inputs: [[self_attn.W_pack], [self_attn.o_proj], [mlp.gate_proj, mlp.up_proj], [mlp.down_proj]]
mlp: {writers: [mlp.gate_proj, mlp.up_proj], reader: mlp.down_proj}
attention:
  {query: self_attn.W_pack, key: self_attn.W_pack, value: self_attn.W_pack, output: self_attn.o_proj, layout: stacked}
"""


class PackedConfig(LlamaConfig):
    """Llama's, under a name of its own."""

    model_type = "packed"


class PackedAttention(LlamaAttention):
    """Llama's attention with one map for query, key and value, called once per forward."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        widths = [linear.out_features for linear in (self.q_proj, self.k_proj, self.v_proj)]
        del self.q_proj, self.k_proj, self.v_proj
        self.W_pack = nn.Linear(config.hidden_size, sum(widths), bias=False)
        waiting: list[Tensor] = []

        def first(hidden: Tensor) -> Tensor:
            waiting[:] = self.W_pack(hidden).split(widths, dim=-1)
            return waiting.pop(0)

        self.q_proj, self.k_proj = first, lambda hidden: waiting.pop(0)
        self.v_proj = self.k_proj


class PackedForCausalLM(LlamaForCausalLM):
    """Llama with such an attention."""

    config_class = PackedConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            layer.self_attn = PackedAttention(config, index)


@pytest.fixture
def spec(tmp_path: Path) -> Iterator[dict[str, Any]]:
    AutoConfig.register("packed", PackedConfig)
    AutoModelForCausalLM.register(PackedConfig, PackedForCausalLM)
    try:
        torch.manual_seed(0)
        config = PackedConfig(
            vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        PackedForCausalLM(config).save_pretrained(tmp_path / "packed")
        (tmp_path / "packed.yaml").write_text(FAMILY)
        yield {
            "name": "packed", "source": "local", "id": str(tmp_path / "packed"), "revision": None, "digest": None,
            "dtype": "float32", "max_len": None, "trust_remote_code": False, "family": str(tmp_path / "packed.yaml"),
        }  # fmt: skip
    finally:  # the registries are the process's
        CONFIG_MAPPING._extra_content.pop("packed")
        MODEL_FOR_CAUSAL_LM_MAPPING._extra_content.pop(PackedConfig)


@torch.no_grad()
def test_a_fused_map_of_ones_own(spec: dict[str, Any], tokens: Tensor) -> None:
    decoder = load_decoder(spec)
    assert decoder.family == read_family_file(spec["family"])
    expected = (
        AutoModelForCausalLM.from_pretrained(spec["id"]).eval()(input_ids=tokens, use_cache=False).logits
    )
    assert torch.equal(decoder.model(input_ids=tokens, use_cache=False).logits, expected)
    stream = open_stream(decoder, tokens, 5)
    for index in range(2):
        advance(decoder, index, stream)
    assert torch.equal(head(decoder, stream.read(slice(0, 5)), tokens), expected)
    assert heads_of(decoder, 0) == (4, 2, 6)


@torch.no_grad()
def test_its_heads_are_found_and_pruned(spec: dict[str, Any], tokens: Tensor) -> None:
    """A head's output columns alone, or all that the trace says belongs to it: the same logits."""

    def without(decoder: Decoder, last_only: bool) -> Tensor:
        members = trace_units(decoder, 1, ("heads",))["heads"]
        for site, member in members[-1:] if last_only else members:
            lines = member.index[1]
            site.linear.weight[(slice(None), lines) if member.axis == 1 else lines] = 0
        return decoder.model(input_ids=tokens, use_cache=False).logits

    torch.testing.assert_close(without(load_decoder(spec), True), without(load_decoder(spec), False))
    decoder = load_decoder(spec)
    method = Wanda("wanda", 1, None)
    state = prune(decoder, method, tokens, [0.5], pattern=Unstructured(), seed=0, batch_size=2)
    assert check(decoder, state)["integrity/violations"] == 0
    assert sum(site.mask.removed for _, site in state.sites()) * 2 == sum(
        site.mask.total for _, site in state.sites()
    )
