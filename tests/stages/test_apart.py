"""Windows that anything was fitted to are refused as test or held-out text, whatever the names say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prunelab.calibration.tokens import build_token_set, save_tokens
from prunelab.errors import DataError
from prunelab.stages.evaluate import check_apart


def context(folder: Path, **rows: np.ndarray) -> Any:
    """Inputs of an evaluation, by role."""
    inputs = {}
    for role, tokens in rows.items():
        place = folder / role
        save_tokens(build_token_set(tokens, "mask", {}, 64), place / "tokens.npy")
        inputs[role.replace("__", "/")] = SimpleNamespace(folder=place)
    return SimpleNamespace(inputs=inputs)


def test_shared_windows_are_counted_and_named(tmp_path: Path) -> None:
    tokens = np.arange(60).reshape(10, 6) % 64
    check_apart(context(tmp_path / "a", calibrate=tokens[:4], test__x=tokens[4:7], held_out__y=tokens[7:]))
    with pytest.raises(DataError, match=r"2 windows of test/x are among those of calibrate"):
        check_apart(context(tmp_path / "b", calibrate=tokens[:4], test__x=tokens[2:7]))
    with pytest.raises(DataError, match=r"1 windows of held_out/y are among those of reconstruction"):
        check_apart(context(tmp_path / "c", reconstruction=tokens[:4], held_out__y=tokens[3:5]))
