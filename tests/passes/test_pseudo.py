"""A method that compares texts runs on parts of its own where no other is given: those of a walk written out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from prunelab.errors import ConfigError
from prunelab.generalization.pseudo import clusters
from prunelab.methods.gprune import GPrune
from prunelab.models.random import random_decoder
from prunelab.passes.shots import prune
from prunelab.pattern.table import build_pattern
from prunelab.structures.state import state_digest

CONF = yaml.safe_load((Path(__file__).parents[2] / "conf" / "method" / "gprune.yaml").read_text())
GPRUNE = GPrune(**{key: value for key, value in CONF.items() if key != "_target_"})


def test_sets_are_clusters_of_the_mean_final_states_and_compared_like_domains(family_name: str) -> None:
    tokens = torch.randint(3, 64, (12, 20), generator=torch.Generator().manual_seed(5))
    decoder, last = random_decoder(family_name), list[torch.Tensor]()
    hook = decoder.blocks[-1].register_forward_hook(
        lambda block, given, output: last.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        decoder.model(input_ids=tokens, use_cache=False)
    hook.remove()
    sets = [tokens[members] for members in clusters(last[0].double().mean(1), 4)]
    options = {
        "pattern": build_pattern("units"), "seed": 0, "batch_size": 5, "allocation": "global", "propagation": "dense",
    }  # fmt: skip
    digests = {
        state_digest(prune(random_decoder(family_name), GPRUNE, tokens, [0.2], domains=domains, **options))  # type: ignore[arg-type]
        for domains in ((), sets)
    }
    assert len(digests) == 1


def test_without_sets_of_its_own_other_text_has_to_be_given() -> None:
    tokens = torch.randint(3, 64, (12, 20), generator=torch.Generator().manual_seed(5))
    with pytest.raises(ConfigError, match="1 or more token sets of other text"):
        prune(
            random_decoder("llama"), replace(GPRUNE, pseudo_domains=None), tokens, [0.2], pattern=build_pattern("units"),
            seed=0, batch_size=5, allocation="global", propagation="dense",
        )  # fmt: skip
