"""Output on terminals and in pipes that cannot show every character: it says the same in characters they have."""

from __future__ import annotations

import codecs
import sys
from io import TextIOWrapper

_PLAIN = {
    "✓": "+", "▶": ">", "✗": "x", "·": ".", "±": "+-", "×": "x", "→": "->", "…": "...", "–": "-", "—": "-", "−": "-",
    "“": '"', "”": '"', "‘": "'", "’": "'", "≥": ">=", "≤": "<=", "━": "-", "─": "-", "│": "|",
}  # fmt: skip
_HANDLER = "prunelab.plain"


def write_what_can_be_shown() -> None:
    """From now on stdout and stderr write characters that their encoding lacks in plain ones, others as ``?``."""
    codecs.register_error(_HANDLER, _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # None where it is closed; a notebook or a test has its own
            stream.reconfigure(errors=_HANDLER)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in lacking), error.end
