"""Importance-weighted bounds and exact log-likelihoods."""
