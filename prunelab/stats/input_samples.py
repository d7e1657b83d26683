"""What entered a layer at a few tokens, drawn without looking: (n, width) float32, one row per token.

The tokens are drawn uniformly, without replacement, from all sequences of the calibration set but the first position
of each, where attention sinks have huge values (a choice: arXiv:2406.00030 does not say). The draw depends on
the number and length of the sequences only: every layer has the same tokens, whatever the batch size and however ranks share
the sequences. Rows are in the order drawn, so the first rows are such a draw as well: who wants 256 takes
``value[:256]``.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from prunelab.stats.base import Place

ROWS = 1024  # or all tokens, if the set has fewer
_SEED = 2406_00030


@lru_cache(maxsize=8)
def drawn(n_sequences: int, seq_len: int) -> tuple[Tensor, Tensor]:
    """Return of which sequence (n,) and at which position (n,), >= 1, the tokens are that are taken."""
    per_sequence = max(seq_len - 1, 0)
    generator = torch.Generator().manual_seed(_SEED)
    chosen = torch.randperm(n_sequences * per_sequence, generator=generator)[:ROWS]
    return chosen // max(per_sequence, 1), 1 + chosen % max(per_sequence, 1)


class SampleRows:
    """The rows of this rank's sequences, all others 0: added over ranks they are complete."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.width = width
        self.total = torch.zeros(0, width, device=device)
        self.n_tokens = 0
        self._next = 0
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}

    def place(self, place: Place) -> None:
        """Learn which sequences will come, before the first of them."""
        sequence, position = drawn(place.n_sequences, place.seq_len)
        self._next = place.first
        self.total = self.total.new_zeros(len(sequence), self.width)
        for number in sequence.unique().tolist():
            rows = (sequence == number).nonzero()[:, 0]
            self._rows[number] = (rows.to(self.total.device), position[rows].to(self.total.device))

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Take the drawn tokens out of ``x`` (n, seq_len, width), the next n sequences."""
        for sequence in x:
            if self._next in self._rows:
                rows, position = self._rows[self._next]
                self.total[rows] = sequence[position].float()
            self._next += 1
            self.n_tokens += len(sequence)

    def finish(self) -> Tensor:
        """Return the samples, (n, width) float32."""
        return self.total


class InputSamples:
    """Inputs at up to 1,024 random tokens, the same of all layers, (n, width) float32."""

    name = "input_samples"
    reads = "input"

    def start(self, name: str, width: int, *, ones: bool, device: torch.device) -> SampleRows:
        """Return rows that wait for their place; a bias' input is not sampled."""
        return SampleRows(width, device)

    def live(self, value: Tensor) -> Tensor | None:
        """A few tokens cannot tell."""
        return None

    def restrict(self, value: Tensor, kept: Tensor) -> Tensor:
        """Samples of some channels; of a bias' input there are none."""
        return value[:, kept[: value.shape[1]]]

    def is_finite(self, value: Tensor) -> bool:
        """Whether all samples are finite."""
        return bool(torch.isfinite(value).all())

    def pack(self, value: Tensor) -> Tensor:
        """The samples themselves."""
        return value

    def unpack(self, stored: Tensor, width: int, name: str) -> Tensor:
        """The samples themselves."""
        if stored.ndim != 2 or stored.shape[1] != width:
            raise ValueError(f"shape (n, {width}) is needed, it is {tuple(stored.shape)}")
        return stored
