"""What a person sees of a study: before it runs, while it runs, and whenever they ask."""
