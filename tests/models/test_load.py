"""Loading equals from_pretrained, holds one copy, and names what is wrong with a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from prunelab.errors import ModelError
from prunelab.models.load import (
    checkpoint_folder,
    load_decoder,
    load_tokenizer,
    open_weights,
    weights_digest,
)
from prunelab.models.random import random_decoder
from prunelab.models.transposed import is_transposed


def spec_of(folder: Path | str, **changes: Any) -> dict[str, Any]:
    return {
        "name": "test",
        "source": "local",
        "id": str(folder),
        "revision": None,
        "digest": None,
        "dtype": "float32",
        "max_len": None,
        "trust_remote_code": False,
        **changes,
    }


def saved(folder: Path, family: str, shard: str | None = None, **config: Any) -> dict[str, Any]:
    """A random model of ``family`` saved by transformers, and its spec."""
    size = {"max_shard_size": shard} if shard else {}
    random_decoder(family, **config).model.save_pretrained(folder, **size)
    return spec_of(folder)


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shard", [None, "4KB"])
def test_logits_equal_from_pretrained(
    family_name: str, tmp_path: Path, tokens: Tensor, shard: str | None, dtype: str
) -> None:
    spec = {**saved(tmp_path, family_name, shard), "dtype": dtype}
    assert (tmp_path / "model.safetensors.index.json").is_file() == (shard is not None)
    decoder = load_decoder(spec)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        found, expected = decoder.model(tokens).logits, reference(tokens).logits
    if decoder.family.transposed:  # held the other way round: other sums, the same up to rounding
        torch.testing.assert_close(found, expected)
    else:
        assert torch.equal(found, expected)
    buffers = dict(reference.named_buffers())
    assert buffers.keys() == dict(decoder.model.named_buffers()).keys()
    for name, buffer in decoder.model.named_buffers():
        assert buffer.dtype == buffers[name].dtype
        assert torch.equal(buffer, buffers[name])
    for name, parameter in decoder.model.named_parameters():
        stored = reference.get_parameter(name)
        assert torch.equal(parameter, stored.t() if is_transposed(decoder.family, name) else stored)
        assert not parameter.requires_grad
        assert not parameter.is_meta
    assert not decoder.model.training
    assert decoder.max_len == 64
    assert decoder.name == "test"
    assert decoder.family.name == family_name


@pytest.mark.parametrize("tie", [True, False])
def test_tied_weights_are_one_tensor_and_nothing_is_held_twice(
    family_name: str, tmp_path: Path, tie: bool
) -> None:
    decoder = load_decoder(saved(tmp_path, family_name, tie_word_embeddings=tie))
    model = decoder.model
    same = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert same == tie
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    assert len(storages) == len(list(model.parameters()))
    # each storage holds its parameter and nothing more: none is a view of a mapped file
    assert sum(storages.values()) == 4 * decoder.n_parameters()


def test_weights_are_read_one_by_one(tmp_path: Path) -> None:
    spec = {**saved(tmp_path, "opt", "4KB"), "dtype": "bfloat16"}
    decoder, weights = load_decoder(spec), open_weights(spec)
    for site in decoder.sites():
        assert torch.equal(weights.read(f"{site.name}.weight"), site.linear.weight)
        assert torch.equal(weights.read(f"{site.name}.bias"), site.linear.bias)
    assert f"{decoder.sites()[0].name}.weight" in weights.names
    with pytest.raises(ModelError, match=r"Did you mean 'model\.decoder\.layers\.0\.fc1\.weight'"):
        weights.read("model.decoder.layers.0.fc1.wight")


def test_weights_outlive_their_file(tmp_path: Path, tokens: Tensor) -> None:
    decoder = load_decoder(saved(tmp_path, "llama"))
    before = decoder.model(tokens).logits
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    assert torch.equal(decoder.model(tokens).logits, before)


def test_checkpoint_of_the_bare_decoder(tmp_path: Path, tokens: Tensor) -> None:
    spec = saved(tmp_path, "opt")
    expected = load_decoder(spec).model(tokens).logits
    change(tmp_path, lambda t: [t.update({k.removeprefix("model."): t.pop(k)}) for k in list(t)])
    assert torch.equal(load_decoder(spec).model(tokens).logits, expected)


def test_only_the_tied_alias_is_stored(tmp_path: Path, tokens: Tensor) -> None:
    spec = saved(tmp_path, "qwen2")
    expected = load_decoder(spec).model(tokens).logits
    change(tmp_path, lambda t: t.__setitem__("lm_head.weight", t.pop("model.embed_tokens.weight")))
    decoder = load_decoder(spec)
    assert torch.equal(decoder.model(tokens).logits, expected)
    assert decoder.model.lm_head.weight is decoder.model.model.embed_tokens.weight


def test_tied_weights_stored_twice(tmp_path: Path) -> None:
    spec = saved(tmp_path, "qwen2")
    change(tmp_path, lambda t: t.__setitem__("lm_head.weight", t["model.embed_tokens.weight"].clone()))
    assert load_decoder(spec).model.lm_head.weight.shape == (64, 24)
    change(tmp_path, lambda t: t.__setitem__("lm_head.weight", t["lm_head.weight"] + 1))
    with pytest.raises(ModelError, match=r"ties 'lm_head\.weight' to 'model\.embed_tokens\.weight'"):
        load_decoder(spec)


def test_old_rotary_tables_are_ignored(tmp_path: Path) -> None:
    spec = saved(tmp_path, "llama")
    key = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change(tmp_path, lambda t: t.__setitem__(key, torch.zeros(3)))
    load_decoder(spec)


def test_truncated(tmp_path: Path) -> None:
    spec = saved(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ModelError, match=r"model\.safetensors is no complete safetensors file"):
        load_decoder(spec)


def test_missing_tensor(tmp_path: Path) -> None:
    spec = saved(tmp_path, "llama")
    change(tmp_path, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"lacks tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        load_decoder(spec)


def test_missing_tied_tensor(tmp_path: Path) -> None:
    spec = saved(tmp_path, "qwen2")
    change(tmp_path, lambda t: t.pop("model.embed_tokens.weight"))
    with pytest.raises(ModelError, match=r"lacks tensor 'model\.embed_tokens\.weight'"):
        load_decoder(spec)


def test_unexpected_tensor(tmp_path: Path) -> None:
    spec = saved(tmp_path, "llama")
    change(tmp_path, lambda t: t.__setitem__("model.layers.2.extra", torch.zeros(1)))
    with pytest.raises(ModelError, match=r"holds 1 tensors .* first 'model\.layers\.2\.extra'"):
        load_decoder(spec)


def test_wrong_shape(tmp_path: Path) -> None:
    spec = saved(tmp_path, "llama")
    change_config(tmp_path, intermediate_size=48)
    with pytest.raises(ModelError, match=r"gate_proj\.weight' has shape \(40, 24\).*asks for \(48, 24\)"):
        load_decoder(spec)


def test_missing_config(tmp_path: Path) -> None:
    spec = saved(tmp_path, "llama")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        load_decoder(spec)


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_garbled_config(tmp_path: Path, content: str) -> None:
    spec = saved(tmp_path, "llama")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_decoder(spec)


def test_config_that_cannot_be_built(tmp_path: Path) -> None:
    spec = saved(tmp_path, "llama")
    change_config(tmp_path, hidden_act="no_such_function")
    with pytest.raises(ModelError, match=r"config\.json does not describe .*no_such_function"):
        load_decoder(spec)


def test_unknown_model_type(tmp_path: Path) -> None:
    spec = saved(tmp_path, "llama")
    change_config(tmp_path, model_type="lama")
    with pytest.raises(
        ModelError, match=r"model_type='lama' .* llama, mistral, nemotron-nas, opt.*Did you mean 'llama'"
    ):
        load_decoder(spec)


def test_quantised_checkpoint(tmp_path: Path) -> None:
    spec = saved(tmp_path, "llama")
    change_config(tmp_path, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ModelError, match="quantised"):
        load_decoder(spec)


def test_pickle_is_never_loaded(tmp_path: Path) -> None:
    spec = saved(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only as pickle \(pytorch_model\.bin\).*save_pretrained"):
        load_decoder(spec)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        load_decoder(spec)


@pytest.mark.parametrize(
    "file", ["/etc/model.safetensors", "../model.safetensors", "a/b.safetensors", "x.bin", 3]
)
def test_an_index_stays_in_its_folder(tmp_path: Path, file: object) -> None:
    spec = saved(tmp_path, "llama", "4KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = file
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"tensor 'model\.norm\.weight' is in .*; allowed is"):
        load_decoder(spec)


def test_missing_shard_and_broken_promise(tmp_path: Path) -> None:
    spec = saved(tmp_path, "llama", "4KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    index.write_text(
        json.dumps({"weight_map": {**content["weight_map"], "ghost": "model-00001.safetensors"}})
    )
    with pytest.raises(ModelError, match=r"model-00001\.safetensors is missing"):
        load_decoder(spec)
    shard = content["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps({"weight_map": {**content["weight_map"], "ghost": shard}}))
    with pytest.raises(ModelError, match="lacks tensor 'ghost'"):
        load_decoder(spec)
    index.write_text("{}")
    with pytest.raises(ModelError, match="no weight_map"):
        load_decoder(spec)


def test_digest(tmp_path: Path) -> None:
    spec = saved(tmp_path, "llama")
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert weights_digest(tmp_path) == digest
    load_decoder({**spec, "digest": digest})
    with pytest.raises(ModelError, match=f"have sha256 {digest}, the config expects {'0' * 64}"):
        load_decoder({**spec, "digest": "0" * 64})


def test_digest_of_shards_is_that_of_their_listing(tmp_path: Path) -> None:
    spec = saved(tmp_path, "llama", "4KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    listing = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    assert len(files) > 1
    load_decoder({**spec, "digest": hashlib.sha256(listing.encode()).hexdigest()})


def test_max_len(tmp_path: Path) -> None:
    spec = saved(tmp_path, "llama")
    assert load_decoder({**spec, "max_len": 32}).max_len == 32
    with pytest.raises(ModelError, match="max_len=65; allowed is 1 to 64"):
        load_decoder({**spec, "max_len": 65})


def test_unknown_values(tmp_path: Path) -> None:
    spec = saved(tmp_path, "llama")
    with pytest.raises(ModelError, match=r"float32.*Did you mean 'bfloat16'"):
        load_decoder({**spec, "dtype": "bfloat61"})
    with pytest.raises(ModelError, match=r"embedded, hub, local, random, wheel.*Did you mean 'local'"):
        load_decoder({**spec, "source": "locale"})
    with pytest.raises(ModelError, match="Did you mean 'llama'"):
        load_decoder({**spec, "source": "embedded", "id": "lama"})
    with pytest.raises(ModelError, match="absolute"):
        load_decoder({**spec, "id": "some/folder"})
    with pytest.raises(ModelError, match="no such folder"):
        load_decoder({**spec, "id": str(tmp_path / "none")})


def test_random_source(family_name: str, tokens: Tensor) -> None:
    spec = spec_of(family_name, source="random", dtype="bfloat16", max_len=32)
    decoder = load_decoder(spec)
    assert (decoder.dtype, decoder.max_len, decoder.name) == (torch.bfloat16, 32, "test")
    site = decoder.sites()[0]
    assert torch.equal(open_weights(spec).read(f"{site.name}.weight"), site.linear.weight)
    with pytest.raises(ModelError, match="no files"):
        checkpoint_folder(spec)
    with pytest.raises(ModelError, match="no tokenizer"):
        load_tokenizer(spec)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_embedded(name: str) -> None:
    spec = spec_of(name, source="embedded")
    decoder, tokenizer = load_decoder(spec), load_tokenizer(spec)
    ids = tokenizer("It is a truth universally acknowledged", return_tensors="pt").input_ids
    reference = AutoModelForCausalLM.from_pretrained(checkpoint_folder(spec)).eval()
    with torch.no_grad():
        assert torch.equal(decoder.model(ids).logits, reference(ids).logits)
    assert len(tokenizer) == decoder.model.config.vocab_size


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer"):
        load_tokenizer(saved(tmp_path, "llama"))


def test_hub_needs_a_commit() -> None:
    for revision in (None, "main", "01c7f73"):
        with pytest.raises(ModelError, match="full commit hash"):
            load_decoder(spec_of("some/model", source="hub", revision=revision))


def hub_spec() -> dict[str, Any]:
    return spec_of("some/model", source="hub", revision="a" * 40)


def test_hub_snapshot_in_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, "llama")
    asked: list[dict] = []

    def snapshot(**ask: Any) -> str:
        asked.append(ask)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    load_decoder(hub_spec())
    assert [ask["local_files_only"] for ask in asked] == [True]
    assert asked[0]["revision"] == "a" * 40
    assert not any(pattern.endswith((".bin", ".pt")) for pattern in asked[0]["allow_patterns"])


def test_hub_snapshot_that_was_cut_off_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "whole", "llama")
    (tmp_path / "part").mkdir()

    def snapshot(local_files_only: bool = False, **ask: Any) -> str:
        return str(tmp_path / ("part" if local_files_only else "whole"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    load_decoder(hub_spec())


def test_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the real client, on an empty cache, told not to use the network
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        load_decoder(hub_spec())
    for part in ("some/model", "a" * 40, "hf download some/model", "HF_HOME", "model=embedded_llama"):
        assert part in str(caught.value)
