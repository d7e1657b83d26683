"""The config of ``DeciLMForCausalLM`` (model_type ``nemotron-nas``): Llama with other widths, or no part, in every block.

    block_configs: one for each layer, {"attention": {"no_op", "n_heads_in_group"}, "ffn": {"no_op", "ffn_mult"}}

Every attention has ``num_attention_heads`` query heads, of which ``n_heads_in_group`` read one key-value head. A part with
``no_op`` and the norm before it are not there. ``ffn_mult`` says how many hidden units there are,

    n = int(2 * ffn_mult * hidden_size / 3), rounded up to a multiple of 256,

or else ``intermediate_size`` gives n itself. Verified by reading one commit of vLLM's class
(vllm/model_executor/models/nemotron_nas.py at 00bd149, which has both), and NVIDIA's own config.json files as copied into
tests of other projects. Not verified: a run of a serving engine on a checkpoint of ours; older versions, which know
``ffn_mult`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import LlamaConfig

from prunelab.errors import ModelError
from prunelab.models.checkpoint import DECILM_BLOCKS as KEY

MULTIPLE = 256
_NOT_LLAMA = (KEY, "auto_map", "model_type", "architectures", "num_key_value_heads", "intermediate_size")


def n_units(ffn: Mapping[str, Any], hidden_size: int) -> int:
    """How many hidden units a block's ``ffn`` has; KeyError, TypeError or ValueError for what says no number."""
    if ffn.get("ffn_mult") is None:
        return int(ffn["intermediate_size"])
    n = int(2 * float(ffn["ffn_mult"]) * hidden_size / 3)
    return -(-n // MULTIPLE) * MULTIPLE


def multiplier(n: int, hidden_size: int) -> float:
    """The ``ffn_mult`` of ``n`` hidden units, a multiple of 256."""
    return 3 * n / (2 * hidden_size)


def read_decilm(config: Mapping[str, Any], where: str) -> tuple[LlamaConfig, list[dict[str, Any]]]:
    """Return the Llama config as wide as the widest block, and each block's entry as
    :func:`prunelab.models.narrow.narrow` takes it. ModelError names ``where`` and what cannot be."""
    blocks, heads = config.get(KEY), config.get("num_attention_heads")
    if not isinstance(blocks, list) or len(blocks) != config.get("num_hidden_layers"):
        raise _wrong(where, KEY, f"a list of num_hidden_layers={config.get('num_hidden_layers')} mappings")
    if type(heads) is not int or heads < 1:
        raise _wrong(where, "num_attention_heads", f"an integer from 1, not {heads!r}")
    entries = [
        _entry(block, index, heads, int(config["hidden_size"]), where) for index, block in enumerate(blocks)
    ]
    widest = {
        "num_key_value_heads": max(entry["kv_heads"] for entry in entries) or heads,
        "intermediate_size": max(entry["ffn"] for entry in entries) or 1,
    }
    values = {key: value for key, value in config.items() if key not in _NOT_LLAMA and value is not None}
    return LlamaConfig(**{**values, **widest}), entries


def _entry(block: object, index: int, heads: int, hidden_size: int, where: str) -> dict[str, Any]:
    key = f"{KEY}[{index}]"
    try:
        attention, ffn = block["attention"], block["ffn"]  # type: ignore[index]
        if attention.get("replace_with_linear") or ffn.get("replace_with_linear"):
            raise _wrong(
                where, key, "attention and ffn as they are, or no_op; replace_with_linear is not read"
            )
        share = 0 if attention.get("no_op") else int(attention["n_heads_in_group"])
        units = 0 if ffn.get("no_op") else n_units(ffn, hidden_size)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _wrong(where, key, '{"attention": {"no_op", "n_heads_in_group"}, "ffn": {...}}') from None
    if share < 0 or (share and heads % share) or units < 0 or (not ffn.get("no_op") and units < 1):
        raise _wrong(where, key, f"n_heads_in_group that divides {heads} heads, and 1 or more hidden units")
    kv_heads = heads // share if share else 0
    return {
        "heads": heads if share else 0, "kv_heads": kv_heads, "ffn": units, "added_biases": [], "removed_biases": [],
    }  # fmt: skip


def _wrong(where: str, key: str, allowed: str) -> ModelError:
    return ModelError(f"{where}: {key} cannot be read; needed is {allowed}.")
