"""A sweep: its plan, the scheduler, the executors (worker pool and SLURM), the screen."""
