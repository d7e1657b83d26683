"""Masks and weights do not depend on how many sequences go through at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from by_conf import build, option_names

from prunelab.allocation.owl import OWL
from prunelab.methods.facts import facts_of
from prunelab.models.random import random_decoder
from prunelab.passes.shots import prune
from prunelab.pattern.base import SUBLAYERS, Pattern, default_stream
from prunelab.pattern.units import Units
from prunelab.pattern.weights import NM, RowsColumns, Unstructured
from prunelab.structures.state import state_digest

PATTERNS = (RowsColumns(), Unstructured(), NM(2, 4), Units(compensation="least_squares"))


CASES = [
    (method, pattern)
    for name in option_names("method")
    for method in [build("method", name)]
    for pattern in PATTERNS
    if pattern.name in method.supports and method.needs
    and type(method).__module__.endswith(f".{name}")  # once per class, not per setting of it
]  # fmt: skip


@pytest.mark.methods_by_families
@pytest.mark.typical_families
@pytest.mark.parametrize(
    ("method", "pattern"), CASES, ids=lambda value: getattr(value, "label", getattr(value, "name", ""))
)
def test_one_three_or_sixteen_sequences_a_batch_are_the_same_bits(
    method: Any, pattern: Pattern, family_name: str
) -> None:
    tokens = torch.randint(3, 64, (17, 20), generator=torch.Generator().manual_seed(7))
    several = hasattr(method, "update_kept") or pattern.name in ("rows_columns", "units")
    schedule = [0.2, pattern.fixed_ratio or 0.4] if several else [0.5]
    more: dict[str, Any] = {"propagation": default_stream(type(pattern), facts_of(method), None)}
    if hasattr(method, "bw_neurons"):  # the width is sought on few neurons and samples
        method = replace(method, n_samples=32, bw_neurons=4)
    if pattern.name == "units":  # shots look at the model anew
        more = {"propagation": "dense", "domains": [tokens.flip(0)] if hasattr(method, "domains") else []}
        if getattr(method, "kinds", ()) in (("blocks",), SUBLAYERS):
            pattern, more = Units(kinds=method.kinds), {**more, "allocation": "global"}
        elif hasattr(method, "kinds"):
            pattern = Units(kinds=method.kinds, compensation="least_squares")
    digests = {
        state_digest(
            prune(
                random_decoder(family_name),
                method,
                tokens,
                schedule,
                pattern=pattern,
                seed=0,
                batch_size=size,
                **more,
            )
        )
        for size in (1, 3, 16)
    }
    assert len(digests) == 1


@pytest.mark.typical_families
def test_allocations_too(family_name: str) -> None:
    tokens = torch.randint(3, 64, (17, 20), generator=torch.Generator().manual_seed(7))
    method, owl = build("method", "wanda"), OWL("owl", 1, 2.0, 0.08)
    digests = {
        state_digest(
            prune(
                random_decoder(family_name), method, tokens, [0.6], pattern=Unstructured(), seed=0, batch_size=size,
                allocation=owl,
            )
        )
        for size in (1, 3, 16)
    }  # fmt: skip
    assert len(digests) == 1
