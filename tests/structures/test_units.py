"""Units as traced: members, costs, the parameter counts of published runs on the meta device, and what vanishes together."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prunelab.family import family_named
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.passes.units import UnitGroups
from prunelab.pattern.units import Units
from prunelab.sparsity.units import equal_shares
from prunelab.structures.units import trace_units

SHAPES = {  # (blocks, width, heads, KV heads, FFN width, vocabulary), protected blocks, parameters before and after
    "Llama-3-8B": ((32, 4096, 32, 8, 14336, 128256), (4, 2), 8_030_261_248, 6_612_586_496),
    "TinyLlama": ((22, 2048, 32, 4, 5632, 32000), (4, 4), 1_100_048_384, 945_907_712),
    "LLaMA-7B": ((32, 4096, 32, 32, 11008, 32000), (4, 2), 6_738_415_616, 5_422_977_024),
}
KEYS = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size",
)  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_published_parameter_counts_come_out_exactly(name: str) -> None:
    shape, (first, last), dense, pruned = SHAPES[name]
    config = AutoConfig.for_model("llama", tie_word_embeddings=False, **dict(zip(KEYS, shape, strict=True)))
    with torch.device("meta"):
        decoder = Decoder(AutoModelForCausalLM.from_config(config), family_named("llama"), name, 2048)
    pattern = Units(counts="units", protect_first=first, protect_last=last, rounding="published")
    chooser = UnitGroups(pattern, decoder)
    counts = equal_shares(chooser.populations(), 0.25, pattern, chooser.total)
    gone = sum(counts[one.name] * one.cost for one in chooser.populations())
    assert (decoder.n_parameters(), decoder.n_parameters() - gone) == (dense, pruned)


@torch.no_grad()
def test_a_unit_is_all_that_makes_its_output_column(family_name: str) -> None:
    """Zeroing a unit's output columns alone, or all of its members, gives the same logits: nothing else reads it."""
    tokens = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    for kind in ("neurons", "heads"):
        alone, whole = random_decoder(family_name), random_decoder(family_name)
        for decoder, last_only in ((alone, True), (whole, False)):
            members = trace_units(decoder, 1, (kind,))[kind]
            for site, member in members[-1:] if last_only else members:
                lines = member.index[1]
                if member.axis == 1:
                    site.linear.weight[:, lines] = 0
                else:
                    site.linear.weight[lines] = 0
                    if site.linear.bias is not None:
                        site.linear.bias[lines] = 0
        dense = random_decoder(family_name).model(tokens).logits
        assert not torch.allclose(alone.model(tokens).logits, dense, atol=1e-5)
        torch.testing.assert_close(alone.model(tokens).logits, whole.model(tokens).logits, rtol=0, atol=1e-5)


def test_costs_are_the_parameters_that_go() -> None:
    opt = random_decoder("opt")
    costs = {
        kind: sum(m.parameters for _, m in members)
        for kind, members in trace_units(opt, 0, ("neurons", "heads")).items()
    }
    assert costs == {"neurons": 2 * 24 + 1, "heads": 4 * 24 * 6 + 3 * 6}
    llama = random_decoder("llama")
    costs = {
        kind: sum(m.parameters for _, m in members)
        for kind, members in trace_units(llama, 0, ("neurons", "heads")).items()
    }
    assert costs == {"neurons": 3 * 24, "heads": (2 * 2 + 2) * 24 * 6}
