"""Targets per shot."""

from __future__ import annotations

import pytest

from prunelab.plan.schedule import schedule


@pytest.mark.parametrize(
    ("ratio", "step", "targets"),
    [
        (0.0, 0.05, ()), (0.0, None, ()), (0.3, None, (0.3,)), (0.3, 0.5, (0.3,)), (0.3, 0.3, (0.3,)),
        (0.3, 0.1, (0.1, 0.2, 0.3)), (0.25, 0.1, (0.1, 0.2, 0.25)), (0.15, 0.05, (0.05, 0.1, 0.15)),
    ],
)  # fmt: skip
def test_targets(ratio: float, step: float | None, targets: tuple[float, ...]) -> None:
    assert schedule(ratio, step) == targets


def test_smaller_ratios_are_prefixes() -> None:
    whole = schedule(0.5, 0.0125)
    assert len(whole) == 40
    for n in (8, 16, 24, 32):
        assert schedule(round(n * 0.0125, 4), 0.0125) == whole[:n]
