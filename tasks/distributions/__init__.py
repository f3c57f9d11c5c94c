"""Distributions of latents and observations, in nats."""
