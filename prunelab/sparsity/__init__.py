"""What may be removed together, how much of it, and the keep masks that say what stays."""
