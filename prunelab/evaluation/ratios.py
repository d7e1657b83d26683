"""The three ratios that are always reported together; nothing else is called sparsity."""

from __future__ import annotations

from prunelab.metric import OF_PARAMETERS, OF_UNITS, OF_WEIGHTS
from prunelab.models.decoder import Decoder
from prunelab.structures.state import StateReader
from prunelab.structures.surgery import compact_parameters


def ratios(state: StateReader, decoder: Decoder) -> dict[str, float]:
    """Return removed fractions, 0 to 1, of a decoder that holds ``state`` and is not compacted yet.

    ratio/weights: weights of the pruned layers, biases included (the count of arXiv:2312.17244).
    ratio/parameters: parameters of the decoder blocks that the compacted model no longer has. ratio/units:
    rows and columns (a bias is a column); 0 for masks of single weights.
    """
    masks = [state.site(name).mask for name in state.names]
    units = sum(mask.units for mask in masks)
    removed_units = sum(mask.units_removed for mask in masks)
    in_blocks = sum(parameter.numel() for parameter in decoder.blocks.parameters())
    saved = decoder.n_parameters() - compact_parameters(state, decoder)
    return {
        OF_WEIGHTS: sum(mask.removed for mask in masks) / sum(mask.total for mask in masks),
        OF_PARAMETERS: saved / in_blocks,
        OF_UNITS: removed_units / units if units else 0.0,
    }
