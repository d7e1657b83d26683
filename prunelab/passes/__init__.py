"""Walks over a model that feed methods with statistics and carry out what they decide."""
