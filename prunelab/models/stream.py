"""Stream: the only code that feeds hidden states through a model's blocks.

Every argument that a block gets besides its hidden states (masks, rotary tables, position ids, whatever
this version of transformers calls them) is captured from the model's own forward, per block and per batch
shape, so a walk block by block is the forward, bit for bit. Blocks may return a tensor or a tuple that
starts with one. The head is reached through the same forward with every block replaced by one that hands
our hidden states on: final norm, projection, soft caps and output head are the model's own.

Blocks are replaced only inside ``_replaced``, which puts the original forwards back whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.distributed.group import ALONE, Group
from prunelab.errors import DataError, ModelError
from prunelab.models.activation import Activations, Shelf, in_memory
from prunelab.models.decoder import Decoder
from prunelab.stats.base import Place

# Logits of one chunk of `token_losses` hold at most this many values (128 MiB in float32).
LOGIT_VALUES = 2**25


@dataclass(frozen=True)
class Arguments:
    """What a block gets besides hidden states; ``keyword`` names the hidden states when they are no
    positional argument.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    keyword: str | None


@dataclass(frozen=True, eq=False)
class Stream:
    """Hidden states of n sequences on their way through the blocks.

    ``tokens``: (n, seq_len) int64 on the model's device. ``hidden``: (n, seq_len, d), input of the next block,
    replaced by ``advance``. ``like``: an empty tensor with the model's dtype and device. ``arguments[b][block]``:
    the block's other arguments for a batch of b sequences. ``group``: the ranks that walk beside this one, each
    with sequences of its own; ``place``: which of all they are.
    """

    tokens: Tensor
    batch_size: int
    hidden: Activations
    like: Tensor
    arguments: dict[int, tuple[Arguments, ...]]
    place: Place
    group: Group = ALONE

    def batches(self) -> Iterator[slice]:
        """The sequences of each batch; the last one holds what is left."""
        n = self.tokens.shape[0]
        for start in range(0, n, self.batch_size):
            yield slice(start, min(start + self.batch_size, n))

    def read(self, rows: slice | Tensor) -> Tensor:
        """Return the states (b, seq_len, d) of sequences ``rows``, valid until they are written."""
        return self.hidden.read(rows, self.like)

    def write(self, rows: slice, value: Tensor) -> None:
        """Put ``value`` (b, seq_len, d) in place of the states of sequences ``rows``."""
        self.hidden.write(rows, value)


def open_stream(
    decoder: Decoder, tokens: Tensor, batch_size: int, shelf: Shelf | None = None, group: Group = ALONE
) -> Stream:
    """Embed ``tokens`` (n, seq_len) int64 and return the hidden states that enter block 0, without gradients.

    They wait where ``shelf`` says, without one on the model's device. Of several ranks in ``group`` each opens
    its own share, which may be empty. Raises DataError for tokens of another shape or dtype, outside the
    vocabulary, or longer than the decoder takes.
    """
    check_tokens(decoder, tokens, batch_size)
    share = group.share(len(tokens))
    own = tokens[share].to(decoder.device)
    like = torch.empty(0, dtype=decoder.dtype, device=decoder.device)
    # an empty share has a shape all the same: that of somebody else's sequence
    first, arguments = capture(decoder, (own if len(own) else tokens.to(decoder.device))[:batch_size])
    store = _store(shelf if len(own) else None, (len(own), tokens.shape[1], first.shape[2]), first)
    place = Place(share.start, *tokens.shape)
    stream = Stream(own, batch_size, store, like, {first.shape[0]: arguments}, place, group)
    for rows in stream.batches():
        hidden, arguments = (first, arguments) if rows.start == 0 else capture(decoder, own[rows])
        stream.write(rows, hidden)
        stream.arguments.setdefault(hidden.shape[0], arguments)
    return stream


def fork(stream: Stream, shelf: Shelf | None = None) -> Stream:
    """A second stream at the same place: states of its own, the same tokens and arguments."""
    store = _store(shelf, stream.hidden.shape, stream.like)
    other = Stream(
        stream.tokens, stream.batch_size, store, stream.like, stream.arguments, stream.place, stream.group
    )
    for rows in stream.batches():
        other.write(rows, stream.read(rows))
    return other


def _store(shelf: Shelf | None, shape: tuple[int, int, int], like: Tensor) -> Activations:
    return in_memory(shape, like.dtype, like.device) if shelf is None else shelf.build(*shape)


def call_block(decoder: Decoder, index: int, stream: Stream, hidden: Tensor) -> Tensor:
    """Output (b, seq_len, d) of block ``index`` on ``hidden`` (b, seq_len, d), b sequences of the stream's
    length.

    Autograd works through it: ``hidden`` may require a gradient.
    """
    rows, n = hidden.shape[0], stream.tokens.shape[0]
    if rows not in stream.arguments:  # a batch of another size than the walk's, as in training
        batch = stream.tokens[torch.arange(rows, device=stream.tokens.device) % n]
        stream.arguments[rows] = capture(decoder, batch)[1]
    return run_block(decoder, index, stream.arguments[rows][index], hidden)


def run_block(decoder: Decoder, index: int, captured: Arguments, hidden: Tensor) -> Tensor:
    """Output (b, seq_len, d) of block ``index`` on ``hidden``, with what :func:`capture` found for its shape.

    Autograd works through it.
    """
    block = decoder.blocks[index]
    if captured.keyword is None:
        output = block(hidden, *captured.args, **captured.kwargs)
    else:
        output = block(*captured.args, **{captured.keyword: hidden}, **captured.kwargs)
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def without_mlp(decoder: Decoder, index: int, stream: Stream, hidden: Tensor) -> Tensor:
    """Output (b, seq_len, d) of block ``index`` on ``hidden`` where its MLP adds nothing: the residual stream between the
    attention and the MLP. ModelError for a family that names no MLP."""
    family = decoder.family
    if family.mlp is None:
        raise ModelError(f"{decoder.name}: family {family.name!r} names no mlp; add it to the family.")
    silent = decoder.blocks[index].get_submodule(family.mlp[1]).register_forward_hook(silence)
    try:
        return call_block(decoder, index, stream, hidden)
    finally:
        silent.remove()


def silence(module: object, args: object, output: Tensor) -> Tensor:
    """A forward hook of a layer: zeros in the place of its output."""
    return torch.zeros_like(output)


@torch.no_grad()
def advance(decoder: Decoder, index: int, stream: Stream) -> None:
    """Replace the states of ``stream`` by the output of block ``index``, in place and without gradients."""
    for rows in stream.batches():
        stream.write(rows, call_block(decoder, index, stream, stream.read(rows)))


def head(decoder: Decoder, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Logits (b, length, vocabulary) of ``hidden`` (b, length, d), the output of the last block.

    ``tokens`` (b, length) only give the model's forward its shape. Autograd works through it.
    """
    as_tuple = _returns_tuple(decoder)

    def start(*args: Any, **kwargs: Any) -> Any:
        return (hidden,) if as_tuple else hidden

    def hand_on(*args: Any, **kwargs: Any) -> Any:
        passing = _split(args, kwargs)[0]
        return (passing,) if as_tuple else passing

    blocks = decoder.blocks
    with _replaced(blocks, [start, *[hand_on] * (len(blocks) - 1)]):
        return decoder.model(input_ids=tokens, use_cache=False).logits


def token_losses(decoder: Decoder, hidden: Tensor, tokens: Tensor, chunk: int | None = None) -> Tensor:
    """Cross-entropy in nats of each next token: (b, seq_len - 1) float32 (float64 for such a model), from the last
    block's output (b, seq_len, d).

    Logits exist for ``chunk`` tokens at a time (None: as many as keep them under 128 MiB in float32), in
    the backward too: the head works on each position alone, so its gradient is taken chunk by chunk during
    the forward and only scaled by what comes back. Gradients reach ``hidden``, never the head's parameters;
    there is no second derivative. Raises DataError for sequences of one token, which have no next one.
    """
    if tokens.shape[1] < 2:
        raise DataError(
            f"tokens of shape {tuple(tokens.shape)} have no next token; seq_len must be 2 or more."
        )
    if chunk is None:
        chunk = max(1, LOGIT_VALUES // int(decoder.model.config.vocab_size))
    columns = max(1, chunk // hidden.shape[0])
    if torch.is_grad_enabled() and hidden.requires_grad:
        return cast(Tensor, _Losses.apply(hidden, decoder, tokens, columns))
    with torch.no_grad():
        pieces = [_losses(decoder, hidden, tokens, at, columns)[0] for at in _starts(tokens, columns)]
    return torch.cat(pieces, dim=1)


class _Losses(torch.autograd.Function):
    """Token losses whose backward needs one (b, seq_len, d) tensor instead of the logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, decoder: Decoder, tokens: Tensor, columns: int) -> Tensor:
        slopes = torch.zeros_like(hidden)
        losses = []
        for at in _starts(tokens, columns):
            with torch.enable_grad():
                loss, leaf = _losses(decoder, hidden, tokens, at, columns)
                # loss (i, t) depends on hidden (i, t) alone: the sum's gradient holds each token's own
                (slope,) = torch.autograd.grad(loss.sum(), leaf)
            slopes[:, at : at + leaf.shape[1]] = slope
            losses.append(loss.detach())
        ctx.save_for_backward(slopes)
        return torch.cat(losses, dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (slopes,) = ctx.saved_tensors
        scaled = torch.zeros_like(slopes)
        scaled[:, :-1] = slopes[:, :-1] * grads[0].unsqueeze(-1)
        return scaled, None, None, None


def _starts(tokens: Tensor, columns: int) -> range:
    return range(0, tokens.shape[1] - 1, columns)


def _losses(decoder: Decoder, hidden: Tensor, tokens: Tensor, at: int, columns: int) -> tuple[Tensor, Tensor]:
    """Losses of positions ``at`` to ``at + columns``, and the leaf of hidden states they were computed
    from.
    """
    stop = min(at + columns, tokens.shape[1] - 1)
    leaf = hidden[:, at:stop].detach().requires_grad_(torch.is_grad_enabled())
    logits = head(decoder, leaf, tokens[:, at:stop])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = tokens[:, at + 1 : stop + 1]
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return loss.view(targets.shape), leaf


def check_tokens(decoder: Decoder, tokens: Tensor, batch_size: int) -> None:
    """Raise DataError unless ``tokens`` are int64 (n, seq_len) that the decoder can take."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: allowed is 1 or more")
    if tokens.dim() != 2 or tokens.dtype != torch.int64 or tokens.numel() == 0:
        raise DataError(
            f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}; "
            "needed is int64 (n, seq_len), not empty."
        )
    if tokens.shape[1] > decoder.max_len:
        raise DataError(
            f"seq_len={tokens.shape[1]} is more than {decoder.name} takes: {decoder.max_len}. "
            "Use shorter windows or raise model.max_len."
        )
    vocabulary = int(decoder.model.config.vocab_size)
    low, high = (int(value) for value in tokens.aminmax())
    if low < 0 or high >= vocabulary:
        raise DataError(
            f"token {low if low < 0 else high} is outside the vocabulary of {decoder.name}, "
            f"0 to {vocabulary - 1}; the tokens were made with another tokenizer."
        )


class _Stop(Exception):
    """Leaves the model's forward once everything needed has been seen."""


@contextmanager
def _replaced(blocks: Iterable[nn.Module], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Give block i the forward ``forwards[i]``, and put back what was there when done or when anything
    fails.
    """
    before = [vars(block).get("forward") for block in blocks]
    try:
        for block, forward in zip(blocks, forwards, strict=True):
            block.forward = forward
        yield
    finally:
        for block, old in zip(blocks, before, strict=True):
            if old is not None:
                block.forward = old
            else:
                # the class' own forward shows again once the instance's is gone
                vars(block).pop("forward", None)


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Arguments]:
    """Hidden states (first positional argument, or the keyword that transformers uses) and all the rest."""
    if args:
        return args[0], Arguments(args=args[1:], kwargs=dict(kwargs), keyword=None)
    rest = dict(kwargs)
    return rest.pop("hidden_states"), Arguments(args=(), kwargs=rest, keyword="hidden_states")


@torch.no_grad()
def capture(decoder: Decoder, tokens: Tensor) -> tuple[Tensor, tuple[Arguments, ...]]:
    """Input of block 0 (b, seq_len, d) and every block's other arguments, from one forward that runs no
    block.
    """
    as_tuple = _returns_tuple(decoder)
    entering: list[Tensor] = []
    captured: list[Arguments] = []
    last = len(decoder.blocks) - 1

    def record(*args: Any, **kwargs: Any) -> Any:
        hidden, arguments = _split(args, kwargs)
        entering.append(hidden)
        captured.append(arguments)
        if len(captured) > last:
            raise _Stop  # norm and head would cost the logits of the whole batch
        return (hidden,) if as_tuple else hidden

    with _replaced(decoder.blocks, [record] * (last + 1)), suppress(_Stop):
        decoder.model(input_ids=tokens, use_cache=False)
    return entering[0], tuple(captured)


_TUPLES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@torch.no_grad()
def _returns_tuple(decoder: Decoder) -> bool:
    """Whether the model's blocks return a tuple; found once per model by running block 0 on one token."""
    model = cast(nn.Module, decoder.model)
    if model not in _TUPLES:
        first = decoder.blocks[0]
        original = first.forward

        def probe(*args: Any, **kwargs: Any) -> Any:
            _TUPLES[model] = isinstance(original(*args, **kwargs), tuple)
            raise _Stop

        token = torch.zeros(1, 1, dtype=torch.int64, device=decoder.device)
        with _replaced([first], [probe]), suppress(_Stop):
            model(input_ids=token, use_cache=False)
    return _TUPLES[model]
