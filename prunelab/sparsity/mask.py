"""Keep masks of one linear layer: counting, applying, checking. True stays, False is exactly zero.

A bias is the last column of ``[W  b]`` (R, C + 1), so it is counted with the weights and can be removed:
a removed row loses its bias entry, a removed bias column loses the whole bias (arXiv:2312.17244).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


class Mask(Protocol):
    """What stays of one linear layer. Nobody asks for its class: a mask answers for itself.

    ``kind``: which structures it is about, ``lines`` (rows and columns) or ``elements`` (single weights).
    """

    kind: ClassVar[str]

    @property
    def total(self) -> int:
        """Number of prunable weights."""
        ...

    @property
    def removed(self) -> int:
        """Number of removed weights."""
        ...

    @property
    def units(self) -> int:
        """Number of structures that could go as a whole; 0 where only single weights can."""
        ...

    @property
    def units_removed(self) -> int:
        """Number of structures that are gone."""
        ...

    def keep(self) -> Tensor:
        """Elementwise keep mask of the weight, (R, C) bool."""
        ...

    def keep_bias_entries(self) -> Tensor | None:
        """Keep mask of the bias, (R,) bool; None where no entry of it can be removed."""
        ...

    def lines(self) -> tuple[Tensor, Tensor, bool]:
        """Which rows (R,) and columns (C,) bool stay as a whole, and whether a bias stays: what surgery may leave out."""
        ...

    def counts(self) -> dict[str, int]:
        """Numbers for a report: rows, columns, rows_removed, columns_removed, removed, total."""
        ...

    def pack(self) -> dict[str, Tensor]:
        """The mask as tensors by name; :func:`unpack` reads them."""
        ...


@dataclass(frozen=True, eq=False)
class Structured:
    """Whole rows (outputs) and columns (inputs) of one linear layer.

    keep_rows (R,) bool; keep_columns (C,) bool, bias not among them; keep_bias: None where the layer has no
    bias that counts. ``whole``: of structures that span several layers, how many end here and how many of those are
    gone; None where rows and columns are structures of their own.
    """

    keep_rows: Tensor
    keep_columns: Tensor
    keep_bias: bool | None
    whole: tuple[int, int] | None = None

    kind: ClassVar[str] = "lines"

    @property
    def total(self) -> int:
        """Number of weights of the layer, bias included."""
        return self.keep_rows.numel() * (self.keep_columns.numel() + (self.keep_bias is not None))

    @property
    def rows_removed(self) -> int:
        """Number of removed rows."""
        return int((~self.keep_rows).sum())

    @property
    def columns_removed(self) -> int:
        """Number of removed columns; a removed bias is one."""
        return int((~self.keep_columns).sum()) + (self.keep_bias is False)

    @property
    def n_columns(self) -> int:
        """Number of columns; a bias is one."""
        return self.keep_columns.numel() + (self.keep_bias is not None)

    @property
    def removed(self) -> int:
        """Number of removed weights, bias included; where a row and a column cross counts once."""
        rows, columns = self.rows_removed, self.columns_removed
        return rows * self.n_columns + columns * self.keep_rows.numel() - rows * columns

    @property
    def units(self) -> int:
        """Rows and columns, a bias being a column; or structures that end here."""
        return self.keep_rows.numel() + self.n_columns if self.whole is None else self.whole[0]

    @property
    def units_removed(self) -> int:
        """Those that are gone."""
        return self.rows_removed + self.columns_removed if self.whole is None else self.whole[1]

    def keep(self) -> Tensor:
        """Elementwise keep mask of the weight, (R, C) bool."""
        return self.keep_rows[:, None] & self.keep_columns[None, :]

    def lines(self) -> tuple[Tensor, Tensor, bool]:
        """Rows and columns that stay; whether a bias does: one that does not count is not removed either."""
        return self.keep_rows, self.keep_columns, self.keep_bias is not False

    def counts(self) -> dict[str, int]:
        """Numbers for a report; a bias is a column."""
        return {
            "rows": self.keep_rows.numel(), "columns": self.n_columns, "rows_removed": self.rows_removed,
            "columns_removed": self.columns_removed, "removed": self.removed, "total": self.total,
        }  # fmt: skip

    def pack(self) -> dict[str, Tensor]:
        """Masks of rows, of columns and, where there is a bias, of its column; counts of structures that end here."""
        parts = {"keep_rows": self.keep_rows, "keep_columns": self.keep_columns}
        if self.keep_bias is not None:
            parts["keep_bias_column"] = torch.tensor([self.keep_bias])
        return parts if self.whole is None else parts | {"whole": torch.tensor(self.whole)}

    def keep_bias_entries(self) -> Tensor | None:
        """Keep mask of the bias, (R,) bool; None where the layer has no bias."""
        if self.keep_bias is None:
            return None
        return self.keep_rows & torch.tensor(self.keep_bias)

    def joined_columns(self) -> Tensor:
        """Keep mask of the columns of ``[W  b]``, (C + 1,) or (C,) bool."""
        if self.keep_bias is None:
            return self.keep_columns
        return torch.cat([self.keep_columns, torch.tensor([self.keep_bias])])


@dataclass(frozen=True, eq=False)
class Elementwise:
    """Single weights of one linear layer: keep (R, C) bool; keep_bias (R,) bool, None = bias not prunable."""

    keep_weight: Tensor
    keep_bias: Tensor | None = None

    kind: ClassVar[str] = "elements"

    @property
    def total(self) -> int:
        """Number of prunable weights."""
        return self.keep_weight.numel() + (0 if self.keep_bias is None else self.keep_bias.numel())

    @property
    def removed(self) -> int:
        """Number of removed weights."""
        bias = 0 if self.keep_bias is None else int((~self.keep_bias).sum())
        return int((~self.keep_weight).sum()) + bias

    @property
    def units(self) -> int:
        """None: only single weights go."""
        return 0

    @property
    def units_removed(self) -> int:
        """None: only single weights go."""
        return 0

    def keep(self) -> Tensor:
        """Elementwise keep mask of the weight, (R, C) bool."""
        return self.keep_weight

    def lines(self) -> tuple[Tensor, Tensor, bool]:
        """Everything stays: a row without weights may still have a bias."""
        rows, columns = self.keep_weight.shape
        return torch.ones(rows, dtype=torch.bool), torch.ones(columns, dtype=torch.bool), True

    def counts(self) -> dict[str, int]:
        """Numbers for a report; a row or column is removed where no weight of it stays."""
        keep = self.keep_weight
        return {
            "rows": keep.shape[0], "columns": keep.shape[1], "rows_removed": int((~keep.any(1)).sum()),
            "columns_removed": int((~keep.any(0)).sum()), "removed": self.removed, "total": self.total,
        }  # fmt: skip

    def pack(self) -> dict[str, Tensor]:
        """The masks of weights and, where it can be pruned, of the bias."""
        parts = {"keep": self.keep_weight}
        return parts if self.keep_bias is None else parts | {"keep_bias": self.keep_bias}

    def keep_bias_entries(self) -> Tensor | None:
        """Keep mask of the bias, (R,) bool; None where the bias is not prunable."""
        return self.keep_bias


def unpack(parts: Mapping[str, Tensor]) -> Mask:
    """Return the mask that :meth:`Mask.pack` gave ``parts``; other tensors among them do not matter."""
    if "keep" in parts:
        return Elementwise(parts["keep"], parts.get("keep_bias"))
    column, whole = parts.get("keep_bias_column"), parts.get("whole")
    return Structured(
        parts["keep_rows"], parts["keep_columns"], None if column is None else bool(column[0]),
        None if whole is None else (int(whole[0]), int(whole[1])),
    )  # fmt: skip


def full(weight: Tensor, bias: Tensor | None) -> Structured:
    """Return the mask that keeps everything of a layer with weight (R, C) and bias (R,)."""
    rows, columns = weight.shape
    keep_bias = None if bias is None else True
    return Structured(torch.ones(rows, dtype=torch.bool), torch.ones(columns, dtype=torch.bool), keep_bias)


def split(keep_rows: Tensor, keep_joined: Tensor, has_bias: bool) -> Structured:
    """Return the mask from row and column masks of ``[W  b]``: the last column is the bias if there is
    one."""
    keep_rows, keep_joined = keep_rows.cpu(), keep_joined.cpu()
    if not has_bias:
        return Structured(keep_rows, keep_joined, None)
    return Structured(keep_rows, keep_joined[:-1].clone(), bool(keep_joined[-1]))


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def erase(values: Tensor, keep: Tensor) -> None:
    """Set ``values`` to exactly (positive) zero where ``keep``, of the same shape, is False; in place.

    Their bits are multiplied by 0 or 1: on a CPU twenty times as fast as filling under a mask.
    """
    values.view(_INTEGERS[values.element_size()]).mul_(keep.to(values.device))


def apply(mask: Mask, weight: Tensor, bias: Tensor | None) -> None:
    """Set the removed entries of weight (R, C) and bias (R,) to exactly zero, in place."""
    erase(weight, mask.keep())
    entries = mask.keep_bias_entries()
    if bias is not None and entries is not None:
        erase(bias, entries)


@torch.no_grad()
def violations(mask: Mask, weight: Tensor, bias: Tensor | None) -> int:
    """Count removed entries of weight (R, C) and bias (R,) that are not exactly zero (NaN counts)."""
    count = int(((weight != 0) & ~mask.keep().to(weight.device)).sum())
    entries = mask.keep_bias_entries()
    if bias is not None and entries is not None:
        count += int(((bias != 0) & ~entries.to(bias.device)).sum())
    return count
