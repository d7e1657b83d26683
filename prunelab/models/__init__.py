"""Families as tables of names, loading without two copies, and the only loop over blocks."""
