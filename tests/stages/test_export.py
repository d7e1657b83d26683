"""A stored state as a checkpoint: with zeros, or without the units that are gone; both compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import prunelab
from prunelab.models.load import load_decoder
from prunelab.sparsity import mask as masking
from prunelab.sparsity.mask import Mask, Structured
from prunelab.stages.export import write
from prunelab.structures.state import State, read_state, save_state

OUTPUTS = ("self_attn.o_proj", "mlp.down_proj")


def by_units(spec: dict[str, Any], path: Path, different: bool) -> State:
    """Head 1 and units 0 to 9 of every block of the embedded Llama go, with ``different`` more of the last block."""
    decoder = load_decoder(spec)
    masks: dict[str, Mask] = {}
    for site in decoder.sites():
        rows, columns = (torch.ones(n, dtype=torch.bool) for n in site.linear.weight.shape)
        lines = columns if site.path in OUTPUTS else rows
        gone = 10 + 3 * (different and site.block == len(decoder.blocks) - 1)
        lines[slice(32, 64) if site.path.startswith("self_attn") else slice(gone)] = False
        masks[site.name] = Structured(rows, columns, None)
        masking.apply(masks[site.name], site.linear.weight, None)
    state = read_state(decoder, masks)
    save_state(state, path)
    return state


@pytest.mark.parametrize("different", [False, True])
def test_compact_is_smaller_and_computes_what_the_zeros_do(different: bool, tmp_path: Path) -> None:
    spec = dict(prunelab.load_model("embedded_llama").spec)
    by_units(spec, tmp_path / "state", different)
    sizes = {}
    logits: dict[bool, Tensor] = {}
    tokens = torch.arange(3, 40)[None]
    for compact in (False, True):
        folder = tmp_path / str(compact)
        written = write(spec, tmp_path / "state", folder, compact=compact)
        assert written["bytes"] == (folder / "model.safetensors").stat().st_size
        # five heads of 32: the config of the rest, four, can be said; blocks that differ cannot
        assert written["own_code"] is (compact and different)
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=written["own_code"])
        assert written["parameters"] == model.num_parameters()
        with torch.no_grad():
            logits[compact] = model(input_ids=tokens).logits
            mine = prunelab.load_model(str(folder))  # with its tokenizer
            assert torch.equal(mine.decoder.model(input_ids=tokens).logits, logits[compact])
        sizes[compact] = written["parameters"], written["bytes"]
    torch.testing.assert_close(logits[True], logits[False], rtol=1e-5, atol=1e-5)
    assert sizes[True] < sizes[False]
    assert sizes[True][1] < sizes[False][1]
