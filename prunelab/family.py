"""Family: the names that one model architecture gives to its blocks and linear maps. Data: see families.yaml.

Ground floor: planning knows the model types by it, numerics the names. Nothing here computes anything: masks, rotary
tables, norms and the head stay the model's own and are reached through its forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from prunelab.errors import ModelError, nearest, unknown

_TABLE = Path(__file__).with_name("families.yaml")
_LIMIT = 1 << 20  # bytes; a larger file is no family
# keys of a config that say how many tokens the model takes
POSITIONS = ("max_position_embeddings", "n_positions", "seq_length")
Layout = Literal["separate", "stacked", "per_head", "per_group"]


@dataclass(frozen=True)
class Family:
    """Names of one architecture.

    ``model_types``: values of ``model_type`` in config.json. ``blocks``: path of the block list.
    ``inputs``: paths (inside a block) of the linear maps in forward order, grouped by the input
    they share. ``mlp``: paths that write the hidden units (gate and up, or the only one), and the path that
    reads them, or None. ``halves`` (``mlp: {halves: true}``): the one writer holds both, its first half of rows
    the gate, its second the up map. ``activation`` (of mlp too): where the config names none. ``attention``: paths
    of the query, key, value and output maps, or None. ``layout`` (``attention: {layout: stacked}``): how the first
    three lie: ``separate`` maps, or one map that all three name: ``stacked`` = all queries, all keys, all values;
    ``per_head`` = query, key and value of head 0, of head 1 and so on; ``per_group`` = the query heads of key-value
    head 0, its key, its value, and so on. ``transposed``: paths whose weight checkpoints store as (in, out);
    prunelab holds it as (out, in). ``renamed``: module outside the blocks, as checkpoints call it -> as the model
    does. ``random``: config of a small random model for tests and dry runs (``source: random``).
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    inputs: tuple[tuple[str, ...], ...]
    mlp: tuple[tuple[str, ...], str] | None
    attention: tuple[str, str, str, str] | None
    random: Mapping[str, object]
    halves: bool = False
    activation: str | None = None
    layout: Layout = "separate"
    transposed: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)


@cache
def load_families() -> tuple[Family, ...]:
    """Every family of the table, sorted by name."""
    table = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    return tuple(_family(name, table[name], _TABLE) for name in sorted(table))


def read_family_file(path: str | Path) -> Family:
    """Read a family of one's own: a YAML mapping with the fields of one entry of the table, and perhaps a ``name``.

    Raises ModelError naming the file and what is wrong with it.
    """
    place = Path(path).expanduser()
    try:
        if place.stat().st_size > _LIMIT:
            raise ModelError(f"family {place} is larger than {_LIMIT >> 20} MiB: not a family.")
        values = yaml.safe_load(place.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"family {place} cannot be read: {reason}. It is a YAML file.") from None
    if not isinstance(values, Mapping):
        raise ModelError(
            f"family {place} holds {type(values).__name__}; needed is a mapping, see families.yaml."
        )
    values = dict(values)
    return _family(str(values.pop("name", place.stem)), values, place)


def family_of(model_type: str, file: str | None = None) -> Family:
    """The family of models of ``model_type``: that of ``file`` if one is given, else the table's.

    Raises ModelError that lists the known types.
    """
    families = load_families() if file is None else (read_family_file(file),)
    known = {kind: family for family in families for kind in family.model_types}
    if model_type not in known:
        where = f"the family of {file} is for" if file else "known are"
        hint = (
            nearest(model_type, known)
            or "A family of your own is one YAML file: model.family=/path/mine.yaml"
        )
        raise ModelError(
            f"model_type={model_type!r} has no family; {where} {', '.join(sorted(known))}. {hint}".rstrip()
        )
    return known[model_type]


def family_named(name: str) -> Family:
    """The family called ``name``; ModelError lists the known ones."""
    known = {family.name: family for family in load_families()}
    if name not in known:
        raise unknown("family", name, known)
    return known[name]


def _family(name: str, values: Mapping[str, Any], file: Path) -> Family:
    """Return a checked family; ModelError names the file and the field."""
    _check_keys(
        file,
        "",
        values,
        [f.name for f in fields(Family) if f.name not in ("name", "halves", "activation", "layout")],
    )
    mlp, attention = values.get("mlp"), values.get("attention")
    roles = ("query", "key", "value", "output")
    try:
        _check_keys(file, "mlp.", mlp or {}, ("writers", "reader", "halves", "activation"))
        _check_keys(file, "attention.", attention or {}, (*roles, "layout"))
        family = Family(
            name,
            _words(values["model_types"]),
            str(values["blocks"]),
            tuple(_words(group) for group in values["inputs"]),
            None if mlp is None else (_words(mlp["writers"]), str(mlp["reader"])),
            None if attention is None else tuple(str(attention[k]) for k in roles),  # type: ignore[arg-type]
            dict(values.get("random") or {}),
            (mlp or {}).get("halves", False),
            (mlp or {}).get("activation"),
            (attention or {}).get("layout", "separate"),
            _words(values["transposed"]) if values.get("transposed") else (),
            {str(old): str(new) for old, new in (values.get("renamed") or {}).items()},
        )
    except KeyError as error:
        raise ModelError(
            f"family {file}: {error.args[0]!r} is missing; see families.yaml for an example."
        ) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"family {file}: {error}; see families.yaml for an example.") from None
    _check(family, file)
    return family


def _check_keys(file: Path, where: str, values: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in values:
        if key not in known:
            hint = nearest(str(key), known)
            raise ModelError(
                f"family {file}: {where + str(key)!r} is no field; allowed are {', '.join(known)}. {hint}".rstrip()
            )


def _check(family: Family, file: Path) -> None:
    """Raise ModelError unless the fields of ``family`` go together."""
    paths = {path for group in family.inputs for path in group}
    named = {
        *(family.mlp[0] if family.mlp else ()),
        *([family.mlp[1]] if family.mlp else ()),
        *(family.attention or ()),
        *family.transposed,
    }
    if lacking := sorted(named - paths):
        raise ModelError(
            f"family {file}: {', '.join(lacking)} of mlp, attention or transposed is not among the inputs."
        )
    if family.layout not in get_args(Layout):
        raise ModelError(
            f"family {file}: attention.layout={family.layout!r}; allowed are {', '.join(get_args(Layout))}."
        )
    if not isinstance(family.halves, bool):
        raise ModelError(f"family {file}: mlp.halves={family.halves!r}; allowed are true and false.")
    if family.attention is not None:
        maps, needed = len(set(family.attention[:3])), 3 if family.layout == "separate" else 1
        if maps != needed:
            raise ModelError(
                f"family {file}: attention.layout={family.layout} is about {needed} map(s), but query, key and value "
                f"name {maps}. Maps of their own are separate; one map for all is stacked, per_head or per_group."
            )
    if family.mlp is not None and len(family.mlp[0]) != 1 and (family.halves or len(family.mlp[0]) != 2):
        allowed = "one, since halves is true" if family.halves else "gate and up, or one"
        raise ModelError(f"family {file}: mlp.writers are {len(family.mlp[0])} maps; allowed: {allowed}.")


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(word, str) for word in value):
        raise ValueError(f"{value!r} must be a list of names")
    return tuple(value)
