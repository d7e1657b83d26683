"""Which part of a corpus serves which role: the rule that planning checks by and numerics read by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunelab.errors import ConfigError, nearest

SPLITS = ("train", "validation", "test", "all")
SHARES = (("train", 0.8), ("validation", 0.9), ("test", 1.0))  # cumulative
_BY_ROLE = {"mask": "train", "held_out": "validation", "test": "test"}


def split_of(spec: Mapping, role: str) -> str:
    """Return the split that ``role`` reads: ``spec['split']`` is null, a mapping by role, or one name.

    One name is the split of role ``mask``, except 'all' (the file serves a single role, so nothing is
    divided). Two roles never read the same split: ConfigError.
    """
    chosen = spec.get("split") or {}
    if chosen == "all":
        return "all"
    splits = _BY_ROLE | (dict(chosen) if isinstance(chosen, Mapping) else {"mask": chosen})
    for name in splits.values():
        if name not in SPLITS:
            raise ConfigError("calibration.split", name, ", ".join(SPLITS), nearest(str(name), SPLITS))
    if len(set(splits.values())) < len(splits) or "all" in splits.values():
        raise ConfigError(
            "calibration.split", splits, "a different split for each role", "Roles never share text."
        )
    return splits["mask" if role == "reconstruction" else role]


def row_range(n_rows: int, split: str) -> range:
    """Return the row numbers of one split of a token file: 80/10/10 % by position, 'all' for everything."""
    if split == "all":
        return range(n_rows)
    ends = {name: round(share * n_rows) for name, share in SHARES}
    starts = dict(zip(ends, [0, *ends.values()], strict=False))
    return range(starts[split], ends[split])


def of_split(value: Any, split: str) -> Any:
    """Return the entry for ``split`` of a mapping by split, or the value itself if it is no mapping."""
    return value.get(split) if isinstance(value, Mapping) else value
