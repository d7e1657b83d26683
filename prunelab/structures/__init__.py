"""Pruned states on disk and in memory; physically smaller models."""
