"""The three ratios by hand, and integrity that finds a single wrong bit."""

from __future__ import annotations

import pytest
import torch

from prunelab.errors import ModelError
from prunelab.evaluation.integrity import check
from prunelab.evaluation.ratios import ratios
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.sparsity import mask as masking
from prunelab.sparsity.mask import Elementwise, Structured
from prunelab.structures.state import State, read_state


def one_unit_less(decoder: Decoder) -> State:
    """Remove hidden unit 0's output column in block 0, and the bias column of that layer if there is one."""
    masks = {site.name: masking.full(site.linear.weight, site.linear.bias) for site in decoder.sites()}
    reader = next(site for site in decoder.sites(0) if site.path == decoder.family.mlp[1])
    mask = masks[reader.name]
    mask.keep_columns[0] = False
    masks[reader.name] = Structured(
        mask.keep_rows, mask.keep_columns, None if mask.keep_bias is None else False
    )
    masking.apply(masks[reader.name], reader.linear.weight, reader.linear.bias)
    return read_state(decoder, masks)


def test_ratios_by_hand(decoder: Decoder) -> None:
    state = one_unit_less(decoder)
    sites = decoder.sites()
    R = next(s for s in sites if s.path == decoder.family.mlp[1]).linear.out_features
    has_bias = next(s for s in sites if s.path == decoder.family.mlp[1]).linear.bias is not None
    weights = sum(p.numel() for s in sites for p in s.linear.parameters())
    units = sum(s.linear.out_features + s.linear.in_features + (s.linear.bias is not None) for s in sites)
    writers = [s.linear for s in decoder.sites(0) if s.path in decoder.family.mlp[0]]
    maps = 2 if decoder.family.halves else 1  # gate and up of the unit, be they rows of one map
    saved = (1 + has_bias) * R + maps * sum(w.in_features + (w.bias is not None) for w in writers)
    in_blocks = sum(p.numel() for p in decoder.blocks.parameters())
    assert ratios(state, decoder) == {
        "ratio/weights": (1 + has_bias) * R / weights,
        "ratio/parameters": saved / in_blocks,
        "ratio/units": (1 + has_bias) / units,
    }


def test_single_weights_count_as_weights_only() -> None:
    decoder = random_decoder("llama")
    masks = {site.name: Elementwise(torch.ones_like(site.linear.weight) == 0) for site in decoder.sites()}
    assert ratios(read_state(decoder, masks), decoder) == {
        "ratio/weights": 1.0,
        "ratio/parameters": 0.0,
        "ratio/units": 0.0,
    }


def test_integrity_counts_what_is_masked(decoder: Decoder) -> None:
    state = one_unit_less(decoder)
    masked = sum(site.mask.removed for _, site in state.sites())
    assert check(decoder, state) == {
        "integrity/layers": len(decoder.sites()),
        "integrity/masked": masked,
        "integrity/violations": 0,
    }


def test_a_single_weight_that_came_back_is_found(decoder: Decoder) -> None:
    state = one_unit_less(decoder)
    name = next(s.name for s in decoder.sites(0) if s.path == decoder.family.mlp[1])
    decoder.site(name).linear.weight[1, 0] = 1e-30
    with pytest.raises(ModelError, match=rf"{name}: 1 removed weights are not zero.*prune stage again"):
        check(decoder, state)


def test_a_bias_that_came_back_and_weights_that_are_not_finite_are_found() -> None:
    decoder = random_decoder("opt")
    state = one_unit_less(decoder)
    linear = decoder.site("model.decoder.layers.0.fc2").linear
    linear.bias[0] = 1
    with pytest.raises(ModelError, match=r"fc2: 1 removed"):
        check(decoder, state)
    linear.bias[0] = 0
    linear.weight[0, 3] = float("inf")
    with pytest.raises(ModelError, match=r"fc2: 1 weights are not finite"):
        check(decoder, state)
