"""Narrow models on disk: plain transformers runs them without prunelab, prunelab without their code; lies are refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from without_prunelab import run_without_prunelab

from prunelab.config.files import input_widths
from prunelab.errors import ModelError
from prunelab.family import load_families
from prunelab.models.decoder import Decoder
from prunelab.models.load import load_decoder, restore
from prunelab.models.random import random_decoder
from prunelab.models.shape import heads_of, units_of
from prunelab.structures.checkpoint import origin_of, save_checkpoint
from prunelab.structures.state import State, apply_state, read_state
from prunelab.structures.surgery import compact

Remove = Callable[..., State]
ORIGIN = {"id": "lab/dense", "revision": "0" * 40}
# whose config says the width of a head beside their number; the others divide the hidden size by it
SAYS_HEADS = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3")
FAMILIES = [family.name for family in load_families()]


def spec_of(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "small", "source": "local", "id": str(folder), "revision": None, "digest": None, "dtype": "float32",
        "max_len": None, "trust_remote_code": False, **changes,
    }  # fmt: skip


def deep(family: str, **config: Any) -> Decoder:
    """A random decoder of three blocks; of four query heads and two key-value heads where the family has groups."""
    types = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    layers = {"n_layer" if family in ("gpt2", "bloom") else "num_hidden_layers": 3}
    return random_decoder(family, **layers, **types if family == "gemma3" else {}, **config)


def logits(decoder: Decoder, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return decoder.model(input_ids=tokens, use_cache=False).logits


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def test_plain_transformers_runs_what_was_saved(
    tmp_path: Path, tokens: Tensor, remove_at_random: Remove, with_added_biases: Remove
) -> None:
    """Every family: other widths in every block with and without added biases, and equal widths."""
    expected: dict[str, Decoder] = {}
    for family in FAMILIES:
        for kind in ("ragged", "biased", "uniform"):
            decoder = deep(family)
            state = remove_at_random(decoder, uniform=kind == "uniform")
            if kind == "biased":
                state = with_added_biases(decoder, state)
            compact(decoder, state)
            folder = tmp_path / f"{family}-{kind}"
            save_checkpoint(decoder, folder, ORIGIN)
            (folder / "tokens.json").write_text(json.dumps(tokens[:2, :9].tolist()))
            expected[str(folder)] = decoder
    found = run_without_prunelab(expected, tmp_path)
    for folder, decoder in expected.items():
        got, start = found[folder], tokens[:2, :9]
        ask = {
            "attention_mask": torch.ones_like(start),
            "max_new_tokens": 8,
            "do_sample": False,
            "pad_token_id": 0,
        }
        text = decoder.model.generate(start, eos_token_id=None, **ask)
        torch.testing.assert_close(torch.tensor(got["logits"]), logits(decoder, start), rtol=1e-5, atol=1e-5)
        assert got["texts"] == [text.tolist()] * 2
        assert got["n"] == decoder.n_parameters()
        assert got["same"]
        ordinary = folder.endswith("-uniform") and Path(folder).name.partition("-")[0] in SAYS_HEADS
        assert got["class"] == (type(decoder.model).__name__ if ordinary else "PrunedForCausalLM")
        assert (Path(folder) / "modeling_pruned.py").exists() is not ordinary
        assert ("pruned" in config_of(Path(folder))) is not ordinary


@pytest.mark.parametrize("kind", ["ragged", "biased", "uniform"])
def test_prunelab_loads_what_it_saved_and_runs_no_code_of_it(
    family_name: str, kind: str, tmp_path: Path, tokens: Tensor, remove_at_random: Remove,
    with_added_biases: Remove,
) -> None:  # fmt: skip
    decoder = deep(family_name)
    state = remove_at_random(decoder, uniform=kind == "uniform")
    if kind == "biased":
        state = with_added_biases(decoder, state)
    compact(decoder, state)
    save_checkpoint(decoder, tmp_path, ORIGIN)
    file = tmp_path / "modeling_pruned.py"
    if file.exists():
        file.write_text("raise SystemExit('this file was run')")
        assert config_of(tmp_path)["pruned"]["parent"] == ORIGIN
    trusted = load_decoder(spec_of(tmp_path, trust_remote_code=True))
    spec = spec_of(tmp_path)
    loaded = load_decoder(spec)
    for one in (trusted, loaded):
        assert torch.equal(logits(one, tokens), logits(decoder, tokens))
    assert [heads_of(loaded, i) for i in range(3)] == [heads_of(decoder, i) for i in range(3)]
    assert [units_of(loaded, i) for i in range(3)] == [units_of(decoder, i) for i in range(3)]
    # pruned again: its own biases are no added ones, its own weights are what it comes back to, and it can be saved
    before = logits(loaded, tokens)
    again = remove_at_random(loaded, 3).clone()
    expected = logits(loaded, tokens)
    restore(loaded, spec)
    assert torch.equal(logits(loaded, tokens), before)
    apply_state(loaded, again)
    compact(loaded, again)
    torch.testing.assert_close(logits(loaded, tokens), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelError, match=r"compacted\. Save it and load"):
        restore(loaded, spec)
    save_checkpoint(loaded, tmp_path / "again", ORIGIN)
    assert torch.equal(logits(load_decoder(spec_of(tmp_path / "again")), tokens), logits(loaded, tokens))


def test_a_model_of_the_config_s_widths_is_saved_as_ever(family_name: str, tmp_path: Path) -> None:
    decoder = random_decoder(family_name)
    decoder.model.save_pretrained(tmp_path / "theirs")
    save_checkpoint(decoder, tmp_path / "ours", ORIGIN)
    names = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == names
    for name in names:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


@pytest.mark.parametrize(("family", "inside"), [("opt", "self_attn.q_proj"), ("gpt2", "attn.c_attn")])
def test_a_removed_bias_is_part_of_the_shape(
    family: str, inside: str, tmp_path: Path, tokens: Tensor, remove_units: Remove
) -> None:
    decoder = random_decoder(family)
    state = remove_units(decoder, {0: ((1, 2), ())})
    path = f"{decoder.family.blocks}.0.{inside}"
    object.__setattr__(state.items[path].mask, "keep_bias", False)
    decoder.site(path).linear.bias.data.zero_()
    expected = logits(decoder, tokens)
    compact(decoder, state)
    save_checkpoint(decoder, tmp_path, ORIGIN)
    assert config_of(tmp_path)["pruned"]["blocks"][0]["removed_biases"] == [inside]
    loaded = load_decoder(spec_of(tmp_path))
    assert loaded.site(path).linear.bias is None
    torch.testing.assert_close(logits(loaded, tokens), expected, rtol=1e-5, atol=1e-5)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert theirs.get_submodule(path).bias is None
    torch.testing.assert_close(theirs(input_ids=tokens).logits, expected, rtol=1e-5, atol=1e-5)


def test_one_narrow_block_without_attention_s_change_keeps_what_an_architecture_needs(
    tmp_path: Path, tokens: Tensor, remove_units: Remove
) -> None:
    """Equal FFN widths are said by config.json even where OPT could not say fewer heads."""
    decoder = random_decoder("opt")
    compact(decoder, remove_units(decoder, {0: ((0, 1, 2), ()), 1: ((3, 4, 5), ())}))
    save_checkpoint(decoder, tmp_path, ORIGIN)
    assert config_of(tmp_path)["ffn_dim"] == 37
    assert not (tmp_path / "modeling_pruned.py").exists()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(theirs(input_ids=tokens).logits, logits(decoder, tokens))


def test_widths_that_the_config_s_own_rules_refuse_get_a_file(tmp_path: Path, remove_units: Remove) -> None:
    """Llama's config wants hidden_size (24) to be a multiple of the heads; 5 heads of 6 cannot be said."""
    decoder = random_decoder("llama", num_attention_heads=6, num_key_value_heads=6, head_dim=4)
    compact(decoder, remove_units(decoder, {0: ((), (0,)), 1: ((), (5,))}))
    save_checkpoint(decoder, tmp_path, ORIGIN)
    assert config_of(tmp_path)["num_attention_heads"] == 6
    assert [block["heads"] for block in config_of(tmp_path)["pruned"]["blocks"]] == [5, 5]
    assert load_decoder(spec_of(tmp_path)).n_parameters() == decoder.n_parameters()


def test_widths_for_n_m_are_those_of_the_blocks(tmp_path: Path, remove_units: Remove) -> None:
    decoder = random_decoder("llama")
    compact(decoder, remove_units(decoder, {0: ((0, 1, 2), ()), 1: ((0,), (1,))}))
    save_checkpoint(decoder, tmp_path, ORIGIN)
    assert input_widths(spec_of(tmp_path)) == [12, 24, 37, 39]


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = config_of(folder)
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def block(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["pruned"]["blocks"][1].update(values)


def entry(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["pruned"].update(values)


LIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no mapping": (lambda c: c.update(pruned=[1, 2]), r"pruned=\[1, 2\]; allowed is a mapping"),
    "a word": (lambda c: c.update(pruned="yes"), "pruned='yes'; allowed is a mapping"),
    "another key": (entry(module="os"), "allowed is a mapping"),
    "another version": (entry(version=2), r"pruned\.version=2; allowed is 1"),
    "version true": (entry(version=True), r"pruned\.version=True"),
    "too few": (lambda c: c["pruned"]["blocks"].pop(), r"pruned\.blocks='1 entries'; allowed is a list of 2"),
    "too many": (lambda c: c["pruned"]["blocks"].append(c["pruned"]["blocks"][0]), "3 entries"),
    "no list": (entry(blocks={"0": {}}), r"pruned\.blocks=\{.*a list of 2"),
    "no blocks": (lambda c: c["pruned"].pop("blocks"), r"pruned\.blocks=None"),
    "block lacks a key": (lambda c: c["pruned"]["blocks"][1].pop("ffn"), r"blocks\[1\]=.*exactly heads, kv_heads"),
    "block has a key more": (block(exec="rm"), r"blocks\[1\]=.*exactly heads, kv_heads"),
    "zero beside weights": (block(ffn=0), "holds 3 tensors that config.json has no place for"),
    "zero of one kind of heads": (block(kv_heads=0), r"blocks\[1\]\.kv_heads=0; allowed is an integer from 1 to 2"),
    "zero of all": (block(heads=0, kv_heads=0, ffn=0), r"blocks\[1\]\.ffn=0; .* a block without both is none"),
    "false": (block(ffn=False), r"blocks\[1\]\.ffn=False; allowed is an integer from 1 to 40"),
    "negative": (block(heads=-4), r"blocks\[1\]\.heads=-4; allowed is an integer from 1 to 4"),
    "larger than dense": (block(ffn=41), r"ffn=41; allowed is an integer from 1 to 40"),
    "huge": (block(ffn=10**18), r"ffn=10{18}; allowed"),
    "a float": (block(ffn=37.0), r"ffn=37\.0; allowed is an integer"),
    "not a number": (block(ffn=float("nan")), "ffn=nan; allowed is an integer"),
    "a bool": (block(kv_heads=True), "kv_heads=True; allowed is an integer"),
    "text": (block(heads="2"), "heads='2'; allowed is an integer"),
    "null": (block(heads=None), "heads=None; allowed is an integer"),
    "no multiple": (block(heads=3, kv_heads=2), r"heads=3; allowed is kv_heads \(2\) times a whole number"),
    "more queries than dense": (block(heads=4, kv_heads=1), r"config.json asks for \(6, 24\)"),
    "unknown path": (block(added_biases=["mlp.down_prj"]), r"added_biases='mlp\.down_prj'.*Did you mean 'mlp\.down"),
    "no output map": (block(added_biases=["mlp.up_proj"]), r"added_biases='mlp\.up_proj'; allowed is paths among"),
    "outside": (block(added_biases=["../../lm_head"]), "added_biases='../../lm_head'; allowed"),
    "twice": (block(added_biases=["mlp.down_proj"] * 2), "allowed is each path once"),
    "no list of paths": (block(added_biases="mlp.down_proj"), "allowed is a list of paths"),
    "numbers for paths": (block(removed_biases=[1]), "removed_biases=.*a list of paths"),
    "bias that is not there": (block(removed_biases=["mlp.up_proj"]), "removed_biases='mlp.up_proj'; allowed is an empty"),
    "another width than the weights": (block(ffn=38), r"has shape \(37, 24\), config.json asks for \(38, 24\)"),
    "another number of heads": (block(heads=2, kv_heads=1), r"config.json asks for \(12, 24\)"),
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two blocks, the second with 37 hidden units and all heads."""
    folder = tmp_path_factory.mktemp("small") / "model"
    decoder = random_decoder("llama")
    for site in decoder.sites(1):
        linear = site.linear
        if site.path in ("mlp.gate_proj", "mlp.up_proj"):
            linear.weight = torch.nn.Parameter(linear.weight[:37].clone(), requires_grad=False)
        elif site.path == "mlp.down_proj":
            linear.weight = torch.nn.Parameter(linear.weight[:, :37].clone(), requires_grad=False)
    save_checkpoint(decoder, folder, ORIGIN)
    return folder


@pytest.mark.parametrize("lie", LIES)
def test_an_entry_that_cannot_be_is_refused(lie: str, small: Path, tmp_path: Path) -> None:
    change, message = LIES[lie]
    for file in small.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert load_decoder(spec_of(tmp_path)).n_parameters() > 0
    edit(tmp_path, change)
    with pytest.raises(ModelError, match=message) as caught:
        load_decoder(spec_of(tmp_path, trust_remote_code=True))
    assert str(tmp_path) in str(caught.value)


def test_weights_of_other_widths_than_the_entry_are_refused(small: Path, tmp_path: Path) -> None:
    for file in small.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.bias"] = torch.zeros(24)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no place for, first 'model\.layers\.1\.mlp\.down_proj\.bias'"):
        load_decoder(spec_of(tmp_path))


def test_a_block_without_hidden_units_is_saved(tmp_path: Path, tokens: Tensor, remove_units: Remove) -> None:
    """They went one by one, not as a part: the maps stay, of no width, and what the last one's bias gives."""
    for family in ("llama", "opt", "gpt2"):
        decoder = random_decoder(family)
        width = units_of(decoder, 0)
        state = remove_units(decoder, {0: (range(width), ())})
        if decoder.site(f"{decoder.family.blocks}.0.{decoder.family.mlp[1]}").linear.bias is not None:
            decoder.site(f"{decoder.family.blocks}.0.{decoder.family.mlp[1]}").linear.bias.data += 1
            state = read_state(decoder, {name: one.mask for name, one in state.items.items()})
        expected = logits(decoder, tokens)
        compact(decoder, state)
        save_checkpoint(decoder, tmp_path / family, ORIGIN)
        loaded = load_decoder(spec_of(tmp_path / family))
        assert units_of(loaded, 0) == 0
        assert len(loaded.sites()) == len(decoder.sites())
        torch.testing.assert_close(logits(loaded, tokens), expected, rtol=1e-5, atol=1e-5)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / family, trust_remote_code=True)
        torch.testing.assert_close(theirs(input_ids=tokens).logits, expected, rtol=1e-5, atol=1e-5)


def test_a_class_that_comes_with_its_checkpoint_is_refused(tmp_path: Path, remove_units: Remove) -> None:
    decoder = random_decoder("llama")
    own = type("OwnForCausalLM", (type(decoder.model),), {})
    theirs = copy.copy(decoder.model)
    theirs.__class__ = own
    mine = Decoder(theirs, decoder.family, "mine", 64)
    compact(mine, remove_units(mine, {0: ((1,), ())}))
    with pytest.raises(ModelError, match=r"OwnForCausalLM comes with its checkpoint"):
        save_checkpoint(mine, tmp_path / "no", ORIGIN)


def test_where_it_comes_from_is_no_place_of_this_machine() -> None:
    assert origin_of(spec_of(Path("/home/me/secret"))) == {"id": "small", "revision": None}
    hub = {"source": "hub", "id": "a/b", "name": "b", "revision": "f" * 40}
    assert origin_of(hub) == {"id": "a/b", "revision": "f" * 40}
