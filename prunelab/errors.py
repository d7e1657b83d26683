"""Every error that prunelab raises on purpose.

    PrunelabError
    ├── ConfigError     a key or value that cannot be run; carries key, value, allowed
    ├── DataError       text, tokens or corpora that are missing, empty, malformed or changed
    ├── ModelError      a checkpoint or family that cannot be loaded or pruned
    ├── StoreError      the store cannot be read or written, or a digest does not match
    ├── StageError      a stage failed inside a job
    └── LaunchError     a launcher cannot start or follow its jobs

A message says what was wrong, the value, what is allowed, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PrunelabError(Exception):
    """Base of all errors that prunelab raises on purpose."""


class ConfigError(PrunelabError):
    """A config value that cannot be run: ``key``, ``value``, what is ``allowed``, and a hint."""

    def __init__(self, key: str, value: object, allowed: str, hint: str = "") -> None:
        self.key, self.value, self.allowed, self.hint = key, value, allowed, hint
        text = f"{key}={value!r}: allowed is {allowed}."
        super().__init__(f"{text} {hint}".rstrip())


class DataError(PrunelabError):
    """Text, tokens or a corpus that is missing, empty, malformed or changed."""


class ModelError(PrunelabError):
    """A checkpoint or model family that cannot be loaded or pruned."""


class StoreError(PrunelabError):
    """The store cannot be read or written, or an artefact does not match its digest."""


class StageError(PrunelabError):
    """A stage failed inside a job; the message holds the reason and the log's place."""


class LaunchError(PrunelabError):
    """A launcher cannot start or follow its jobs."""


def unknown(what: str, value: object, known: Iterable[str]) -> ModelError:
    """The error for a ``what`` called ``value`` that is none of ``known``."""
    names = sorted(known)
    hint = nearest(str(value), names)
    return ModelError(f"{what}={value!r} is unknown; allowed are {', '.join(names)}. {hint}".rstrip())


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest of ``known``, or an empty string."""
    names = [str(k) for k in known]
    close = [name for name in names if len(str(word)) > 2 and name.startswith(str(word))]
    close = close or difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else ""
