"""A stage: what one piece of work is, what it needs, and where it may run. Plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prunelab.config.fingerprint import fingerprint


@dataclass(frozen=True)
class Stage:
    """``identity`` and ``inputs`` (role -> key) make the key; ``runtime`` (paths, placement) never does.

    ``continues`` names stages whose result is a prefix of this one's work, longest first: if one is in
    the store, the work starts there; the result is the same bits either way, so they are not in the key.
    """

    kind: str
    identity: Mapping[str, Any]
    inputs: Mapping[str, str]
    runtime: Mapping[str, Any]
    label: str
    continues: tuple[str, ...] = ()
    key: str = field(default="")

    def __post_init__(self) -> None:
        key = fingerprint(self.kind, self.identity, self.inputs)
        if self.key not in ("", key):
            raise ValueError(f"stage {self.label}: key {self.key} is not that of its identity, {key}")
        object.__setattr__(self, "key", key)

    @property
    def slug(self) -> str:
        """The label as a part of a folder's name."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.label).strip("-.")[:60] or "x"

    @property
    def folder(self) -> str:
        """The folder inside a store: readable, and unique by the key's first digits."""
        return f"{self.kind}/{self.slug}-{self.key[:16]}"

    def to_plain(self) -> dict[str, Any]:
        """Return the stage as JSON-ready data."""
        return {
            "kind": self.kind, "label": self.label, "slug": self.slug, "folder": self.folder,
            "identity": dict(self.identity), "inputs": dict(self.inputs), "runtime": dict(self.runtime),
            "continues": list(self.continues),
        }  # fmt: skip

    @staticmethod
    def from_plain(key: str, plain: Mapping[str, Any]) -> Stage:
        """Read a stage back; raises ValueError if the key does not belong to the identity."""
        return Stage(
            plain["kind"], plain["identity"], plain["inputs"], plain["runtime"], plain["label"],
            tuple(plain["continues"]), key,
        )  # fmt: skip
