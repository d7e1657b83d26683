"""What a reconstruction fits to: parts and their counts, checked before anything is queued."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prunelab.config.schema import ReconstructionData
from prunelab.errors import ConfigError, nearest

SAME, GENERATED = "same", "self_generated"
RECIPE = (
    "revision", "random_tokens", "greedy_tokens", "temperature", "top_k", "top_p", "language", "min_distinct",
    "text_len", "batch",
)  # fmt: skip
_MAY_BE_NULL = ("top_k", "top_p", "text_len")
_KEY = "reconstruction_data.parts"


def parts_of(parts: Mapping[str, int | None] | None, n_samples: int) -> dict[str, int]:
    """Return windows per part of a checked ``reconstruction_data``, sorted by name; null stands for all ``n_samples``.

    ``{same: n_samples}`` if nothing else was asked for. A part with a count of 0 is left out, so that an axis of counts
    may begin at none.
    """
    asked = parts or {SAME: None}
    return {
        name: n_samples if count is None else count for name, count in sorted(asked.items()) if count != 0
    }


def recipe_of(data: ReconstructionData, window: int, max_len: int | None) -> dict[str, Any]:
    """Return how the dense model writes; ``text_len: null`` becomes twice the window, within the context."""
    recipe = {key: getattr(data, key) for key in RECIPE}
    if recipe["text_len"] is None:
        recipe["text_len"] = min(2 * window, max_len or 2 * window)
    return recipe


def corpora_of(data: Any) -> list[str]:
    """Return the names of calibration options among the parts of a ``reconstruction_data`` config."""
    parts: Any = data.get("parts") if isinstance(data, Mapping) else None
    return [str(name) for name in parts if name not in (SAME, GENERATED)] if _is_map(parts) else []


def check_parts(config: Mapping[str, Any], corpora: Sequence[str]) -> Iterator[ConfigError]:
    """Yield every mistake in what the parts and their counts say; types are checked elsewhere."""
    data = config.get("reconstruction_data")
    parts: Any = data.get("parts") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not _is_map(parts):
        if isinstance(data, Mapping) and parts is None and data.get("name") != SAME:
            yield ConfigError(_KEY, None, "windows of each part, e.g. {same: null, self_generated: 32}")
        return
    known = [SAME, GENERATED, *corpora]
    if all(_is_zero(count) for count in parts.values()):
        yield ConfigError(_KEY, dict(parts), "at least one part with a window, e.g. {self_generated: 32}")
    for name, count in parts.items():
        if name not in known:
            yield ConfigError(_KEY, name, f"parts called {', '.join(known)}", nearest(str(name), known))
        elif count is None and name == SAME:
            continue
        elif not isinstance(count, int) or isinstance(count, bool) or count < 0:
            allowed = "an integer, x >= 0" + (", or null: all of the mask's" if name == SAME else "")
            yield ConfigError(f"{_KEY}.{name}", count, allowed)
        elif name == SAME and _over(count, config["calibration"].get("n_samples")):
            whole = config["calibration"]["n_samples"]
            yield ConfigError(f"{_KEY}.{name}", count, f"at most {whole}, calibration.n_samples")
    if GENERATED in parts:
        yield from _check_recipe(config, data)


def _check_recipe(config: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[ConfigError]:
    for key in RECIPE:
        if data.get(key) is None and key not in _MAY_BE_NULL:
            yield ConfigError(
                f"reconstruction_data.{key}", None, f"set, since {GENERATED} is a part", "See its YAML file."
            )
    model, window = config["model"], config["calibration"].get("seq_len")
    longest, length = model.get("max_len"), data.get("text_len")
    key = "reconstruction_data.text_len"
    if _over(window, length):
        yield ConfigError(key, length, f"at least {window}, the window (calibration.seq_len)")
    elif _over(length, longest):
        yield ConfigError(key, length, f"at most {longest}, the context of {model.get('name')}")
    prefix = (data.get("random_tokens"), data.get("greedy_tokens"))
    if isinstance(window, int) and all(isinstance(n, int) for n in prefix) and sum(prefix) >= window:  # type: ignore[arg-type]
        name = "reconstruction_data.random_tokens + greedy_tokens"
        yield ConfigError(name, sum(prefix), f"fewer than the window of {window} tokens")  # type: ignore[arg-type]
    if model.get("source") == "random" and data.get("language") != "any":
        hint = "A random model has no tokenizer, so nothing can be read."
        yield ConfigError("reconstruction_data.language", data.get("language"), "any with model=random", hint)


def _over(one: Any, other: Any) -> bool:
    return isinstance(one, int) and isinstance(other, int) and one > other


def _is_zero(count: Any) -> bool:
    return isinstance(count, int) and not isinstance(count, bool) and count == 0


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)
