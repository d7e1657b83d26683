"""Models without single rows and columns on disk: plain transformers and prunelab load them, and lies are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from without_prunelab import run_without_prunelab

from prunelab.errors import ModelError
from prunelab.evaluation.perplexity import perplexity
from prunelab.family import load_families
from prunelab.models.decoder import Decoder
from prunelab.models.load import load_decoder
from prunelab.models.narrow import CompactLinear
from prunelab.models.random import random_decoder
from prunelab.models.shape import heads_of, units_of
from prunelab.sparsity import mask as masking
from prunelab.sparsity.mask import Mask, Structured
from prunelab.structures.checkpoint import save_checkpoint, save_form
from prunelab.structures.state import State, read_state
from prunelab.structures.surgery import compact, compact_parameters, is_compact

Remove = Callable[..., State]
FAMILIES = [family.name for family in load_families()]
TYPICAL = ("llama", "gpt2", "bloom")
ORIGIN = {"id": "lab/dense", "revision": "0" * 40}
ALIBI = {
    "alibi": True,
    "new_decoder_architecture": False,
    "multi_query": False,
    "num_kv_heads": 4,
    "bias": True,
}


def spec_of(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "small", "source": "local", "id": str(folder), "revision": None, "digest": None, "dtype": "float32",
        "max_len": None, "trust_remote_code": False, **changes,
    }  # fmt: skip


def logits(decoder: Decoder, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return decoder.model(input_ids=tokens, use_cache=False).logits


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = config_of(folder)
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def remove_lines(decoder: Decoder, seed: int = 0, biases: bool = False) -> State:
    """A quarter of all rows and columns of every map go, in block 1 also every hidden unit's column; with ``biases`` those
    of the first map too."""
    generator = torch.Generator().manual_seed(seed)
    masks: dict[str, Mask] = {}
    for site in decoder.sites():
        keep = [torch.rand(n, generator=generator) > 0.25 for n in site.linear.weight.shape]
        if site.block == 1 and site.path == decoder.family.mlp[1]:
            keep[1][:] = False
        has = None if site.linear.bias is None else not (biases and site.shared == 0)
        masks[site.name] = Structured(*keep, has)
        masking.apply(masks[site.name], site.linear.weight, site.linear.bias)
    return read_state(decoder, masks)


def generated(model: Any, start: Tensor, cache: bool = True) -> list[list[int]]:
    ask = {
        "attention_mask": torch.ones_like(start),
        "max_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
    }
    return model.generate(start, eos_token_id=None, use_cache=cache, **ask).tolist()


def made(family: str) -> Decoder:
    return random_decoder("falcon", **ALIBI) if family == "falcon-alibi" else random_decoder(family)


def cut(family: str, tokens: Tensor) -> tuple[Decoder, Tensor, list[list[int]], int]:
    """A compacted decoder; logits and text of the masked one; parameters of the dense one."""
    decoder = made(family)
    dense = decoder.n_parameters()
    state = remove_lines(decoder, biases=family in ("opt", "gpt2"))
    before, text, predicted = (
        logits(decoder, tokens),
        generated(decoder.model, tokens),
        compact_parameters(state, decoder),
    )
    compact(decoder, state)
    assert decoder.n_parameters() == predicted
    return decoder, before, text, dense


@pytest.mark.parametrize(
    "families", [TYPICAL, pytest.param([*(f for f in FAMILIES if f not in TYPICAL), "falcon-alibi"], marks=pytest.mark.slow)]
)  # fmt: skip
def test_plain_transformers_and_prunelab_run_what_was_saved(
    families: list[str], tmp_path: Path, tokens: Tensor
) -> None:
    """Logits of the masked model, its text with a cache and without, fewer parameters; and it can be saved once more."""
    start, cases = tokens[:2, :9], {}
    for family in families:
        folder = tmp_path / family
        cases[str(folder)] = decoder, before, text, dense = cut(family, start)
        assert is_compact(decoder)
        assert decoder.n_parameters() < dense
        save_checkpoint(decoder, folder, ORIGIN)
        (folder / "tokens.json").write_text(json.dumps(start.tolist()))
        loaded = load_decoder(spec_of(folder))
        torch.testing.assert_close(logits(loaded, start), before, rtol=1e-5, atol=1e-5)
        assert torch.equal(logits(loaded, start), logits(decoder, start))
        assert generated(loaded.model, start) == text
        assert loaded.n_parameters() == decoder.n_parameters()
        assert [heads_of(loaded, i) for i in range(2)] == [heads_of(decoder, i) for i in range(2)]
        assert [units_of(loaded, i) for i in range(2)] == [units_of(decoder, i) for i in range(2)]
        assert perplexity(loaded, tokens, 2) == perplexity(decoder, tokens, 2)
        save_checkpoint(loaded, tmp_path / "again", ORIGIN)
        assert config_of(tmp_path / "again") == config_of(folder)
        assert (tmp_path / "again/model.safetensors").read_bytes() == (
            folder / "model.safetensors"
        ).read_bytes()
        with pytest.raises(ModelError, match=r"picks single inputs or outputs.*not walked"):
            loaded.sites()
        for form in ("padded", "decilm"):
            with pytest.raises(
                ModelError, match="pick single inputs or outputs, which only a checkpoint of form own"
            ):
                save_form(loaded, tmp_path / "no", ORIGIN, form)
    found = run_without_prunelab(cases, tmp_path)
    for folder, (decoder, before, text, _) in cases.items():
        got = found[folder]
        torch.testing.assert_close(torch.tensor(got["logits"]), before, rtol=1e-5, atol=1e-5)
        assert got["texts"] == [text, text]
        assert got["n"] == decoder.n_parameters()
        assert got["same"]
        assert got["class"] == "PrunedForCausalLM"


def test_other_dtypes_leave_the_places_as_they_are(tmp_path: Path, tokens: Tensor) -> None:
    decoder = random_decoder("llama", dtype=torch.bfloat16)
    state = remove_lines(decoder)
    expected = logits(decoder, tokens)
    compact(decoder, state)
    save_checkpoint(decoder, tmp_path, ORIGIN)
    loaded = load_decoder(spec_of(tmp_path, dtype="bfloat16"))
    torch.testing.assert_close(logits(loaded, tokens), expected, rtol=0.05, atol=0.05)
    assert loaded.blocks[0].self_attn.q_proj.inputs.dtype == torch.int64


def test_a_narrow_model_loses_rows_and_columns_too(
    tmp_path: Path, tokens: Tensor, remove_units: Remove
) -> None:
    """Whole units go first, in the blocks' own numbers; then lines of what is left, whose heads no longer fit."""
    decoder = random_decoder("llama")
    compact(decoder, remove_units(decoder, {0: ((1, 2), (1,))}))
    state = remove_lines(decoder, 3)
    expected = logits(decoder, tokens)
    compact(decoder, state)
    save_checkpoint(decoder, tmp_path, ORIGIN)
    assert [block["heads"] for block in config_of(tmp_path)["pruned"]["blocks"]] == [2, 4]
    loaded = load_decoder(spec_of(tmp_path))
    torch.testing.assert_close(logits(loaded, tokens), expected, rtol=1e-5, atol=1e-5)


def test_whole_heads_and_lines_of_the_residual_stream_go_together(
    tmp_path: Path, tokens: Tensor, remove_units: Remove
) -> None:
    """No gather or scatter between layers: only the side of the residual stream picks."""
    decoder = random_decoder("llama")
    state = remove_units(decoder, {0: ((1, 2), (0,))})
    for path, lines in (("self_attn.q_proj", "keep_columns"), ("mlp.down_proj", "keep_rows")):
        mask = state.items[f"model.layers.0.{path}"].mask
        getattr(mask, lines)[[3, 7]] = False
        masking.apply(mask, decoder.site(f"model.layers.0.{path}").linear.weight, None)
    expected = logits(decoder, tokens)
    compact(decoder, state)
    save_checkpoint(decoder, tmp_path, ORIGIN)
    block, other = config_of(tmp_path)["pruned"]["blocks"]
    assert (block["heads"], block["kv_heads"], block["ffn"]) == (2, 1, 38)
    assert block["picked"] == {
        "self_attn.q_proj": {"inputs": 22, "outputs": None},
        "mlp.down_proj": {"inputs": None, "outputs": 22},
    }
    assert "picked" not in other
    torch.testing.assert_close(
        logits(load_decoder(spec_of(tmp_path)), tokens), expected, rtol=1e-5, atol=1e-5
    )


def picked(path: str, **counts: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["pruned"]["blocks"][0]["picked"][path].update(counts)


def of_block(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["pruned"]["blocks"][0].update(values)


QUERY = "self_attn.q_proj"
LIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no mapping": (of_block(picked=[1]), r"blocks\[0\]\.picked=\[1\]; allowed is a mapping of paths"),
    "empty": (of_block(picked={}), r"picked=\{\}; allowed is a mapping of paths, with at least one"),
    "another path": (of_block(picked={"self_attn.q_prj": {}}), r"self_attn\.q_prj.*Did you mean 'self_attn\.q_proj'"),
    "outside": (of_block(picked={"../lm_head": {}}), "allowed is paths among"),
    "a key more": (picked(QUERY, exec="rm"), "a mapping with exactly inputs, outputs"),
    "negative": (picked(QUERY, inputs=-1), r"q_proj\.inputs=-1; allowed is null or an integer from 0 to 24"),
    "huge": (picked(QUERY, outputs=10**18), "allowed is null or an integer from 0 to 24"),
    "a bool": (picked(QUERY, inputs=True), r"inputs=True; allowed is null or an integer"),
    "a float": (picked(QUERY, inputs=5.0), r"inputs=5\.0; allowed is null or an integer"),
    "nothing": (picked(QUERY, inputs=None, outputs=None), "a number for inputs, outputs or both"),
    "another number": (picked(QUERY, inputs=3), r"has shape .*, config\.json asks for"),
    "of a part that is gone": (of_block(heads=0, kv_heads=0), "allowed is paths among mlp.gate_proj"),
    "not picked": (lambda c: c["pruned"]["blocks"][0]["picked"].pop(QUERY), r"has shape .*, config\.json asks for"),
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a Llama without a quarter of its rows and columns."""
    folder = tmp_path_factory.mktemp("picked") / "model"
    decoder = random_decoder("llama")
    compact(decoder, remove_lines(decoder))
    save_checkpoint(decoder, folder, ORIGIN)
    return folder


@pytest.mark.parametrize("lie", LIES)
def test_an_entry_that_cannot_be_is_refused(lie: str, small: Path, tmp_path: Path) -> None:
    change, message = LIES[lie]
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    edit(tmp_path, change)
    with pytest.raises(ModelError, match=message) as caught:
        load_decoder(spec_of(tmp_path, trust_remote_code=True))
    assert str(tmp_path) in str(caught.value)


PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    "past the end": lambda places: places.clone().index_fill(0, torch.tensor([len(places) - 1]), 24),
    "negative": lambda places: places.clone().index_fill(0, torch.tensor([0]), -1),
    "twice": lambda places: places.clone().index_fill(0, torch.tensor([1]), int(places[0])),
    "out of order": lambda places: places.flip(0),
    "of another type": lambda places: places.to(torch.float32),
    "of fewer bits": lambda places: places.to(torch.int32),
}


@pytest.mark.parametrize("lie", PLACES)
@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_places_that_cannot_be_are_refused(lie: str, side: str, small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    name = f"model.layers.0.{QUERY}.{side}"
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[name] = PLACES[lie](tensors[name]).contiguous()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"tensor '{name}' holds no places.*0 to 23"):
        load_decoder(spec_of(tmp_path))


def test_places_of_another_number_are_refused(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    name = f"model.layers.0.{QUERY}.inputs"
    for changed, message in ((tensors[name][:-1].clone(), "has shape"), (None, "lacks tensor")):
        others = {key: value for key, value in tensors.items() if key != name}
        save_file(others | ({} if changed is None else {name: changed}), tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=message):
            load_decoder(spec_of(tmp_path))


def test_turned_layers_are_written_as_the_architecture_does(tokens: Tensor) -> None:
    """GPT-2 stores (in, out): a picking layer does so too, and computes the same either way."""
    weight, x = torch.randn(3, 4), torch.randn(2, 9)
    inputs, outputs = torch.tensor([0, 2, 5, 8]), torch.tensor([1, 2, 6])
    plain = CompactLinear(weight, None, inputs, outputs, 9, 7)
    turned = CompactLinear(weight.t().contiguous(), None, inputs, outputs, 9, 7, turned=True)
    expected = torch.zeros(2, 7)
    expected[:, outputs] = x[:, inputs] @ weight.t()
    for layer in (plain, turned):
        torch.testing.assert_close(layer(x), expected)
        assert (layer.in_features, layer.out_features) == (9, 7)
