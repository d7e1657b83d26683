"""Text to token sets: corpora with pinned revisions, samplers, digests, roles."""
