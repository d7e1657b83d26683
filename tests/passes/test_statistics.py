"""Statistics of the dense model kept in files: the bits of a pass of its own, a block at a time, damage named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from by_conf import build
from torch import Tensor

from prunelab.allocation.owl import OWL
from prunelab.errors import ConfigError, StoreError
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.passes import shots, source, statistics
from prunelab.passes.collect import collect_all
from prunelab.passes.shots import prune
from prunelab.passes.statistics import (
    StatisticsFolder,
    block_path,
    collect_statistics,
    save_block,
)
from prunelab.pattern.weights import Unstructured
from prunelab.structures.state import State, state_digest

FREE = Unstructured()
BOTH = ("input_gram", "input_norm")


def prune_at(decoder: Decoder, method: Any, tokens: Tensor | None, *, ratio: float, **options: Any) -> State:
    return prune(decoder, method, tokens, [ratio], **options)


def collect(
    decoder: Decoder, tokens: Tensor, folder: Path, needs: tuple[str, ...] = BOTH, start: int = 0
) -> None:
    collect_statistics(
        decoder, tokens, needs, 2, lambda i, values: save_block(decoder, i, values, needs, block_path(folder, i)),
        start_block=start,
    )  # fmt: skip


@pytest.mark.typical_families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_pruning_without_a_forward_gives_the_same_bits(
    family_name: str, name: str, dtype: torch.dtype, tokens: Tensor, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    method = build("method", name)
    common: dict[str, Any] = {"pattern": FREE, "seed": 0, "batch_size": 2, "propagation": "dense"}
    collect(random_decoder(family_name, dtype=dtype), tokens, tmp_path, method.needs)
    alone = [
        state_digest(
            prune_at(random_decoder(family_name, dtype=dtype), method, tokens, ratio=ratio, **common)
        )
        for ratio in (0.3, 0.6)
    ]
    for module, function in ((shots, "open_stream"), (source, "advance"), (source, "collect_block")):
        monkeypatch.delattr(module, function)
    kept = StatisticsFolder(tmp_path, method.needs)
    for ratio, expected in zip((0.3, 0.6), alone, strict=True):
        decoder = random_decoder(family_name, dtype=dtype)
        state = prune_at(decoder, method, None, ratio=ratio, stored=kept, **common)
        assert state_digest(state) == expected


@pytest.mark.parametrize(
    ("name", "allocation"),
    [
        ("wanda", "global"),
        ("wanda", OWL("owl", 1, 2.0, 0.08)),
        ("sparsegpt", OWL("owl", 1, 2.0, 0.08)),
        ("magnitude", OWL("owl", 1, 2.0, 0.08)),
    ],
)
def test_allocations_read_them_too(name: str, allocation: Any, tokens: Tensor, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "pattern": FREE, "ratio": 0.6, "seed": 0, "batch_size": 2, "propagation": "dense", "allocation": allocation
    }  # fmt: skip
    family = {"num_hidden_layers": 3}
    collect(random_decoder("qwen3", **family), tokens, tmp_path)
    alone = prune_at(random_decoder("qwen3", **family), build("method", name), tokens, **options)
    kept = StatisticsFolder(tmp_path, BOTH)
    shared = prune_at(random_decoder("qwen3", **family), build("method", name), None, stored=kept, **options)
    assert state_digest(shared) == state_digest(alone)


def test_going_on_at_any_block_writes_the_same_files(tokens: Tensor, tmp_path: Path) -> None:
    family = {"num_hidden_layers": 3}
    for start in range(4):
        folder = tmp_path / str(start)
        folder.mkdir()
        collect(random_decoder("opt", **family), tokens, folder, start=start)
        written = sorted(path.name for path in folder.iterdir())
        assert written == [f"block-{index}.safetensors" for index in range(start, 3)]
        for name in written:
            assert (folder / name).read_bytes() == (tmp_path / "0" / name).read_bytes()


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_what_reads_gradients_is_kept_too(family: str, tokens: Tensor, tmp_path: Path) -> None:
    needs = ("output_gram", "taylor")
    collect(random_decoder(family), tokens, tmp_path, needs)
    decoder = random_decoder(family)
    found = collect_all(decoder, tokens, needs, 2)
    kept = StatisticsFolder(tmp_path, needs)
    for index in range(len(decoder.blocks)):
        for name, values in kept.block(decoder, index).items():
            assert torch.equal(values["output_gram"].matrix, found[name]["output_gram"].matrix)
            for part in ("rows", "columns", "bias"):
                assert torch.equal(getattr(values["taylor"], part), getattr(found[name]["taylor"], part))


def test_one_block_is_in_memory_at_a_time(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    made: list[Any] = []
    real = statistics.collect_block

    def spy(*args: Any, **options: Any) -> Any:
        import gc
        import weakref

        gc.collect()
        alive.append(sum(reference() is not None for reference in made))
        values = real(*args, **options)
        made.extend(weakref.ref(of_layer["input_gram"]) for of_layer in values.values())
        return values

    monkeypatch.setattr(statistics, "collect_block", spy)
    decoder = random_decoder("llama", num_hidden_layers=4)
    collect_statistics(decoder, tokens, ("input_gram",), 2, lambda index, found: None)
    assert len(alive) == 4
    assert max(alive) == 0


def test_what_does_not_fit_is_named(tokens: Tensor, tmp_path: Path) -> None:
    decoder = random_decoder("llama")
    options: dict[str, Any] = {"pattern": FREE, "ratio": 0.5, "seed": 0, "batch_size": 2}
    collect(decoder, tokens, tmp_path, ("input_norm",))
    norms = StatisticsFolder(tmp_path, ("input_norm",))
    with pytest.raises(ConfigError, match="dense with statistics"):
        prune_at(decoder, build("method", "wanda"), None, stored=norms, **options)
    options["propagation"] = "dense"
    with pytest.raises(ConfigError, match="input_gram among them"):
        prune_at(decoder, build("method", "sparsegpt"), None, stored=norms, **options)
    with pytest.raises(StoreError, match=r"of random_llama has no input_gram"):
        StatisticsFolder(tmp_path, BOTH).block(decoder, 0)
    with pytest.raises(StoreError, match=r"of random_opt has no input_norm"):
        norms.block(random_decoder("opt"), 0)
    with pytest.raises(StoreError, match="Delete its folder"):
        norms.block(decoder, 7)
    path = block_path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(StoreError, match="block-1"):
        norms.block(decoder, 1)
    (tmp_path / "file").write_text("no folder")
    path = tmp_path / "file" / "block-0.safetensors"
    with pytest.raises(StoreError, match=r"block-0.safetensors cannot be written"):
        save_block(decoder, 0, norms.block(decoder, 0), ("input_norm",), path)
