"""Small random decoders of every family: tests and dry runs without any checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from prunelab.family import POSITIONS, family_named
from prunelab.models.decoder import Decoder, freeze
from prunelab.models.transposed import hold_as_linear


def random_decoder(
    family_name: str,
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    **config: Any,
) -> Decoder:
    """Build a random decoder of ``family_name`` on ``device``; the family's small config, changed by
    ``config``.

    Weights are drawn in float32 on the CPU from ``seed`` alone and then cast, so the same seed gives the
    same model on every device. The process' random state is left as it was.
    """
    family = family_named(family_name)
    settings = AutoConfig.for_model(family.model_types[0], **{**family.random, **config})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # built in `dtype` rather than cast: rotary tables keep the precision the model's own code gives them
        model = AutoModelForCausalLM.from_config(settings, dtype=dtype)
    hold_as_linear(model, family)
    _draw(model, torch.Generator().manual_seed(seed))
    model.to(device)
    freeze(model)
    return Decoder(
        model=model,
        family=family,
        name=f"random_{family_name}",
        max_len=next(int(getattr(settings, key)) for key in POSITIONS if hasattr(settings, key)),
    )


@torch.no_grad()
def _draw(model: nn.Module, generator: torch.Generator) -> None:
    """Draw weights of unit gain: the usual std of 0.02 makes a narrow model's blocks near-identities,
    and its zero biases and unit norms hide mistakes."""
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() >= 2:
            parameter.copy_(noise * parameter.shape[-1] ** -0.5)
        else:
            parameter.add_(noise * 0.1)
