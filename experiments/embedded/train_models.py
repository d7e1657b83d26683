"""Train the two embedded models, a tiny Llama and a tiny OPT, on the train splits of the four embedded
corpora.

    python experiments/embedded/train_models.py tokenizer
    python experiments/embedded/train_models.py llama
    python experiments/embedded/train_models.py opt
    python experiments/embedded/train_models.py table        # perplexities: dense and magnitude-pruned

The step count is fixed, not the time: the same command gives the same model on the same machine and library
versions. Both models share one tokenizer (byte-level BPE, 2,048 tokens). Hidden matrices are trained by Muon,
embeddings, norms and biases by AdamW; warm-up, constant rate, linear decay.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import math
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM
from transformers import PreTrainedTokenizerFast as Fast

DATA = Path(__file__).parents[2] / "prunelab" / "data"
VOCABULARY, WIDTH, LAYERS, HEADS, CONTEXT = 2048, 160, 4, 5, 512
EOS = "<|endoftext|>"
SEQ_LEN, BATCH, WARM_UP, DECAY = 128, 8, 40, 0.4
STEPS = 4500
MUON_RATE, ADAM_RATE = 0.02, 3e-3
EVAL_WINDOWS, EVAL_LEN = 256, 128


def corpora(split: str) -> dict[str, str]:
    """Return the text of one split of every embedded corpus, digests checked."""
    rows = json.loads((DATA / "corpora" / "corpora.json").read_text(encoding="utf-8"))
    texts = {}
    for name, row in rows.items():
        raw = lzma.decompress((DATA / "corpora" / f"{name}.txt.xz").read_bytes())
        if hashlib.sha256(raw).hexdigest() != row["sha256"]:
            raise SystemExit(f"{name}: the text is not the one recorded in corpora.json")
        start, end = row["splits"][split]
        texts[name] = raw[start:end].decode("utf-8")
    return texts


def train_tokenizer(folder: Path) -> None:
    """Write a tokenizer that plain ``AutoTokenizer`` loads; it adds no special tokens by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # one document per paragraph keeps the trainer's memory small; equal weight per domain comes from equal
    # sizes
    paragraphs = [part for text in corpora("train").values() for part in text.split("\n\n")]
    tokenizer.train_from_iterator(paragraphs, trainer)
    fast = Fast(tokenizer_object=tokenizer, bos_token=EOS, eos_token=EOS, pad_token=EOS, unk_token=None)
    fast.model_max_length = CONTEXT
    fast.save_pretrained(folder)


def build(name: str) -> torch.nn.Module:
    """Return the untrained model; about 1.5 M (Llama) and 1.6 M (OPT) parameters."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    if name == "llama":
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=416,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            **ids,
        )
        return LlamaForCausalLM(config)
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        **ids,
    )
    return OPTForCausalLM(config)


def encode(tokenizer, texts: dict[str, str]) -> dict[str, np.ndarray]:
    return {
        k: np.array(tokenizer(t, add_special_tokens=False, verbose=False)["input_ids"], np.int64)
        for k, t in texts.items()
    }


@torch.no_grad()
def perplexities(model: torch.nn.Module, streams: dict[str, np.ndarray]) -> dict[str, float]:
    """Perplexity per domain: the first windows of 128 tokens, non-overlapping, float32."""
    model.eval()
    result = {}
    for name, stream in streams.items():
        n = min(EVAL_WINDOWS, len(stream) // EVAL_LEN)
        windows = torch.from_numpy(stream[: n * EVAL_LEN].reshape(n, EVAL_LEN))
        losses = [
            model(input_ids=w, labels=w, use_cache=False).loss.item() * len(w) for w in windows.split(32)
        ]
        result[name] = math.exp(sum(losses) / n)
    model.train()
    return result


def rate(step: int, steps: int) -> float:
    """Learning rate factor: linear warm-up, constant, linear decay over the last 40 % down to 2 %."""
    left = (steps - step) / (DECAY * steps)
    return min(1.0, (step + 1) / WARM_UP, 0.02 + 0.98 * left)


def train(name: str, steps: int, folder: Path) -> None:
    """Train one model for ``steps`` steps of 8 x 128 tokens and write it in ``folder``."""
    tokenizer = AutoTokenizer.from_pretrained(DATA / "models" / name)
    streams = encode(tokenizer, corpora("train"))
    held_out = encode(tokenizer, corpora("validation"))
    model = build(name).train()
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers." in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers." in n)]
    optimizers = [
        torch.optim.Muon(hidden, lr=MUON_RATE, weight_decay=0.05, momentum=0.95),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    base = [MUON_RATE, ADAM_RATE]
    generator, started, domains = np.random.default_rng(0), time.perf_counter(), list(streams)
    for step in range(steps):
        # two sequences of each domain in every batch: the mixture is equal by construction
        rows = []
        for i in range(BATCH):
            stream = streams[domains[i % len(domains)]]
            start = generator.integers(len(stream) - SEQ_LEN)
            rows.append(stream[start : start + SEQ_LEN])
        tokens = torch.from_numpy(np.stack(rows))
        for optimizer, lr in zip(optimizers, base, strict=True):
            optimizer.param_groups[0]["lr"] = lr * rate(step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % 1000 == 0 or step + 1 == steps:
            scores = {k: round(v, 2) for k, v in perplexities(model, held_out).items()}
            print(
                f"{step + 1} {time.perf_counter() - started:.0f}s loss {loss.item():.3f} {scores}", flush=True
            )
    model.eval()
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters, sha256 {digest}")


def table(name: str) -> None:
    """Print perplexities of the saved model, dense and with each matrix's smallest weights set to zero."""
    tokenizer = AutoTokenizer.from_pretrained(DATA / "models" / name)
    kind = LlamaForCausalLM if name == "llama" else OPTForCausalLM
    for split in ("validation", "test"):
        streams = encode(tokenizer, corpora(split))
        for ratio in (0.0, 0.3, 0.5, 0.7) if split == "validation" else (0.0,):
            model = kind.from_pretrained(DATA / "models" / name, dtype=torch.float32)
            for key, weight in model.named_parameters():
                if weight.ndim == 2 and "layers." in key and ratio:
                    cut = weight.detach().abs().flatten().kthvalue(int(ratio * weight.numel())).values
                    weight.data[weight.data.abs() <= cut] = 0.0
            scores = perplexities(model, streams)
            print(
                f"| {name} | {split} | {ratio:.0%} | "
                + " | ".join(f"{v:.2f}" for v in scores.values())
                + " |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["tokenizer", "llama", "opt", "table"])
    parser.add_argument("steps", type=int, nargs="?", default=STEPS)
    parser.add_argument("--out", type=Path, help="folder for the weights (default: the package's own)")
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums depend on the number of threads; one thread fixes them
    if args.what == "tokenizer":
        for name in ("llama", "opt"):
            train_tokenizer(DATA / "models" / name)
    elif args.what == "table":
        for name in ("llama", "opt"):
            table(name)
    else:
        train(args.what, args.steps, args.out or DATA / "models" / args.what)


if __name__ == "__main__":
    main()
