"""Stage statistics: what enters the linear layers of the dense model, once for all that prune from its stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prunelab.evaluation.cost import metered
from prunelab.models.load import load_decoder
from prunelab.passes.collect import BlockValues
from prunelab.passes.statistics import block_path, collect_statistics, save_block
from prunelab.stages import calibrate, setting
from prunelab.store.context import Context, Result


def run(identity: Mapping[str, Any], context: Context) -> Result:
    """Collect ``identity["statistics"]`` on the calibration tokens; writes ``block-<i>.safetensors``.

    A kill loses the block it falls into: its successor walks through finished blocks without collecting. Ranks of
    ``context.group`` share the tokens; rank 0 alone writes.
    """
    with metered() as cost:
        device = setting.prepare(context.runtime)
        decoder = load_decoder(context.runtime["model"], device=device)
        tokens = calibrate.read(context.inputs["calibrate"].folder).to(device)
        paths = [block_path(context.work, index) for index in range(len(decoder.blocks))]
        done, _ = context.resume()
        done = next((index for index, path in enumerate(paths[:done]) if not path.exists()), done)
        ranks = setting.group(context)
        begin = torch.tensor([done if context.leads else 0])
        ranks.sum([begin])  # rank 0 looks for files, all begin where it does

        def on_block(index: int, values: BlockValues) -> None:
            if context.leads:
                save_block(decoder, index, values, identity["statistics"], paths[index])
            context.checkpoint(index + 1)

        collect_statistics(
            decoder, tokens, identity["statistics"], setting.batch_size(context.runtime, tokens.shape[1]),
            on_block, placement=setting.placement(context), start_block=int(begin),
            progress=lambda row: context.progress(row["phase"], row["done"], row["total"]), group=ranks,
        )  # fmt: skip
        if not context.leads:
            return Result({})
        for path in reversed(paths):  # a kill in here leaves the first blocks in place
            path.replace(context.outputs / path.name)
        cost.tokens = tokens.numel()
    return Result({"blocks": len(paths), "tokens": tokens.numel()}, cost=cost.values())
