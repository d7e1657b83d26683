"""Which single weights go: exact counts by score. The lowest go, ties to the lower index.

Published codes compare with a threshold taken from the sorted scores, which removes one weight more or, with
ties, many. Here the count is exact and what goes is what a stable sort would put first. It is found by
selection in linear time inside rows or matrices, by one sort for many ratios, and for a whole model by two
histograms over the bits of the scores: beside the scores themselves, one layer's worth of memory.

Counts for a removed fraction s: whatever the scores compete in, a layer of n weights loses ``floor(n s)``, so that
methods are compared at one sparsity. Where rows compete in themselves, each loses ``floor(n s / R)`` and those whose
next weight scores lowest lose one more. The papers' codes round every row for itself: a row of C inputs keeps
``floor(C (1 - s))`` (arXiv:2306.11695 as in the code of arXiv:2406.15524), up to one weight a row too few; that is
``rounding="published"``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunelab.errors import ConfigError, ModelError
from prunelab.pattern.base import Rounding, Within

ROUNDING = 1e-6  # weights; 0.7 x 10 is 6.999999999999999 in binary and must mean 7


@dataclass(frozen=True)
class Budget:
    """What one layer may lose: a removed fraction ``ratio``, or ``group`` = (n, m), n of every m inputs are kept."""

    ratio: float
    group: tuple[int, int] | None
    rounding: Rounding = "exact"


def removed_in_row(columns: int, ratio: float) -> int:
    """Number of weights that a row of ``columns`` inputs loses where each row is rounded for itself."""
    return columns - math.floor(columns * (1 - ratio) + ROUNDING)


def removed_in_matrix(size: int, ratio: float) -> int:
    """Number of weights that a set of ``size`` weights loses."""
    return math.floor(size * ratio + ROUNDING)


def select(
    score: Tensor, ratio: float | tuple[int, int], within: Within = "row", rounding: Rounding = "exact"
) -> Tensor:
    """Return the keep mask (R, C) bool for ``score`` (R, C): the lowest scores go.

    ``ratio``: removed fraction, or (n, m) = keep the n highest of every m consecutive inputs. Raises
    ConfigError for a bad ratio or width, ModelError for scores that are not finite.
    """
    if isinstance(ratio, tuple):
        _check_finite(score)
        return _select_nm(score, *ratio)
    return select_ratios(score, [ratio], within, rounding)[0]


def select_ratios(
    score: Tensor, ratios: Sequence[float], within: Within = "row", rounding: Rounding = "exact"
) -> list[Tensor]:
    """Return one keep mask (R, C) per removed fraction, as :func:`select` does; scores are ordered once."""
    _check_finite(score)
    for ratio in ratios:
        _check_ratio(ratio)
    if within not in ("row", "matrix"):
        raise ConfigError("sparsity.within", within, "row | matrix")
    if within == "row":
        return [mark.logical_not_() for mark in _lowest_in_rows(score, ratios, rounding)]
    counts = [removed_in_matrix(score.numel(), ratio) for ratio in ratios]
    if score.stride(0) == 1 < score.shape[1] and len(counts) == 1 and counts[0]:
        turned = score.T.contiguous()  # laid out by columns: cheap to take as it is
        mark = turned <= _order_statistics(turned.view(1, -1), counts)[0]
        if int(torch.count_nonzero(mark)) == counts[0]:  # ties at the threshold go by the order of rows
            return [mark.logical_not_().T]
    return [mark.logical_not_().view(score.shape) for mark in lowest(score.reshape(1, -1), counts)]


def _lowest_in_rows(score: Tensor, ratios: Sequence[float], rounding: Rounding) -> list[Tensor]:
    """Mark the lowest of each row (R, C) for every ratio; rows differ by at most one."""
    rows, columns = score.shape
    if rounding == "published":
        return lowest(score, [removed_in_row(columns, ratio) for ratio in ratios])
    whole, more = zip(
        *(divmod(removed_in_matrix(score.numel(), ratio), rows) for ratio in ratios), strict=True
    )
    marks = lowest(score, whole)
    for mark, count, extra in zip(marks, whole, more, strict=True):
        if extra:
            following = _order_statistics(score, [count + 1])[0][:, 0]
            chosen = torch.sort(following, stable=True).indices[:extra]
            mark[chosen] = lowest(score[chosen], [count + 1])[0]
    return marks


def lowest(score: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Mark the lowest of each row of ``score`` (R, C), ties from the left; one mask (R, C) per count."""
    wanted = sorted({count for count in counts if count > 0})
    order = dict(zip(wanted, _order_statistics(score, wanted), strict=True)) if wanted else {}
    found = []
    for count in counts:
        if count <= 0:
            found.append(torch.zeros(score.shape, dtype=torch.bool, device=score.device))
            continue
        last = order[count]
        mark = score <= last
        if int(torch.count_nonzero(mark)) != count * score.shape[0]:
            below = score < last
            tied = mark & ~below
            mark = below | (tied & (tied.cumsum(1) <= count - below.sum(1, keepdim=True)))
        found.append(mark)
    return found


def _order_statistics(score: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Return the ``count``-th lowest of every row, (R, 1), for each count."""
    if score.device.type != "cpu":
        values = torch.sort(score, dim=1).values
    elif len(counts) == 1:
        # NumPy's selection and sorting use wide registers: 4 and 10 times as fast as torch's here
        values = torch.from_numpy(np.partition(score.numpy(), counts[0] - 1, axis=1))
    else:
        values = torch.from_numpy(np.sort(score.numpy(), axis=1))
    return [values[:, count - 1 : count] for count in counts]


def _select_nm(score: Tensor, n: int, m: int) -> Tensor:
    rows, columns = score.shape
    if not 1 <= n < m or columns % m:
        raise ConfigError("n:m", (n, m), f"1 <= n < m with m a divisor of {columns} inputs")
    groups = score.view(rows, columns // m, m) if score.is_contiguous() else score.reshape(rows, -1, m)
    rank = torch.zeros_like(groups, dtype=torch.int16)
    place = torch.arange(m, device=score.device)
    for j in range(m):  # m is small: m comparisons of everything beat sorting tiny groups
        other = groups[..., j : j + 1]
        rank += (other > groups) | ((other == groups) & (j > place))
    return (rank < n).view(rows, columns)


def select_global(scores: Sequence[Tensor], ratio: float) -> list[Tensor]:
    """Return keep masks for all layers' scores (R, C) >= 0 under one threshold; ``floor(n ratio)`` go in all.

    Ties fall to the earlier layer, then the lower index. Raises as :func:`select` does.
    """
    _check_ratio(ratio)
    count = removed_in_matrix(sum(score.numel() for score in scores), ratio)
    if count == 0:
        return [torch.ones_like(score, dtype=torch.bool) for score in scores]
    upper, before = _bucket((_bits(score) >> 16 for score in scores), count)
    keys = map(_bits, scores)
    lower, within = _bucket((key[key >> 16 == upper] & 0xFFFF for key in keys), count - before)
    last, room = (upper << 16) | lower, count - before - within
    keep = []
    for score in scores:
        key = _bits(score)
        tied = key == last
        gone = (key < last) | (tied & (tied.cumsum(0) <= room))
        room -= min(room, int(tied.sum()))
        keep.append(~gone.view(score.shape))
    return keep


def select_groups(
    scores: Sequence[Tensor], group: tuple[int, int], share: float, together: bool
) -> list[Tensor]:
    """Return keep masks for all layers' scores (R, C) >= 0 where ``share`` of the groups of m inputs keep their n highest
    and the others all m: those whose m - n lowest scores add up to the least (arXiv:2312.17244), over all layers
    ``together`` or in each. ``group`` = (n, m). Raises as :func:`select` does."""
    m = group[1]
    lowest_in_group = [select(score, group) for score in scores]
    if share >= 1 - ROUNDING:
        return lowest_in_group
    costs = [
        score.masked_fill(keep, 0).view(len(score), -1, m).sum(2) for score, keep in zip(scores, lowest_in_group, strict=True)
    ]  # fmt: skip
    whole = select_global(costs, share) if together else [select(one, share, "matrix") for one in costs]
    return [
        keep | groups.repeat_interleave(m, 1) for keep, groups in zip(lowest_in_group, whole, strict=True)
    ]


def _bits(score: Tensor) -> Tensor:
    """Scores as integers in the same order: non-negative floats sort like their bits. (R C,) int32."""
    _check_finite(score)
    if bool((score < 0).any()):
        raise ModelError("a score for a choice over the whole model is negative; scores must be >= 0.")
    return (score.to(torch.float32) + 0.0).contiguous().view(torch.int32).flatten()  # + 0.0: no -0


def _bucket(keys: Iterable[Tensor], count: int) -> tuple[int, int]:
    """Return the 16-bit value at which the ``count``-th lowest key lies, and how many keys lie below it."""
    histogram = torch.zeros(1 << 16, dtype=torch.int64)
    for key in keys:
        histogram += torch.bincount(key, minlength=1 << 16).cpu()
    total = histogram.cumsum(0)
    value = int(torch.searchsorted(total, count))
    return value, int(total[value - 1]) if value else 0


def _check_ratio(ratio: float) -> None:
    if not 0 <= ratio < 1:
        raise ConfigError("sparsity.ratio", ratio, "0 <= ratio < 1", "It is the removed fraction.")


def _check_finite(score: Tensor) -> None:
    if score.numel() and not all(math.isfinite(float(value)) for value in score.aminmax()):
        raise ModelError(
            "a score is not finite. Check the checkpoint and the calibration text, or use model.dtype=float32."
        )
