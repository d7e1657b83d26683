"""Units of a model on disk as planning counts them: those that the job finds, and ratios that they cannot give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunelab.config.supply import supplies
from prunelab.errors import ConfigError
from prunelab.methods.random import Random
from prunelab.models.random import random_decoder
from prunelab.passes.shots import prune
from prunelab.passes.units import UnitGroups
from prunelab.pattern.base import MethodFacts, Run
from prunelab.pattern.units import Units

RANDOM = MethodFacts(
    "random", "unit", ("units",), (), None, frozenset({"importance"}), frozenset(),
    ("neurons", "heads", "blocks", "attention", "ffn"),
)  # fmt: skip


def spec(folder: Path) -> dict[str, Any]:
    return {"source": "local", "id": str(folder)}


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "falcon", "phi3", "gpt_neox"])
def test_planning_counts_what_the_job_finds(family: str, tmp_path: Path) -> None:
    decoder = random_decoder(family)
    decoder.model.save_pretrained(tmp_path)
    found = supplies(spec(tmp_path))
    for kinds in (("neurons", "heads"), ("attention", "ffn"), ("blocks",)):
        chooser = UnitGroups(Units(kinds=kinds), decoder)
        traced = {(one.name, one.count, one.cost) for one in chooser.populations()}
        own = {
            (f"{one.kind} of block {one.block}", one.count, one.cost) for one in found if one.kind in kinds
        }
        assert own == traced
        assert sum(one.cost for one in found if one.kind == "blocks") == chooser.total.decoder


@pytest.mark.parametrize(
    ("fields", "allocation", "told"),
    [
        ({}, "global", 1), ({}, "uniform", 1), ({"protect_first": 1}, "global", 3), ({"kinds": ("heads",)}, "global", 3),
        ({"kinds": ("blocks",)}, "global", 0), ({"kinds": ("attention", "ffn")}, "global", 1),
        ({"kinds": ("ffn",), "counts": "units"}, "by_kind", 0), ({"min_units": 2, "counts": "units"}, "global", 1),
        ({"kinds": ("neurons",), "counts": "units"}, "uniform", 0),
    ],
)  # fmt: skip
def test_what_planning_refuses_the_job_would(
    fields: dict[str, Any], allocation: str, told: int, tmp_path: Path
) -> None:
    """``told``: of four ratios."""
    random_decoder("llama").model.save_pretrained(tmp_path)
    pattern, known = Units(**fields), supplies(spec(tmp_path))
    fixed: dict[str, Any] = {"pattern": pattern, "seed": 0, "batch_size": 1, "allocation": allocation}
    found = 0
    for ratio in (0.2, 0.5, 0.8, 0.98):
        run = Run(RANDOM, ratio, allocation, "dense", supply=known)
        said = [error for error in pattern.check(run) if "can go" in str(error)]
        found += len(said)
        if said:
            with pytest.raises(ConfigError, match="can go"):
                prune(
                    random_decoder("llama"),
                    Random("random", 2, None),
                    None,
                    [ratio],
                    propagation="dense",
                    **fixed,
                )
    assert found == told


def test_what_is_not_known_is_no_mistake(tmp_path: Path) -> None:
    assert supplies({"source": "hub", "id": "org/x"}) == ()
    assert supplies({"source": "random", "id": "llama"}) == ()
    assert supplies(spec(tmp_path)) == ()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    assert supplies(spec(tmp_path)) == ()
    assert len(supplies({"source": "embedded", "id": "llama"})) == 4 * 5
