"""The loop that takes a pack of runs from configs to records."""
