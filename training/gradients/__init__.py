"""Bias and variance of gradient estimators at a point of a run."""
