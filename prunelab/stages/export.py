"""A pruned model out of the store: an ordinary checkpoint that plain transformers loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunelab.evaluation.integrity import check
from prunelab.models.load import load_decoder, load_tokenizer
from prunelab.structures.state import apply_state, open_state


def write(model: Mapping[str, Any], state: Path, folder: Path) -> None:
    """Load ``model``, lay the state of the file ``state`` over it, and save weights, settings and tokenizer to ``folder``.

    Zeros stay zeros, the dtype stays the model's; one model is in memory. Raises StoreError for a damaged state and
    ModelError where the model does not hold what the state says.
    """
    decoder = load_decoder(model)
    pruned = open_state(state)
    apply_state(decoder, pruned)
    check(decoder, pruned)
    decoder.model.save_pretrained(folder)
    if model["source"] != "random":
        load_tokenizer(model).save_pretrained(folder)
