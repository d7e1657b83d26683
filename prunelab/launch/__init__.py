"""Runs the jobs of a study: in this process, in a local pool, on a cluster."""
