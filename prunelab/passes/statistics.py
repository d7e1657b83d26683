"""Statistics of the dense model, collected once for any number of prunings.

Whatever is pruned from the dense stream sees the same numbers, whichever ratio and method ask for them. They
are kept as one safetensors file per block: what writes and what reads holds the statistics of one block.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunelab.distributed.group import ALONE, Group
from prunelab.errors import StoreError
from prunelab.files import replacing
from prunelab.models.activation import Placement, open_shelf
from prunelab.models.decoder import Decoder
from prunelab.models.inputs import groups
from prunelab.models.stream import advance, open_stream
from prunelab.passes.collect import BlockValues, Needs, Progress, collect_all, collect_block, load_needs
from prunelab.statistic import BLOCK, ENTERING, INPUT, PARTS

FORMAT, VERSION = "prunelab.statistics", 2


@torch.no_grad()
def collect_statistics(
    decoder: Decoder,
    tokens: Tensor,
    needs: Collection[str],
    batch_size: int,
    on_block: Callable[[int, BlockValues], None],
    *,
    placement: Placement | None = None,
    start_block: int = 0,
    progress: Progress | None = None,
    group: Group = ALONE,
) -> None:
    """Give ``on_block(index, values)`` the statistics of every block from ``start_block`` on, in order.

    ``tokens`` (n, seq_len) int64. ``placement``: where hidden states wait between blocks; None = on the model's
    device. ``values`` are valid during the call only; where one reads gradients, those of the whole model are held
    at once. ``decoder`` stays dense. Of several ranks in ``group`` each walks its share of the tokens, and all find
    the same. Raises ConfigError for needs that are unknown.
    """
    n_blocks, wanted = len(decoder.blocks), load_needs(needs)
    if wanted.backward:
        values = collect_all(
            decoder, tokens, needs, batch_size, placement=placement, progress=progress, group=group
        )
        for index in range(start_block, n_blocks):
            on_block(index, {site.name: values.pop(site.name) for site in decoder.sites(index)})
        return
    with open_shelf(placement or Placement("device"), decoder.dtype, decoder.device) as shelf:
        stream = open_stream(decoder, tokens, batch_size, shelf, group)
        for index in range(n_blocks):
            if index < start_block:
                advance(decoder, index, stream)
                continue
            advancing = index < n_blocks - 1
            # no name for the values: one would keep them until the next block's are there
            on_block(index, collect_block(decoder, index, stream, wanted, advancing=advancing))
            if progress is not None:
                progress({"event": "progress", "phase": "statistics", "done": index + 1, "total": n_blocks})


def save_block(decoder: Decoder, index: int, values: BlockValues, needs: Collection[str], path: Path) -> None:
    """Write the statistics of block ``index`` to ``path`` by rename; StoreError if that is impossible."""
    tensors = {
        f"{owner}:{need}": statistic.pack(values[owner][need]).cpu().contiguous()
        for need, statistic in load_needs(needs).statistics.items()
        for owner in dict.fromkeys(_owners(decoder, index, statistic.reads).values())
    }
    metadata = {FORMAT: json.dumps({"version": VERSION, "model": decoder.name, "block": index})}
    with replacing(path, refusals=(SafetensorError,)) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def block_path(folder: Path, index: int) -> Path:
    """Return the file of block ``index``."""
    return folder / f"block-{index}.safetensors"


def _owners(decoder: Decoder, index: int, reads: str) -> dict[str, str]:
    """Return by layer under whose name its value is kept: layers with one input share the first one's, and all layers of
    a block what is the block's."""
    if reads in (BLOCK, PARTS):
        first, *_ = decoder.sites(index)
        return {site.name: first.name for site in decoder.sites(index)}
    if reads == INPUT:
        return {site.name: sites[0].name for sites in groups(decoder, index) for site in sites}
    return {site.name: site.name for site in decoder.sites(index)}


class StatisticsFolder:
    """Statistics that :func:`save_block` wrote to ``folder``, under the names of :func:`block_path`."""

    def __init__(self, folder: Path, needs: Collection[str]) -> None:
        self.folder, self.needs = folder, tuple(sorted(needs))
        self._needs: Needs = load_needs(self.needs)

    def block(self, decoder: Decoder, index: int) -> BlockValues:
        """Read one block; StoreError if its file is missing, damaged, or of another model."""
        path = block_path(self.folder, index)
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get(FORMAT, "{}"))
                if header.get("version") != VERSION:
                    raise _unusable(path, f"it is no {FORMAT} of version {VERSION}")
                kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return self._values(decoder, index, kept)
        except (SafetensorError, OSError, ValueError) as error:
            raise _unusable(path, str(error)) from error

    def _values(self, decoder: Decoder, index: int, kept: Mapping[str, Tensor]) -> BlockValues:
        values: dict[str, dict[str, Any]] = {site.name: {} for site in decoder.sites(index)}
        for need, statistic in self._needs.statistics.items():
            loaded: dict[str, Any] = {}
            for name, owner in _owners(decoder, index, statistic.reads).items():
                if owner not in loaded:
                    if (stored := kept.get(f"{owner}:{need}")) is None:
                        raise ValueError(f"{owner} of {decoder.name} has no {need}")
                    linear = decoder.site(owner).linear
                    width = linear.in_features if statistic.reads in ENTERING else linear.out_features
                    try:
                        loaded[owner] = statistic.unpack(stored.to(decoder.device), width, owner)
                    except ValueError as error:
                        raise ValueError(f"{need} of {owner} of {decoder.name}: {error}") from None
                values[name][need] = loaded[owner]
        return dict(values)


def _unusable(path: Path, reason: str) -> StoreError:
    return StoreError(
        f"{path} cannot be read as statistics: {reason}. Delete its folder and run the study again."
    )
