"""Statistics of activations and gradients: one class per statistic, accumulated per batch, mergeable over ranks."""
