"""Pure functions of frames and arrays: the choice of settings, intervals, comparisons, variance."""
