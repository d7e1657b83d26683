"""One small table of names per model family."""
