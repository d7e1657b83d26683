"""Metrics of units from weights alone, against loops over the units. arXiv:2603.13418."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.generalization.weight_metric import unit_squares, weight_metric


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def neurons(up: Tensor, down: Tensor, gate: Tensor | None = None) -> dict[str, Tensor]:
    index = torch.arange(len(up))[:, None]
    squares = {"up": unit_squares(up, 0, index), "down": unit_squares(down, 1, index)}
    return squares if gate is None else squares | {"gate": unit_squares(gate, 0, index)}


def test_neurons_multiply_the_norms_along_their_path() -> None:
    up, gate, down = random(5, 3), random(5, 3, seed=1), random(4, 5, seed=2)
    squares = neurons(up, down, gate)
    for i in range(5):
        path = up[i].norm() * down[:, i].norm()
        assert weight_metric(squares, "path_norm")[i] == pytest.approx(float(path * gate[i].norm()))
        assert weight_metric(squares, "path_norm", use_gate=False)[i] == pytest.approx(float(path))
        assert weight_metric(squares, "output_norm")[i] == pytest.approx(float(down[:, i].norm()))
        whole = torch.cat([up[i], gate[i], down[:, i]]).norm()
        assert weight_metric(squares, "group_l2")[i] == pytest.approx(float(whole))
    assert torch.equal(
        weight_metric(neurons(up, down), "path_norm"), weight_metric(squares, "path_norm", use_gate=False)
    )
    with pytest.raises(ConfigError, match="fallback_metric"):
        weight_metric(squares, "magnitude")


def test_a_path_norm_does_not_see_rescalings_that_keep_the_function() -> None:
    up, gate, down = random(5, 3), random(5, 3, seed=1), random(4, 5, seed=2)
    c = torch.tensor([0.1, 3.0, 7.0, 1.0, 100.0], dtype=torch.float64)
    moved = neurons(up * c[:, None], down / c, gate)
    torch.testing.assert_close(
        weight_metric(moved, "path_norm"), weight_metric(neurons(up, down, gate), "path_norm")
    )
    assert not torch.allclose(
        weight_metric(moved, "group_l2"), weight_metric(neurons(up, down, gate), "group_l2")
    )
    down[:, 2] = 0
    assert weight_metric(neurons(up, down, gate), "path_norm").tolist()[2] == 0


def test_groups_of_heads_take_their_query_heads() -> None:
    n_kv, r, width, d = 2, 3, 4, 6
    query, key, value = (
        random(n_kv * r * width, d),
        random(n_kv * width, d, seed=1),
        random(n_kv * width, d, seed=2),
    )
    output = random(d, n_kv * r * width, seed=3)
    wide, narrow = (torch.arange(n_kv * n).view(n_kv, n) for n in (r * width, width))
    squares = {
        "query": unit_squares(query, 0, wide), "key": unit_squares(key, 0, narrow),
        "value": unit_squares(value, 0, narrow), "output": unit_squares(output, 1, wide),
    }  # fmt: skip
    for g in range(n_kv):
        mine = [c for c in range(n_kv * r * width) if c // width // r == g]
        kv = [c for c in range(n_kv * width) if c // width == g]
        path = float(value[kv].norm() * output[:, mine].norm())
        assert weight_metric(squares, "path_norm")[g] == pytest.approx(path)
        qk = float((query[mine].norm() * key[kv].norm()).sqrt())
        assert weight_metric(squares, "path_norm", use_qk=True)[g] == pytest.approx(path * qk)
        assert weight_metric(squares, "output_norm")[g] == pytest.approx(float(output[:, mine].norm()))
