"""Whole attentions and MLPs: their influence by hand, and models without them: compacted, saved, generating, pruned again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from prunelab.errors import ConfigError, ModelError
from prunelab.methods.magnitude_sp import MagnitudeSP
from prunelab.methods.random import Random
from prunelab.methods.sublayer_influence import SublayerInfluence
from prunelab.models.decoder import Decoder
from prunelab.models.generate import extend, likeliest
from prunelab.models.load import load_decoder, restore
from prunelab.models.random import random_decoder
from prunelab.models.shape import block_shapes, dense_twin
from prunelab.passes.collect import collect_all
from prunelab.passes.shots import prune
from prunelab.pattern.table import build_pattern
from prunelab.pattern.units import Units
from prunelab.stats.block_influence import Influence, InfluenceSum
from prunelab.stats.unit_view import UnitView
from prunelab.structures.checkpoint import save_checkpoint
from prunelab.structures.state import State
from prunelab.structures.surgery import compact, compact_parameters, is_compact

NEED = "sublayer_influence"
ORIGIN = {"id": "r", "revision": None}


@dataclass(frozen=True)
class Chosen:
    """Says by kind and block what goes first."""

    order: tuple[str, ...]
    name: str = "chosen"
    revision: int = 1
    step: None = None
    scope = "unit"
    needs = ()
    supports = ("units",)
    units = ("attention", "ffn")

    def importance(self, view: UnitView) -> Tensor:
        key = f"{view.kind} {view.block}"
        return torch.tensor([self.order.index(key) if key in self.order else 99.0], dtype=torch.float64)


def deep(family: str, n_blocks: int = 3) -> Decoder:
    kinds = ["sliding_attention", "full_attention"]
    types = {"layer_types": [kinds[i % 3 == 1] for i in range(n_blocks)]} if family == "gemma3" else {}
    layers = {"n_layer" if family in ("gpt2", "bloom") else "num_hidden_layers": n_blocks}
    return random_decoder(family, **layers, **types)


def remove(decoder: Decoder, method: Any, tokens: Tensor, ratio: float, **units: Any) -> State:
    allocation = units.pop("allocation", "global")
    pattern = Units(**{"kinds": ("attention", "ffn"), "counts": "units", **units})
    return prune(
        decoder, method, tokens, [ratio], pattern=pattern, seed=0, batch_size=2, allocation=allocation, propagation="dense",
    )  # fmt: skip


def logits(decoder: Decoder, tokens: Tensor) -> Tensor:
    return decoder.model(input_ids=tokens, use_cache=False).logits


def shapes(decoder: Decoder) -> list[tuple[bool, bool]]:
    """Of every block whether it has attention and MLP."""
    found = block_shapes(decoder, dense_twin(decoder))
    return [(one.heads != 0, one.ffn != 0) for one in found]


def spec(folder: Path) -> dict[str, Any]:
    return {"name": "s", "source": "local", "id": str(folder), "revision": None, "digest": None, "dtype": "float32",
            "max_len": None, "trust_remote_code": False}  # fmt: skip


GOES = ("attention 0", "ffn 1", "attention 1", "ffn 2")


def promises(family: str, order: tuple[str, ...], tokens: Tensor, folder: Path) -> None:
    """Masked is compact, with a cache and without, after a round over the disk, and pruned again."""
    decoder = deep(family)
    state = remove(decoder, Chosen(order), tokens, len(order) / 6)
    ask = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ask["attention_mask"] = torch.ones_like(tokens)
    masked, text, predicted = (
        logits(decoder, tokens),
        decoder.model.generate(tokens, **ask),
        compact_parameters(state, decoder),
    )
    compact(decoder, state)
    small = logits(decoder, tokens)
    torch.testing.assert_close(small, masked, rtol=1e-5, atol=1e-5)
    assert decoder.n_parameters() == predicted
    assert not is_compact(decoder)
    whole = {f"{part} {block}" for block in range(3) for part in ("attention", "ffn")} - set(order)
    left = [(f"attention {b}" in whole, f"ffn {b}" in whole) for b in range(3)]
    assert shapes(decoder) == [one for one in left if any(one)]  # a block that loses both is none
    caches = ("dynamic", "static") if decoder.model._can_compile_fullgraph else ("dynamic",)
    for cache in caches:
        assert torch.equal(decoder.model.generate(tokens, cache_implementation=cache, **ask), text)
    nothing = torch.tensor([], dtype=torch.int64)
    assert torch.equal(extend(decoder, tokens, 6, lambda scores: likeliest(scores, nothing)), text)

    save_checkpoint(decoder, folder, ORIGIN)
    theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert torch.equal(theirs(input_ids=tokens, use_cache=False).logits, small)
    assert torch.equal(theirs.generate(tokens, **ask), text)
    (folder / "modeling_pruned.py").write_text("raise SystemExit('this file was run')")
    loaded = load_decoder(spec(folder))
    assert torch.equal(logits(loaded, tokens), small)
    assert shapes(loaded) == shapes(decoder)
    parts = ("neurons",) if family == "bloom" else ("neurons", "heads")
    for kinds in (parts, ("attention", "ffn")):  # parts of what is left, and then all of some of it
        ratio = 0.0 if kinds[0] == "attention" and len(order) == 4 else 0.3  # one of each is left, and stays
        again = remove(loaded, Random("random", 2, None), tokens, ratio, kinds=kinds, counts="decoder")
        expected = logits(loaded, tokens)
        compact(loaded, again)
        torch.testing.assert_close(logits(loaded, tokens), expected, rtol=1e-5, atol=1e-5)
        save_checkpoint(loaded, folder / kinds[0], ORIGIN)
        loaded = load_decoder(spec(folder / kinds[0]))
        torch.testing.assert_close(logits(loaded, tokens), expected, rtol=1e-5, atol=1e-5)
    restore(loaded, spec(folder / "attention"))


@torch.no_grad()
@pytest.mark.parametrize("family", ["phi3", "opt", "bloom"])
def test_a_model_without_sublayers_is_an_ordinary_one(family: str, tokens: Tensor, tmp_path: Path) -> None:
    promises(family, GOES[:2], tokens[:2, :9], tmp_path)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_so_on_every_family(family_name: str, n: int, tokens: Tensor, tmp_path: Path) -> None:
    promises(family_name, GOES[:n], tokens[:3, :11], tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma3"])
def test_influence_is_that_of_the_stream_before_and_after_by_hand(family: str, tokens: Tensor) -> None:
    """Blocks one after the other: x, x + attention, x + attention + MLP; side by side the same sums of other parts."""
    decoder = deep(family)
    values = collect_all(decoder, tokens, (NEED,), 2)
    block, seen = decoder.blocks[1], {}

    def keep(name: str):
        return lambda module, args, kwargs, out: seen.update(
            {name: (args[0] if args else kwargs["hidden_states"], out[0] if isinstance(out, tuple) else out)}
        )

    of = {
        "llama": ("self_attn", "mlp"), "gpt_neox": ("attention", "mlp"),
        "gemma3": ("post_attention_layernorm", "post_feedforward_layernorm"),
    }[family]  # fmt: skip
    for name, module in (("block", block), *((path, block.get_submodule(path)) for path in of)):
        module.register_forward_hook(keep(name), with_kwargs=True)
    sums = [InfluenceSum(), InfluenceSum()]
    for sequence in tokens:
        decoder.model(input_ids=sequence[None], use_cache=False)
        x, y = seen["block"]
        z = x + seen[of[0]][1]
        torch.testing.assert_close(z + seen[of[1]][1], y, rtol=1e-5, atol=1e-5)
        sums[0].add(x, z)
        sums[1].add(z, y)
    for site in decoder.sites(1):
        found = values[site.name][NEED]
        for own, total in zip((found.attention, found.ffn), sums, strict=True):
            assert (own.cosine, own.angular) == pytest.approx(tuple(vars(total.finish()).values()), rel=1e-4)


@torch.no_grad()
def test_a_sublayer_that_adds_nothing_goes_first_and_changes_no_logit(tokens: Tensor) -> None:
    decoder = deep("qwen2")
    for path in ("self_attn.o_proj", "mlp.down_proj"):
        decoder.blocks[{"s": 2, "m": 0}[path[0]]].get_submodule(path).weight.zero_()
    before = logits(decoder, tokens)
    values = collect_all(decoder, tokens, (NEED,), 2)
    site = [decoder.sites(index)[0].name for index in range(3)]
    assert values[site[2]][NEED].attention == values[site[0]][NEED].ffn == Influence(0.0, 0.0)
    compact(decoder, remove(decoder, SublayerInfluence("s", 1, None, "cosine"), tokens, 2 / 6))
    assert shapes(decoder) == [(True, False), (True, True), (False, True)]
    assert torch.equal(logits(decoder, tokens), before)


def test_magnitude_and_chance_choose_sublayers_and_some_stay(tokens: Tensor) -> None:
    for members in ("output", "all"):
        decoder = deep("llama")
        with torch.no_grad():
            decoder.blocks[1].mlp.down_proj.weight.mul_(1e-3)
            decoder.blocks[2].self_attn.o_proj.weight.mul_(1e-3)
            for path in ("q_proj", "k_proj", "v_proj"):
                decoder.blocks[2].self_attn.get_submodule(path).weight.mul_(1e-3)
            for path in ("gate_proj", "up_proj"):
                decoder.blocks[1].mlp.get_submodule(path).weight.mul_(1e-3)
        method = MagnitudeSP("magnitude_sp", 1, None, members, 2)
        compact(decoder, remove(decoder, method, tokens, 1 / 3, allocation="by_kind"))
        assert shapes(decoder) == [(True, True), (True, False), (False, True)]
    decoder = deep("llama")
    compact(
        decoder, remove(decoder, Random("random", 2, None), tokens, 0.99, kinds=("ffn",), protect_first=1)
    )
    assert [one[1] for one in shapes(decoder)] == [True, False, False]
    for allocation in ("global", "by_kind"):
        with pytest.raises(ConfigError, match="can go"):
            remove(deep("llama"), Random("random", 2, None), tokens, 0.99, min_units=2, allocation=allocation)


def test_what_does_not_go_with_sublayers_is_refused(tokens: Tensor) -> None:
    for kinds in (["attention", "heads"], ["ffn", "blocks"]):
        with pytest.raises(ConfigError, match="of attention, ffn; or blocks alone"):
            build_pattern("units", kinds=kinds)
    with pytest.raises(ConfigError, match=r"none with sparsity\.kinds=\[ffn\]"):
        build_pattern("units", kinds=["ffn"], compensation="bias")
    with pytest.raises(ConfigError, match=r"global \| by_kind with sparsity.kinds=\[attention,ffn\]"):
        remove(deep("llama"), Chosen(GOES), tokens, 0.3, allocation="uniform")
    with pytest.raises(ModelError, match="no block and no sub-layer"):
        remove(random_decoder("opt", do_layer_norm_before=False), Chosen(GOES), tokens, 0.3)
