"""What the arguments of a pruning have to fulfil together, checked with the objects at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from prunelab.allocation.base import Allocation
from prunelab.errors import ConfigError
from prunelab.methods.facts import facts_of
from prunelab.models.decoder import Decoder
from prunelab.models.shape import units_of
from prunelab.passes.pseudo import PSEUDO
from prunelab.passes.source import Stored
from prunelab.pattern.base import BY_KIND, GLOBAL, UNIFORM, Pattern, Run
from prunelab.stats.domain import DOMAINS

Spread = str | Allocation  # uniform, global, or something that gives every block its ratio


def check_run(
    decoder: Decoder, method: Any, pattern: Pattern, schedule: Sequence[float], allocation: Spread,
    propagation: str, tokens: Tensor | None, stored: Stored | None, domains: Sequence[Tensor] = (),
) -> None:  # fmt: skip
    """Raise ConfigError for arguments of :func:`prune` that do not fit together."""
    for before, after in zip([0.0, *schedule], schedule, strict=False):
        if not 0 <= before <= after < 1:
            raise ConfigError("schedule", list(schedule), "growing ratios, 0 <= ratio < 1")
    if isinstance(allocation, str) and allocation not in (UNIFORM, GLOBAL, BY_KIND):
        raise ConfigError("allocation.name", allocation, f"{UNIFORM} | {GLOBAL} | {BY_KIND} | owl")
    ratio = schedule[-1] if schedule else 0.0
    widths = [(site.name, site.linear.in_features) for site in decoder.sites()]
    name = allocation if isinstance(allocation, str) else allocation.name
    neurons = tuple({width for index in range(len(decoder.blocks)) if (width := units_of(decoder, index))})
    # the schedule says how many shots there are, whatever the method's own step
    facts = replace(facts_of(method), step=schedule[0] if len(schedule) > 1 else None)
    for error in pattern.check(Run(facts, ratio, name, propagation, widths, len(decoder.blocks), neurons)):
        raise error
    needs = {*method.needs, *pattern.needs} | (set() if isinstance(allocation, str) else {"input_norm"})
    least = getattr(method, DOMAINS, 0)
    own = getattr(method, PSEUDO, None) is not None and not domains  # its own text is divided
    if (1 + len(domains) < least and not own) or (domains and not least):
        allowed = f"{least - 1} or more token sets of other text" if least else "none"
        raise ConfigError(DOMAINS, f"{len(domains)} token sets", f"{allowed} with method={method.name}")
    if facts.judged and (tokens is None or stored is not None):
        allowed = f"None, and tokens instead, with method={method.name}"
        raise ConfigError("stored", "statistics of the dense model", allowed, "It asks the whole model.")
    if tokens is None and domains:
        raise ConfigError("calibration", None, "a token set, to compare others with")
    if stored is None and tokens is None and needs:
        raise ConfigError("calibration", None, "a token set", "The method or the allocation needs one.")
    if stored is not None:
        if len(schedule) > 1:
            raise ConfigError(
                "statistics", "of the dense model", "one shot; each looks at the model as it is"
            )
        if propagation != "dense":
            raise ConfigError("propagation", propagation, "dense with statistics of the dense model")
        if not needs <= set(stored.needs):
            raise ConfigError("statistics", stored.needs, f"{', '.join(sorted(needs))} among them")
