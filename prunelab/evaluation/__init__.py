"""Perplexity, reconstruction error, ratios, integrity, cost."""
