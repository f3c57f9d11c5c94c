"""A sweep: planning, the scheduler, worker processes, SLURM, the screen."""
