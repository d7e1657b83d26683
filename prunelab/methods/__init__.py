"""One file per pruning method: what it needs, what it decides."""
