"""A compacted Llama as ``DeciLMForCausalLM``, which vLLM and others read with other widths in every block.

What the config says and what of it was verified is in prunelab.models.decilm. Hidden units stay as few as they are: as
``ffn_mult`` where the widths of all blocks are multiples of 256 (``sparsity.round_to=256``), which every reader knows,
otherwise as ``intermediate_size``, which vLLM reads. Query heads are as many as in the dense config in every block, since
that class has one number of them: zeros fill them up, while key-value heads, and so the cache, stay as few as divide that
number. Blocks that lost their attention or their MLP have ``no_op`` there, without weights. An attention that is gone from
the first block is one of zeros instead, since vLLM starts the residual stream there.

Beside the weights lie the config's class and a modelling file, both of which need transformers alone (``trust_remote_code``);
vLLM has the model's class, and takes the config's from here.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

import prunelab.models.narrow as narrow_file
from prunelab.errors import ModelError
from prunelab.files import replace_file
from prunelab.models.checkpoint import DECILM, DECILM_NORMS
from prunelab.models.checkpoint import DECILM_BLOCKS as KEY
from prunelab.models.decilm import MULTIPLE, multiplier
from prunelab.models.decoder import Decoder
from prunelab.models.narrow import narrow
from prunelab.models.shape import BlockShape, block_shapes, dense_twin, names_of
from prunelab.structures.padding import bias_keys, check_class, padded_weights
from prunelab.structures.uniform import build_as

CONFIG_MODULE, MODEL_MODULE = "configuration_decilm", "modeling_decilm"
_ATTENTION = {
    "no_op": False, "replace_with_linear": False, "sparsify": None, "n_heads_in_group": None, "window_length": None,
    "num_sink_tokens": None, "use_prefill_window_in_sink_attention": False, "unshifted_sink": False,
}  # fmt: skip
_FFN = {"no_op": False, "replace_with_linear": False, "sparsify": None}


def save_decilm(decoder: Decoder, folder: Path) -> None:
    """Write config.json, weights by Llama's names and both files of code to ``folder``.

    Raises ModelError for a model that is no Llama or has layers that pick single inputs or outputs.
    """
    check_class(decoder)
    if decoder.model.config.model_type != "llama":
        raise ModelError(
            f"{decoder.name} is a {decoder.model.config.model_type}: DeciLMForCausalLM is Llama with other widths, and has no "
            "place for norms, biases or windows of other families. Export it with --format own or padded."
        )
    dense = dense_twin(decoder)
    heads = int(decoder.model.config.num_attention_heads)
    shapes = [
        _fitting(shape, heads, first=index == 0) for index, shape in enumerate(block_shapes(decoder, dense))
    ]
    biases = bias_keys(decoder, dense)
    target = build_as(decoder, biases)
    assert target is not None  # the dense model, or that with biases
    narrow(
        target.model,
        names_of(target.family),
        [replace(s, added_biases=(), removed_biases=()).entry() for s in shapes],
    )
    weights = padded_weights(decoder, target)
    left_out = {
        f"{decoder.family.blocks}.{index}.{norm}.weight"
        for index, shape in enumerate(shapes)
        for norm, gone in (
            (DECILM_NORMS["attention"], shape.heads == 0),
            (DECILM_NORMS["ffn"], shape.ffn == 0),
        )
        if gone
    }
    tensors: dict[str, Tensor] = {
        name: weights.read(name).contiguous().cpu() for name in sorted(weights.names - left_out)
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = _config(target, shapes)
    replace_file(
        folder / "config.json", (json.dumps(config, indent=2, sort_keys=True) + "\n").encode("utf-8")
    )
    if decoder.model.generation_config is not None:
        decoder.model.generation_config.save_pretrained(folder)
    replace_file(folder / f"{CONFIG_MODULE}.py", CONFIG_FILE.encode("utf-8"))
    replace_file(folder / f"{MODEL_MODULE}.py", _model_file(target).encode("utf-8"))


def _fitting(shape: BlockShape, heads: int, first: bool) -> BlockShape:
    """The shape of a block with ``heads`` query heads, or no attention, and the fewest key-value heads that divide them."""
    if not shape.heads or not shape.kv_heads:
        return replace(shape, heads=heads, kv_heads=1) if first else shape
    share = shape.heads // shape.kv_heads
    fits = [n for n in range(shape.kv_heads, heads + 1) if heads % n == 0 and heads // n >= share]
    return replace(shape, heads=heads, kv_heads=fits[0])


def _config(target: Decoder, shapes: list[BlockShape]) -> dict[str, Any]:
    values = target.model.config.to_dict()
    width = int(values["hidden_size"])
    by_multiplier = all((shape.ffn or 0) % MULTIPLE == 0 for shape in shapes)
    blocks = []
    for shape in shapes:
        attention, ffn = dict[str, Any](_ATTENTION), dict[str, Any](_FFN)
        attention |= (
            {"n_heads_in_group": shape.heads // shape.kv_heads}
            if shape.heads and shape.kv_heads
            else {"no_op": True}
        )
        if not shape.ffn:
            ffn["no_op"] = True
        if by_multiplier:  # vLLM asks which of the two there is
            ffn["ffn_mult"] = multiplier(shape.ffn or 0, width)
        else:
            ffn["intermediate_size"] = shape.ffn or 0
        blocks.append({"attention": attention, "ffn": ffn})
    rope = values.get("rope_parameters") or {}
    old = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    old["rope_scaling"] = scaling if scaling.get("rope_type", "default") != "default" else None
    return {
        **values,
        **old,  # as readers of before transformers 5 look for it
        "architectures": ["DeciLMForCausalLM"],
        "model_type": DECILM,
        "auto_map": {
            "AutoConfig": f"{CONFIG_MODULE}.DeciLMConfig",
            "AutoModelForCausalLM": f"{MODEL_MODULE}.DeciLMForCausalLM",
        },
        "dtype": str(target.dtype).removeprefix("torch."),
        "num_key_value_heads": max(shape.kv_heads or 0 for shape in shapes),
        "intermediate_size": max(shape.ffn or 0 for shape in shapes),
        KEY: blocks,
    }


CONFIG_FILE = '''"""Llama with other widths, or no part, in every layer: "block_configs" says which. Written by prunelab."""

from transformers import LlamaConfig


class Entry(dict):
    """A mapping whose values are attributes too, as readers of this config take them."""

    def __getattr__(self, name):
        try:
            value = self[name]
        except KeyError:
            raise AttributeError(name) from None
        return Entry(value) if type(value) is dict else value


class DeciLMConfig(LlamaConfig):
    """Llama's config, and ``block_configs``."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs=None, **values):
        super().__init__(**values)
        self.block_configs = [Entry(block) for block in block_configs or []]
'''


def _model_file(target: Decoder) -> str:
    text = Path(narrow_file.__file__).read_text(encoding="utf-8")
    body = text[text.index("from __future__") :].rstrip()
    return f'''"""A pruned Llama: config.json says under "{KEY}" how wide each layer is.

Written by prunelab; load it with AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True).
"""

{body}


from transformers import LlamaForCausalLM

from .{CONFIG_MODULE} import DeciLMConfig

NAMES = {names_of(target.family)!r}


def shape_of(block, heads, width):
    """The entry of narrow() of one of block_configs."""
    attention, ffn = block["attention"], block["ffn"]
    gone, units = attention["no_op"], ffn.get("intermediate_size", 0)
    if ffn.get("ffn_mult"):
        units = -(-int(2 * ffn["ffn_mult"] * width / 3) // {MULTIPLE}) * {MULTIPLE}
    return {{
        "heads": 0 if gone else heads,
        "kv_heads": 0 if gone else heads // attention["n_heads_in_group"],
        "ffn": 0 if ffn["no_op"] else units,
        "added_biases": [],
        "removed_biases": [],
    }}


class DeciLMForCausalLM(LlamaForCausalLM):
    """The installed LlamaForCausalLM, its layers as narrow as config.json says."""

    config_class = DeciLMConfig

    def __init__(self, config):
        super().__init__(config)
        shapes = [shape_of(one, config.num_attention_heads, config.hidden_size) for one in config.{KEY}]
        narrow(self, NAMES, shapes)
        for layer, shape in zip(self.model.layers, shapes):
            if shape["heads"] == 0:
                layer.{DECILM_NORMS["attention"]} = nn.Identity()
            if shape["ffn"] == 0:
                layer.{DECILM_NORMS["ffn"]} = nn.Identity()

    def _get_static_cache_init_shape(self):
        return None  # the layers differ in their heads: a static cache takes its shape from the first keys it sees
'''
