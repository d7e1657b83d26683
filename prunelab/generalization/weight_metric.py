"""Metrics of units from weights alone, for modules whose activations say too little. arXiv:2603.13418, step 2.

Which metric the paper switches to is not public; ``path_norm`` is our choice, since it does not change under
rescalings that keep the function: up times c and down over c, values times c and output over c.

All take sums of squares by role: ``up down`` and, gated, ``gate`` of neurons; ``query key value output`` of
attention heads or groups of heads that share keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunelab.errors import ConfigError

PATH_NORM, OUTPUT_NORM, GROUP_L2 = "path_norm", "output_norm", "group_l2"
METRICS = (PATH_NORM, OUTPUT_NORM, GROUP_L2)
_OUTPUTS = ("down", "output")

Squares = Mapping[str, Tensor]  # role -> (count,) float64


def unit_squares(weight: Tensor, axis: int, index: Tensor) -> Tensor:
    """Return the sum of squares of each unit's lines, (count,) float64.

    ``weight`` (out, in); ``index`` (count, lines) int64: the rows (``axis`` 0) or columns (1) of every unit.
    """
    return weight.double().square().sum(1 - axis)[index].sum(1)


def weight_metric(squares: Squares, metric: str, *, use_gate: bool = True, use_qk: bool = False) -> Tensor:
    """Return the metric of every unit, (count,) float64. Raises ConfigError for an unknown one.

    ``path_norm``: neurons ``|up| |down|``, times ``|gate|`` if there is one and ``use_gate``; heads
    ``|value| |output|``, times ``sqrt(|query| |key|)`` if ``use_qk``. Without a gate ``up`` has the squared bias
    in it. ``output_norm``: ``|down|`` or ``|output|``. ``group_l2``: root of the sum over all roles.
    """
    if metric not in METRICS:
        raise ConfigError("fallback_metric", metric, " | ".join(METRICS))
    if metric == GROUP_L2:
        return torch.stack(list(squares.values())).sum(0).sqrt()
    if metric == OUTPUT_NORM:
        return next(squares[role] for role in _OUTPUTS if role in squares).sqrt()
    norm = {role: square.sqrt() for role, square in squares.items()}
    if "up" in norm:
        path = norm["up"] * norm["down"]
        return path * norm["gate"] if use_gate and "gate" in norm else path
    path = norm["value"] * norm["output"]
    return path * (norm["query"] * norm["key"]).sqrt() if use_qk else path
