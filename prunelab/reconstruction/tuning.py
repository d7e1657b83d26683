"""Block by block: the kept weights of one or more whole blocks fitted by gradient (arXiv:2406.15524).

Trained are all parameters of the blocks, as in the published code, or the linear layers' weights and biases alone
(``trains``), in float32 whatever the model's dtype. The loss is the mean squared error per element, taken in float32,
so that bfloat16 blocks cannot overflow it. Adam (betas 0.9 and 0.95 in the paper), the learning rate falling linearly
to 0 at the last update, batches reshuffled every epoch with the rest dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, cast

import torch
from torch import Tensor

from prunelab.errors import ConfigError, ModelError
from prunelab.models.activation import Activations
from prunelab.models.compare import squares
from prunelab.reconstruction.base import Target, Unit
from prunelab.reconstruction.fit import Say, Trained, fit
from prunelab.reconstruction.streams import Streams


@dataclass(frozen=True)
class Tuning:
    """``window`` blocks are trained together, moving on by ``stride``; the target is the dense window on the
    pruned stream (local) or on the dense one (global).

    ``masks``: when they are chosen, see :class:`prunelab.reconstruction.base.Reconstruction`. ``trains``: the linear
    layers' weights and biases, or all parameters of the blocks, which adds the gains and biases of norms. ``epochs``
    over the sequences in batches of ``batch``, and more of them where fewer than ``min_updates`` would come of it: a
    few sequences at the paper's epochs are hardly fitted at all. ``epochs`` 0 trains nothing. Of a batch only as many
    sequences as make ``part_tokens`` tokens go through the window at a time, at least one, and the gradients add up:
    memory follows those, not the batch. ``beta1``, ``beta2``: Adam's. ``clipping`` of the gradients' norm at
    ``max_norm``, or, as the published code does by accident, of gradients scaled for float16: see
    :mod:`prunelab.reconstruction.fit`. ``patience``: epochs without a lower loss on the stopping text before training
    ends and the best weights return; null = train to the end.
    """

    name: str
    revision: int
    window: Annotated[int, "x >= 1"]
    stride: Annotated[int, "x >= 1"]
    masks: Annotated[str, "before | between | by_pattern"]
    target: Annotated[str, "local | global"]
    trains: Annotated[str, "weights | all"]
    epochs: Annotated[int, "x >= 0"]
    min_updates: Annotated[int, "x >= 0"]
    batch: Annotated[int, "x >= 1"]
    part_tokens: Annotated[int, "x >= 1"]
    learning_rate: Annotated[float, "x > 0"]
    beta1: Annotated[float, "0 <= x < 1"]
    beta2: Annotated[float, "0 <= x < 1"]
    clipping: Annotated[str, "none | norm | scaled_norm"]
    max_norm: Annotated[float, "x > 0"]
    patience: Annotated[int | None, "x >= 1"]

    dtypes = ("float32", "bfloat16")  # of the model; a block's outputs overflow float16

    @property
    def early_stop(self) -> bool:
        """Whether text of its own decides when training ends."""
        return self.patience is not None

    def repair(self, unit: Unit, say: Say) -> dict[str, float]:
        """Train the unit; return updates, and the loss on its own target: first_epoch's mean, and after."""
        if self.epochs == 0:
            return {"updates": 0}
        streams, kind = unit.calibration, cast(Target, self.target)
        if streams.like.dtype == torch.float16:
            raise ConfigError("model.dtype", "float16", " | ".join(self.dtypes))
        store = unit.shelf.build(*streams.shape)
        unit.target(streams, kind, store)

        def loss(rows: Tensor) -> Tensor:
            hidden = streams.run(unit.blocks, streams.pruned.read(rows))
            return mean_square(hidden, store.read(rows, streams.like))

        stop, stop_store = None, None
        if self.patience is not None:
            texts = cast(Streams, unit.stopping)
            stop_store = unit.shelf.build(*texts.shape)
            unit.target(texts, kind, stop_store)
            stop = partial(_error, unit, texts, stop_store)

        together = max(1, self.part_tokens // streams.shape[1])
        updates, first = fit(
            self._trained(unit), loss, streams.shape[0], self, unit.generator, stop, say, together=together
        )
        after = _error(unit, streams, store) / math.prod(store.shape)
        for used in (store, stop_store):
            unit.shelf.discard(used)
        if not math.isfinite(after):
            raise ModelError(
                f"reconstruction of blocks {unit.blocks[0]} to {unit.blocks[-1]} diverged (loss {after}). "
                "Lower reconstruction.learning_rate."
            )
        return {"updates": updates, "loss_first_epoch": first, "loss_after": after}

    def _trained(self, unit: Unit) -> list[Trained]:
        """Return the parameters to train, with their masks."""
        trained = []
        for layer in unit.layers:
            trained.append(Trained(layer.linear, "weight", layer.mask.keep()))
            if layer.linear.bias is not None:
                trained.append(Trained(layer.linear, "bias", layer.mask.keep_bias_entries()))
        if self.trains == "all":
            for other in unit.others:
                owner, _, name = other.name.rpartition(".")
                trained.append(Trained(unit.decoder.model.get_submodule(owner), name, None))
        return trained


def _error(unit: Unit, streams: Streams, target: Activations) -> float:
    """Squared error of the unit on the pruned stream against ``target``."""
    return squares(streams.pruned, target, partial(streams.run, unit.blocks))[0]


def mean_square(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean of the squared differences, a float32 scalar."""
    return (output.float() - target.float()).square().mean()
