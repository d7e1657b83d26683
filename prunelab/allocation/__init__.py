"""How a ratio is spread over the blocks of a model."""
