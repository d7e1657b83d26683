"""Block by block: the kept weights of one or more whole blocks fitted by gradient (arXiv:2406.15524).

Trained are the linear layers' weights and biases, in float32 whatever the model's dtype; norm gains, which the
published code trains too, stay. The loss is the mean squared error per element, taken in float32, so that
bfloat16 blocks cannot overflow it. Adam (betas 0.9 and 0.95 in the paper), the learning rate falling linearly
to 0 at the last update, batches reshuffled every epoch with the rest dropped. Gradients are not clipped, as
in the paper's text; its code clips them while they are scaled for float16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.errors import ConfigError, ModelError
from prunelab.models.activation import Activations
from prunelab.models.compare import squares
from prunelab.reconstruction.base import Target, Unit
from prunelab.reconstruction.streams import Streams
from prunelab.sparsity.mask import Mask

Say = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Tuning:
    """``window`` blocks are trained together, moving on by ``stride``; the target is the dense window on the
    pruned stream (local) or on the dense one (global).

    ``epochs`` over the sequences in batches of ``batch``, and more of them where fewer than ``min_updates``
    would come of it: a few sequences at the paper's epochs are hardly fitted at all. ``epochs`` 0 trains
    nothing. Of a batch only as many sequences as make ``part_tokens`` tokens go through the window at a time, at least
    one, and the gradients add up: memory follows those, not the batch. ``beta1``, ``beta2``: Adam's. ``patience``:
    epochs without a lower loss on the stopping text before training ends and the best weights return; null =
    train to the end.
    """

    name: str
    revision: int
    window: Annotated[int, "x >= 1"]
    stride: Annotated[int, "x >= 1"]
    target: Annotated[str, "local | global"]
    epochs: Annotated[int, "x >= 0"]
    min_updates: Annotated[int, "x >= 0"]
    batch: Annotated[int, "x >= 1"]
    part_tokens: Annotated[int, "x >= 1"]
    learning_rate: Annotated[float, "x > 0"]
    beta1: Annotated[float, "0 <= x < 1"]
    beta2: Annotated[float, "0 <= x < 1"]
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

        count = math.prod(store.shape)
        pairs = [(layer.linear, layer.mask) for layer in unit.layers]
        together = max(1, self.part_tokens // streams.shape[1])
        updates, first = fit(
            pairs, loss, streams.shape[0], self, unit.generator, stop, say, together=together
        )
        after = _error(unit, streams, store) / count
        for used in (store, stop_store):
            unit.shelf.discard(used)
        if not math.isfinite(after):
            raise ModelError(
                f"reconstruction of blocks {unit.blocks[0]} to {unit.blocks[-1]} diverged (loss {after}). "
                "Lower reconstruction.learning_rate."
            )
        return {"updates": updates, "loss_first_epoch": first, "loss_after": after}


def _error(unit: Unit, streams: Streams, target: Activations) -> float:
    """Squared error of the unit on the pruned stream against ``target``."""
    return squares(streams.pruned, target, partial(streams.run, unit.blocks))[0]


def mean_square(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean of the squared differences, a float32 scalar."""
    return (output.float() - target.float()).square().mean()


def epochs(spec: Tuning, per_epoch: int) -> int:
    """Return how often training goes over the sequences, at ``per_epoch`` updates each time."""
    return max(spec.epochs, math.ceil(spec.min_updates / per_epoch)) if spec.epochs else 0


def rate(spec: Tuning, update: int, updates: int) -> float:
    """Return the learning rate of update ``update`` (from 0) of ``updates``: linear, 0 after the last."""
    return spec.learning_rate * (1 - update / updates)


def fit(
    layers: Sequence[tuple[nn.Linear, Mask]],
    loss: Callable[[Tensor], Tensor],
    n: int,
    spec: Tuning,
    generator: torch.Generator,
    stop: Callable[[], float] | None = None,
    say: Say | None = None,
    *,
    together: int | None = None,
) -> tuple[int, float]:
    """Train the kept weights of ``layers`` in place; return the number of updates and the first epoch's mean loss.

    ``loss`` takes indices (b,) int64 of n examples and returns a scalar, their mean, that depends on the layers.
    ``together``: examples of a batch that it is asked for at a time; None: all of them. ``stop``
    returns the loss on other text; it is called before training and after each epoch if ``spec.patience`` is
    set. Removed weights receive no gradient and stay exactly zero.
    """
    batch = min(spec.batch, n)
    per_epoch = n // batch
    total = epochs(spec, per_epoch)
    updates = total * per_epoch
    done, first = 0, torch.zeros(())
    with training(layers) as parameters, torch.enable_grad():
        optimiser = torch.optim.AdamW(
            parameters, lr=spec.learning_rate, betas=(spec.beta1, spec.beta2), eps=1e-8, weight_decay=0.0,
            fused=True,
        )  # fmt: skip
        best = _Best(parameters, spec.patience, stop)
        for epoch in range(total):
            order = torch.randperm(n, generator=generator)
            for step in range(per_epoch):
                for group in optimiser.param_groups:
                    group["lr"] = rate(spec, done, updates)
                optimiser.zero_grad(set_to_none=True)
                for rows in order[step * batch : (step + 1) * batch].split(together or batch):
                    value = loss(rows) * (len(rows) / batch)
                    value.backward()
                    if epoch == 0:
                        first = first.to(value.device) + value.detach() / per_epoch
                optimiser.step()
                done += 1
            if say is not None:
                say({"event": "progress", "phase": "epochs", "done": epoch + 1, "total": total})
            if best.enough():
                break
        best.restore()
    return done, float(first)


class _Best:
    """The parameters with the lowest loss on the stopping text; does nothing without one."""

    def __init__(
        self, parameters: list[nn.Parameter], patience: int | None, stop: Callable[[], float] | None
    ) -> None:
        self.parameters, self.patience, self.stop = parameters, patience, stop
        self.loss, self.waited, self.held = math.inf, 0, list[Tensor]()
        if patience is not None and stop is not None:
            self.loss, self.held = stop(), [p.detach().clone() for p in parameters]

    def enough(self) -> bool:
        """Look at the loss now; whether it has not fallen for ``patience`` epochs."""
        if self.patience is None or self.stop is None:
            return False
        now = self.stop()
        if now < self.loss:
            self.loss, self.waited = now, 0
            self.held = [p.detach().clone() for p in self.parameters]
            return False
        self.waited += 1
        return self.waited >= self.patience

    @torch.no_grad()
    def restore(self) -> None:
        """Put the best parameters back."""
        for parameter, held in zip(self.parameters, self.held, strict=bool(self.held)):
            parameter.copy_(held)


@contextmanager
def training(layers: Sequence[tuple[nn.Linear, Mask]]) -> Iterator[list[nn.Parameter]]:
    """While open, ``layers`` compute with float32 parameters times their masks; then those become their
    weights, in the layers' dtype."""
    parameters: list[nn.Parameter] = []
    masks: list[Tensor | None] = []
    installed: list[tuple[nn.Linear, int, int | None]] = []

    def add(value: Tensor, keep: Tensor | None) -> int:
        parameters.append(nn.Parameter(value.detach().float().clone()))
        masks.append(None if keep is None else keep.to(value.device).float())
        return len(parameters) - 1

    def current(at: int) -> Tensor:
        keep = masks[at]
        return parameters[at] if keep is None else parameters[at] * keep

    def forward(at: int, bias_at: int | None) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            bias = None if bias_at is None else current(bias_at).to(x.dtype)
            return F.linear(x, current(at).to(x.dtype), bias)

        return run

    try:
        for linear, mask in layers:
            at = add(linear.weight, mask.keep())
            bias_at = None if linear.bias is None else add(linear.bias, mask.keep_bias_entries())
            linear.forward = forward(at, bias_at)  # type: ignore[method-assign]
            installed.append((linear, at, bias_at))
        yield parameters
        with torch.no_grad():
            for linear, at, bias_at in installed:
                linear.weight.copy_(current(at))
                if bias_at is not None:
                    linear.bias.copy_(current(bias_at))
    finally:
        for linear, _, _ in installed:
            vars(linear).pop("forward", None)
