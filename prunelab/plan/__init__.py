"""Trials, stages, content keys and the graph that joins them. Plain data, no torch."""
