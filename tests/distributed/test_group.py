"""Two processes that share the calibration tokens find what one finds, and what goes wrong in one ends both."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from prunelab.distributed.group import ALONE, Ranks

PROGRAM = Path(__file__).with_name("rank.py")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks left."""
    folder = tmp_path_factory.mktemp("ranks")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(PROGRAM), "2", str(folder)]
    done = subprocess.run(words, env=env, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "ends.json").read_text()) == [0, -9], done.stderr  # the second kills itself
    return folder


def alone(n_sequences: int) -> dict[str, Tensor]:
    spec = importlib.util.spec_from_file_location("passes_rank", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.find(ALONE, n_sequences)


@pytest.mark.parametrize("n_sequences", [5, 1])
def test_two_ranks_find_what_one_finds(folder: Path, n_sequences: int) -> None:
    first, second = (load_file(folder / f"{n_sequences}-{rank}.safetensors") for rank in range(2))
    expected = alone(n_sequences)
    assert first.keys() == second.keys() == expected.keys()
    kinds = {name.split("/")[1] for name in expected}
    assert kinds == {"A", "G", "taylor", "norm", "gram", "samples", "influence", "weight", "mask", "lora"}
    for name, one in expected.items():
        assert torch.equal(first[name], second[name]), name
        if "/lora/" in name:  # gradients are float32 sums, which other batches round in other ways
            torch.testing.assert_close(first[name], one, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(first[name], one), name
        assert bool(one.any()) or name.endswith(("keep_bias_column", "whole")), name


def test_a_failure_of_one_rank_is_named_and_ends_the_other(folder: Path) -> None:
    said = json.loads((folder / "0.json").read_text())
    assert said["fails"] == "rank 1 of 2: activations are not finite"
    assert said["differs"].startswith("rank 1 of 2 holds other weights than rank 0 after shot 3")
    assert "rank 1 of 2 is gone or hangs" in said["is killed"]
    assert "onnection" in said["is killed"]


@pytest.mark.parametrize(("n", "size"), [(5, 2), (1, 3), (8, 4), (7, 3)])
def test_shares_cover_every_sequence_once(n: int, size: int) -> None:
    shares = []
    for rank in range(size):
        ranks = object.__new__(Ranks)  # a place in a group of that size, without its connections
        ranks.rank, ranks.size = rank, size
        shares.append(list(range(n))[ranks.share(n)])
    assert [i for share in shares for i in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert list(range(n))[ALONE.share(n)] == list(range(n))
