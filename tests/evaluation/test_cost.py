"""Seconds, memory and rates of a piece of work."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from prunelab.evaluation import cost as module
from prunelab.evaluation.cost import Cost, metered, peak_gib


def test_metered() -> None:
    with metered() as cost:
        time.sleep(0.05)
        cost.tokens = 100
    values = cost.values()
    assert values["seconds"] >= 0.05
    assert values["threads"] == torch.get_num_threads()
    assert values["tokens_per_s"] == pytest.approx(100 / values["seconds"])
    assert 0 < values["peak_gib"] < 1000


def test_no_tokens_no_rate() -> None:
    assert set(Cost(seconds=1.0).values()) == {"seconds", "peak_gib", "threads"}


def test_peak_sees_what_was_freed() -> None:
    with metered() as cost:
        block = torch.ones(2**26)  # 256 MiB
        del block
    with metered() as small:
        pass
    if cost.peak_is_own:
        assert cost.peak_gib - small.peak_gib > 0.2
    else:
        assert small.peak_gib >= cost.peak_gib


def test_an_error_is_metered_and_travels() -> None:
    seen = []

    def fail() -> None:
        with metered() as cost:
            seen.append(cost)
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert seen[0].seconds > 0


def test_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "Path", lambda name: tmp_path / "missing" / "file")
    assert module.reset_peak() is False
    assert peak_gib() > 0
