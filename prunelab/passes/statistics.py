"""Statistics of the dense model's linear inputs, collected once for any number of prunings.

Whatever is pruned from the dense stream sees the same numbers, whichever ratio and method ask for them. They
are kept as one safetensors file per block: what writes and what reads holds the statistics of one block.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunelab.errors import StoreError
from prunelab.models.activation import Placement, open_shelf
from prunelab.models.block import LinearSite
from prunelab.models.decoder import Decoder
from prunelab.models.inputs import collect_inputs, groups
from prunelab.models.stream import advance, open_stream
from prunelab.stats.group import ALONE, Group
from prunelab.stats.linear import InputStatistics

FORMAT, VERSION = "prunelab.statistics", 1
Found = Sequence[InputStatistics]


class Statistics(Protocol):
    """Statistics of the dense model on some token set, a block at a time."""

    @property
    def needs(self) -> tuple[str, ...]:
        """What was collected, of 'input_norm' and 'input_gram'."""
        ...

    def block(self, decoder: Decoder, index: int) -> Found:
        """Return those of block ``index``, one per group of ``models.inputs.groups``, on its device."""
        ...


@torch.no_grad()
def collect_statistics(
    decoder: Decoder,
    tokens: Tensor,
    needs: Collection[str],
    batch_size: int,
    on_block: Callable[[int, Found], None],
    *,
    placement: Placement | None = None,
    start_block: int = 0,
    progress: Callable[[Mapping[str, Any]], None] | None = None,
    group: Group = ALONE,
) -> None:
    """Give ``on_block(index, found)`` the statistics of every block from ``start_block`` on, in order.

    ``tokens`` (n, seq_len) int64. ``placement``: where hidden states wait between blocks; None = on the model's
    device. ``found`` is valid during the call only. ``decoder`` stays dense. Of several ranks in ``group`` each walks
    its share of the tokens, and all find the same. Raises ConfigError for needs that are unknown.
    """
    n_blocks = len(decoder.blocks)
    with open_shelf(placement or Placement("device"), decoder.dtype, decoder.device) as shelf:
        stream = open_stream(decoder, tokens, batch_size, shelf, group)
        for index in range(n_blocks):
            if index < start_block:
                advance(decoder, index, stream)
                continue
            go_on = index < n_blocks - 1
            # no name for the sums: one would keep them until the next block's are there
            on_block(
                index, [sums.finish() for sums in collect_inputs(decoder, index, stream, needs, go_on=go_on)]
            )
            if progress is not None:
                progress({"event": "progress", "phase": "statistics", "done": index + 1, "total": n_blocks})


def save_block(decoder: Decoder, index: int, found: Found, path: Path) -> None:
    """Write the statistics of block ``index`` to ``path`` by rename; StoreError if that is impossible."""
    tensors = {}
    for group, statistics in zip(groups(decoder, index), found, strict=True):
        for part, value in (("norm", statistics.norm), ("gram", statistics.gram)):
            if value is not None:
                tensors[f"{group[0].name}:{part}"] = value.cpu().contiguous()
    metadata = {FORMAT: json.dumps({"version": VERSION, "model": decoder.name, "block": index})}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata=metadata)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"cannot write statistics to {path}: {error}. Free space there.") from error


def block_path(folder: Path, index: int) -> Path:
    """Return the file of block ``index``."""
    return folder / f"block-{index}.safetensors"


class StatisticsFolder:
    """Statistics that :func:`save_block` wrote to ``folder``, under the names of :func:`block_path`."""

    def __init__(self, folder: Path, needs: Collection[str]) -> None:
        self.folder, self.needs = folder, tuple(sorted(needs))

    def block(self, decoder: Decoder, index: int) -> Found:
        """Read one block; StoreError if its file is missing, damaged, or of another model."""
        path = block_path(self.folder, index)
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get(FORMAT, "{}"))
                if header.get("version") != VERSION:
                    raise _unusable(path, f"it is no {FORMAT} of version {VERSION}")
                kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise _unusable(path, str(error)) from error
        return [self._of(group, kept, decoder, path) for group in groups(decoder, index)]

    def _of(
        self, group: Sequence[LinearSite], kept: Mapping[str, Tensor], decoder: Decoder, path: Path
    ) -> InputStatistics:
        parts, width = {}, group[0].linear.in_features
        for need, part, shape in (
            ("input_norm", "norm", (width,)),
            ("input_gram", "gram", (width, width)),
        ):
            value = kept.get(f"{group[0].name}:{part}")
            if need in self.needs and (value is None or value.shape != shape):
                raise _unusable(
                    path,
                    f"{group[0].name} of {decoder.name} needs {part} {shape}, it has "
                    f"{'none' if value is None else tuple(value.shape)}",
                )
            parts[part] = None if value is None else value.to(decoder.device)
        return InputStatistics(**parts)


def _unusable(path: Path, reason: str) -> StoreError:
    return StoreError(
        f"{path} cannot be read as statistics: {reason}. Delete its folder and run the study again."
    )
