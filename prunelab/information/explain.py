"""What a search found, as rows for people: each removed unit with its partner, and how redundant a layer is. arXiv:2406.00030."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from prunelab.information.plan import resolve
from prunelab.information.search import Removals

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BY_NORM = "norm: no redundant partner is left"


def removed_rows(removals: Removals, gone: Tensor) -> list[dict[str, Any]]:
    """Return a row for each of the units ``gone`` (count,) bool: those of ``removals`` in their order, then the others.

    ``partner`` made the unit redundant and was there when it went; ``into``: the one that stays at the end of the chain
    of partners, which takes over the unit's part where units are merged. None where there is none.
    """
    place = {unit: at for at, unit in enumerate(removals.order.tolist())}
    units = sorted(gone.nonzero()[:, 0].tolist(), key=lambda unit: place.get(unit, len(place) + int(unit)))
    into = resolve(removals, torch.tensor(units, dtype=torch.int64)).partner.tolist()
    rows = []
    for unit, last in zip(units, into, strict=True):
        row: dict[str, Any] = {
            "unit": unit,
            "partner": None,
            "into": None,
            "nmi": None,
            "r2": None,
            "sign": None,
        }
        at = place.get(unit)
        if at is not None and int(removals.partner[at]) >= 0:
            row |= {
                "partner": int(removals.partner[at]), "into": last if last >= 0 else None,
                "nmi": _number(removals.value[at]), "r2": _number(removals.r2[at]), "sign": int(removals.sign[at]),
            }  # fmt: skip
        rows.append(row | {"reason": BY_NORM if at is None else removals.reason[at]})
    return rows


def known(nearest: Tensor, removals: Removals) -> Tensor:
    """Return what is known of ``nearest`` (count,), the values of units with their most redundant partner: dead units, of
    ``removals``, and nan are left out."""
    there = nearest.isfinite()
    there[removals.order[removals.partner < 0]] = False
    return nearest[there]


def spectrum(nearest: Tensor, removals: Removals) -> dict[str, float | None]:
    """Return quantiles, as ``q0`` to ``q100``, of the values that units have with their most redundant partner.

    ``nearest`` (count,), nan where nothing is known; dead units are left out. None for all where nothing is known.
    """
    values = known(nearest, removals)
    names = [f"q{100 * q:g}" for q in QUANTILES]
    if not len(values):
        return dict.fromkeys(names)
    found = torch.quantile(values, torch.tensor(QUANTILES, dtype=values.dtype))
    return dict(zip(names, found.tolist(), strict=True))


def _number(value: Tensor) -> float | None:
    return None if math.isnan(float(value)) else float(value)
