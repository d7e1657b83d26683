"""Scores of units (neurons, attention heads) from numbers of their members; plain arrays in, plain arrays out."""
