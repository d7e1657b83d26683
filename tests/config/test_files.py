"""Files of one's own: every mistake is told while planning, with what to do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prunelab.config.files import check_model_folder, check_text_file, input_widths, positions
from prunelab.config.files import widths as all_widths
from prunelab.errors import ConfigError

MODELS = Path(__file__).resolve().parents[2] / "prunelab" / "data" / "models"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint of one's own, as links to ours."""
    folder = tmp_path / "m"
    folder.mkdir()
    for file in (MODELS / "llama").iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def replace(file: Path, text: str) -> None:
    file.unlink()
    file.write_text(text)


def dangle(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(folder / "moved_away")

    return damage


def config(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        plain = json.loads((folder / "config.json").read_text())
        replace(folder / "config.json", json.dumps(plain | changes))

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (dangle("model.safetensors"), ["model.safetensors: a link to what is not there", "moved_away", "mend the link"]),
        (dangle("tokenizer.json"), ["tokenizer.json: a link to what is not there"]),
        (config(model_type="mamba"), ["model_type='mamba'", "llama, mistral"]),
        (config(model_type="lama"), ["model_type='lama'", "Did you mean 'llama'?"]),
        (config(quantization_config={"bits": 4}), ["float weights", "quantised"]),
        (config(model_type="gemma3", text_config={"model_type": "gemma3_text"}), ["reads more than text", "m-text"]),
        (config(pruned={"blocks": [{}, {"picked": {"mlp.up_proj": {}}}]}), ["a model of whole layers", "without --compact"]),
        (lambda folder: replace(folder / "config.json", "{"), ["config.json is no JSON"]),
        (lambda folder: replace(folder / "config.json", "[]"), ["config.json holds list"]),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_used_is_told(model: Path, damage: Callable, said: list[str]) -> None:
    check_model_folder("model.id", str(model))
    damage(model)
    with pytest.raises(ConfigError) as caught:
        check_model_folder("model.id", str(model))
    for words in ("model.id", *said):
        assert words in str(caught.value)


@pytest.mark.slow
def test_the_advice_about_models_of_text_and_images_works(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

    text = {"vocab_size": 64, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8, "sliding_window": 8}  # fmt: skip
    image = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "image_size": 14, "patch_size": 7}  # fmt: skip
    whole = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=image, mm_tokens_per_image=1)
    )
    whole.save_pretrained(tmp_path / "m")
    shutil.copy(MODELS / "llama" / "tokenizer.json", tmp_path / "m")
    with pytest.raises(ConfigError) as caught:
        check_model_folder("model.id", str(tmp_path / "m"))
    command = re.search(r'python -c "(.*)" && cp', str(caught.value))
    assert command is not None
    subprocess.run([sys.executable, "-c", command[1]], check=True, capture_output=True)
    shutil.copy(tmp_path / "m" / "tokenizer.json", tmp_path / "m-text")
    check_model_folder("model.id", str(tmp_path / "m-text"))
    tokens = torch.arange(10)[None]
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "m-text")
    assert torch.equal(alone(tokens).logits, whole.eval()(tokens).logits)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (r'{"text": "a cut emoji \ud83d here"}', ["half of a surrogate pair ('\\ud83d') at letter 12"]),
        ('{"text": null}', ["'text' is null", "jq -c 'select(.text != null)'"]),
        ('{"body": "x"}', ["no field 'text', but 'body'", "set column"]),
        ('{"text": 3}', ["'text' is int, not text"]),
        ('["x"]', ["it is list, not an object"]),
        ("{", ["it is not JSON"]),
    ],
)
def test_a_row_without_text_is_told(tmp_path: Path, line: str, said: list[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n\n' + line + "\n")
    with pytest.raises(ConfigError) as caught:
        check_text_file("calibration.path", str(path), "text")
    for words in ("calibration.path", "Line 3:", *said):
        assert words in str(caught.value)


def test_what_is_right_passes(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"body": "\\ud83d\\ude00 whole"}\n')
    check_text_file("calibration.path", str(tmp_path / "rows.jsonl"), "text", "body")
    np.save(tmp_path / "rows.npy", np.ones((4, 8), "int32"))
    check_text_file("calibration.path", str(tmp_path / "rows.npy"), "tokens")


@pytest.mark.parametrize(
    ("config", "length", "widths"),
    [
        ({"hidden_size": 64, "num_attention_heads": 4, "head_dim": 32, "intermediate_size": 172,
          "max_position_embeddings": 128}, 128, [64, 128, 172]),
        ({"n_embd": 48, "n_head": 4, "n_positions": 256}, 256, [48]),  # gpt2, as on the hub
        ({"n_embd": 48, "n_head": 4, "n_inner": 100, "n_positions": 256}, 256, [48, 100]),
        ({"n_embed": 32, "num_attention_heads": 4, "n_inner": None, "seq_length": 512}, 512, [32]),  # bloom
        ({"hidden_size": 32, "num_attention_heads": 4, "ffn_hidden_size": 96}, None, [32, 96]),  # falcon
    ],
)  # fmt: skip
def test_lengths_and_widths_by_any_name(
    tmp_path: Path, config: dict[str, object], length: int | None, widths: list[int]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = {"source": "local", "id": str(tmp_path), "max_len": None}
    assert positions(spec) == length
    assert input_widths(spec) == widths
    assert all_widths(spec) == widths


def test_the_narrowest_width_may_be_that_of_key_value_heads(tmp_path: Path) -> None:
    config = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 96}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = {"source": "local", "id": str(tmp_path), "max_len": None}
    assert all_widths(spec) == [16, 64, 96]
    config |= {"pruned": {"blocks": [{"heads": 4, "kv_heads": 1, "ffn": 40}]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert all_widths(spec) == [8, 32, 40, 64]
    assert all_widths({"source": "hub", "id": "a/b"}) == []
