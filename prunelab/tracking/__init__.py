"""JSONL is the truth; W&B mirrors it."""
