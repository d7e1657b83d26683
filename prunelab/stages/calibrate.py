"""Stage calibrate: text to a token set with a digest and a role: of a corpus, self-generated, or a mixture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from prunelab.calibration.collect import collect_tokens, count_special, tokenizer_digest
from prunelab.calibration.generated import COUNTS, Recipe, Writer, enough, interleave
from prunelab.calibration.tokens import TokenSet, build_token_set, load_tokens, save_tokens
from prunelab.errors import DataError
from prunelab.evaluation.cost import metered
from prunelab.files import replacing
from prunelab.metric import GENERATED, PARTS
from prunelab.models.load import checkpoint_folder, load_decoder, load_tokenizer
from prunelab.stages import setting
from prunelab.store.context import Context, Result

TOKENS = "tokens.npy"


def run(identity: Mapping[str, Any], context: Context) -> Result:
    """Materialise one token set; writes ``tokens.npy`` and its description.

    The identity says of what: ``corpus``; ``recipe``: text of the dense model, with the counts of what was kept
    and dropped as metrics, resumed at the chunk; ``parts``: windows of the inputs, spread over each other.
    """
    if "recipe" in identity:
        return _generated(identity, context)
    if "parts" in identity:
        return _result(
            _mixed(identity, context), context, {PARTS.at(k): n for k, n in identity["parts"].items()}
        )
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
    return _result(tokens, context)


def read(folder: Path) -> torch.Tensor:
    """Return the tokens (n, seq_len) int64 that a calibrate stage wrote into ``folder``."""
    return torch.from_numpy(load_tokens(folder / TOKENS).tokens.astype("int64"))


def _result(tokens: TokenSet, context: Context, more: Mapping[str, Any] | None = None) -> Result:
    save_tokens(tokens, context.outputs / TOKENS)
    n, seq_len = tokens.tokens.shape
    found = {"samples": n, "seq_len": seq_len, "tokens": n * seq_len, "digest": tokens.digest}
    special = tokens.source.get("special_tokens")
    return Result(found | ({} if special is None else {"special_tokens": special}) | dict(more or {}))


def _generated(identity: Mapping[str, Any], context: Context) -> Result:
    """Write chunk after chunk until enough windows are kept; a kill loses the chunk it falls into."""
    model, n_samples, seq_len = context.runtime["model"], identity["n_samples"], identity["seq_len"]
    with metered() as cost:
        device = setting.prepare(context.runtime)
        decoder = load_decoder(model, device=device)
        tokenizer = None if model["source"] == "random" else load_tokenizer(model)
        recipe = Recipe(**identity["recipe"])
        writer = Writer(decoder, tokenizer, recipe, seq_len=seq_len, seed=identity["seed"])
        done, values = context.resume()
        counts = dict.fromkeys(COUNTS, 0) | values
        windows = [np.load(context.work / f"chunk-{i}.npy", allow_pickle=False) for i in range(done)]
        while not enough(counts, n_samples, recipe.batch):
            chunk = writer.write(done)
            with replacing(context.work / f"chunk-{done}.npy") as temporary, temporary.open("wb") as file:
                np.save(file, chunk.windows, allow_pickle=False)
            windows.append(chunk.windows)
            counts = {name: counts[name] + chunk.counts[name] for name in COUNTS}
            context.log({"event": "generate", "chunk": done, **chunk.counts})
            done += 1
            context.progress("windows written", min(counts["kept"], n_samples), n_samples)
            context.checkpoint(done, counts)
        cost.tokens = counts["tokens"]
    source = {
        "name": "self_generated", "source": "self_generated", "model": dict(identity["model"]),
        "recipe": dict(identity["recipe"]), "seed": identity["seed"],
        "tokenizer_digest": tokenizer_digest(tokenizer) if tokenizer is not None else None, "counts": counts,
    }  # fmt: skip
    vocabulary = int(decoder.model.config.get_text_config().vocab_size)
    chosen = np.concatenate(windows)[:n_samples]
    source["special_tokens"] = count_special(chosen, tokenizer)
    tokens = build_token_set(chosen, "reconstruction", source, vocabulary)
    found = _result(tokens, context, {GENERATED.at(name): counts[name] for name in COUNTS})
    return Result(found.metrics, found.tables, cost.values())


def _mixed(identity: Mapping[str, Any], context: Context) -> TokenSet:
    """Join the first windows of each part."""
    parts, sources = {}, {}
    for name, count in identity["parts"].items():
        found = load_tokens(context.inputs[name].folder / TOKENS)
        if len(found.tokens) < count:
            raise DataError(f"part {name!r}: {count} windows were asked for, it has {len(found.tokens)}.")
        parts[name], sources[name] = found.tokens[:count], {"digest": found.digest, **found.source}
    source = {"name": "mixture", "source": "mixture", "parts": dict(identity["parts"]), "sources": sources}
    return build_token_set(
        interleave(parts), "reconstruction", source, _vocabulary_size(context.runtime["model"])
    )


def _vocabulary_size(model: Mapping[str, Any]) -> int:
    if model["source"] == "random":
        return int(load_decoder(model).model.config.vocab_size)
    folder = checkpoint_folder({**model, "digest": model["digest"] if model["source"] == "wheel" else None})
    config = AutoConfig.from_pretrained(
        folder, trust_remote_code=model["trust_remote_code"], local_files_only=True
    )
    return int(config.get_text_config().vocab_size)
