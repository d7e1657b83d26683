"""Proof that a pruned model is what its state says: removed weights exactly zero, trained norms in place, all finite."""

from __future__ import annotations

import torch

from prunelab.errors import ModelError
from prunelab.metric import INTEGRITY, MASKED, VIOLATIONS
from prunelab.models.decoder import Decoder
from prunelab.sparsity.mask import violations
from prunelab.structures.state import StateReader


def check(decoder: Decoder, state: StateReader) -> dict[str, int]:
    """Return counts {'integrity/layers', 'integrity/masked', 'integrity/violations'} for a decoder with
    ``state`` applied.

    masked: weights and bias entries that the masks remove, all found to be exactly 0. Raises ModelError that
    names the layers where one is not, or where a weight is not finite; violations is therefore 0 in what is
    returned.
    """
    masked, faults = 0, []
    for site in decoder.sites():
        mask, linear = state.site(site.name).mask, site.linear
        masked += mask.removed
        broken = violations(mask, linear.weight, linear.bias)
        if broken:
            faults.append(f"{site.name}: {broken} removed weights are not zero")
        parts = [linear.weight] if linear.bias is None else [linear.weight, linear.bias]
        odd = sum(int((~torch.isfinite(part)).sum()) for part in parts)
        if odd:
            faults.append(f"{site.name}: {odd} weights are not finite")
    others = decoder.other_parameters()
    for name in state.parameter_names:
        if name not in others or not torch.equal(others[name], state.parameter(name).to(others[name].device)):
            faults.append(f"{name} is not the state's")
        elif not bool(torch.isfinite(others[name]).all()):
            faults.append(f"{name} is not finite")
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ModelError(
            f"{decoder.name} does not hold its pruned state: {'; '.join(faults[:5])}{more}. "
            "Apply the state again (structures.state.apply_state); if it stays, run the prune stage again."
        )
    return {INTEGRITY.at("layers"): len(decoder.sites()), MASKED: masked, VIOLATIONS: 0}
