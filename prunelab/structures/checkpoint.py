"""A decoder of any widths on disk, as a checkpoint that plain transformers loads.

Three cases, told apart by building the model that the config would describe and comparing its layers with ours:

- a model as wide as its config says is written as it is;
- equal widths in every block become a changed config.json, if the architecture's config can say them (a Llama-like one
  can; OPT takes the width of a head from the number of heads, so only its hidden units can be fewer);
- all else gets a modelling file beside the weights and an entry ``pruned`` in config.json with the shape of every block
  and the parent model. transformers runs that file with ``trust_remote_code=True`` and needs nothing of prunelab;
  prunelab builds the model from the entry and never runs the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

import prunelab.models.narrow as narrow_file
from prunelab.errors import ModelError
from prunelab.files import replace_file
from prunelab.models.decoder import Decoder
from prunelab.models.narrow import is_gone, parent
from prunelab.models.shape import (
    ENTRY,
    UNBUILDABLE,
    VERSION,
    BlockShape,
    block_shapes,
    dense_twin,
    heads_of,
    names_of,
    units_of,
)
from prunelab.models.transposed import hold_as_linear
from prunelab.structures.surgery import is_compact

MODULE, CLASS, AUTO = "modeling_pruned", "PrunedForCausalLM", "AutoModelForCausalLM"
_FFN_KEYS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")


def save_checkpoint(decoder: Decoder, folder: Path, origin: Mapping[str, str | None]) -> None:
    """Write weights, config.json and, where no config can say the widths, ``modeling_pruned.py`` to ``folder``.

    ``origin``: "id" and "revision" of the model that was pruned, for the entry in config.json. Raises ModelError for a
    decoder with layers that nothing describes, and one whose class is not transformers' own.
    """
    if is_compact(decoder):
        raise ModelError(
            f"{decoder.name} is compacted: some of its layers pick single inputs or outputs, which no checkpoint can say, "
            "so nothing could load it. Save it before compact(), or export it without --compact: the checkpoint then holds "
            "the same function, with zeros."
        )
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
    if _same(decoder, dense):
        return {} if has_entry else None
    shapes = block_shapes(decoder, dense)
    uniform = _uniform(decoder, shapes, block_shapes(dense, dense))
    if uniform is not None and _same(decoder, _built(decoder, uniform)):
        return uniform
    _check_describable(decoder, shapes)
    return {
        "architectures": [CLASS],
        "auto_map": {AUTO: f"{MODULE}.{CLASS}"},
        ENTRY: {"version": VERSION, "parent": dict(origin), "blocks": [shape.entry() for shape in shapes]},
    }


def _uniform(
    decoder: Decoder, shapes: Sequence[BlockShape], dense: Sequence[BlockShape]
) -> dict[str, Any] | None:
    """The config's values for widths that are the same in every block; None where they differ or no key says them."""
    first, config = shapes[0], decoder.model.config
    if len(set(shapes)) > 1 or 0 in (first.heads, first.ffn) or first.added_biases or first.removed_biases:
        return None
    changes: dict[str, Any] = {}
    if first.ffn != dense[0].ffn:
        keys = [key for key in _FFN_KEYS if isinstance(getattr(config, key, None), int)]
        if len(keys) != 1:
            return None
        changes[keys[0]] = first.ffn
    heads = heads_of(decoder, 0)
    if heads is not None and (first.heads, first.kv_heads) != (dense[0].heads, dense[0].kv_heads):
        if isinstance(getattr(type(config), "head_dim", None), property):
            return None  # computed from the number of heads
        changes |= {"num_attention_heads": heads.heads, "head_dim": heads.width}
        if hasattr(config, "num_key_value_heads"):
            changes["num_key_value_heads"] = heads.kv_heads
    return changes


def _built(decoder: Decoder, changes: Mapping[str, Any]) -> Decoder | None:
    """The model of the changed config, without memory for weights; None where the architecture refuses it."""
    config = decoder.model.config
    values = {k: v for k, v in config.to_dict().items() if k not in (ENTRY, "auto_map", "model_type")}
    try:
        changed = AutoConfig.for_model(config.model_type, **{**values, **changes})
        with torch.device("meta"):
            model = type(decoder.model)._from_config(changed, dtype=decoder.dtype)
        hold_as_linear(model, decoder.family)
    except UNBUILDABLE:
        return None
    return Decoder(model, decoder.family, decoder.name, decoder.max_len)


def _same(decoder: Decoder, other: Decoder | None) -> bool:
    """Whether both have the same tensors by name and shape, and attention that reads them as the same heads."""
    if other is None:
        return False
    shapes = [{k: v.shape for k, v in d.model.state_dict().items()} for d in (decoder, other)]
    return shapes[0] == shapes[1] and _constants(decoder) == _constants(other)


def _constants(decoder: Decoder) -> list[dict[str, object]]:
    """The plain numbers that the attention modules keep, such as the width of a head and the scale of the scores."""
    if decoder.family.attention is None:
        return []
    modules = [parent(block, decoder.family.attention[3]) for block in decoder.blocks]
    return [{k: v for k, v in vars(m).items() if type(v) in (int, float)} for m in modules]


def _check_describable(decoder: Decoder, shapes: Sequence[BlockShape]) -> None:
    instead = "Save it before compact(): the checkpoint then holds the same function, with zeros."
    for index in range(len(shapes)):
        if units_of(decoder, index) == 0 and not is_gone(decoder.blocks[index], decoder.family.mlp[1]):  # type: ignore[index]
            raise ModelError(
                f"{decoder.name}: block {index} has no hidden unit left; a checkpoint of its own widths needs one in "
                f"every block. {instead}"
            )
    kind = type(decoder.model)
    if not kind.__module__.startswith("transformers."):
        raise ModelError(
            f"{decoder.name}: its class {kind.__name__} comes with its checkpoint; a narrow one can only be written for "
            f"classes of transformers. {instead}"
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
