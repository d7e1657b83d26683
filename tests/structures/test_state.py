"""States: bits survive the disk, damage is named, the wrong model is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from prunelab.errors import ModelError, StoreError
from prunelab.evaluation.integrity import check
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.sparsity.mask import Elementwise, Structured, full
from prunelab.structures.state import (
    Overlay,
    SiteState,
    State,
    apply_state,
    open_state,
    read_state,
    save_state,
    state_digest,
)


def masked_state(decoder: Decoder) -> State:
    masks = {site.name: full(site.linear.weight, site.linear.bias) for site in decoder.sites()}
    first = decoder.sites()[0]
    mask = masks[first.name]
    rows = mask.keep_rows.clone()
    rows[1] = False
    masks[first.name] = Structured(rows, mask.keep_columns, None if mask.keep_bias is None else False)
    return read_state(decoder, masks)


def test_disk_round_trip_keeps_every_bit(decoder: Decoder, tmp_path: Path) -> None:
    state = masked_state(decoder)
    path = tmp_path / "deep" / "state.safetensors"
    digest = save_state(state, path)
    stored = open_state(path)
    assert (stored.model, stored.names) == (state.model, state.names)
    assert digest == state_digest(state) == state_digest(stored) == state_digest(stored.load())
    for name, site in stored.sites():
        original = state.site(name)
        assert torch.equal(site.weight, original.weight)
        assert (site.bias is None) == (original.bias is None)
        assert torch.equal(site.mask.keep(), original.mask.keep())
        assert site.mask.keep_bias == original.mask.keep_bias
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    save_state(state, tmp_path / "twin")
    assert (tmp_path / "twin").read_bytes() == path.read_bytes()


def test_trained_norms_travel_with_the_layers(decoder: Decoder, family_name: str, tmp_path: Path) -> None:
    masks = {site.name: full(site.linear.weight, site.linear.bias) for site in decoder.sites()}
    name, gain = next(iter(decoder.other_parameters(1).items()))
    plain = state_digest(read_state(decoder, masks))
    with torch.no_grad():
        gain += 1
    state = read_state(decoder, masks, [name])
    digest = save_state(state, tmp_path / "s")
    stored = open_state(tmp_path / "s")
    assert stored.parameter_names == (name,)
    assert torch.equal(stored.parameter(name), gain)
    assert (
        plain != digest == state_digest(state) == state_digest(stored) == state_digest(stored.load().clone())
    )
    fresh = random_decoder(family_name)
    apply_state(fresh, stored, 0)
    assert not torch.equal(fresh.other_parameters()[name], gain)
    with pytest.raises(ModelError, match=f"{name} is not the state's"):
        check(fresh, stored)
    apply_state(fresh, stored, 1)
    assert torch.equal(fresh.other_parameters()[name], gain)
    check(fresh, stored)
    both = Overlay((stored, State(state.model, {}, {name: gain + 1})))
    assert torch.equal(both.parameter(name), gain + 1)
    with pytest.raises(StoreError, match=f"no parameter 'nowhere'; it has {name}"):
        stored.parameter("nowhere")
    other = State(state.model, state.items, {"model.elsewhere.gain": gain})
    with pytest.raises(ModelError, match=r"model\.elsewhere\.gain, which .* has not"):
        apply_state(fresh, other)


def test_a_state_of_version_1_is_read(tmp_path: Path) -> None:
    state = masked_state(random_decoder("llama"))
    save_state(state, tmp_path / "s")
    with safe_open(tmp_path / "s", framework="pt") as file:
        header = json.loads(file.metadata()["prunelab.state"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    header["version"] = 1
    del header["parameters"]
    save_file(tensors, tmp_path / "old", metadata={"prunelab.state": json.dumps(header)})
    assert state_digest(open_state(tmp_path / "old")) == state_digest(state)


def test_names_keep_their_order(tmp_path: Path) -> None:
    decoder = random_decoder("llama", num_hidden_layers=11)
    save_state(masked_state(decoder), tmp_path / "s")
    assert open_state(tmp_path / "s").names == tuple(site.name for site in decoder.sites())


def test_elementwise_masks_and_half_precision_round_trip(tmp_path: Path) -> None:
    keep = torch.tensor([[True, False], [False, True]])
    items = {
        "a": SiteState(torch.ones(2, 2).bfloat16(), None, Elementwise(keep)),
        "b": SiteState(torch.ones(2, 2), torch.ones(2), Elementwise(keep, torch.tensor([True, False]))),
    }
    save_state(State("toy", items), tmp_path / "s")
    stored = open_state(tmp_path / "s")
    assert stored.site("a").weight.dtype == torch.bfloat16
    assert stored.site("a").mask.removed == 2
    assert stored.site("b").mask.removed == 3


def test_apply_puts_one_block_or_all(tmp_path: Path) -> None:
    pruned, decoder = random_decoder("opt", seed=1), random_decoder("opt", seed=0)
    save_state(masked_state(pruned), tmp_path / "s")
    state = open_state(tmp_path / "s")
    before = decoder.sites(0)[0].linear.weight.clone()
    apply_state(decoder, state, 1)
    assert torch.equal(decoder.sites(0)[0].linear.weight, before)
    assert torch.equal(decoder.sites(1)[2].linear.bias, pruned.sites(1)[2].linear.bias)
    apply_state(decoder, state)
    for ours, theirs in zip(decoder.sites(), pruned.sites(), strict=True):
        assert torch.equal(ours.linear.weight, theirs.linear.weight)


def test_clone_shares_nothing() -> None:
    decoder = random_decoder("opt")
    state = masked_state(decoder)
    copy, name = state.clone(), state.names[0]
    decoder.sites()[0].linear.weight.zero_()
    assert state.site(name).weight.abs().sum() == 0
    assert copy.site(name).weight.abs().sum() > 0


@pytest.mark.parametrize(
    ("family", "message"), [("opt", "no layer"), ("qwen2", "has bias"), ("llama", "in the state of")]
)
def test_state_of_another_model_is_refused(family: str, message: str) -> None:
    state = masked_state(random_decoder("llama", num_hidden_layers=1))
    other = random_decoder(family, hidden_size=48) if family == "llama" else random_decoder(family)
    with pytest.raises(ModelError, match=message):
        apply_state(other, state)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(masked_state(random_decoder("llama")), path)
    good = path.read_bytes()
    for broken in (b"", good[:5], good[: len(good) // 2], b"x" * 100):
        path.write_bytes(broken)
        with pytest.raises(StoreError, match=r"state\.safetensors.*wrote it again"):
            open_state(path)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(StoreError, match=r"state\.safetensors.*does not match its digest"):
        open_state(path).load()
    with pytest.raises(StoreError, match=r"missing\.safetensors"):
        open_state(tmp_path / "missing.safetensors")


def test_other_files_and_missing_layers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(StoreError, match=r"another kind of file; needed is prunelab.state version 2"):
        open_state(path)
    state = masked_state(random_decoder("llama"))
    save_state(state, path)
    for reader in (state, open_state(path)):
        with pytest.raises(StoreError, match="no layer 'nowhere'"):
            reader.site("nowhere")


def test_a_failed_write_leaves_the_old_file_and_says_so(tmp_path: Path) -> None:
    state = masked_state(random_decoder("llama"))
    (tmp_path / "file").write_text("old")
    with pytest.raises(StoreError, match=r"inside cannot be written"):
        save_state(state, tmp_path / "file" / "inside")
    assert (tmp_path / "file").read_text() == "old"
