"""W&B as a copy of what metrics.jsonl and the records hold (wandb 0.31)."""
