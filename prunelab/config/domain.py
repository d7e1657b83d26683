"""Token sets of other kinds of text, beside the one that the mask is chosen on, for methods that compare them.

A method's class says with the literal ``domains`` how many it compares at least, the trial's own among them; for any other
method the key ``domains`` of a config means nothing. Each is drawn like the mask's tokens: the role's part of its
corpus, as many windows, as long, by the trial's seed. A method with a field ``pseudo_domains`` that is no null divides the
trial's own where no other is named (prunelab.passes.pseudo).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prunelab.config.field import read_class
from prunelab.errors import ConfigError, nearest

KEY = "domains"
PSEUDO = "pseudo_domains"  # a field of such a method: into how many sets it divides the trial's own, if there is no other
ROLE = "domain"  # of the inputs domain/<name>


def least_domains(method: Mapping[str, Any]) -> int:
    """Return how many token sets a method compares at least; 0 for one that looks at a single one.

    Raises ConfigError for a class that does not exist.
    """
    return int(read_class(str(method.get("_target_", "")), "method._target_").literals.get(KEY, 0))


def other_domains(domains: Sequence[str], calibration: str, least: int) -> list[str]:
    """Return the names of the token sets beside the trial's own, sorted; none if a method compares none (``least`` 0)."""
    return sorted(set(domains) - {calibration}) if least else []


def domains_of(config: Mapping[str, Any]) -> list[str]:
    """Return :func:`other_domains` of a config that may be half checked, without what is no name."""
    method, calibration, given = (config.get(key) for key in ("method", "calibration", KEY))
    if not (isinstance(method, Mapping) and isinstance(calibration, Mapping) and isinstance(given, list)):
        return []
    try:
        least = least_domains(method)
    except ConfigError:
        return []  # told by the check of the method
    return other_domains([str(name) for name in given], str(calibration.get("name")), least)


def check_domains(config: Mapping[str, Any], known: Sequence[str]) -> Iterator[ConfigError]:
    """Yield what is wrong with the names of token sets; ``known`` are the calibration options."""
    given: Any = config.get(KEY)
    if not isinstance(given, list):
        return  # told by the check of types
    method, calibration = config.get("method"), config.get("calibration")
    for name in dict.fromkeys(map(str, given)):
        if name not in known:
            allowed = f"names of calibration options ({', '.join(known)})"
            yield ConfigError(KEY, name, allowed, nearest(name, known))
        elif given.count(name) > 1:
            yield ConfigError(KEY, given, "different names", f"Two of {name} are one.")
    if not isinstance(method, Mapping) or not isinstance(calibration, Mapping):
        return
    try:
        least = least_domains(method)
    except ConfigError:
        return
    if least and calibration.get("n_samples") == 1:
        hint = "Each text is divided in two, to tell texts from draws of one."
        yield ConfigError("calibration.n_samples", 1, f"2 or more with method={method.get('name')}", hint)
    found, pseudo = 1 + len(domains_of(config)), method.get(PSEUDO)
    if found == 1 and least and isinstance(pseudo, int):  # its own text is divided
        count = calibration.get("n_samples")
        if isinstance(count, int) and count < 2 * pseudo:
            allowed = f"2 sequences or more for each of method.{PSEUDO}={pseudo}, or other text in {KEY}"
            yield ConfigError("calibration.n_samples", count, allowed)
    elif found < least:
        own = calibration.get("name")
        allowed = f"at least {least} kinds of text with method={method.get('name')}, {own} of calibration among them"
        others = [name for name in known if name != own][:2]
        yield ConfigError(KEY, given, allowed, f"For instance {KEY}=[{','.join(others)}].")
