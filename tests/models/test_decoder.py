"""Names of blocks and linear maps, families, and the random decoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from prunelab.errors import ModelError
from prunelab.family import family_named, family_of, load_families, read_family_file
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.models.stream import advance, open_stream


def test_sites_are_all_linear_maps_of_the_blocks(decoder: Decoder) -> None:
    found = {
        f"{decoder.family.blocks}.{index}.{path}"
        for index, block in enumerate(decoder.blocks)
        for path, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }
    sites = decoder.sites()
    assert {site.name for site in sites} == found
    assert len(sites) == len(found)
    for site in sites:
        assert decoder.model.get_submodule(site.name) is site.linear
        assert decoder.site(site.name).linear is site.linear
        assert site.name == f"{decoder.family.blocks}.{site.block}.{site.path}"
    assert [site.name for site in decoder.sites(1)] == [site.name for site in sites if site.block == 1]


def test_shared_means_same_input_and_order_is_forward(decoder: Decoder, tokens: Tensor) -> None:
    seen: dict[str, Tensor] = {}
    handles = [
        site.linear.register_forward_pre_hook(lambda _, args, name=site.name: seen.update({name: args[0]}))
        for site in decoder.sites(0)
    ]
    advance(decoder, 0, open_stream(decoder, tokens, 5))
    for handle in handles:
        handle.remove()
    groups: dict[int, Tensor] = {}
    for site in decoder.sites(0):
        assert seen[site.name] is groups.setdefault(site.shared, seen[site.name])
    assert len({id(value) for value in groups.values()}) == len(groups)
    # forward order of the groups (inside a group the order is the table's)
    order = {site.name: site.shared for site in decoder.sites(0)}
    called = [order[name] for name in seen]
    assert called == sorted(called)


def test_roles_name_sites(decoder: Decoder) -> None:
    paths = {site.path for site in decoder.sites(0)}
    family = decoder.family
    assert family.attention is not None
    assert family.mlp is not None
    assert paths == {*family.attention, *family.mlp[0], family.mlp[1]}


def test_decoder_is_frozen(decoder: Decoder) -> None:
    assert not decoder.model.training
    assert not any(parameter.requires_grad for parameter in decoder.model.parameters())
    assert decoder.device.type == "cpu"
    assert decoder.dtype == torch.float32


def test_tied_parameters_count_once() -> None:
    tied, untied = (random_decoder("llama", tie_word_embeddings=value) for value in (True, False))
    assert untied.n_parameters() - tied.n_parameters() == 64 * 24


def test_unknown_site() -> None:
    decoder = random_decoder("llama")
    with pytest.raises(ModelError, match=r"Did you mean 'model.layers.1.mlp.up_proj'"):
        decoder.site("model.layers.1.mlp.up_prj")
    with pytest.raises(ModelError, match="no linear site"):
        decoder.site("model.layers.7.mlp.up_proj")


def test_a_block_of_another_shape() -> None:
    decoder = random_decoder("llama")
    decoder.blocks[1].mlp.up_proj = nn.Identity()
    with pytest.raises(ModelError, match=r"model.layers.1.mlp.up_proj is Identity"):
        decoder.sites()


def test_unknown_family() -> None:
    with pytest.raises(
        ModelError,
        match=r"gemma3_text, gpt2, gpt_neox, llama, mistral, nemotron-nas, opt, phi3, qwen2, qwen3.*Did you mean 'llama'",
    ):
        family_of("llama4")
    with pytest.raises(ModelError, match="Did you mean 'mistral'"):
        family_named("mistrall")


def test_model_types_are_unique() -> None:
    kinds = [kind for family in load_families() for kind in family.model_types]
    assert len(kinds) == len(set(kinds))


OWN: dict[str, Any] = {
    "model_types": ["own"],
    "blocks": "model.layers",
    "inputs": [["qkv"], ["out"], ["fc"], ["proj"]],
    "mlp": {"writers": ["fc"], "reader": "proj"},
    "attention": {"query": "qkv", "key": "qkv", "value": "qkv", "output": "out", "layout": "stacked"},
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention": OWN["attention"] | {"layout": "stakced"}}, r"layout='stakced'; allowed are separate, stacked"),
        ({"attention": OWN["attention"] | {"layout": "separate"}}, r"separate is about 3 map.* name 1"),
        ({"attention": OWN["attention"] | {"key": "fc"}}, r"stacked is about 1 map.* name 2"),
        ({"attention": OWN["attention"] | {"layuot": "x"}}, r"'attention\.layuot' is no field.*Did you mean 'layout'"),
        ({"mlp": {"writers": ["fc", "out", "qkv"], "reader": "proj"}}, r"writers are 3 maps; allowed: gate and up, or one"),
        ({"mlp": {"writers": ["fc", "out"], "reader": "proj", "halves": True}}, r"writers are 2 maps.*halves is true"),
        ({"mlp": {"writers": ["fc"], "reader": "proj", "halves": "yes"}}, r"mlp\.halves='yes'; allowed are true and false"),
        ({"transposed": ["fcc"]}, r"fcc of mlp, attention or transposed is not among the inputs"),
        ({"transposed": "fc"}, r"'fc' must be a list of names"),
        ({"renamed": ["head"]}, r"families\.yaml for an example"),
        ({"halves": True}, r"'halves' is no field"),
    ],
)  # fmt: skip
def test_mistakes_of_a_family_file(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(OWN))
    assert read_family_file(file).layout == "stacked"
    file.write_text(yaml.safe_dump(OWN | changes))
    with pytest.raises(ModelError, match=said):
        read_family_file(file)


def test_random_decoder_depends_on_the_seed_only(family_name: str) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = random_decoder(family_name, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = random_decoder(family_name, seed=3), random_decoder(family_name, seed=4)
    pairs = zip(first.model.parameters(), again.model.parameters(), other.model.parameters(), strict=True)
    for a, b, c in pairs:
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_random_biases_and_norms_are_not_trivial(decoder: Decoder) -> None:
    for parameter in decoder.model.parameters():
        assert parameter.unique().numel() > 1
