"""Decoder: a causal language model with the names of its blocks and linear maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from prunelab.errors import ModelError, nearest
from prunelab.family import Family
from prunelab.models.block import LinearSite
from prunelab.models.narrow import CompactLinear, is_gone


@dataclass(frozen=True, eq=False)
class Decoder:
    """A frozen causal LM: evaluation mode, no parameter requires a gradient.

    ``max_len`` is the longest sequence in tokens that the model was built (or asked) to take.
    """

    model: Any  # a transformers causal LM; its classes carry no useful static types
    family: Family
    name: str
    max_len: int

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, in order."""
        return cast(nn.ModuleList, self.model.get_submodule(self.family.blocks))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return next(self.model.parameters()).dtype

    def sites(self, block: int | None = None) -> tuple[LinearSite, ...]:
        """The linear maps of one block, or of all, in forward order; a block without attention or MLP lacks theirs."""
        chosen = range(len(self.blocks)) if block is None else (block,)
        return tuple(site for index in chosen for site in self._block_sites(index))

    def _block_sites(self, index: int) -> Iterator[LinearSite]:
        module = self.blocks[index]
        for shared, paths in enumerate(self.family.inputs):
            for path in paths:
                name = f"{self.family.blocks}.{index}.{path}"
                if is_gone(module, path):
                    continue
                try:
                    linear = module.get_submodule(path)
                except AttributeError:
                    linear = None
                if isinstance(linear, CompactLinear):
                    raise ModelError(
                        f"{self.name}: {name} picks single inputs or outputs: rows and columns that went are gone from it. "
                        "Such a model runs, is measured and saved, but not walked for statistics, pruned or repaired. "
                        "Do that with the model before compact(), or one exported without --compact."
                    )
                if not isinstance(linear, nn.Linear):
                    raise ModelError(
                        f"{self.name}: {name} is {type(linear).__name__}, but family {self.family.name!r} "
                        "expects torch.nn.Linear there; the model is quantised, compacted or of "
                        "another family, or the family's transposed lacks what is stored as (in, out)."
                    )
                yield LinearSite(name=name, path=path, block=index, shared=shared, linear=linear)

    def site(self, name: str) -> LinearSite:
        """The linear map called ``name``; ModelError names the nearest when there is none."""
        prefix = name.removeprefix(f"{self.family.blocks}.").partition(".")[0]
        if name.startswith(f"{self.family.blocks}.") and prefix.isdigit() and int(prefix) < len(self.blocks):
            for site in self._block_sites(int(prefix)):
                if site.name == name:
                    return site
        known = [site.name for site in self.sites()]
        raise ModelError(
            f"{self.name} has no linear site {name!r}; sites run from {known[0]} to {known[-1]}. "
            f"{nearest(name, known)}".rstrip()
        )

    def other_parameters(self, block: int | None = None) -> dict[str, nn.Parameter]:
        """The parameters of one block, or of all, outside its linear maps (gains and biases of norms), by full name."""
        linear = {id(parameter) for site in self.sites(block) for parameter in site.linear.parameters()}
        chosen = range(len(self.blocks)) if block is None else (block,)
        return {
            f"{self.family.blocks}.{index}.{path}": parameter
            for index in chosen
            for path, parameter in self.blocks[index].named_parameters()
            if id(parameter) not in linear
        }

    def n_parameters(self) -> int:
        """How many parameters the model holds, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def freeze(model: nn.Module) -> None:
    """Put ``model`` in evaluation mode and turn off every parameter's gradient, in place."""
    model.eval()
    model.requires_grad_(False)
