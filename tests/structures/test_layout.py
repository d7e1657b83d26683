"""Row numbers of fused maps: against reshapes as models do them, and against the models themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from prunelab.errors import ModelError
from prunelab.family import Layout
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.structures.layout import attention_rows, heads_of, mlp_rows

SHAPES = [(4, 4, 3), (6, 2, 5), (4, 1, 2), (1, 1, 1)]


def split(layout: str, fused: torch.Tensor, n_q: int, n_kv: int, d_h: int) -> tuple[torch.Tensor, ...]:
    """Query (n_q, d_h), key and value (n_kv, d_h) of ``fused``, by the reshapes of the models' own code."""
    if layout == "stacked":  # Phi3Attention, GPT2Attention
        at = n_q * d_h
        return (fused[:at].view(n_q, d_h), fused[at : at + n_kv * d_h].view(n_kv, d_h),
                fused[at + n_kv * d_h :].view(n_kv, d_h))  # fmt: skip
    if layout == "per_head":  # BloomAttention._reshape
        return tuple(fused.view(n_q, 3, d_h)[:, i] for i in range(3))
    grouped = fused.view(n_kv, n_q // n_kv + 2, d_h)  # FalconAttention._split_heads
    return grouped[:, :-2].reshape(n_q, d_h), grouped[:, -2], grouped[:, -1]


@pytest.mark.parametrize(("n_q", "n_kv", "d_h"), SHAPES)
@pytest.mark.parametrize("layout", get_args(Layout))
def test_rows_are_those_of_the_models_reshapes(layout: Any, n_q: int, n_kv: int, d_h: int) -> None:
    if layout == "per_head" and n_q != n_kv:
        with pytest.raises(ValueError, match="per_group"):
            attention_rows(layout, n_q, n_kv, d_h)
        return
    query, key, value = attention_rows(layout, n_q, n_kv, d_h)
    r = n_q // n_kv
    assert query.dtype == key.dtype == value.dtype == torch.int64
    assert (query.shape, key.shape, value.shape) == ((n_kv, r * d_h), (n_kv, d_h), (n_kv, d_h))
    if layout == "separate":
        expected = (torch.arange(n_q * d_h), torch.arange(n_kv * d_h), torch.arange(n_kv * d_h))
    else:
        expected = split(layout, torch.arange((n_q + 2 * n_kv) * d_h), n_q, n_kv, d_h)
        everything = torch.cat([rows.flatten() for rows in (query, key, value)])
        assert torch.equal(everything.sort().values, torch.arange((n_q + 2 * n_kv) * d_h))
    queries, keys, values = (rows.reshape(-1, d_h) for rows in expected)
    for head in range(n_q):
        group, place = head // r, head % r
        assert torch.equal(query[group, place * d_h : (place + 1) * d_h], queries[head])
    assert torch.equal(key, keys)
    assert torch.equal(value, values)


@pytest.mark.parametrize(("n_q", "n_kv", "d_h"), [(4, 3, 2), (2, 4, 2), (0, 1, 1), (2, 0, 1), (2, 2, 0)])
def test_heads_that_do_not_go_together(n_q: int, n_kv: int, d_h: int) -> None:
    with pytest.raises(ValueError, match="divides"):
        attention_rows("stacked", n_q, n_kv, d_h)


def test_gate_and_up_rows() -> None:
    gate, up = mlp_rows(True, 5)
    fused = torch.arange(10)
    assert torch.equal(fused[gate], fused.chunk(2)[0])
    assert torch.equal(fused[up], fused.chunk(2)[1])
    gate, up = mlp_rows(False, 5)
    assert torch.equal(gate, torch.arange(5))
    assert torch.equal(up, torch.arange(5))


FALCONS = {
    "falcon_multi_query": {"new_decoder_architecture": False, "multi_query": True},
    "falcon_heads": {
        "new_decoder_architecture": False,
        "multi_query": False,
        "num_kv_heads": 4,
        "alibi": True,
    },
}


@pytest.fixture(params=FALCONS)
def other_falcon(request: pytest.FixtureRequest) -> Decoder:
    """Falcon's two older orders, which its small config does not have."""
    return random_decoder("falcon", dtype=torch.float64, **FALCONS[request.param])


def reads(
    decoder: Decoder, path: str, changed: str, change: Callable[[Tensor], None], tokens: Tensor
) -> Tensor:
    """What map ``path`` of block 0 reads (b, length, C), once ``change`` has changed what map ``changed`` wrote."""
    seen: list[Tensor] = []

    def write(module: Any, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        change(output)
        return output

    block = decoder.blocks[0]
    handles = [
        block.get_submodule(changed).register_forward_hook(write),
        block.get_submodule(path).register_forward_pre_hook(lambda module, args: seen.append(args[0])),
    ]
    with torch.no_grad():
        decoder.model(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen[0]


def noise(at: int, rows: Tensor) -> Callable[[Tensor], None]:
    """Change the channels ``rows`` of one position, each otherwise."""

    def change(output: Tensor) -> None:
        output[:, at, rows] += torch.linspace(1, 2, len(rows), dtype=output.dtype)

    return change


def same(output: Tensor) -> None:
    """Change nothing."""


def check_attention(decoder: Decoder, tokens: Tensor) -> None:
    """Channels do what their role says: a query decides its own position, a key and a value every later one too,
    and nobody another group's columns of the output map; values alone are what those columns hold."""
    n_q, n_kv, d_h = heads_of(decoder, 0)
    *maps, output = decoder.family.attention
    rows = attention_rows(decoder.family.layout, n_q, n_kv, d_h)
    columns = torch.arange(n_q * d_h).view(n_kv, -1)
    before = reads(decoder, output, maps[0], same, tokens)
    for group in range(n_kv):
        for role, path, own in zip(("query", "key", "value"), maps, rows, strict=True):
            after = reads(decoder, output, path, noise(3, own[group]), tokens)
            touched = (after - before).abs().amax(0) > 1e-9  # (length, columns)
            expected = torch.zeros_like(touched)
            places = torch.arange(3, 4 if role == "query" else len(touched))
            expected[places[:, None], columns[group]] = True
            assert torch.equal(touched, expected), (role, group)
        zeroed = reads(decoder, output, maps[2], zero(rows[2][group]), tokens)
        expected = before.clone()
        expected[..., columns[group]] = 0
        torch.testing.assert_close(zeroed, expected)


def zero(rows: Tensor) -> Callable[[Tensor], None]:
    """Make channels ``rows`` zero at every position."""

    def change(output: Tensor) -> None:
        output[..., rows] = 0

    return change


def test_channels_do_what_their_role_says(family_name: str, tokens: Tensor) -> None:
    check_attention(random_decoder(family_name, dtype=torch.float64), tokens[:2, :6])


def test_channels_of_older_falcons(other_falcon: Decoder, tokens: Tensor) -> None:
    check_attention(other_falcon, tokens[:2, :6])


def test_hidden_units_are_written_by_their_rows(family_name: str, tokens: Tensor) -> None:
    decoder = random_decoder(family_name, dtype=torch.float64)
    writers, reader = decoder.family.mlp
    width = {site.path: site.linear for site in decoder.sites(0)}[reader].in_features
    gate, up = mlp_rows(decoder.family.halves, width)
    before = reads(decoder, reader, writers[0], same, tokens[:2])
    gated = decoder.family.halves or len(writers) == 2
    for unit in (0, width - 1):
        expected = torch.zeros(width, dtype=torch.bool)
        expected[unit] = True
        for path, rows in ((writers[0], gate), (writers[-1], up)):

            def lift(output: Tensor, row: Tensor = rows[unit]) -> None:
                output[..., row] += 5

            after = reads(decoder, reader, path, lift, tokens[:2])
            assert torch.equal((after - before).abs().flatten(0, -2).amax(0) > 0, expected)

        def double(output: Tensor, row: Tensor = up[unit]) -> None:
            output[..., row] *= 2

        if gated:  # a unit is linear in its up channel alone
            after = reads(decoder, reader, writers[-1], double, tokens[:2])
            torch.testing.assert_close(after[..., unit], 2 * before[..., unit])


def test_heads() -> None:
    assert heads_of(random_decoder("falcon"), 1) == (4, 2, 6)
    assert heads_of(random_decoder("falcon", **FALCONS["falcon_multi_query"]), 1) == (4, 1, 6)
    assert heads_of(random_decoder("falcon", **FALCONS["falcon_heads"]), 1) == (4, 4, 6)
    assert heads_of(random_decoder("qwen3"), 0) == (4, 2, 8)
    decoder = random_decoder("phi3")
    decoder.blocks[0].self_attn.head_dim = 5
    with pytest.raises(ModelError, match=r"\(48, 24\).*4 heads of 5 with layout 'stacked'"):
        heads_of(decoder, 0)


def test_fused_maps_are_the_separate_ones_side_by_side(tokens: Tensor) -> None:
    """Phi-3 with its maps taken apart by these rows is Llama."""
    fused, apart = (
        random_decoder(name, dtype=torch.float64, rms_norm_eps=1e-6) for name in ("phi3", "llama")
    )
    parts = {
        "qkv_proj": dict(
            zip(("q_proj", "k_proj", "v_proj"), attention_rows("stacked", 4, 2, 6), strict=True)
        ),
        "gate_up_proj": dict(zip(("gate_proj", "up_proj"), mlp_rows(True, 40), strict=True)),
    }
    weights = {}
    for name, value in fused.model.state_dict().items():
        whole = next((whole for whole in parts if whole in name), None)
        for part, rows in parts.get(whole, {}).items():
            weights[name.replace(str(whole), part)] = value[rows.flatten()]
        if whole is None:
            weights[name] = value
    apart.model.load_state_dict(weights)
    torch.testing.assert_close(*(decoder.model(input_ids=tokens).logits for decoder in (fused, apart)))
