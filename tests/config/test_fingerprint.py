"""Keys: the same in another process, unmoved by names and places, moved by everything that counts."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest

from prunelab.config.fingerprint import canonical, fingerprint
from prunelab.errors import ConfigError


def test_known_key_in_a_new_process() -> None:
    code = (
        "from prunelab.config.fingerprint import fingerprint;"
        "print(fingerprint('prune', {'b': [1, 2.5, None], 'a': {'x': True}}, {'tokens': 'k'}))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert out == fingerprint("prune", {"a": {"x": True}, "b": (1, 2.5, None)}, {"tokens": "k"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, {"a": {3, 4}}, object(), b"x"])
def test_refuses_what_does_not_repeat(value: object) -> None:
    with pytest.raises(ConfigError):
        canonical(value)


def test_negative_zero_and_integers() -> None:
    assert canonical(-0.0) == canonical(0.0)
    assert canonical(1) != canonical(1.0)
    assert canonical(True) != canonical(1)


def test_every_part_counts() -> None:
    base = ("prune", {"a": 1, "b": [1, 2]}, {"x": "k"})
    key = fingerprint(*base)
    changed = [
        ("dense", base[1], base[2]), ("prune", {**base[1], "a": 2}, base[2]), ("prune", {**base[1], "b": [2, 1]}, base[2]),
        ("prune", {**base[1], "c": None}, base[2]), ("prune", base[1], {"x": "l"}), ("prune", base[1], {"y": "k"}),
    ]  # fmt: skip
    assert len({fingerprint(*c) for c in changed} | {key}) == len(changed) + 1
    assert fingerprint(*copy.deepcopy(base)) == key
