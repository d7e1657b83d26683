"""Cumulative targets of a multi-shot method. A schedule is a step, so smaller ratios are prefixes of larger ones."""

from __future__ import annotations


def schedule(ratio: float, step: float | None) -> tuple[float, ...]:
    """Return the targets ``step, 2 step, ..., ratio``; one shot for ``step=None``; none at all for ratio 0.

    The last target is ``ratio`` itself, so ratio 0.25 by 0.1 is (0.1, 0.2, 0.25). Two ratios that are
    multiples of the step share every shot of the smaller one: one trajectory serves a whole sweep.
    """
    if ratio == 0:
        return ()
    if step is None or step >= ratio:
        return (ratio,)
    targets, shot = [], 1
    while round(shot * step, 10) < ratio - 1e-9:
        targets.append(round(shot * step, 10))
        shot += 1
    return (*targets, ratio)
