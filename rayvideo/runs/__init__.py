"""A run's folder: whose it is, its checkpoints, attempts and figures, and how one follows it."""
