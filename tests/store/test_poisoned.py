"""A result under a key that is not its own is not served."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunelab.config.fingerprint import fingerprint
from prunelab.errors import StoreError
from prunelab.store.artefact import begin, commit, verified_record
from prunelab.store.record import Record

IDENTITY = {"method": {"name": "magnitude", "ratio": 0.3}, "seeds": [0, 1]}


def stored(folder: Path, key: str, **changes: object) -> None:
    begin(folder, {})
    values = {"kind": "prune", "key": key, "slug": "s", "identity": IDENTITY, "inputs": {"dense": "d"}, "metrics": {},
              "tables": {}, "cost": {}}  # fmt: skip
    commit(folder, Record(**{**values, **changes}))


def test_a_record_is_served_under_the_key_of_what_made_it(tmp_path: Path) -> None:
    key = fingerprint("prune", IDENTITY, {"dense": "d"})
    stored(tmp_path / "s", key)
    assert verified_record(tmp_path / "s", key).identity == IDENTITY


@pytest.mark.parametrize(
    "poison",
    [{"kind": "evaluate"}, {"inputs": {"dense": "e"}}, {"identity": {**IDENTITY, "method": {"name": "mine"}}},
     {"identity": None}],
)  # fmt: skip
def test_what_another_identity_made_is_refused_under_this_key(
    tmp_path: Path, poison: dict[str, object]
) -> None:
    key = fingerprint("prune", IDENTITY, {"dense": "d"})
    stored(tmp_path / "s", key, **poison)
    with pytest.raises(StoreError, match=rf"under key .*, not under {key[:16]}|none of ours"):
        verified_record(tmp_path / "s", key)
