"""A low-rank addition to a linear layer, LoRA (arXiv:2106.09685, section 4.1): ``h = W x + (alpha / r) B A x``.

``A`` (r, C) is drawn by the published code's Kaiming-uniform rule, from plus or minus one over the root of the layer's
inputs, or from N(0, 1) as arXiv:2312.17244 does; ``B`` (R, r) starts at zero, and with it the addition. Here the layer is
pruned. Of rows and columns that are gone neither factor takes part, as if the layer had been made smaller first, which is
what the code of arXiv:2305.11627 does;
the draw counts the columns that are left. Where single weights are gone no low-rank matrix has their zeros: ``keep``
masks the product instead, and the forward sees ``W + (alpha / r) (M * B A)``, so that merging changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.models.block import LinearSite
from prunelab.sparsity import mask as masking
from prunelab.sparsity.mask import Mask

Drop = Callable[[str, Tensor], Tensor]  # a layer's name and its input (b, seq_len, C)


@dataclass(frozen=True, eq=False)
class Adapter:
    """The addition to one layer. ``rows`` (R, 1) and ``columns`` (1, C): ones, and zeros where a whole line is gone; None
    where none is. ``keep`` (R, C) bool: None where the two say all, or the mask waits until the end. Factors are float32,
    or float64 for such a model.
    """

    site: LinearSite
    mask: Mask
    A: nn.Parameter
    B: nn.Parameter
    scale: float
    rows: Tensor | None
    columns: Tensor | None
    keep: Tensor | None

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (r, C) and B (R, r) without the lines that are gone."""
        A = self.A if self.columns is None else self.A * self.columns
        return A, self.B if self.rows is None else self.B * self.rows

    def added(self, x: Tensor) -> Tensor:
        """Return what is added to the layer's output (..., R) for the input ``x`` (..., C)."""
        A, B = self.factors()
        x = x.to(A.dtype)
        if self.keep is None:
            return F.linear(F.linear(x, A), B) * self.scale
        return F.linear(x, (B @ A) * self.keep) * self.scale

    @torch.no_grad()
    def merge(self) -> None:
        """Put the sum in the layer's weight, in its dtype; removed weights are exactly zero afterwards."""
        A, B = self.factors()
        weight = self.site.linear.weight
        weight.copy_(weight.to(A.dtype) + (B @ A) * self.scale)
        masking.apply(self.mask, weight, self.site.linear.bias)


def begin_adapter(
    site: LinearSite, mask: Mask, rank: int, alpha: float, generator: torch.Generator, *, through: bool,
    init: str = "kaiming",
) -> Adapter:  # fmt: skip
    """Return the addition of ``rank`` that a layer begins with; ``generator``: on the CPU. ``through``: single weights that
    are gone are masked in the forward. ``init`` of A: kaiming | normal."""
    weight = site.linear.weight
    wide = torch.promote_types(weight.dtype, torch.float32)
    left = mask.keep()
    if init == "normal":
        A = torch.randn(rank, weight.shape[1], generator=generator)
    else:
        inputs = int(left.any(0).sum())
        A = (torch.rand(rank, weight.shape[1], generator=generator) * 2 - 1) * max(inputs, 1) ** -0.5
    A = A.to(weight.device, wide)
    rows, columns, _ = mask.lines()
    lines = rows[:, None] & columns[None, :]
    apart = through and not torch.equal(lines, left)

    def ones(kept: Tensor) -> Tensor | None:
        return None if bool(kept.all()) else kept.to(weight.device, wide)

    return Adapter(
        site, mask, nn.Parameter(A), nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device, dtype=wide)),
        alpha / rank, ones(rows[:, None]), ones(columns[None, :]), left.to(weight.device) if apart else None,
    )  # fmt: skip


@contextmanager
def adapted(adapters: Sequence[Adapter], seq_len: int, drop: Drop | None = None) -> Iterator[None]:
    """While open, the layers compute with their additions, from which ``drop`` may take inputs away."""
    handles = []

    def addition(one: Adapter) -> Callable[..., Tensor]:
        def hook(module: object, args: tuple[Any, ...], output: Tensor) -> Tensor:
            x = args[0]
            if drop is not None:  # some families hand their layers the tokens of a whole batch in one row
                x = drop(one.site.name, x.reshape(-1, seq_len, x.shape[-1])).view(x.shape)
            added = one.added(x)
            return (output.to(added.dtype) + added).to(output.dtype)

        return hook

    try:
        for one in adapters:
            handles.append(one.site.linear.register_forward_hook(addition(one)))
        yield
    finally:
        for handle in handles:
            handle.remove()
