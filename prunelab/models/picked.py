"""Maps that pick single inputs and place single outputs: how a config.json says so, and whether what a file says can be.

The entry ``pruned`` of config.json says by path how many inputs a map picks and how many outputs it places, null where
that is all; which ones are two int64 tensors beside its weight. Both come from a disk: numbers are checked before
anything is built, places once they are read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prunelab.errors import ModelError, nearest
from prunelab.family import Family
from prunelab.models.narrow import CompactLinear, is_gone

if TYPE_CHECKING:
    from prunelab.models.decoder import Decoder

ENTRY, PICKED = "pruned", "picked"
_KEYS = ("inputs", "outputs")


@dataclass(frozen=True)
class Picked:
    """The map at ``path`` of a block: how many inputs it picks and how many outputs it places; None: all of them."""

    path: str
    inputs: int | None
    outputs: int | None


def linear_maps(decoder: Decoder, block: int) -> dict[str, nn.Linear | CompactLinear]:
    """The maps of a block by path, in forward order, those that pick among them.

    Raises ModelError for what is neither torch.nn.Linear nor CompactLinear.
    """
    module, found = decoder.blocks[block], dict[str, nn.Linear | CompactLinear]()
    for path in (path for paths in decoder.family.inputs for path in paths if not is_gone(module, path)):
        try:
            linear = module.get_submodule(path)
        except AttributeError:
            linear = None
        if not isinstance(linear, nn.Linear | CompactLinear):
            raise ModelError(
                f"{decoder.name}: {decoder.family.blocks}.{block}.{path} is {type(linear).__name__}, but family "
                f"{decoder.family.name!r} expects torch.nn.Linear there; the model is quantised or of another family."
            )
        found[path] = linear
    return found


def width_of(linear: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a map as its neighbours see it."""
    if isinstance(linear, CompactLinear):
        return linear.out_features, linear.in_features
    rows, columns = linear.get_parameter("weight").shape
    return rows, columns


def picked_maps(family: Family, maps: Mapping[str, nn.Linear | CompactLinear]) -> tuple[Picked, ...]:
    """Those of ``maps`` that pick or place; where no hidden unit is left, all maps of the MLP: that tells one that still
    gives its bias from one that is gone."""
    mlp = () if family.mlp is None else (*family.mlp[0], family.mlp[1])
    empty = bool(mlp) and mlp[-1] in maps and width_of(maps[mlp[-1]])[1] == 0
    return tuple(
        Picked(path, *(_count(linear, key) for key in _KEYS))
        for path, linear in maps.items()
        if isinstance(linear, CompactLinear) or (empty and path in mlp)
    )


def _count(linear: nn.Module, key: str) -> int | None:
    places = getattr(linear, key, None)
    return None if places is None else len(places)


def read_picked(
    value: object, dense: Mapping[str, nn.Linear], empty: Collection[str], key: str, where: str
) -> tuple[Picked, ...]:
    """Return the checked maps of an entry's ``picked``; ModelError names ``where`` and the first value that cannot be.

    ``dense``: the dense model's maps by path, without those of parts that are gone; ``empty``: paths that may have both
    null, which are those of an MLP without hidden units.
    """
    if not isinstance(value, Mapping) or not value:
        raise wrong(where, key, value, "a mapping of paths, with at least one")
    found = []
    for path, counts in value.items():
        at = f"{key}.{path}"
        if path not in dense:
            raise wrong(
                where, key, path, f"paths among {', '.join(dense)}. {nearest(path, dense)}".rstrip(" .")
            )
        if not isinstance(counts, Mapping) or set(counts) != set(_KEYS):
            raise wrong(where, at, counts, f"a mapping with exactly {', '.join(_KEYS)}")
        rows, columns = dense[path].weight.shape
        for name, most in zip(_KEYS, (columns, rows), strict=True):
            n = counts[name]
            if n is not None and (type(n) is not int or not 0 <= n <= most):
                raise wrong(
                    where, f"{at}.{name}", n, f"null or an integer from 0 to {most}, the dense model's"
                )
        if counts["inputs"] is None and counts["outputs"] is None and path not in empty:
            raise wrong(where, at, counts, "a number for inputs, outputs or both")
        found.append(Picked(path, counts["inputs"], counts["outputs"]))
    return tuple(found)


def check_places(model: nn.Module, where: str) -> None:
    """Raise ModelError, naming ``where`` and the tensor, unless each filled map of ``model`` picks and places int64 numbers
    that are strictly increasing and below its width."""
    for name, module in model.named_modules():
        if not isinstance(module, CompactLinear):
            continue
        widths = (module.in_features, module.out_features)
        for key, places, width in zip(_KEYS, (module.inputs, module.outputs), widths, strict=True):
            if places is not None and not _are_places(places, width):
                raise ModelError(
                    f"{where}: tensor {f'{name}.{key}'!r} holds no places of that map; allowed are int64 numbers from 0 to "
                    f"{width - 1}, each larger than the one before. The file was changed: export it again."
                )


def _are_places(places: Tensor, width: int) -> bool:
    if places.dtype != torch.int64 or places.dim() != 1:
        return False
    if not len(places):
        return True
    return bool((places[1:] > places[:-1]).all()) and int(places[0]) >= 0 and int(places[-1]) < width


def wrong(where: str, key: str, value: object, allowed: str) -> ModelError:
    """The error of a value in the entry ``pruned`` of the config.json ``where``."""
    shown = repr(value)
    shown = shown if len(shown) < 80 else f"{shown[:76]}..."
    name = key if key == ENTRY else f"{ENTRY}.{key}"
    return ModelError(
        f"{where}: {name}={shown}; allowed is {allowed}. The file was changed or is of another model: export it again."
    )
