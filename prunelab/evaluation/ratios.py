"""The three ratios that are always reported together; nothing else is called sparsity."""

from __future__ import annotations

from prunelab.metric import OF_PARAMETERS, OF_UNITS, OF_WEIGHTS
from prunelab.models.bias import is_added
from prunelab.models.decoder import Decoder
from prunelab.structures.state import StateReader
from prunelab.structures.surgery import compact_parameters


def added_parameters(decoder: Decoder) -> int:
    """Return how many parameters the biases have that the dense model had not."""
    return sum(site.linear.out_features for site in decoder.sites() if is_added(site.linear))


def ratios(state: StateReader, decoder: Decoder) -> dict[str, float]:
    """Return removed fractions, 0 to 1, of a decoder that holds ``state`` and is not compacted yet.

    ratio/weights: weights of the pruned layers, biases included (the count of arXiv:2312.17244).
    ratio/parameters: parameters of the decoder blocks that the compacted model no longer has. ratio/units:
    rows and columns (a bias is a column); 0 for masks of single weights. Biases that a repair added count as
    parameters of the compacted model and not of the dense one.
    """
    masks = [state.site(name).mask for name in state.names]
    units = sum(mask.units for mask in masks)
    removed_units = sum(mask.units_removed for mask in masks)
    added = added_parameters(decoder)
    in_blocks = sum(parameter.numel() for parameter in decoder.blocks.parameters()) - added
    saved = decoder.n_parameters() - added - compact_parameters(state, decoder)
    return {
        OF_WEIGHTS: sum(mask.removed for mask in masks) / sum(mask.total for mask in masks),
        OF_PARAMETERS: saved / in_blocks,
        OF_UNITS: removed_units / units if units else 0.0,
    }
