"""Row numbers of fused maps: against reshapes as models do them, and against the models themselves."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from prunelab.family import Layout
from prunelab.structures.layout import attention_rows, mlp_rows

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
