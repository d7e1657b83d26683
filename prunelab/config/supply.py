"""How many units a model on this disk has, and what each costs: read from the headers of its safetensors, without torch.

Where no weights are at hand (hub, random), or no family knows the model, nothing is known, and the job finds out.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prunelab.config.files import HEADS_KEYS, WIDTH_KEYS, first_of, model_folder, text_config
from prunelab.errors import ModelError
from prunelab.family import Family, family_of
from prunelab.pattern.base import ATTENTION, BLOCKS, FFN, HEADS, NEURONS, Supply

_LIMIT = 1 << 27  # bytes; a larger header is none


def supplies(model: Mapping[str, Any]) -> tuple[Supply, ...]:
    """Return every kind of unit of every block of an embedded or local model; () where they cannot be told."""
    with suppress(
        OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, struct.error, ModelError
    ):
        config = text_config(model)
        family = family_of(str(config["model_type"]), model.get("family"))
        sizes = _sizes(model_folder(model))
        width, heads = first_of(config, WIDTH_KEYS), first_of(config, HEADS_KEYS)
        of_head = int(config.get("head_dim") or width // heads)
        names = _blocks(family, sizes)
        return tuple(
            one
            for index, block in sorted(names.items())
            for one in _units(family, block, index, width, of_head)
        )
    return ()


def _sizes(folder: Path) -> dict[str, int]:
    """How many numbers every tensor in the safetensors of ``folder`` holds, by name."""
    found: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _LIMIT:
                raise ValueError(file)
            header = json.loads(stream.read(length))
        found |= {name: math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__"}
    return found


def _blocks(family: Family, sizes: Mapping[str, int]) -> dict[int, dict[str, int]]:
    """Sizes of what is in each block, by path; names may leave out the first part, as checkpoints of a bare decoder do."""
    bare = family.blocks.partition(".")[2]
    found: dict[int, dict[str, int]] = {}
    for name, size in sizes.items():
        for root in (family.blocks, bare):
            inside = name.removeprefix(f"{root}.")
            index, _, path = inside.partition(".")
            if inside != name and index.isdigit():
                found.setdefault(int(index), {})[path] = size
                break
    return found


def _units(
    family: Family, block: Mapping[str, int], index: int, width: int, of_head: int
) -> Iterator[Supply]:
    def cost(paths: Iterable[str], *, without_bias: str = "") -> int:
        weights = (block.get(f"{path}.weight", 0) for path in dict.fromkeys(paths))
        biases = (block.get(f"{path}.bias", 0) for path in dict.fromkeys(paths) if path != without_bias)
        return sum(weights) + sum(biases)

    everything = [path for group in family.inputs for path in group]
    yield Supply(BLOCKS, index, 1, cost(everything))
    if family.mlp is not None and f"{family.mlp[1]}.weight" in block:
        paths = (*family.mlp[0], family.mlp[1])
        count = block[f"{family.mlp[1]}.weight"] // width
        yield Supply(FFN, index, 1, cost(paths))
        yield Supply(NEURONS, index, count, cost(paths, without_bias=family.mlp[1]) // count)
    if family.attention is not None and f"{family.attention[3]}.weight" in block:
        query, key, _, output = family.attention
        n_q, rows = block[f"{output}.weight"] // width // of_head, block[f"{key}.weight"] // width // of_head
        count = (rows - n_q) // 2 if query == key else rows
        yield Supply(ATTENTION, index, 1, cost(family.attention))
        yield Supply(HEADS, index, count, cost(family.attention, without_bias=output) // count)
