"""A pruned model out of the store: a checkpoint that plain transformers loads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from prunelab.evaluation.integrity import check
from prunelab.model_files import OWN
from prunelab.models.load import load_decoder, load_tokenizer
from prunelab.structures.checkpoint import origin_of, save_form
from prunelab.structures.state import apply_state, open_state
from prunelab.structures.surgery import compact as compact_decoder


def write(
    model: Mapping[str, Any], state: Path, folder: Path, *, compact: bool = False, form: str = OWN
) -> dict[str, Any]:
    """Load ``model``, lay the state of the file ``state`` over it, and save weights, settings and tokenizer to ``folder``.

    Zeros stay zeros, or with ``compact`` go, which makes a checkpoint of other widths, in the ``form`` that is asked for
    (prunelab.model_files; those that are filled up hold the blocks twice for a while); the dtype stays the model's; one
    model is in memory. Returns {"parameters", "bytes", "own_code"}: how many parameters the checkpoint has, the size of
    its safetensors, and whether transformers needs the modelling file beside them. Raises StoreError for a damaged state
    and ModelError where the model does not hold what the state says, or where ``compact`` leaves layers that a
    checkpoint of that form cannot say.
    """
    decoder = load_decoder(model)
    pruned = open_state(state)
    apply_state(decoder, pruned)
    check(decoder, pruned)
    if compact:
        compact_decoder(decoder, pruned)
    save_form(decoder, folder, origin_of(model), form)
    if model["source"] != "random":
        load_tokenizer(model).save_pretrained(folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    own_code = any(folder.glob("modeling_*.py"))
    stored = (
        sum(_count(path) for path in folder.glob("*.safetensors")) if form != OWN else decoder.n_parameters()
    )
    return {"parameters": stored, "bytes": size, "own_code": own_code}


def _count(file: Path) -> int:
    """How many parameters a safetensors file holds."""
    with safe_open(file, framework="pt") as reader:
        return sum(math.prod(reader.get_slice(name).get_shape()) for name in reader.keys())  # noqa: SIM118
