"""What a method sees: the weights it decides about, and the statistics it asked for.

Layers that share an input (q, k and v; gate and up) may come as one view, their rows stacked, so that a method
inverts their Gram matrix once. Where a pattern counts biases, the bias is the last column of ``W``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunelab.errors import ModelError
from prunelab.stats.base import Values
from prunelab.stats.gram import Gram


@dataclass(frozen=True, eq=False)
class View:
    """``W`` (R, C) in the model's dtype: of one layer, or of layers with one input, rows of the first one first.

    With patterns of rows and columns only what is alive is in the view: rows, columns and entries of statistics that
    are zero or were removed before are dropped. ``names`` and ``rows``: the layers and how many of the rows each has.
    ``values``: by the names in the method's ``needs``. ``generators``: one per layer, seeded by (seed, layer, shot),
    on the CPU. ``has_bias``: the last column is the bias.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    W: Tensor
    generators: tuple[torch.Generator, ...]
    values: Values = field(default_factory=dict)
    has_bias: bool = False

    @property
    def name(self) -> str:
        """The (first) layer's name."""
        return self.names[0]

    @property
    def generator(self) -> torch.Generator:
        """The (first) layer's generator."""
        return self.generators[0]

    def value(self, need: str) -> Any:
        """The value of a statistic; ModelError if the method's ``needs`` left it out."""
        if need not in self.values:
            raise ModelError(f"{self.name}: add {need!r} to the method's needs.")
        return self.values[need]

    @property
    def input_norm(self) -> Tensor:
        """Root mean square of every input channel, (C,) float32."""
        return self.value("input_norm")

    @property
    def input_gram(self) -> Gram:
        """Average of ``a a^T`` over tokens, with its cached inverses."""
        return self.value("input_gram")

    @property
    def output_gram(self) -> Gram:
        """Average of ``g g^T`` over tokens, with its cached inverses."""
        return self.value("output_gram")

    @property
    def A(self) -> Tensor:
        """The matrix of ``input_gram``, (C, C)."""
        return self.input_gram.matrix

    @property
    def G(self) -> Tensor:
        """The matrix of ``output_gram``, (R, R)."""
        return self.output_gram.matrix

    def parts(self) -> Iterator[slice]:
        """The rows of each layer."""
        start = 0
        for count in self.rows:
            yield slice(start, start + count)
            start += count


def site_generator(seed: int, name: str, shot: int) -> torch.Generator:
    """Return the generator of one layer and shot, on the CPU; the same for the same arguments anywhere."""
    digest = hashlib.sha256(f"{seed}/{name}/{shot}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
