"""A pack of runs: building, its step, the loop, checkpoints, memory."""
