"""The version of what keys, records and plans mean; one number, since they only make sense together."""

from __future__ import annotations

# Raise it when identities change for every stage: keys move, and what older versions wrote is told from what this one reads.
# 1: until November 2026. 2: classes, source of classes from elsewhere, tokenizer files, code and flags of models in the
# identity; numbers to 12 digits; special tokens in text are text.
SCHEMA = 2


def other_schema(where: object, schema: object) -> str:
    """Return the sentence for a file of another version, up to what to do about it."""
    return f"{where} was written by another version of prunelab (schema {schema!r}; this one reads schema {SCHEMA})."
