"""What a method may ask the whole model: losses of masks against a plain forward, their gradients, and that nothing is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.distributed.group import ALONE
from prunelab.errors import ConfigError
from prunelab.models.activation import Placement, open_shelf
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.passes.judge import Texts, WholeModel
from prunelab.pattern.base import KINDS
from prunelab.stats.unit_view import Member
from prunelab.structures.units import trace_units

Units = Mapping[str, tuple[int, tuple[Member, ...]]]
ROWS = (4, 0, 3)


def units_of(decoder: Decoder) -> Units:
    return {
        f"{kind} of block {block}": (block, tuple(member for _, member in traced))
        for block in range(len(decoder.blocks))
        for kind, traced in trace_units(decoder, block, KINDS).items()
    }


def ask(
    decoder: Decoder, tokens: Tensor, question: Callable[[WholeModel], Any], *, batch_size: int = 2,
    placement: Placement | None = None, group: Any = ALONE,
) -> Any:  # fmt: skip
    with open_shelf(placement or Placement("device"), decoder.dtype, decoder.device) as shelf:
        texts = Texts((tokens, tokens.flip(1)), (1, 2))
        judge = WholeModel(
            decoder, texts, batch_size, shelf, group, 0, 1, lambda *_: None, units_of(decoder), lambda _: {}, 1.0, 1
        )  # fmt: skip
        answer = question(judge)
        judge.close()
        assert shelf.used == 0  # nothing of a token set, nor of a batch, is left
        return answer


def masks_of(decoder: Decoder, seed: int = 0) -> dict[str, Tensor]:
    """Factors of all units but one block's neurons."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, (_, members) in units_of(decoder).items():
        if name != "neurons of block 0":
            count = len(members[-1].index)
            found[name] = torch.rand(count, generator=generator, dtype=torch.float64).requires_grad_()
    return found


def by_hand(decoder: Decoder, tokens: Tensor, masks: Mapping[str, Tensor], kind: str) -> Tensor:
    """The same by one forward of the whole model under autograd."""
    handles = []
    units = units_of(decoder)
    dense = decoder.model(input_ids=tokens, use_cache=False).logits.double().log_softmax(-1)
    for name, mask in masks.items():
        output = units[name][1][-1]
        linear = decoder.site(output.site).linear
        columns = torch.ones(linear.in_features, dtype=torch.float64)
        columns = columns.index_put((output.index,), mask[:, None].expand(output.index.shape))
        handles.append(linear.register_forward_pre_hook(lambda _, args, c=columns: (args[0] * c,)))
    logits = decoder.model(input_ids=tokens, use_cache=False).logits.double()
    for handle in handles:
        handle.remove()
    if kind == "ce":
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    ours = logits.log_softmax(-1)
    p, q = (dense, ours) if kind == "dense_to_pruned" else (ours, dense)
    return (p.exp() * (p - q)).sum(-1).mean()


@pytest.mark.typical_families
@pytest.mark.parametrize("kind", ["dense_to_pruned", "pruned_to_dense", "ce"])
def test_a_loss_and_its_gradients_are_those_of_one_forward(
    family_name: str, kind: str, tokens: Tensor
) -> None:
    decoder = random_decoder(family_name, dtype=torch.float64)
    masks = masks_of(decoder)
    found = ask(decoder, tokens, lambda judge: judge.loss(masks, ROWS, kind=kind))
    slopes = torch.autograd.grad(found * 3, list(masks.values()))
    expected = by_hand(decoder, tokens[list(ROWS)], masks, kind)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(found.detach()) > 0.01
    for slope, wanted in zip(slopes, torch.autograd.grad(expected * 3, list(masks.values())), strict=True):
        torch.testing.assert_close(slope, wanted, rtol=1e-4, atol=1e-6)


def test_batches_and_where_states_wait_change_nothing_and_the_model_stays(tokens: Tensor) -> None:
    decoder = random_decoder("llama")
    before = {name: parameter.clone() for name, parameter in decoder.model.named_parameters()}
    masks = masks_of(decoder)

    def question(judge: WholeModel) -> list[Tensor]:
        loss = judge.loss(masks, range(5))
        return [loss.detach(), *torch.autograd.grad(loss, list(masks.values()))]

    expected = ask(decoder, tokens, question)
    for options in ({"batch_size": 5}, {"placement": Placement("disk")}):
        again = ask(decoder, tokens, question, **options)
        for one, other in zip(expected, again, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert all(torch.equal(p, before[name]) for name, p in decoder.model.named_parameters())
    assert not any(parameter.requires_grad for parameter in decoder.model.parameters())
    with pytest.raises(ConfigError, match="dense_to_pruned"):
        ask(decoder, tokens, lambda judge: judge.loss(masks, ROWS, kind="mse"))


def test_factors_of_zero_are_units_left_out(tokens: Tensor) -> None:
    decoder = random_decoder("opt")
    gone = {"neurons of block 1": torch.tensor([3, 17, 30]), "heads of block 0": torch.tensor([1])}

    def question(judge: WholeModel) -> tuple[list[float], list[float]]:
        dense = float(judge.loss({}, range(5), kind="ce"))
        masks = {}
        for name, units in gone.items():
            masks[name] = torch.ones(len(judge.members[name][1][-1].index)).index_fill(0, units, 0.0)
        hard = [float(judge.loss({name: mask}, range(5), kind="ce")) - dense for name, mask in masks.items()]
        assert float(judge.loss({}, range(5))) == pytest.approx(0, abs=1e-6)
        return hard, judge.changes(list(gone.items()))

    hard, changes = ask(decoder, tokens, question)
    assert hard == pytest.approx(changes, abs=1e-5)
    assert max(map(abs, changes)) > 1e-4


def test_windows_texts_and_generators(tokens: Tensor) -> None:
    decoder = random_decoder("llama")

    def question(judge: WholeModel) -> None:
        assert judge.n_texts == 2
        assert list(judge.windows(0, held_out=False)) == [0, 1, 2, 3]
        assert list(judge.windows(1, held_out=True)) == [3, 4]
        assert [len(text) for text in judge.texts.seen] == [4, 3]
        draws = [torch.randint(1000, (4,), generator=judge.generator(word)).tolist() for word in "aab"]
        assert draws[0] == draws[1] != draws[2]
        masks = masks_of(decoder)
        one, other = (float(judge.loss(masks, ROWS, text=text).detach()) for text in (0, 1))
        assert one != other

    ask(decoder, tokens, question)


class Half:
    """One of two ranks; what is summed is remembered, for the other to add."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank, self.sums = rank, list[list[Tensor]]()

    def share(self, n: int) -> slice:
        return slice(0, n // 2) if self.rank == 0 else slice(n // 2, n)

    def sum(self, tensors: Any) -> None:
        self.sums.append([tensor.clone() for tensor in tensors])

    def confirm(self, weights: Any, what: str) -> None:
        """All is well."""


def test_ranks_add_up(tokens: Tensor) -> None:
    """Each rank walks its own windows: losses, numbers of tokens and gradients add up to those of one process."""
    decoder = random_decoder("llama")
    masks = masks_of(decoder)

    def question(judge: WholeModel) -> None:
        judge.loss(masks, ROWS)

    ranks = [Half(0), Half(1), Half(1)]
    ranks[2].share = lambda n: slice(0, n)  # type: ignore[method-assign]  # everything
    for rank in ranks:
        ask(decoder, tokens, question, group=rank)
    one, other, whole = (rank.sums[-1] for rank in ranks)
    for left, right, both in zip(one, other, whole, strict=True):
        torch.testing.assert_close(left + right, both, rtol=1e-6, atol=1e-9)
