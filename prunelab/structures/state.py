"""State: the pruned linear layers of a model (weights, biases, masks), as data and as one safetensors file.

A state holds what pruning and repair changed and nothing else, so a shot can be stored, resumed bit for bit, and laid
over a freshly loaded dense model block by block. That is every linear layer, and of a block's other parameters (gains
and biases of norms) those that a repair has trained. The file is written under a temporary name and renamed; every
layer and parameter carries a sha256 of its bytes, checked when it is read.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunelab.errors import ModelError, StoreError
from prunelab.files import replacing
from prunelab.models import bias
from prunelab.models.decoder import Decoder
from prunelab.sparsity.mask import Mask, unpack

FORMAT, VERSION = "prunelab.state", 2
_READABLE = (1, 2)  # version 1 knew no parameters outside linear layers


@dataclass(frozen=True, eq=False)
class SiteState:
    """One pruned linear layer: weight (R, C) and bias (R,) in the model's dtype, and what was removed."""

    weight: Tensor
    bias: Tensor | None
    mask: Mask


class StateReader(Protocol):
    """A state in memory or in a file: its model's name, its layers' and parameters' names, and one of them at a time."""

    @property
    def model(self) -> str:
        """Name of the decoder that was pruned."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers."""
        ...

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters outside linear layers that are not the dense model's."""
        ...

    def site(self, name: str) -> SiteState:
        """One layer; StoreError if there is none of that name or its bytes are damaged."""
        ...

    def parameter(self, name: str) -> Tensor:
        """One parameter outside linear layers, in the model's dtype; StoreError as for layers."""
        ...


@dataclass(frozen=True, eq=False)
class State:
    """A state in memory. ``items``: layer name -> SiteState; ``parameters``: others of a block, by their full name."""

    model: str
    items: Mapping[str, SiteState]
    parameters: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(self.items)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters outside linear layers."""
        return tuple(self.parameters)

    def site(self, name: str) -> SiteState:
        """One layer; StoreError if there is none of that name."""
        if name not in self.items:
            raise _missing(f"the state of {self.model}", "layer", name, self.names)
        return self.items[name]

    def parameter(self, name: str) -> Tensor:
        """One parameter outside linear layers; StoreError if there is none of that name."""
        if name not in self.parameters:
            raise _missing(f"the state of {self.model}", "parameter", name, self.parameter_names)
        return self.parameters[name]

    def sites(self) -> Iterator[tuple[str, SiteState]]:
        """Every layer with its name."""
        return iter(self.items.items())

    def clone(self) -> State:
        """A copy that shares no memory with the model."""
        return State(
            self.model,
            {
                name: SiteState(
                    site.weight.clone(), None if site.bias is None else site.bias.clone(), site.mask
                )
                for name, site in self.items.items()
            },
            {name: value.clone() for name, value in self.parameters.items()},
        )


@dataclass(frozen=True, eq=False)
class StateFile:
    """A state on disk; a layer or a parameter is read when asked for. Both ``digests`` by name."""

    path: Path
    model: str
    digests: Mapping[str, str]
    parameter_digests: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(self.digests)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters outside linear layers."""
        return tuple(self.parameter_digests)

    def site(self, name: str) -> SiteState:
        """Read one layer; StoreError if there is none of that name or its bytes are damaged."""
        return _unpack(self._read("layer", name, self.digests))

    def parameter(self, name: str) -> Tensor:
        """Read one parameter outside linear layers; StoreError as for layers."""
        return self._read("parameter", name, self.parameter_digests)[_VALUE]

    def _read(self, what: str, name: str, digests: Mapping[str, str]) -> dict[str, Tensor]:
        """Return the checked tensors stored under ``name``, by what they are of it."""
        if name not in digests:
            raise _missing(str(self.path), what, name, tuple(digests))
        try:
            with safe_open(self.path, framework="pt") as file:
                keys = [key for key in file.keys() if key.startswith(f"{name}:")]  # noqa: SIM118
                tensors = {key.removeprefix(f"{name}:"): file.get_tensor(key) for key in keys}
        except (SafetensorError, OSError) as error:
            raise _damaged(self.path, str(error)) from error
        if _digest(tensors) != digests[name]:
            raise _damaged(self.path, f"{what} {name} does not match its digest")
        return tensors

    def sites(self) -> Iterator[tuple[str, SiteState]]:
        """Read every layer, one at a time."""
        return ((name, self.site(name)) for name in self.names)

    def load(self) -> State:
        """Read the whole state into memory."""
        parameters = {name: self.parameter(name) for name in self.parameter_names}
        return State(self.model, dict(self.sites()), parameters)


@dataclass(frozen=True, eq=False)
class Overlay:
    """States laid over each other: of what several have, the last one's counts. At least one, all of one model."""

    layers: tuple[StateReader, ...]

    @property
    def model(self) -> str:
        """Name of the decoder that was pruned."""
        return self.layers[-1].model

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers of all."""
        return tuple(dict.fromkeys(name for state in self.layers for name in state.names))

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters outside linear layers of all."""
        return tuple(dict.fromkeys(name for state in self.layers for name in state.parameter_names))

    def site(self, name: str) -> SiteState:
        """One layer, by the last state that has it; StoreError if none has."""
        return next((s for s in reversed(self.layers) if name in s.names), self.layers[-1]).site(name)

    def parameter(self, name: str) -> Tensor:
        """One parameter outside linear layers, by the last state that has it; StoreError if none has."""
        having = (state for state in reversed(self.layers) if name in state.parameter_names)
        return next(having, self.layers[-1]).parameter(name)


def read_state(decoder: Decoder, masks: Mapping[str, Mask], parameters: Iterable[str] = ()) -> State:
    """Return the state of ``decoder`` under ``masks``, with the ``parameters`` of those names; its tensors share
    memory with the model (see ``clone``)."""
    items = {}
    for site in decoder.sites():
        own, weight = site.linear.bias, site.linear.weight.detach()
        items[site.name] = SiteState(weight, None if own is None else own.detach(), masks[site.name])
    others = {name: decoder.model.get_parameter(name).detach() for name in parameters}
    return State(decoder.name, items, others)


def save_state(state: State, path: Path) -> str:
    """Write ``state`` to ``path`` by rename; return its digest (see ``state_digest``)."""
    tensors: dict[str, Tensor] = {}
    header: dict[str, Any] = {"version": VERSION, "model": state.model}
    for kind, entries in (("layers", _packed_layers(state)), ("parameters", _packed_parameters(state))):
        header[kind] = {}
        for name, packed in entries:
            header[kind][name] = _digest(packed)
            tensors |= {f"{name}:{part}": tensor for part, tensor in packed.items()}
    # one entry: safetensors writes several in no fixed order, and equal states shall be equal files
    metadata = {FORMAT: json.dumps(header)}
    with replacing(path, refusals=(SafetensorError,)) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    return _join(header["layers"] | header["parameters"])


def open_state(path: Path) -> StateFile:
    """Open a stored state; StoreError names a file that is missing, cut short, or not a state of this
    version."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(FORMAT, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if header.get("version") not in _READABLE:
        found = f"version {header['version']}" if "version" in header else "another kind of file"
        raise StoreError(
            f"{path} is {found}; needed is {FORMAT} version {VERSION}. Run the prune stage again."
        )
    return StateFile(Path(path), header["model"], header["layers"], header.get("parameters", {}))


def state_digest(state: StateReader) -> str:
    """Return the sha256 of a state's weights, masks and parameters, the same in memory and on disk."""
    packed = itertools.chain(_packed_layers(state), _packed_parameters(state))
    return _join({name: _digest(parts) for name, parts in packed})


@torch.no_grad()
def apply_state(decoder: Decoder, state: StateReader, block: int | None = None) -> None:
    """Copy a state's weights, biases and other parameters into ``decoder``, in place; only those of ``block`` if one is
    given. A bias that only the state has is added, where a state may (``models/bias.py``).

    Raises ModelError if the state is of a model with other layers, shapes or dtype.
    """
    for site in decoder.sites(block):
        if site.name not in state.names:
            raise ModelError(
                f"the state of {state.model} has no layer {site.name} of {decoder.name}; "
                "load the model it was pruned from."
            )
        stored = state.site(site.name)
        _copy(site.linear.weight, stored.weight, site.name, state.model)
        if stored.bias is None:
            bias.remove(site.linear)  # of a state that was here before
        elif site.linear.bias is None and bias.may_add(decoder.family, site.path):
            bias.add(site.linear)
        if (site.linear.bias is None) != (stored.bias is None):
            raise ModelError(
                f"{site.name}: only one of {decoder.name} and the state of {state.model} has bias."
            )
        if stored.bias is not None:
            _copy(site.linear.bias, stored.bias, site.name, state.model)
    others = decoder.other_parameters(block)
    for name in state.parameter_names:
        if name in others:
            _copy(others[name], state.parameter(name), name, state.model)
        elif block is None:
            raise ModelError(
                f"the state of {state.model} has {name}, which {decoder.name} has not; "
                "load the model it was pruned from."
            )


def _copy(parameter: Tensor, stored: Tensor, name: str, model: str) -> None:
    if parameter.shape != stored.shape or parameter.dtype != stored.dtype:
        raise ModelError(
            f"{name} is {tuple(parameter.shape)} {parameter.dtype}, in the state of {model} "
            f"{tuple(stored.shape)} {stored.dtype}; load the model it was pruned from, in the same dtype."
        )
    parameter.copy_(stored)


_VALUE = "value"  # what a parameter's tensor is called beside its name


def _packed_layers(state: StateReader) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every layer as it is stored."""
    return ((name, _pack(state.site(name))) for name in state.names)


def _packed_parameters(state: StateReader) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every parameter outside linear layers as it is stored."""
    for name in state.parameter_names:
        yield name, {_VALUE: state.parameter(name).detach().cpu().contiguous()}


def _pack(site: SiteState) -> dict[str, Tensor]:
    parts = {"weight": site.weight, "bias": site.bias, **site.mask.pack()}
    # masks are cloned: layers may share one, which safetensors refuses to write
    return {
        name: (part.clone() if part.dtype == torch.bool else part.detach()).cpu().contiguous()
        for name, part in parts.items()
        if part is not None
    }


def _unpack(parts: Mapping[str, Tensor]) -> SiteState:
    return SiteState(parts["weight"], parts.get("bias"), unpack(parts))


def _digest(parts: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and little-endian bytes."""
    sha = hashlib.sha256()
    for name, tensor in sorted(parts.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _join(digests: Mapping[str, str]) -> str:
    lines = sorted(f"{name}={digest}\n" for name, digest in digests.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _missing(where: str, what: str, name: str, known: tuple[str, ...]) -> StoreError:
    return StoreError(f"{where} has no {what} {name!r}; it has {', '.join(known) or 'none'}.")


def _damaged(path: Path, reason: str) -> StoreError:
    return StoreError(
        f"{path} cannot be read as a pruned state: {reason}. Run the stage that wrote it again."
    )
