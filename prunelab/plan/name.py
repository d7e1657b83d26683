"""Names of trials: their method, ratio, text and seed, and whatever else varies in the study. Words, and unique."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from prunelab.config.vary import differences, plain_word, said_by_method
from prunelab.pattern.table import pattern_of

# what a name says of every trial, whether it varies or not
_TOLD = ("seed", "sparsity.ratio", "sparsity.pattern", "sparsity.n", "sparsity.m", "method.name", "calibration.name",
         "reconstruction.name", "reconstruction_data.name", "between_shots.name")  # fmt: skip
_OPTIONS = ("model", "allocation", "evaluation")  # named where a study has several
_LONGEST = 120  # letters; a name is part of file names


def trial_names(configs: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    """Return a name for each trial; only names that are cut for their length end in digits of the trial's key."""
    varying, said = differences(configs, _TOLD), said_by_method(configs)
    last = Counter(key.rpartition(".")[2] for key in {key for words in varying for key in words})
    names = []
    for config, words, silent in zip(configs, varying, said, strict=True):
        shown = {key: key.rpartition(".")[2] if last[key.rpartition(".")[2]] == 1 else key for key in words}
        more = [f"{shown[key]}={value}" for key, value in words.items()]
        names.append(_joined(config, [*_options(config, configs, silent), *more]))
    count = Counter(names)
    return [
        name if count[name] == 1 and len(name) <= _LONGEST else f"{name[:_LONGEST].rstrip('-.')}-{key[:6]}"
        for name, key in zip(names, keys, strict=True)
    ]


def _options(
    config: Mapping[str, Any], configs: Sequence[Mapping[str, Any]], silent: Collection[str]
) -> list[str]:
    """Return the names of options that not all trials of the same pattern have."""
    alike = [other for other in configs if other["sparsity"]["pattern"] == config["sparsity"]["pattern"]]
    return [
        str(config[group]["name"])
        for group in _OPTIONS
        if f"{group}.name" not in silent and len({str(other[group]["name"]) for other in alike}) > 1
    ]


def _joined(config: Mapping[str, Any], more: Sequence[str]) -> str:
    sparsity, repair = config["sparsity"], config["reconstruction"]["name"]
    pattern = pattern_of(sparsity).tag
    data = config["reconstruction_data"]["name"]
    repair = "" if repair == "none" else repair if data == "same" else f"{repair}-{data}"
    between = config.get("between_shots", {}).get("name", "none")
    between = "" if between == "none" else f"between={between}"
    parts = (config["method"]["name"], f"{sparsity['ratio']:.6g}", pattern, between, repair, config["calibration"]["name"],
             *more, f"s{config['seed']}")  # fmt: skip
    return "-".join(word for word in (plain_word(str(part)) for part in parts) if word)
