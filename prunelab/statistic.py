"""Names of statistics: what a method may write into its ``needs``, and the class behind each name.

A name of the package's own is short; any other statistic goes by the dotted name of its class
(``needs = ("mine.InputMax",)``). Planning reads the class' literals ``name`` and ``reads`` from its source.
"""

from __future__ import annotations

INPUT, OUTPUT, BLOCK, PARTS = "input", "output", "block", "parts"
OUTPUT_GRADIENT, WEIGHT_GRADIENT = "output_gradient", "weight_gradient"
BACKWARD = (OUTPUT_GRADIENT, WEIGHT_GRADIENT)  # these need a walk back through the model
READS = (INPUT, OUTPUT, BLOCK, PARTS, *BACKWARD)  # of a linear layer, or of the block that it is in
ENTERING = (INPUT, BLOCK, PARTS)  # values of these are shared by all layers with one input

CLASSES = {
    "input_norm": "prunelab.stats.input_norm.InputNorm",
    "input_moments": "prunelab.stats.input_moments.InputMoments",
    "input_gram": "prunelab.stats.gram.InputGram",
    "output_gram": "prunelab.stats.gram.OutputGram",
    "taylor": "prunelab.stats.taylor.Taylor",
    "input_samples": "prunelab.stats.input_samples.InputSamples",
    "block_influence": "prunelab.stats.block_influence.BlockInfluence",
    "sublayer_influence": "prunelab.stats.sublayer_influence.SublayerInfluence",
}


def class_of(need: str) -> str:
    """Return the dotted name of the class that ``need`` means; "" for a name that is neither known nor dotted."""
    return CLASSES.get(need, need if "." in need else "")
