"""What a structured method sees of one linear layer: the live part of its weight and of its factors."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunelab.errors import ModelError
from prunelab.stats import obs


@dataclass(frozen=True, eq=False)
class Gram:
    """A factor (n, n) restricted to live rows and columns, with what was computed from it.

    Layers of one input group hold the same object while they have the same live columns, so the Cholesky
    factor behind ``inverse_diagonal`` is paid once for q, k and v, and once for gate and up.
    """

    matrix: Tensor
    name: str
    _diagonals: dict[float, Tensor] = field(default_factory=dict, repr=False)

    def damped(self, damping: float) -> Tensor:
        """Return ``matrix + damping * mean(diag) * I``, (n, n) float64."""
        return obs.damped(self.matrix, damping)

    def inverse_diagonal(self, damping: float) -> Tensor:
        """Return the diagonal (n,) of the damped inverse, float64; kept for the next caller."""
        if damping not in self._diagonals:
            self._diagonals[damping] = obs.inverse_diagonal(self.damped(damping), self.name)
        return self._diagonals[damping]


@dataclass(frozen=True, eq=False)
class SiteView:
    """The live sub-problem of one layer: dead and removed rows and columns are already dropped.

    W (r, c) in the model's dtype, the bias as last column if ``has_bias`` (None of it if the bias is dead);
    A (c, c) and G (r, r) float32, None if the method did not ask for them; generator: seeded by (seed, layer,
    shot), on the CPU.
    """

    name: str
    W: Tensor
    input_gram: Gram | None
    output_gram: Gram | None
    has_bias: bool
    generator: torch.Generator

    @property
    def inputs(self) -> Gram:
        """The input factor with its cached inverse; ModelError if the method's ``needs`` left it out."""
        if self.input_gram is None:
            raise ModelError(
                f"{self.name}: no input factor was collected; add 'input_gram' to the method's needs."
            )
        return self.input_gram

    @property
    def outputs(self) -> Gram:
        """The output factor with its cached inverse; ModelError if the method's ``needs`` left it out."""
        if self.output_gram is None:
            raise ModelError(
                f"{self.name}: no output factor was collected; add 'output_gram' to the method's needs."
            )
        return self.output_gram

    @property
    def A(self) -> Tensor:
        """Average of ``a a^T`` over tokens, (c, c)."""
        return self.inputs.matrix

    @property
    def G(self) -> Tensor:
        """Average of ``g g^T`` over tokens, (r, r)."""
        return self.outputs.matrix
