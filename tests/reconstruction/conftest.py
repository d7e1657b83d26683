"""Pruned states of random decoders, and repairs from their YAML files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from by_conf import build
from torch import Tensor

from prunelab.models.random import random_decoder
from prunelab.passes.shots import prune
from prunelab.pattern.weights import Unstructured
from prunelab.structures.state import State


@pytest.fixture
def option() -> Callable[..., Any]:
    """Build an option of ``conf`` by group and name; keyword arguments replace fields."""
    return build


@pytest.fixture
def spec() -> Callable[..., Any]:
    """Build a repair of blocks by name; keyword arguments replace fields. Gradient repairs are short."""

    def make(name: str, **changes: Any) -> Any:
        short = {} if name == "layer" else {"epochs": 2, "min_updates": 0, "batch": 2, "learning_rate": 1e-3}
        return build("reconstruction", name, **short | changes)

    return make


@pytest.fixture
def pruned() -> Callable[..., State]:
    """Prune a fresh random decoder at 50 % by a method's name; the state shares nothing with it."""

    def make(
        family: str, tokens: Tensor, method: str = "magnitude", ratio: float = 0.5, **config: Any
    ) -> State:
        dtype = config.pop("dtype", torch.float32)
        decoder = random_decoder(family, dtype=dtype, **config)
        return prune(
            decoder, build("method", method), tokens, [ratio], pattern=Unstructured(), seed=0, batch_size=2,
        ).clone()  # fmt: skip

    return make
