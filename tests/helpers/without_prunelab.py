"""Checkpoints loaded by plain transformers in an interpreter that cannot import prunelab."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_SCRIPT = """
import importlib.abc, json, sys

class Forbidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "prunelab":
            raise ImportError("prunelab is not installed here")

sys.meta_path.insert(0, Forbidden())
import torch
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
found = {}
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokens = torch.tensor(json.load(open(folder + "/tokens.json")))
    ask = dict(attention_mask=torch.ones_like(tokens), max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits
    texts = [model.generate(tokens, use_cache=cache, **ask).tolist() for cache in (True, False)]
    model.save_pretrained(folder + "/again")
    again = AutoModelForCausalLM.from_pretrained(folder + "/again", trust_remote_code=True)
    with torch.no_grad():
        same = torch.equal(again(input_ids=tokens, use_cache=False).logits, logits)
    n = sum(p.numel() for p in model.parameters())
    found[folder] = {"class": type(model).__name__, "logits": logits.tolist(), "texts": texts, "n": n, "same": same}
assert not any(name.partition(".")[0] == "prunelab" for name in sys.modules)
print(json.dumps(found))
"""


def run_without_prunelab(folders: Iterable[str], home: Path) -> dict[str, Any]:
    """Return by folder, in which ``tokens.json`` lies: class, logits, texts with a cache and without, number of parameters,
    and whether saving and loading it again changes nothing. ``home``: for code that transformers copies."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", _SCRIPT, *folders],
        capture_output=True, text=True, check=False, env=env | {"HF_HOME": str(home / "hub"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
