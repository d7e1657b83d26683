"""A decoder of any widths on disk, as a checkpoint that plain transformers loads.

Three cases, told apart by building the model that the config would describe and comparing its layers with ours:

- a model as wide as its config says is written as it is;
- equal widths in every block become a changed config.json, if the architecture's config can say them (a Llama-like one
  can; OPT takes the width of a head from the number of heads, so only its hidden units can be fewer);
- all else gets a modelling file beside the weights and an entry ``pruned`` in config.json with the shape of every block
  and the parent model; of maps that pick single inputs or outputs it says how many, and which ones are int64 tensors
  ``inputs`` and ``outputs`` beside their weights. transformers runs that file with ``trust_remote_code=True`` and needs
  nothing of prunelab; prunelab builds the model from the entry and never runs the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import prunelab.models.narrow as narrow_file
from prunelab.errors import ModelError
from prunelab.files import replace_file
from prunelab.model_files import DECILM_FORM, PADDED
from prunelab.models.decoder import Decoder
from prunelab.models.shape import (
    ENTRY,
    VERSION,
    block_shapes,
    dense_twin,
    names_of,
)
from prunelab.structures.decilm import save_decilm
from prunelab.structures.padding import gained_biases_alone, pad_to_uniform
from prunelab.structures.uniform import build_as, is_same, uniform_config

MODULE, CLASS, AUTO = "modeling_pruned", "PrunedForCausalLM", "AutoModelForCausalLM"


def save_form(decoder: Decoder, folder: Path, origin: Mapping[str, str | None], form: str) -> None:
    """Write ``decoder`` to ``folder`` in one of the forms of prunelab.model_files.

    With its own widths, see :func:`save_checkpoint`; filled up with zeros to what its architecture's config can say
    (prunelab.structures.padding); or as ``DeciLMForCausalLM`` (prunelab.structures.decilm). Raises ModelError where it
    cannot be that.
    """
    if form == DECILM_FORM:
        save_decilm(decoder, folder)
    else:
        filled = form == PADDED or gained_biases_alone(decoder)
        save_checkpoint(pad_to_uniform(decoder) if filled else decoder, folder, origin)


def save_checkpoint(decoder: Decoder, folder: Path, origin: Mapping[str, str | None]) -> None:
    """Write weights, config.json and, where no config can say the widths, ``modeling_pruned.py`` to ``folder``.

    ``origin``: "id" and "revision" of the model that was pruned, for the entry in config.json. Raises ModelError for a
    narrow decoder whose class is not transformers' own.
    """
    changes = _config_changes(decoder, origin)
    # transformers turns the names of older checkpoints (GPT-NeoX' embed_out) for its own classes alone
    own_class = changes is not None and ENTRY in changes
    decoder.model.save_pretrained(folder, save_original_format=not own_class)
    if changes is None:
        return
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.pop(ENTRY, None) is not None:  # that of the model this one was made of, with its file
        config.pop("auto_map", None)
    config |= changes
    replace_file(path, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode("utf-8"))
    if own_class:
        replace_file(folder / f"{MODULE}.py", modelling_file(decoder).encode("utf-8"))


def _config_changes(decoder: Decoder, origin: Mapping[str, str | None]) -> dict[str, Any] | None:
    """What config.json has to say besides; None where it already says it all."""
    dense = dense_twin(decoder)
    has_entry = getattr(decoder.model.config, ENTRY, None) is not None
    if is_same(decoder, dense):
        return {} if has_entry else None
    shapes = block_shapes(decoder, dense)
    uniform = uniform_config(decoder, shapes, dense)
    if uniform is not None and is_same(decoder, build_as(decoder, uniform)):
        return uniform
    _check_class(decoder)
    return {
        "architectures": [CLASS],
        "auto_map": {AUTO: f"{MODULE}.{CLASS}"},
        ENTRY: {"version": VERSION, "parent": dict(origin), "blocks": [shape.entry() for shape in shapes]},
    }


def _check_class(decoder: Decoder) -> None:
    kind = type(decoder.model)
    if not kind.__module__.startswith("transformers."):
        raise ModelError(
            f"{decoder.name}: its class {kind.__name__} comes with its checkpoint; a narrow one can only be written for "
            "classes of transformers. Save it before compact(): the checkpoint then holds the same function, with zeros."
        )


def modelling_file(decoder: Decoder) -> str:
    """The text of a module that defines the narrow model's class and imports torch and transformers alone."""
    own = Path(narrow_file.__file__).read_text(encoding="utf-8")
    body = own[own.index("from __future__") :].rstrip()
    architecture = type(decoder.model).__name__
    return f'''"""A pruned {architecture}: config.json says under "{ENTRY}" how wide each block is.

Written by prunelab; load it with AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True).
"""

{body}


from transformers import {architecture}

NAMES = {names_of(decoder.family)!r}


class {CLASS}({architecture}):
    """The installed {architecture}, its layers as narrow as config.json says."""

    def __init__(self, config):
        super().__init__(config)
        narrow(self, NAMES, config.{ENTRY}["blocks"])

    def _get_static_cache_init_shape(self):
        return None  # the blocks differ in their heads: a static cache takes its shape from the first keys it sees
'''


def origin_of(spec: Mapping[str, Any]) -> dict[str, str | None]:
    """ "id" and "revision" of the model of ``spec``, for others to read: a local folder's name, not its place."""
    name = spec["name"] if spec["source"] in ("local", "random") else spec["id"]
    revision = spec.get("revision")
    return {"id": str(name), "revision": None if revision is None else str(revision)}
