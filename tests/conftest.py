"""Fixtures that every part shares: small random decoders of all families."""

from __future__ import annotations

import pytest
import torch

from prunelab.family import load_families
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder

FAMILY_NAMES = [family.name for family in load_families()]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # small matrices: threads only add noise, and one thread keeps sums in one order
    torch.set_num_threads(1)


@pytest.fixture(params=FAMILY_NAMES)
def family_name(request: pytest.FixtureRequest) -> str:
    """The name of each model family in turn."""
    return request.param


@pytest.fixture
def decoder(family_name: str) -> Decoder:
    """A fresh random two-layer decoder of each family in turn."""
    return random_decoder(family_name)


@pytest.fixture
def tokens() -> torch.Tensor:
    """Random tokens (5, 20) within every random decoder's vocabulary of 64; longer than their sliding
    windows of 8.
    """
    return torch.randint(3, 64, (5, 20), generator=torch.Generator().manual_seed(7))
