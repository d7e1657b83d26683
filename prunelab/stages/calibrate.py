"""Stage calibrate: text to a token set with a digest and a role."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from prunelab.calibration.collect import collect_tokens
from prunelab.calibration.tokens import load_tokens, save_tokens
from prunelab.models.load import checkpoint_folder, load_decoder, load_tokenizer
from prunelab.store.context import Context, Result


def run(identity: Mapping[str, Any], context: Context) -> Result:
    """Materialise the tokens of one corpus and role; writes ``tokens.npy`` and its description."""
    model = context.runtime["model"]
    corpus = {
        **context.runtime["corpus"],
        "sampler": identity["sampler"],
        "digest": identity["corpus"]["digest"],
    }
    tokens = collect_tokens(
        corpus,
        None if corpus["source"] == "tokens" else load_tokenizer(model),
        role=identity["role"],
        n_samples=identity["n_samples"],
        seq_len=identity["seq_len"],
        seed=identity["seed"],
        vocab_size=_vocabulary_size(model),
    )
    save_tokens(tokens, context.outputs / "tokens.npy")
    n, seq_len = tokens.tokens.shape
    return Result({"samples": n, "seq_len": seq_len, "tokens": n * seq_len, "digest": tokens.digest})


def read(folder: Path) -> torch.Tensor:
    """Return the tokens (n, seq_len) int64 that a calibrate stage wrote into ``folder``."""
    return torch.from_numpy(load_tokens(folder / "tokens.npy").tokens.astype("int64"))


def _vocabulary_size(model: Mapping[str, Any]) -> int:
    if model["source"] == "random":
        return int(load_decoder(model).model.config.vocab_size)
    folder = checkpoint_folder({**model, "digest": model["digest"] if model["source"] == "wheel" else None})
    config = AutoConfig.from_pretrained(
        folder, trust_remote_code=model["trust_remote_code"], local_files_only=True
    )
    return int(config.get_text_config().vocab_size)
