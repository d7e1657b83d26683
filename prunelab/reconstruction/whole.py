"""Repairing a pruned model all at once: what a repair of scope ``model`` works in (see base.py).

The pruned state takes the dense weights' place, and no second model is held: a target that the dense model would have
to compute is therefore not to be had here. What a repair leaves is checked like every state, and its loss on the text that
it was fitted to is measured before and after, whatever it trained on.

The same repairs go between the shots of a pruning (:func:`between_shots`), on what each shot but the last has left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from prunelab.distributed.group import ALONE, Group
from prunelab.models.decoder import Decoder
from prunelab.models.memory import release_host_memory
from prunelab.models.stream import check_tokens
from prunelab.reconstruction.base import ModelRepair, Whole
from prunelab.reconstruction.model_loss import mean_loss
from prunelab.sparsity.mask import Mask
from prunelab.stats.view import site_generator
from prunelab.structures.state import State, StateReader, apply_state, read_state

MEASURED = 512  # sequences at most, the first ones: a loss before and after should not cost an epoch each


def _nothing(*_: Any) -> None:
    """Nobody asked."""


@torch.no_grad()
def repair_whole(
    decoder: Decoder, pruned: StateReader, tokens: Tensor, spec: ModelRepair, *, seed: int, batch_size: int,
    done: int = 0, start: StateReader | None = None, save: Callable[[int, State], None] = _nothing,
    log: Callable[[Mapping[str, Any]], None] = _nothing, progress: Callable[[Mapping[str, Any]], None] = _nothing,
    group: Group = ALONE,
) -> tuple[State, dict[str, float]]:  # fmt: skip
    """Repair ``pruned`` on ``tokens`` (n, seq_len) int64; return the new state and what is to be said of the repair.

    ``decoder`` is dense on entry and the repaired model on return. ``save(done, part)``: ``part`` holds what the repair
    needs to go on after ``done`` steps, as parameters of a state without layers; it is the ``start`` from which the rest
    gives the same bits. ``batch_size``: sequences per forward. Ranks of ``group`` end with the same state.
    Numbers: those of the repair, ``lm_loss_before`` and ``lm_loss_after``: the mean next-token loss in nats on the first
    512 sequences, as pruned and as repaired. Raises what the repair raises, StageError where ranks disagree.
    """
    check_tokens(decoder, tokens, batch_size)
    dense = {name: value.detach().clone() for name, value in decoder.other_parameters().items()}
    apply_state(decoder, pruned)
    masks = {name: pruned.site(name).mask for name in pruned.names}
    text = tokens[:MEASURED]
    before = mean_loss(decoder, text, batch_size, group)
    whole = Whole(
        decoder=decoder, masks=masks, tokens=tokens, batch_size=batch_size, seed=seed, group=group, done=done,
        start=start, save=lambda steps, tensors: save(steps, State(decoder.name, {}, tensors)), log=log,
    )  # fmt: skip
    numbers = spec.repair(whole, progress)
    release_host_memory()
    group.confirm((site.linear.weight for site in decoder.sites()), f"after reconstruction={spec.name}")
    after = mean_loss(decoder, text, batch_size, group)
    others = decoder.other_parameters()
    changed = {name: None for name, value in others.items() if not torch.equal(value, dense[name])}
    state = read_state(decoder, masks, changed)
    return state, {**numbers, "lm_loss_before": before, "lm_loss_after": after}


def between_shots(
    decoder: Decoder, spec: ModelRepair, *, seed: int, batch_size: int, group: Group = ALONE,
    log: Callable[[Mapping[str, Any]], None] = _nothing,
) -> Callable[[Mapping[str, Mask], Tensor, int, Callable[[Mapping[str, Any]], None]], dict[str, float]]:  # fmt: skip
    """Return ``correct(masks, tokens, shot, say)``, which repairs the pruned ``decoder`` in place before shot ``shot``.

    It returns the repair's numbers. What is random is drawn from (seed, shot), so every shot has its own, and a pruning
    that goes on at one gives the same bits. No part of a repair is kept: a killed one begins with its shot.
    """

    def correct(
        masks: Mapping[str, Mask], tokens: Tensor, shot: int, say: Callable[[Mapping[str, Any]], None]
    ) -> dict[str, float]:
        own = site_generator(seed, "between shots", shot).initial_seed()
        whole = Whole(
            decoder=decoder, masks=masks, tokens=tokens, batch_size=batch_size, seed=own, group=group, done=0,
            start=None, save=_nothing, log=lambda row: log({**row, "shot": shot}),
        )  # fmt: skip
        numbers = spec.repair(whole, say)
        release_host_memory()
        return numbers

    return correct
