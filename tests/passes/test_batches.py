"""Masks and weights do not depend on how many sequences go through at a time."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from prunelab.allocation.owl import OWL
from prunelab.models.random import random_decoder
from prunelab.passes.shots import prune
from prunelab.pattern.base import SUBLAYERS, Pattern
from prunelab.pattern.units import Units
from prunelab.pattern.weights import NM, RowsColumns, Unstructured
from prunelab.structures.state import state_digest

CONF = Path(__file__).parents[2] / "conf" / "method"
PATTERNS = (RowsColumns(), Unstructured(), NM(2, 4), Units(compensation="least_squares"))


def build(path: Path) -> Any:
    config = yaml.safe_load(path.read_text())
    module, _, name = config.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), name)(**config)


CASES = [
    (method, pattern)
    for path in sorted(CONF.glob("*.yaml"))
    for method in [build(path)]
    for pattern in PATTERNS
    if pattern.name in method.supports and method.needs
    and type(method).__module__.endswith(f".{path.stem}")  # once per class, not per setting of it
]  # fmt: skip


@pytest.mark.typical_families
@pytest.mark.parametrize(
    ("method", "pattern"), CASES, ids=lambda value: getattr(value, "label", getattr(value, "name", ""))
)
def test_one_three_or_sixteen_sequences_a_batch_are_the_same_bits(
    method: Any, pattern: Pattern, family_name: str
) -> None:
    tokens = torch.randint(3, 64, (17, 20), generator=torch.Generator().manual_seed(7))
    schedule = [0.2, 0.4] if pattern.several_shots else [0.5]
    more: dict[str, Any] = {}
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
    method, owl = build(CONF / "wanda.yaml"), OWL("owl", 1, 2.0, 0.08)
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
