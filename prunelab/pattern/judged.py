"""Methods that ask the whole model before they choose: with which settings, and which text they keep for judging.

A method's class says so with the literal ``judged``: rows of a field, its value, and the allocations that this value goes
with. What it asks is :class:`prunelab.stats.judge.Judge`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunelab.errors import ConfigError

JUDGED = "judged"  # the literal of a class
HELD_OUT = "held_out"  # the field that says which share of every token set's windows is kept for judging


def judged_with(
    values: Mapping[str, Any], literal: Sequence[tuple[str, str, Sequence[str]]]
) -> tuple[str, ...]:
    """Return the allocations that a method of these field ``values`` can ask the model under; () for one that asks nothing."""
    asking = [names for key, value, names in literal if values.get(key) == value]
    return tuple(name for name in asking[0] if all(name in others for others in asking)) if asking else ()


def n_held_out(n: int, share: float | None) -> int:
    """Return how many of ``n`` windows are kept for judging: the last ones, at least one; none for None."""
    return max(1, round(share * n)) if share else 0


def windows_error(n: int, share: float | None, least: int, method: str) -> ConfigError | None:
    """Return what is wrong with ``n`` windows per token set of which ``least`` have to be left to look at."""
    if n - n_held_out(n, share) >= least:
        return None
    enough = next(more for more in range(n, 10**9) if more - n_held_out(more, share) >= least)
    hint = "Some windows of every token set are kept for judging: method.held_out of them, at least one."
    return ConfigError("calibration.n_samples", n, f"{enough} or more with method={method}", hint)
