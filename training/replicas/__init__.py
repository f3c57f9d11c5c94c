"""What every replica of a pack has of its own: streams, batches, optimisers, schedules, variance, divergence."""
