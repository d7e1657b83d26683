"""Block influence by brute force and by what it has to be; whole blocks: removed, compacted, saved, refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from prunelab.errors import ConfigError, ModelError
from prunelab.family import family_named
from prunelab.methods.flap import FLAP
from prunelab.methods.random import Random
from prunelab.methods.shortgpt import ShortGPT
from prunelab.models.decoder import Decoder
from prunelab.models.load import load_decoder, restore
from prunelab.models.random import random_decoder
from prunelab.models.stream import open_stream
from prunelab.passes.collect import collect_all, collect_block, load_needs
from prunelab.passes.shots import prune
from prunelab.passes.statistics import StatisticsFolder, block_path, collect_statistics, save_block
from prunelab.pattern.base import BLOCKS
from prunelab.pattern.table import build_pattern
from prunelab.pattern.units import Units
from prunelab.stats.block_influence import BlockInfluence, Influence, cosines
from prunelab.structures.checkpoint import origin_of, save_checkpoint
from prunelab.structures.state import State, open_state, save_state, state_digest
from prunelab.structures.surgery import compact, compact_parameters
from prunelab.structures.units import trace_units

NEED = "block_influence"
ALONE = (BLOCKS,)


def method(distance: str = "cosine", step: float | None = None) -> ShortGPT:
    return ShortGPT("shortgpt", 1, step, distance)


def deep(family: str, n_blocks: int = 4, **config: Any) -> Decoder:
    """A random decoder of so many blocks."""
    kinds = ["sliding_attention", "full_attention"]
    types = (
        {"layer_types": [kinds[index % 3 == 1] for index in range(n_blocks)]} if family == "gemma3" else {}
    )
    layers = {"n_layer" if family in ("gpt2", "bloom") else "num_hidden_layers": n_blocks}
    return random_decoder(family, **layers, **types, **config)


def remove(decoder: Decoder, tokens: Tensor, ratio: float = 0.5, who: Any = None, **units: Any) -> State:
    pattern = Units(**{"kinds": ALONE, "counts": "units", **units})
    return prune(
        decoder, who or method(), tokens, [ratio], pattern=pattern, seed=0, batch_size=2, allocation="global",
        propagation="dense",
    )  # fmt: skip


def gone(state: State, decoder: Decoder) -> list[int]:
    """Blocks of which nothing is left."""
    return [
        index
        for index in range(len(decoder.blocks))
        if all(state.site(site.name).mask.removed == state.site(site.name).mask.total for site in decoder.sites(index))
    ]  # fmt: skip


def influences(decoder: Decoder, tokens: Tensor, batch_size: int = 2) -> list[Influence]:
    """Every block's, by the walk; all layers of a block share it."""
    values, found = collect_all(decoder, tokens, (NEED,), batch_size), []
    for index in range(len(decoder.blocks)):
        (own,) = {
            id(values[site.name][NEED]): values[site.name][NEED] for site in decoder.sites(index)
        }.values()
        found.append(own)
    return found


def by_hand(decoder: Decoder, tokens: Tensor) -> list[tuple[float, float]]:
    """The whole model, one sequence at a time, one token at a time, in float64."""
    seen: dict[int, list[Tensor]] = {}

    def hook(index: int):
        return lambda module, args, kwargs, out: seen.update(
            {
                index: [
                    (args[0] if args else kwargs["hidden_states"]),
                    out[0] if isinstance(out, tuple) else out,
                ]
            }
        )

    handles = [
        block.register_forward_hook(hook(i), with_kwargs=True) for i, block in enumerate(decoder.blocks)
    ]
    cosine: list[list[float]] = [[] for _ in decoder.blocks]
    for sequence in tokens:
        decoder.model(input_ids=sequence[None], use_cache=False)
        for index, (x, y) in seen.items():
            for a, b in zip(x[0].double(), y[0].double(), strict=True):
                lengths = math.sqrt(sum(float(v) ** 2 for v in a)) * math.sqrt(sum(float(v) ** 2 for v in b))
                cosine[index].append(sum(float(v) * float(w) for v, w in zip(a, b, strict=True)) / lengths)
    for handle in handles:
        handle.remove()
    mean = [sum(1 - c for c in found) / len(found) for found in cosine]
    angle = [sum(math.acos(max(-1.0, min(1.0, c))) / math.pi for c in found) / len(found) for found in cosine]
    return list(zip(mean, angle, strict=True))


@torch.no_grad()
@pytest.mark.typical_families
def test_influence_is_that_of_all_tokens_one_by_one(decoder: Decoder, tokens: Tensor) -> None:
    expected = by_hand(decoder, tokens)
    for batch_size in (1, 2, 5):
        found = influences(decoder, tokens, batch_size)
        for (cosine, angular), one in zip(expected, found, strict=True):
            assert one.cosine == pytest.approx(cosine, rel=1e-6)
            assert one.angular == pytest.approx(angular, rel=1e-6)
            assert 0 <= one.cosine <= 2
            assert 0 <= one.angular <= 1


@torch.no_grad()
def test_batches_and_ways_of_walking_give_the_same_bits(decoder: Decoder, tokens: Tensor) -> None:
    whole = influences(decoder, tokens, 1)
    assert all(influences(decoder, tokens, size) == whole for size in (2, 3, 5))
    stream = open_stream(decoder, tokens, 2)
    here = collect_block(decoder, 0, stream, load_needs((NEED, "input_norm")), advancing=False)
    assert {value[NEED] for value in here.values()} == {whole[0]}
    assert torch.equal(stream.read(slice(0, 2)), open_stream(decoder, tokens, 2).read(slice(0, 2)))


@torch.no_grad()
def test_influence_is_unmoved_by_scale_and_by_tokens_twice(tokens: Tensor) -> None:
    decoder = random_decoder("llama")
    once, twice = influences(decoder, tokens), influences(decoder, torch.cat([tokens, tokens]))
    for one, two in zip(once, twice, strict=True):
        assert (two.cosine, two.angular) == pytest.approx((one.cosine, one.angular), rel=1e-6)
    x, y = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(0))
    for scale in (2.0**-40, 3.0, 1e15):
        torch.testing.assert_close(cosines(x * scale, y * scale), cosines(x, y), rtol=1e-6, atol=1e-7)
    assert float(cosines(x, -x).max()) == -1


def test_an_undefined_cosine_is_a_half() -> None:
    zero, one = torch.zeros(1, 4), torch.ones(1, 4)
    assert cosines(zero, one).item() == cosines(one, zero).item() == cosines(zero, zero).item() == 0.5
    running = BlockInfluence().start("x", 4, ones=False, device=torch.device("cpu"))
    running.add(torch.stack([zero, one]), torch.stack([one, one]))
    found = running.finish()
    assert (found.cosine, found.angular) == pytest.approx((0.25, 1 / 6))
    assert not BlockInfluence().is_finite(Influence(float("nan"), 0.0))


@torch.no_grad()
def test_a_block_without_output_has_influence_0_goes_first_and_is_not_missed(
    family_name: str, tokens: Tensor
) -> None:
    decoder = deep(family_name, 3)
    outputs = (decoder.family.attention[3], decoder.family.mlp[1])
    for site in decoder.sites(1):
        if site.path in outputs:
            for parameter in site.linear.parameters():
                parameter.zero_()
    before = decoder.model(input_ids=tokens, use_cache=False).logits
    assert influences(decoder, tokens)[1] == Influence(0.0, 0.0)
    state = remove(decoder, tokens, 1 / 3)
    assert gone(state, decoder) == [1]
    assert torch.equal(decoder.model(input_ids=tokens, use_cache=False).logits, before)
    compact(decoder, state)
    assert len(decoder.blocks) == 2
    assert torch.equal(decoder.model(input_ids=tokens, use_cache=False).logits, before)


@torch.no_grad()
def test_masked_is_compact_and_both_are_the_ordinary_checkpoint(
    family_name: str, tokens: Tensor, tmp_path: Path
) -> None:
    decoder, again = deep(family_name), deep(family_name)
    n_dense, of_block = decoder.n_parameters(), sum(p.numel() for p in decoder.blocks[0].parameters())
    state = remove(decoder, tokens)
    left = [index for index in range(4) if index not in gone(state, decoder)]
    assert len(left) == 2
    masked = decoder.model(input_ids=tokens, use_cache=False).logits
    save_state(state, tmp_path / "state.safetensors")
    predicted = compact_parameters(state, decoder)
    compact(again, open_state(tmp_path / "state.safetensors"))
    assert again.n_parameters() == predicted == n_dense - 2 * of_block
    assert torch.equal(again.model(input_ids=tokens, use_cache=False).logits, masked)
    ask = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ask["attention_mask"] = torch.ones_like(tokens)
    texts = [again.model.generate(tokens, use_cache=cache, **ask) for cache in (True, False)]
    assert torch.equal(*texts)

    save_checkpoint(again, tmp_path / "small", origin_of({"name": "r", "source": "random", "revision": None}))
    assert not (tmp_path / "small" / "modeling_pruned.py").exists()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert plain.config.num_hidden_layers == 2
    assert torch.equal(plain(input_ids=tokens, use_cache=False).logits, masked)
    assert torch.equal(plain.generate(tokens, **ask), texts[0])
    spec = {
        "name": "small", "source": "local", "id": str(tmp_path / "small"), "revision": None, "digest": None,
        "dtype": "float32", "max_len": None, "trust_remote_code": False,
    }  # fmt: skip
    loaded = load_decoder(spec)
    assert torch.equal(loaded.model(input_ids=tokens, use_cache=False).logits, masked)
    assert len(influences(loaded, tokens)) == 2  # and it can be walked, and pruned, again
    remove(loaded, tokens, 0.5)
    restore(loaded, spec)
    assert torch.equal(loaded.model(input_ids=tokens, use_cache=False).logits, masked)


def test_weights_of_more_blocks_do_not_come_back_into_fewer(tokens: Tensor, tmp_path: Path) -> None:
    decoder = deep("llama")
    save_checkpoint(decoder, tmp_path, origin_of({"name": "r", "source": "random", "revision": None}))
    spec = {"name": "r", "source": "local", "id": str(tmp_path), "revision": None, "digest": None, "dtype": "float32",
            "max_len": None, "trust_remote_code": False}  # fmt: skip
    compact(decoder, remove(decoder, tokens))
    with pytest.raises(ModelError, match=r"has 2 blocks, .* has more; the model was compacted"):
        restore(decoder, spec)


@torch.no_grad()
@pytest.mark.parametrize("distance", ["cosine", "angular"])
def test_the_blocks_of_least_influence_go(distance: str, tokens: Tensor) -> None:
    decoder = deep("qwen2", 6)
    ranked = sorted(range(6), key=lambda index: getattr(influences(decoder, tokens)[index], distance))
    for ratio, n in ((0.0, 0), (1 / 6, 1), (0.5, 3), (0.9, 5)):  # one always stays
        copy = deep("qwen2", 6)
        assert gone(remove(copy, tokens, ratio, method(distance)), copy) == sorted(ranked[:n])
    state = remove(decoder, tokens, 0.4, protect_first=1, protect_last=2, counts="decoder")
    assert gone(state, decoder) == sorted(
        [index for index in ranked if index in (1, 2, 3)][:2]
    )  # 2.4 blocks of six


@torch.no_grad()
@pytest.mark.parametrize("counts", ["units", "decoder", "model"])
def test_a_block_costs_all_that_it_has(counts: str, tokens: Tensor) -> None:
    """Of four equal blocks a share of the parameters that is nearest to one block, or two, takes those."""
    decoder = deep("opt")
    whole = sum(p.numel() for p in decoder.blocks[0].parameters())
    of_model = whole / decoder.n_parameters()
    one = {"units": 0.25, "decoder": 0.25, "model": of_model}[counts]
    for share, n in ((0.45 * one, 0), (0.55 * one, 1), (one, 1), (1.45 * one, 1), (1.55 * one, 2)):
        copy = deep("opt")
        assert len(gone(remove(copy, tokens, share, counts=counts), copy)) == n, share


def test_nine_blocks_of_llama_2_7b_are_27_percent() -> None:
    config = {
        "num_hidden_layers": 1, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 32,
        "intermediate_size": 11008, "vocab_size": 32000,
    }  # fmt: skip
    with torch.device("meta"):
        settings = AutoConfig.for_model("llama", tie_word_embeddings=False, **config)
        model = AutoModelForCausalLM.from_config(settings)
    decoder = Decoder(model, family_named("llama"), "Llama-2-7B", 4096)
    linear = sum(member.parameters for _, member in trace_units(decoder, 0, ALONE)[BLOCKS])
    norms = sum(parameter.numel() for parameter in decoder.other_parameters(0).values())
    dense = decoder.n_parameters() + 31 * (linear + norms)
    assert (linear + norms, dense) == (202_383_360, 6_738_415_616)
    assert 9 * (linear + norms) / dense == pytest.approx(0.270, abs=5e-4)


@torch.no_grad()
def test_shots_look_anew_and_resume_with_the_same_bits(tokens: Tensor, tmp_path: Path) -> None:
    pattern = Units(kinds=ALONE, counts="units")
    fixed: dict[str, Any] = {
        "pattern": pattern,
        "seed": 0,
        "batch_size": 2,
        "allocation": "global",
        "propagation": "dense",
    }
    seen: list[State] = []
    decoder = deep("gpt_neox")
    state = prune(
        decoder, method(step=0.25), tokens, [0.25, 0.5, 0.75], **fixed,
        on_step=lambda report, state: seen.append(state.clone()),
    )  # fmt: skip
    assert [len(gone(one, decoder)) for one in seen] == [1, 2, 3]
    save_state(seen[0], tmp_path / "one.safetensors")
    resumed = prune(
        deep("gpt_neox"), method(step=0.25), tokens, [0.25, 0.5, 0.75], **fixed,
        start=open_state(tmp_path / "one.safetensors"), start_step=1,
    )  # fmt: skip
    assert state_digest(resumed) == state_digest(state)


@torch.no_grad()
def test_stored_influences_choose_the_same_blocks(tokens: Tensor, tmp_path: Path) -> None:
    decoder = deep("gemma3")

    def keep(index: int, values: Any) -> None:
        save_block(decoder, index, values, (NEED,), block_path(tmp_path, index))

    collect_statistics(decoder, tokens, (NEED,), 2, keep)
    stored = StatisticsFolder(tmp_path, (NEED,))
    first, *_ = decoder.sites(2)
    assert stored.block(decoder, 2)[first.name][NEED] == influences(decoder, tokens)[2]
    digests = {
        state_digest(
            prune(
                deep("gemma3"), method(), tokens if source is None else None, [0.5], seed=0, batch_size=2,
                pattern=Units(kinds=ALONE, counts="units"), allocation="global", propagation="dense", stored=source,
            )
        )
        for source in (None, stored)
    }  # fmt: skip
    assert len(digests) == 1


def test_random_blocks_are_the_floor(tokens: Tensor) -> None:
    decoder = deep("llama", 6)
    assert len(gone(remove(decoder, tokens, 0.5, Random("random", 2, None)), decoder)) == 3


@pytest.mark.parametrize(
    ("family", "config"),
    [("opt", {"do_layer_norm_before": False}), ("bloom", {"apply_residual_connection_post_layernorm": True})],
)
def test_models_whose_blocks_do_more_than_add_are_refused(
    family: str, config: dict[str, Any], tokens: Tensor
) -> None:
    decoder = random_decoder(family, **config)
    with pytest.raises(ModelError, match="block 0 changes what passes through it"):
        remove(decoder, tokens)
    assert not any(site.linear._forward_hooks for site in decoder.sites())


def test_scores_divided_by_the_blocks_number_are_not_compacted(tokens: Tensor) -> None:
    decoder = deep("gpt2", scale_attn_by_inverse_layer_idx=True)
    state = remove(decoder, tokens)
    with pytest.raises(ModelError, match="scale_attn_by_inverse_layer_idx"):
        compact(decoder, state)
    assert len(decoder.blocks) == 4


def test_what_does_not_go_with_blocks_is_refused(tokens: Tensor) -> None:
    decoder = random_decoder("llama")
    with pytest.raises(ConfigError, match="or blocks alone"):
        build_pattern("units", kinds=["blocks", "heads"])
    with pytest.raises(ConfigError, match=r"none with sparsity\.kinds="):
        build_pattern("units", kinds=["blocks"], compensation="bias")
    with pytest.raises(ConfigError, match="of what method=flap can decide about: neurons, heads"):
        remove(decoder, tokens, who=FLAP("flap", 1, None, "WIFV", 1.0))
    with pytest.raises(ConfigError, match="of what method=shortgpt can decide about: blocks"):
        remove(decoder, tokens, kinds=("neurons",))
    with pytest.raises(ConfigError, match=r"global with sparsity.kinds=\[blocks\]"):
        prune(decoder, method(), tokens, [0.5], pattern=Units(kinds=ALONE), seed=0, batch_size=2, allocation="uniform",
              propagation="dense")  # fmt: skip
