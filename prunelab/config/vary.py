"""What varies between trials: which keys of a config make another trial, and short words for those that do.

Names of trials are made of these words, and whoever shows trials side by side may take them too.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from typing import Any

from prunelab.config.contract import method_facts
from prunelab.config.field import read_class
from prunelab.errors import ConfigError
from prunelab.pattern.base import KINDS, MethodFacts, default_stream, settle
from prunelab.pattern.table import PATTERNS

_PLACE = "says where and how fast, not what"
_NAME = "a word for people; one thing under two names is one trial"
STILL: Mapping[str, str] = {  # keys that make no other trial by themselves, and why; a test varies every key
    "study": "a sweep is one study; refused as an axis",
    "paths.*": "a sweep has one place; refused as an axis",
    "runtime.device": _PLACE,
    "runtime.workers": _PLACE,
    "runtime.threads": _PLACE,
    "runtime.batch_tokens": _PLACE,
    "runtime.activation_place": _PLACE,
    "runtime.activation_gib": _PLACE,
    "tracking.*": "mirrors numbers and makes none",
    "model.name": _NAME,
    "calibration.name": _NAME,
    "evaluation.name": _NAME,
    "reconstruction_data.name": _NAME,
}
_TIMED = "it counts where speed is measured"
SELDOM: Mapping[str, str] = {  # keys that make another trial only beside others, and beside which
    "model.max_len": "a limit, and longer windows are refused; it counts where it cuts what evaluation.tasks see",
    "runtime.activation_dtype": "it counts where states between blocks are kept: single weights and repairs",
    "model.digest": "of a local model the files count, whatever was promised; it counts for what is fetched",
    "calibration.digest": "of a file of one's own the content counts, whatever was promised; it counts for what is fetched",
    "domains": "it counts where the method compares kinds of text",
    "evaluation.task_limit": "it counts where there are evaluation.tasks",
    "evaluation.speed": "null is true for units and false for other patterns",
    "evaluation.speed_batch": _TIMED,
    "evaluation.speed_prompt": _TIMED,
    "evaluation.speed_tokens": _TIMED,
    "evaluation.speed_rounds": _TIMED,
}
_LONGEST = 32  # letters of a word's value
_HIDDEN = ("_target_",)  # two classes under one name are refused
_NOT = "\0"  # stands for a key that a config lacks


# what a trial may leave to its method
_LEFT = ("allocation.name", "sparsity.propagation", "sparsity.compensation", "sparsity.kinds")


def said_by_method(configs: Sequence[Mapping[str, Any]]) -> list[set[str]]:
    """Return for each config the dotted keys that trials leave to their method and that say no more than its name.

    Those are the keys that have the values the method's class stands for, in all trials with that method.
    """
    by_hand: set[tuple[str, str]] = set()
    for config in configs:
        own = own_choices(config)
        by_hand |= {
            (str(config["method"].get("name")), key)
            for key, value in _left(config)
            if value != _spelled(own.get(key))
        }
    return [
        {key for key, _ in _left(config) if (str(config["method"].get("name")), key) not in by_hand}
        for config in configs
    ]


def own_choices(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a trial's method and pattern choose where the trial does not, by dotted key; a choice may lean on another
    (a comparison of all layers on the dense stream), which is then the trial's own. {} where the class cannot be read."""
    sparsity, method, allocation = (config.get(key) for key in ("sparsity", "method", "allocation"))
    pattern = PATTERNS.get(str(sparsity.get("pattern"))) if isinstance(sparsity, Mapping) else None
    literals: Mapping[str, Any] = {}
    facts: MethodFacts | None = None
    with suppress(ConfigError, KeyError, AttributeError):  # told as what it is by the checks
        source = read_class(str(method["_target_"]), "method._target_")  # type: ignore[index]
        literals, facts = source.literals, method_facts(method, source)  # type: ignore[arg-type]
    if pattern is None:
        return {}
    spread = settle(None, literals, "allocation", pattern.default_allocation)
    chosen = allocation.get("name") if isinstance(allocation, Mapping) else None
    chosen = spread if chosen in (None, "by_pattern") else str(chosen)
    stream = pattern.default_propagation if facts is None else default_stream(pattern, facts, chosen)
    return {
        "allocation.name": spread,
        "sparsity.propagation": settle(None, literals, "propagation", stream),
        "sparsity.compensation": settle(None, literals, "compensation", "none"),
        "sparsity.kinds": list(literals.get("kinds", KINDS)),
    }


def _left(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    sparsity, method = config.get("sparsity"), config.get("method")
    if isinstance(sparsity, Mapping) and isinstance(method, Mapping):
        for key in _LEFT:
            group, _, name = key.partition(".")
            if isinstance(values := config.get(group), Mapping) and name in values:
                yield key, _spelled(values[name])


def is_still(key: str) -> bool:
    """Say whether a dotted key is one of those that make no other trial."""
    return any(fnmatch(key, pattern) for pattern in STILL)


def differences(configs: Sequence[Mapping[str, Any]], told: Sequence[str] = ()) -> list[dict[str, str]]:
    """Return for each config the short values, by dotted key, of what differs between configs of the same options.

    Fields that an option has and another lacks are no difference: the option's name says it. Keys that make no other
    trial are left out, and those in ``told``, which the caller names already.
    """
    words: list[dict[str, str]] = [{} for _ in configs]
    groups = dict.fromkeys(str(group) for config in configs for group in config)
    for group in groups:
        same: dict[str, list[int]] = {}
        for number, config in enumerate(configs):
            same.setdefault(_option(config.get(group)), []).append(number)
        for numbers in same.values():
            values = [configs[number].get(group, _NOT) for number in numbers]
            for key, texts in _varying(group, values):
                if key in told or is_still(key) or key.rpartition(".")[2] in _HIDDEN:
                    continue
                for number, text in zip(numbers, texts, strict=True):
                    if text is not None:
                        words[number][key] = text
    for found, said in zip(words, said_by_method(configs), strict=True):
        for key in said:
            found.pop(key, None)
    return words


def _option(value: Any) -> str:
    """Return which option of its group a value is, as far as its fields depend on it."""
    if not isinstance(value, Mapping):
        return ""
    return str([value.get(key) for key in ("name", "pattern", "source")])


def _varying(key: str, values: Sequence[Any]) -> Iterator[tuple[str, list[str | None]]]:
    """Yield the keys at and below ``key`` whose values differ, with a short text for each; None where there is none."""
    if all(isinstance(value, Mapping) or value == _NOT for value in values):
        names = dict.fromkeys(name for value in values if isinstance(value, Mapping) for name in value)
        for name in names:
            inner = [value.get(name, _NOT) if isinstance(value, Mapping) else _NOT for value in values]
            yield from _varying(f"{key}.{name}", inner)
        return
    spelled = [_NOT if value == _NOT else _spelled(value) for value in values]
    if len(set(spelled)) > 1:
        short = _short([text for text in dict.fromkeys(spelled) if text != _NOT])
        yield key, [short.get(text) for text in spelled]


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _short(texts: Sequence[str]) -> dict[str, str]:
    """Return a short word for each of different texts, all different: the ends of paths, the first digits of digests."""
    words = [_word(text) for text in texts]
    if any("/" in text for text in texts):
        words = [_word("-".join(text.split("/")[-_depth(texts) :])) for text in texts]
    count = Counter(words)
    return {
        text: word
        if count[word] == 1 and word
        else f"{word or 'none'}#{number}"
        if count[word] > 1
        else "none"
        for number, (text, word) in enumerate(zip(texts, words, strict=True), start=1)
    }


def _depth(paths: Sequence[str]) -> int:
    """Return how many last parts of paths tell them apart."""
    longest = max(path.count("/") for path in paths) + 1
    ends = (len({tuple(path.split("/")[-depth:]) for path in paths}) for depth in range(1, longest + 1))
    return next((depth for depth, count in enumerate(ends, start=1) if count == len(paths)), longest)


def _word(text: str) -> str:
    return plain_word(first_digits(text))[:_LONGEST].rstrip("-")


def first_digits(text: str) -> str:
    """Return the first 8 digits of a commit or digest, any other text as it is."""
    return text[:8] if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) else text


def plain_word(text: str) -> str:
    """Return a text as part of a name that is also a file's: letters, digits and ``. _ = + # -``."""
    return re.sub(r"\.\.+", ".", re.sub(r"[^A-Za-z0-9._=+#-]+", "-", text)).strip("-.")
