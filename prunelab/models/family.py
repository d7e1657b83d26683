"""Family: the names that one model architecture gives to its blocks and linear maps.

A family is one file in ``families/`` holding ``FAMILY = Family(...)``; files are found by listing
that folder, so a new architecture needs no edit elsewhere. Nothing here computes anything: masks,
rotary tables, norms and the head stay the model's own and are reached through its forward.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from prunelab.errors import ModelError, nearest
from prunelab.models import families


@dataclass(frozen=True)
class Family:
    """Names of one architecture.

    ``model_types``: values of ``model_type`` in config.json. ``blocks``: path of the block list.
    ``inputs``: paths (inside a block) of the linear maps in forward order, grouped by the input
    they share. ``mlp``: paths that write the hidden units, and the path that reads them, or None.
    ``attention``: paths of the query, key, value and output maps, or None. ``random``: config of a
    small random model for tests and dry runs (``source: random``).
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    inputs: tuple[tuple[str, ...], ...]
    mlp: tuple[tuple[str, ...], str] | None
    attention: tuple[str, str, str, str] | None
    random: Mapping[str, object]


# The Llama naming, which most decoder families copied.
LLAMA_INPUTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
LLAMA_MLP = (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
LLAMA_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")


@cache
def load_families() -> tuple[Family, ...]:
    """Every family of the ``families`` folder, sorted by name."""
    names = sorted(info.name for info in pkgutil.iter_modules(families.__path__))
    return tuple(importlib.import_module(f"{families.__name__}.{name}").FAMILY for name in names)


def family_of(model_type: str) -> Family:
    """The family whose ``model_types`` hold ``model_type``; ModelError lists the known ones."""
    known = {kind: family for family in load_families() for kind in family.model_types}
    if model_type not in known:
        raise ModelError(
            f"model_type={model_type!r} has no family; known are {', '.join(sorted(known))}. "
            f"A new family is one file in prunelab/models/families. {nearest(model_type, known)}".rstrip()
        )
    return known[model_type]


def family_named(name: str) -> Family:
    """The family called ``name``; ModelError lists the known ones."""
    known = {family.name: family for family in load_families()}
    if name not in known:
        raise unknown("family", name, known)
    return known[name]


def unknown(what: str, value: object, known: Iterable[str]) -> ModelError:
    """The error for a ``what`` called ``value`` that is none of ``known``."""
    names = sorted(known)
    hint = nearest(str(value), names)
    return ModelError(f"{what}={value!r} is unknown; allowed are {', '.join(names)}. {hint}".rstrip())
