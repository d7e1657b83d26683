"""prunelab: pruning studies on large language models.

``python -m prunelab`` runs studies; the functions of :mod:`prunelab.api` do one thing each in a notebook.
They are imported on first use, so that planning and status need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunelab.api import (
        Model,
        compact,
        load_model,
        load_tokens,
        perplexity,
        prune,
        prune_and_repair,
        ratios,
        repair,
        save,
    )

__all__ = [
    "Model",
    "compact",
    "load_model",
    "load_tokens",
    "perplexity",
    "prune",
    "prune_and_repair",
    "ratios",
    "repair",
    "save",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("prunelab.api"), name)
    raise AttributeError(f"module 'prunelab' has no attribute {name!r}")
