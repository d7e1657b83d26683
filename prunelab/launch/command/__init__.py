"""From the command line to a plan: Hydra's entry and plugins, and the check of every trial."""
