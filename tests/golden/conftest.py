"""Golden files: what the project promised before, beside what it says now.

``PRUNELAB_GOLDEN=write pytest tests/golden`` writes the files anew. A moved key or number is a decision: the commit
that moves one says why, and raises the ``revision`` of what gives other numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Golden = Callable[[str, Any], Any]


@pytest.fixture
def golden() -> Golden:
    """``golden(name, found)`` returns what the file of that name holds, after writing ``found`` if asked to."""

    def read(name: str, found: Any) -> Any:
        path = Path(__file__).parent / f"{name}.json"
        if os.environ.get("PRUNELAB_GOLDEN") == "write":
            path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))

    return read
