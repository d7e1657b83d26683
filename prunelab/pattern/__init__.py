"""Sparsity patterns: what may be removed together, and the only text of the rules that a run has to keep.

Both halves use these classes: planning asks before anything is queued, with what it read from a method's source;
numerics ask again with the objects at hand. Nothing here imports torch.
"""
