"""How the numbers of a study were measured: one row for what was measured alike, and what stands side by side unlike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prunelab.config.vary import first_digits
from prunelab.metric import HELD_OUT, metric_of
from prunelab.report.collect import Study
from prunelab.report.derive import distinct

TITLES = {  # fields of a protocol in the order of their columns; a test looks that none is missing
    "model": "model", "dtype": "dtype", "text": "text", "split": "split", "windows": "windows", "context": "tokens per window",
    "sampler": "sampler", "joiner": "joiner", "revision": "revision", "corpus": "corpus digest", "tokens": "tokens digest",
    "tokenizer": "tokenizer digest", "harness": "harness", "task": "task, version", "documents": "documents",
    "definition": "definition", "device": "device", "threads": "threads", "batch": "sequences at once",
    "prompt": "tokens of a prompt", "new_tokens": "tokens written", "rounds": "rounds",
}  # fmt: skip
_LONGEST = 3  # values of a field that are told one by one


def measured(study: Study) -> tuple[str, list[str], list[list[str]]]:
    """Return what is the same for all numbers it applies to, a header, and a row of texts for each way of measuring."""
    ways: dict[tuple[str, ...], list[str]] = {}
    for name, own in _by_name(study).items():
        ways.setdefault(tuple(_told(own, key) for key in TITLES), []).append(name)
    found = [distinct(way[place] for way in ways if way[place]) for place in range(len(TITLES))]
    titles = list(TITLES.values())
    same = "; ".join(f"{titles[place]} {texts[0]}" for place, texts in enumerate(found) if len(texts) == 1)
    kept = [place for place, texts in enumerate(found) if len(texts) > 1]
    header = ["numbers", *(titles[place] for place in kept)]
    return same, header, [[", ".join(names), *(way[place] for place in kept)] for way, names in ways.items()]


def unlike(study: Study) -> list[str]:
    """Return a sentence for each column of a table whose numbers were measured in different ways.

    Numbers on text that masks and repairs are fitted to are left out: seeds and sources change it on purpose.
    """
    long = study.long.merge(study.frame[["number", "facet"]], on="number")
    long = long[long["protocol"] != ""]
    said = []
    for (facet, stage, metric, of), rows in long.groupby(["facet", "stage", "metric", "of"], sort=False):
        known = metric_of(str(metric), study.rows)
        whole = known is not None and (
            known.of in ("corpus", "task") or known.clock or str(of).startswith(f"{HELD_OUT}/")
        )
        digests = distinct(rows["protocol"])
        if not whole or len(digests) < 2:
            continue
        own = [study.protocols[digest] for digest in digests]
        differ = [f"{TITLES[key]} {_told(own, key)}" for key in TITLES if len(_values(own, key)) > 1]
        said.append(
            f"{facet}: {metric}/{of} ({stage}) was not measured alike in all rows: {'; '.join(differ)}."
        )
    return said


def _by_name(study: Study) -> dict[str, list[Mapping[str, Any]]]:
    """Return the protocols of every number by its name, each once."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for digest, protocol in study.protocols.items():
        found.setdefault(str(protocol["metric"]), {})[digest] = protocol
    return {name: list(own.values()) for name, own in found.items()}


def _values(protocols: Iterable[Mapping[str, Any]], key: str) -> tuple[str, ...]:
    values = (p.get(key, "") for p in protocols)
    return distinct(repr(v) if key == "joiner" and v != "" else first_digits(str(v)) for v in values)


def _told(protocols: Iterable[Mapping[str, Any]], key: str) -> str:
    values = [value for value in _values(protocols, key) if value]
    more = f" and {len(values) - _LONGEST} more" if len(values) > _LONGEST else ""
    return " | ".join(values[:_LONGEST]) + more
