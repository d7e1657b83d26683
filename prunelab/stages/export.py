"""A pruned model out of the store: a checkpoint that plain transformers loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunelab.evaluation.integrity import check
from prunelab.models.load import load_decoder, load_tokenizer
from prunelab.structures.checkpoint import MODULE, origin_of, save_checkpoint
from prunelab.structures.state import apply_state, open_state
from prunelab.structures.surgery import compact as compact_decoder


def write(model: Mapping[str, Any], state: Path, folder: Path, *, compact: bool = False) -> dict[str, Any]:
    """Load ``model``, lay the state of the file ``state`` over it, and save weights, settings and tokenizer to ``folder``.

    Zeros stay zeros, or with ``compact`` go, which makes a checkpoint of other widths; the dtype stays the model's; one
    model is in memory. Returns {"parameters", "bytes", "own_code"}: how many parameters the checkpoint has, the size of
    its safetensors, and whether transformers needs the modelling file beside them. Raises StoreError for a damaged state
    and ModelError where the model does not hold what the state says, or where ``compact`` leaves layers that no
    checkpoint can say.
    """
    decoder = load_decoder(model)
    pruned = open_state(state)
    apply_state(decoder, pruned)
    check(decoder, pruned)
    if compact:
        compact_decoder(decoder, pruned)
    save_checkpoint(decoder, folder, origin_of(model))
    if model["source"] != "random":
        load_tokenizer(model).save_pretrained(folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    own_code = (folder / f"{MODULE}.py").is_file()
    return {"parameters": decoder.n_parameters(), "bytes": size, "own_code": own_code}
