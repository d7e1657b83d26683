"""Processes that share the sequences of a calibration set: sums over all of them, and one word for all.

Statistics are sums over tokens, so each rank walks its own share of the sequences and the sums are added: what one
process would have, up to the order of float32 sums. A sum is made at rank 0 and handed out from there, so that all
ranks hold the same bits and decide the same; ``confirm`` proves it.

Before a sum the ranks meet: rank 0 hears a word from each of the others, in their order, and answers. A rank that
failed says so, and all fail there instead of waiting for it in the sum; a rank that is gone shows by its closed
connection, and is named. Words and CPU tensors travel by gloo, CUDA tensors by nccl.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

from prunelab.errors import StageError

PATIENCE = timedelta(
    minutes=30
)  # how long one rank may be behind another: shares differ by one sequence at most
_GO, _STOP, _FAILED = 0, 1, 2
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers by bytes per number


class Group(Protocol):
    """What numerics ask of the processes that work together; ``rank`` counts from 0 to ``size - 1``."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def share(self, n: int) -> slice:
        """Return which of ``n`` sequences are this rank's: contiguous, sizes differ by one, possibly none."""
        ...

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, in place and in its own dtype, the same bits everywhere."""
        ...

    def confirm(self, weights: Iterable[Tensor], what: str) -> None:
        """Raise StageError unless every rank holds the same bits as rank 0."""
        ...


@dataclass(frozen=True)
class Alone:
    """One process: every sequence is its own, and sums are what they are."""

    rank: int = 0
    size: int = 1

    def share(self, n: int) -> slice:
        """All of them."""
        return slice(0, n)

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Leave the tensors as they are."""

    def confirm(self, weights: Iterable[Tensor], what: str) -> None:
        """Do nothing."""


ALONE = Alone()


class Running(Protocol):
    """A sum over tokens, and how many they are."""

    total: Tensor
    n_tokens: int


def sum_over(group: Group, sums: Collection[Running]) -> None:
    """Add each running sum over all ranks, which hold as many and in the same order, in place."""
    if not sums:
        return
    counts = torch.tensor([found.n_tokens for found in sums])
    group.sum([*(found.total for found in sums), counts])
    for found, count in zip(sums, counts.tolist(), strict=True):
        found.n_tokens = count


class Ranks:
    """This process' place in a torch.distributed group whose members find each other through ``store``.

    The first failure ends the group: whoever meets afterwards fails as well.
    """

    def __init__(self, store: Store, rank: int, size: int, patience: timedelta = PATIENCE) -> None:
        self.rank, self.size, self.broken = rank, size, False
        self.lost: set[int] = set()
        self._store = store
        both = torch.cuda.is_available() and dist.is_nccl_available()
        with _named("the ranks did not find each other"):
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if both else "gloo", store=store, rank=rank, world_size=size, timeout=patience
            )  # fmt: skip

    def share(self, n: int) -> slice:
        """Return this rank's part of ``n`` sequences."""
        base, more = divmod(n, self.size)
        start = self.rank * base + min(self.rank, more)
        return slice(start, start + base + (self.rank < more))

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Add tensors over all ranks, in place; one meeting for all of them."""
        self.meet()
        try:
            for tensor in tensors:
                dist.reduce(tensor, dst=0)
                dist.broadcast(tensor, src=0)  # an all-reduce need not give all ranks the same bits
        except RuntimeError as error:
            self.broken = True
            raise StageError("; ".join(self._find_lost(error))) from error

    def confirm(self, weights: Iterable[Tensor], what: str) -> None:
        """Compare a checksum of the weights' bits with rank 0's."""
        total = sum(int(w.detach().view(_WORDS[w.element_size()]).sum(dtype=torch.int64)) for w in weights)
        self.meet(word=(total + 2**63) % 2**64 - 2**63, what=what)

    def meet(self, stop: bool = False, word: int = 0, what: str = "") -> bool:
        """Wait until all ranks are here; return what rank 0 says about ``stop``.

        Raises StageError if a rank failed or is gone, or came with another ``word`` than rank 0's.
        """
        if self.broken:
            raise StageError("another rank of this job failed before.")
        return self._exchange(_STOP if stop else _GO, word, what) == _STOP

    def fail(self, reason: str = "") -> None:
        """Make all ranks fail at their next meeting; ``reason`` is for rank 0. Does nothing if one failed before."""
        if not self.broken:
            self._store.set(f"failed/{self.rank}", reason)
            with suppress(StageError):
                self._exchange(_FAILED, 0, "")

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()

    def _exchange(self, state: int, word: int, what: str) -> int:
        reason = ""
        answer, reason = self._hear(state, word, what) if self.rank == 0 else self._say(state, word)
        self.broken = bool(reason) or answer == _FAILED
        if reason:
            raise StageError(reason)
        return answer

    def _find_lost(self, error: RuntimeError) -> list[str]:
        """Say who is gone: a connection that broke refuses the next message."""
        for rank in set(range(self.size)) - {self.rank}:
            try:
                dist.send(torch.zeros(2, dtype=torch.int64), dst=rank)
            except RuntimeError:
                self.lost.add(rank)
        return [self._gone(rank, error) for rank in sorted(self.lost)] or [
            f"a rank is gone ({_first_line(error)})"
        ]

    def _gone(self, rank: int, error: RuntimeError) -> str:
        return (
            f"rank {rank} of {self.size} is gone or hangs ({_first_line(error)}): killed, short of memory, or its node "
            "failed; its log may say more."
        )

    def _hear(self, state: int, word: int, what: str) -> tuple[int, str]:
        reasons = []
        for rank in range(1, self.size):
            said = torch.zeros(2, dtype=torch.int64)
            try:
                dist.recv(said, src=rank)
            except RuntimeError as error:
                self.lost.add(rank)
                reasons.append(self._gone(rank, error))
                continue
            if int(said[0]) == _FAILED:
                reasons.append(f"rank {rank} of {self.size}: {self._store.get(f'failed/{rank}').decode()}")
            elif state != _FAILED and int(said[1]) != word:
                reasons.append(
                    f"rank {rank} of {self.size} holds other weights than rank 0 {what}: their nodes compute differently. "
                    "Ask for nodes of one kind, or for one task."
                )
        answer = torch.tensor([_FAILED if reasons else state])
        for rank in set(range(1, self.size)) - self.lost:
            with suppress(RuntimeError):  # it will show at the next meeting, if there is one
                dist.send(answer, dst=rank)
        return int(answer), "; ".join(reasons)

    def _say(self, state: int, word: int) -> tuple[int, str]:
        answer = torch.zeros(1, dtype=torch.int64)
        try:
            dist.send(torch.tensor([state, word]), dst=0)
            dist.recv(answer, src=0)
        except RuntimeError as error:
            return _FAILED, self._gone(0, error)
        return int(answer), "rank 0 ended the work" if int(answer) == _FAILED else ""


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise StageError(f"{what} ({_first_line(error)})") from error


def _first_line(error: Any) -> str:
    return str(error).partition("\n")[0].partition("] ")[2].partition(". This")[0] or str(error)[:200]
