"""Distances between streams of hidden states."""

from __future__ import annotations

import math

import torch

from prunelab.models.compare import relative_error, squares
from prunelab.models.random import random_decoder
from prunelab.models.stream import fork, open_stream


def test_squares_are_those_of_all_states_at_once() -> None:
    decoder = random_decoder("llama")
    stream = open_stream(decoder, torch.arange(24).view(3, 8), 2)
    other = fork(stream)
    for rows in other.batches():
        other.write(rows, stream.read(rows) * 0.5)
    error, norm = squares(other, stream.hidden, lambda hidden: hidden + 1)
    states = stream.read(slice(None)).double()
    whole = float((states - (0.5 * states.float() + 1).double()).square().sum())
    assert math.isclose(error, whole, rel_tol=1e-12)
    assert math.isclose(norm, float(states.square().sum()), rel_tol=1e-12)
    assert squares(stream, stream.hidden) == (0.0, norm)


def test_relative_error() -> None:
    assert relative_error(0.0, 0.0) == 0.0
    assert relative_error(1.0, 0.0) == math.inf
    assert relative_error(1.0, 4.0) == 0.25
    assert relative_error(math.nan, 1.0) == math.inf
