"""What a study tells its trackers while it runs, and what it sends them later."""
