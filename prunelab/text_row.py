"""What is wrong with one row of a text file; planning looks at the first rows by it, the job at all of them."""

from __future__ import annotations

from typing import Any


def wrong_row(row: Any, column: str) -> str | None:
    """Return why ``row`` has no text in ``column`` and what to do; None if it has."""
    if not isinstance(row, dict):
        return f"it is {type(row).__name__}, not an object with the field {column!r}."
    if column not in row:
        return f"it has no field {column!r}, but {', '.join(map(repr, row)) or 'nothing'}; set column to the text's name."
    text = row[column]
    if text is None:
        return f"{column!r} is null. Drop such rows: jq -c 'select(.{column} != null)'"
    if not isinstance(text, str):
        return f"{column!r} is {type(text).__name__}, not text; set column to the text's name."
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        return f"{column!r} has half of a surrogate pair ({half}) at letter {error.start}: a letter was cut. Write it anew."
    return None
