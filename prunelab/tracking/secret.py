"""Which variables hold secrets, and text without their values."""

from __future__ import annotations

import os
import re

_SECRET = re.compile(
    r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|SECRETS|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE
)
_SHORTEST = 6  # shorter values are words that occur anyway


def is_secret(name: str) -> bool:
    """Say whether a variable's name looks like that of a secret; a path to one is none."""
    return bool(_SECRET.search(name)) and not name.upper().endswith(("_PATH", "_FILE"))


def without_secrets(text: str) -> str:
    """Return ``text`` with the values of secret variables of this process replaced by ``***``."""
    for name, value in os.environ.items():
        if is_secret(name) and len(value) >= _SHORTEST:
            text = text.replace(value, "***")
    return text


def one_line(error: BaseException) -> str:
    """Return an error as one line without secrets, at most some 200 characters."""
    text = " ".join(without_secrets(str(error)).split())
    return f"{type(error).__name__}: {text[:200]}"
