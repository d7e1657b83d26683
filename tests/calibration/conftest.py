"""The embedded tokenizer and the specs of conf/calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tokenizer():
    """The tokenizer of the embedded models; vocabulary 2,048."""
    return AutoTokenizer.from_pretrained(ROOT / "prunelab" / "data" / "models" / "llama")


@pytest.fixture
def spec_of() -> Callable[[str], dict]:
    """Name -> content of conf/calibration/NAME.yaml."""

    def read(name: str) -> dict:
        return yaml.safe_load((ROOT / "conf" / "calibration" / f"{name}.yaml").read_text(encoding="utf-8"))

    return read
