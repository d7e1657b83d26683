"""Jobs of a study on a SLURM cluster: submitted in arrays, found again, followed, explained. The store is the truth."""
