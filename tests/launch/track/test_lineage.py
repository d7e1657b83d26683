"""W&B takes the names and types of all artefacts: at most 128 letters, digits, dashes, underscores and dots."""

from __future__ import annotations

import re

import pytest

from prunelab.launch.track.lineage import artefact_name
from prunelab.plan.kind import KINDS
from prunelab.plan.stage import Stage

LONGEST = "z_9" + "a" * 37  # that a kind from outside the package may have: config/outside.py


def taken(name: str) -> bool:
    return re.fullmatch(r"[\w.-]{1,128}", name, re.ASCII) is not None


@pytest.mark.parametrize("kind", [*KINDS, LONGEST])
def test_names_are_taken_and_distinct(kind: str) -> None:
    names = {
        artefact_name(Stage(kind, {"seed": seed}, {}, {}, "a label: of / anything")) for seed in range(9)
    }
    assert len(names) == 9
    assert all(taken(name) for name in names)
    assert all(taken(row.artifact) for row in KINDS.values() if row.artifact)
