"""Every conf/model/*.yaml is a whole model spec, and the ones that need no network load."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from prunelab.models.checkpoint import DTYPES, SOURCES
from prunelab.models.load import load_decoder
from prunelab.models.wheel import WHEELS

FILES = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))
KEYS = ["name", "source", "id", "revision", "digest", "dtype", "max_len", "trust_remote_code", "family"]


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def file(request: pytest.FixtureRequest) -> Path:
    """Each model config in turn."""
    return request.param


@pytest.fixture
def spec(file: Path) -> dict[str, Any]:
    """Its content."""
    return yaml.safe_load(file.read_text())


def test_fields(file: Path, spec: dict[str, Any]) -> None:
    assert list(spec) == KEYS
    assert spec["name"] in (file.stem, None)  # null: the folder's or the repository's
    assert spec["source"] in SOURCES
    assert spec["dtype"] in DTYPES
    assert spec["trust_remote_code"] is False
    if spec["source"] == "hub" and spec["id"] != "???":
        assert re.fullmatch("[0-9a-f]{40}", spec["revision"])
    if spec["source"] == "wheel":
        assert spec["id"] in WHEELS
        assert re.fullmatch("[0-9a-f]{64}", spec["digest"])


def test_offline_models_load(spec: dict[str, Any]) -> None:
    if spec["source"] in {"embedded", "random"}:
        decoder = load_decoder(spec)
        with torch.no_grad():
            assert decoder.model(torch.ones(1, 4, dtype=torch.int64)).logits.isfinite().all()
