"""Linear maps that an architecture stores as (in, out): held as nn.Linear, written back as they were.

GPT-2's ``Conv1D`` keeps its weight (in, out). Everything here works on (out, in), so such modules become nn.Linear
when a model is built, and whatever reads a checkpoint turns their weights. What the model writes of itself
(``state_dict``, and so ``save_pretrained``) is turned back by a hook of the module: an exported model is an ordinary
checkpoint. The product is then the same up to rounding, because the weight lies in memory the other way round.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from prunelab.errors import ModelError
from prunelab.family import Family

_MARK = "writes_in_by_out"


def hold_as_linear(model: nn.Module, family: Family) -> None:
    """Replace the modules of ``model`` that ``family.transposed`` names by nn.Linear with the same function, in place.

    Works on the meta device too. Raises ModelError where such a module has no weight (in, out), or is nn.Linear.
    """
    if not family.transposed:
        return
    for index, block in enumerate(model.get_submodule(family.blocks).children()):
        for path in family.transposed:
            parent, _, leaf = path.rpartition(".")
            try:
                module = block.get_submodule(path)
            except AttributeError:
                module = None
            weight = getattr(module, "weight", None)
            if module is None or isinstance(module, nn.Linear) or weight is None or weight.dim() != 2:
                raise ModelError(
                    f"{family.blocks}.{index}.{path} is {type(module).__name__}, but family {family.name!r} says that "
                    "it stores a weight (in, out); take it off transposed."
                )
            setattr(block.get_submodule(parent), leaf, _linear(weight, getattr(module, "bias", None)))


def is_transposed(family: Family, tensor: str) -> bool:
    """Whether checkpoints of ``family`` store the tensor of that name as (in, out)."""
    inside = tensor.removeprefix(f"{family.blocks}.")
    index, _, path = inside.partition(".")
    return inside != tensor and index.isdigit() and path.removesuffix(".weight") in family.transposed


def _linear(weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    """Return the linear map of ``weight`` (in, out); its weight is (out, in), its state_dict holds (in, out)."""
    linear = nn.Linear(weight.shape[0], weight.shape[1], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().t().contiguous(), requires_grad=weight.requires_grad)
    if bias is not None:
        linear.bias = bias
    turn(linear)
    return linear


def turn(linear: nn.Module) -> None:
    """Let ``linear`` write its weight as (in, out), and read it so from a ``state_dict``."""
    linear.register_state_dict_post_hook(_turn)
    linear.register_load_state_dict_pre_hook(_turn)
    setattr(linear, _MARK, True)


def is_turned(linear: nn.Module) -> bool:
    """Whether :func:`turn` was called for the layer."""
    return bool(getattr(linear, _MARK, False))


def _turn(module: nn.Module, state: dict[str, Any], prefix: str, *rest: object) -> None:
    name = f"{prefix}weight"
    if name in state:
        state[name] = state[name].t()
