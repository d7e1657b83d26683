"""Jobs on this machine: what a launcher is, the pool and its workers, and the way of a study through them."""
