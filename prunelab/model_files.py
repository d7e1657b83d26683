"""Which files of a checkpoint folder decide numbers: what a hub download fetches and what a local folder's identity is.

Ground floor: planning digests these files, numerics fetch them, and both have to mean the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

WEIGHTS = ("*.safetensors",)
# config.json, generation_config.json, the index of shards, tokenizer.json, special_tokens_map.json and the like
SETTINGS = ("*.json",)
# every format a tokenizer is kept in: SentencePiece, BPE and word lists, tiktoken
TOKENIZER = ("tokenizer*", "vocab*", "merges*", "spiece*", "*.model", "*.tiktoken", "*.bpe")
CODE = ("*.py",)  # of auto_map; run where trust_remote_code says so
DECIDING = (*WEIGHTS, *SETTINGS, *TOKENIZER, *CODE)
_UNUSED = (
    "chat_template*",
    "trainer_state.json",
    ".*",
    "README*",
)  # nothing here talks to a model by templates


def deciding_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a checkpoint folder that decide numbers, code of its packages among them, in the order of names."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") or part == "__pycache__" for part in inside.parts):
            continue
        patterns = DECIDING if len(inside.parts) == 1 else CODE
        if _is_of(path.name, patterns) and not _is_of(path.name, _UNUSED) and not path.is_dir():
            yield path


def _is_of(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


# what a compacted checkpoint may look like: its own widths; filled up with zeros to what its architecture's config can say;
# or, of a Llama, as DeciLMForCausalLM, which vLLM reads
FORMS = (OWN, PADDED, DECILM_FORM) = ("own", "padded", "decilm")
