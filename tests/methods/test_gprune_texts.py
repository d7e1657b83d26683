"""GPrune-LLM on a trained model: what it keeps of other texts than the one it is calibrated on. arXiv:2603.13418."""

from __future__ import annotations

from math import log
from typing import Any

import pytest

import prunelab

OTHERS = ("jargon", "kjv", "pydocs")


@pytest.mark.slow
def test_other_texts_suffer_less_than_under_the_base_metric() -> None:
    lost = {"wanda_sp": 0.0, "gprune": 0.0}
    for seed in range(3):
        for method in lost:
            model = prunelab.load_model("embedded_llama")
            own, *others = (prunelab.load_tokens(model, name, seed=seed) for name in ("austen", *OTHERS))
            more: dict[str, Any] = {"domains": others} if method == "gprune" else {"propagation": "dense"}
            prunelab.prune(model, own, method=method, ratio=0.4, **more)
            lost[method] += sum(log(prunelab.perplexity(model, name, n_samples=40)) for name in OTHERS) / 9
    assert lost["gprune"] < lost["wanda_sp"] - 0.05
