"""Training by gradient: parameters of a model, some of them masked, on a loss over examples (arXiv:2406.15524).

The published code trains float32 parameters under automatic float16, keeps removed weights at zero by multiplying
with the mask in every forward, and takes a new optimiser for every unit. So here: float32 copies of the parameters,
times their masks, stand in the model's place during a forward (``torch.func.functional_call``), in the model's dtype.
A removed weight's gradient is zero, so Adam never moves it.

Clipping. The paper has none. Its code calls ``clip_grad_norm_`` with a limit of 1000 on gradients that are still
scaled for float16 by ``torch.cuda.amp.GradScaler`` (65536, doubled every 2000 updates, new for every unit), which
clips true norms above 0.015: ``scaled_norm`` is that, with gradients of any dtype. Two of the code's habits are left
out: it clips after every part of a batch, and halves the scale where float16 overflows, which the dtypes allowed
here do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

Say = Callable[[Mapping[str, Any]], None]
T = TypeVar("T")

_SCALE, _DOUBLED = 65536.0, 2000  # GradScaler's: initial scale, and updates until it doubles


class Clipping(Protocol):
    """How gradients are clipped."""

    @property
    def clipping(self) -> str: ...
    @property
    def max_norm(self) -> float: ...


class Settings(Clipping, Protocol):
    """What training goes by; see :class:`prunelab.reconstruction.tuning.Tuning`."""

    @property
    def epochs(self) -> int: ...
    @property
    def min_updates(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def beta1(self) -> float: ...
    @property
    def beta2(self) -> float: ...
    @property
    def patience(self) -> int | None: ...


@dataclass(frozen=True, eq=False)
class Trained:
    """A parameter to train: ``name`` of the module ``owner``; ``keep``: which entries are not removed, None = all."""

    owner: nn.Module
    name: str
    keep: Tensor | None

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as the model has it."""
        return self.owner.get_parameter(self.name)


def fit(
    trained: Sequence[Trained],
    loss: Callable[[Tensor], Tensor],
    n: int,
    settings: Settings,
    generator: torch.Generator,
    stop: Callable[[], float] | None = None,
    say: Say | None = None,
    *,
    together: int | None = None,
) -> tuple[int, float]:
    """Train parameters in place; return the number of updates and the first epoch's mean loss.

    ``loss`` takes indices (b,) int64 of n examples and returns a scalar, their mean, that depends on the parameters.
    ``together``: examples of a batch that it is asked for at a time; None: all of them. ``stop``
    returns the loss on other text; it is called before training and after each epoch if ``settings.patience`` is
    set. Removed weights receive no gradient and stay exactly zero.
    """
    batch = min(settings.batch, n)
    per_epoch = n // batch
    total = epochs(settings, per_epoch)
    updates = total * per_epoch
    live = _Live(trained)
    done, first = 0, torch.zeros(())
    best = _Best(live, settings.patience, stop)
    with torch.enable_grad():
        optimiser = torch.optim.AdamW(
            live.copies, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), eps=1e-8,
            weight_decay=0.0, fused=True,
        )  # fmt: skip
        rates = LambdaLR(optimiser, lambda made: 1 - made / max(updates, 1))  # 0 after the last update
        for epoch in range(total):
            order = torch.randperm(n, generator=generator)
            for step in range(per_epoch):
                optimiser.zero_grad(set_to_none=True)
                for rows in order[step * batch : (step + 1) * batch].split(together or batch):
                    value = live.run(lambda rows=rows: loss(rows)) * (len(rows) / batch)
                    value.backward()
                    if epoch == 0:
                        first = first.to(value.device) + value.detach() / per_epoch
                clip(live.copies, settings, done)
                optimiser.step()
                rates.step()
                done += 1
            if say is not None:
                say({"event": "progress", "phase": "epochs", "done": epoch + 1, "total": total})
            if best.enough():
                break
    best.restore()
    live.write()
    return done, float(first)


def epochs(settings: Settings, per_epoch: int) -> int:
    """Return how often training goes over the examples, at ``per_epoch`` updates each time."""
    return max(settings.epochs, math.ceil(settings.min_updates / per_epoch)) if settings.epochs else 0


def clip(parameters: Sequence[nn.Parameter], settings: Clipping, update: int) -> None:
    """Clip the norm of all gradients together before update ``update`` (from 0), as ``settings.clipping`` says."""
    if settings.clipping == "none":
        return
    scale = _SCALE * 2.0 ** (update // _DOUBLED) if settings.clipping == "scaled_norm" else 1.0
    nn.utils.clip_grad_norm_(parameters, settings.max_norm / scale)


class _Live(nn.Module):
    """Float32 copies of parameters; while ``run`` is at work they stand, masked, in the parameters' place."""

    def __init__(self, trained: Sequence[Trained]) -> None:
        super().__init__()
        self.owners = nn.ModuleList(dict.fromkeys(one.owner for one in trained))
        places = {owner: at for at, owner in enumerate(self.owners)}
        self.names = [f"owners.{places[one.owner]}.{one.name}" for one in trained]
        self.originals = [one.parameter for one in trained]
        self.copies = [nn.Parameter(one.detach().float().clone()) for one in self.originals]
        self.masks = [
            None if one.keep is None else one.keep.to(one.parameter.device).float() for one in trained
        ]

    def forward(self, function: Callable[[], T]) -> T:
        """Call ``function``."""
        return function()

    def run(self, function: Callable[[], T]) -> T:
        """Return what ``function`` gives with the copies in place; gradients reach them."""
        values = {
            name: value.to(original.dtype)
            for name, value, original in zip(self.names, self._masked(), self.originals, strict=True)
        }
        return torch.func.functional_call(self, values, (function,))

    @torch.no_grad()
    def write(self) -> None:
        """Put the masked copies into the parameters, in their dtype."""
        for original, value in zip(self.originals, self._masked(), strict=True):
            original.copy_(value)

    def _masked(self) -> list[Tensor]:
        pairs = zip(self.copies, self.masks, strict=True)
        return [copy if mask is None else copy * mask for copy, mask in pairs]


class _Best:
    """The parameters with the lowest loss on the stopping text; does nothing without one."""

    def __init__(self, live: _Live, patience: int | None, stop: Callable[[], float] | None) -> None:
        self.live, self.patience, self.stop = live, patience, stop
        self.loss, self.waited, self.held = math.inf, 0, list[Tensor]()
        if patience is not None and stop is not None:
            self.loss, self.held = self._look(stop), [p.detach().clone() for p in live.copies]

    @torch.no_grad()
    def _look(self, stop: Callable[[], float]) -> float:
        return self.live.run(stop)

    def enough(self) -> bool:
        """Look at the loss now; whether it has not fallen for ``patience`` epochs."""
        if self.patience is None or self.stop is None:
            return False
        now = self._look(self.stop)
        if now < self.loss:
            self.loss, self.waited = now, 0
            self.held = [p.detach().clone() for p in self.live.copies]
            return False
        self.waited += 1
        return self.waited >= self.patience

    @torch.no_grad()
    def restore(self) -> None:
        """Put the best parameters back."""
        for parameter, held in zip(self.live.copies, self.held, strict=bool(self.held)):
            parameter.copy_(held)
