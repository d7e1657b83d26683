"""Statistics of activations and gradients: accumulated per batch, mergeable."""
