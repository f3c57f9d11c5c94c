"""Jang, Gu, Poole, "Categorical reparameterization with Gumbel-Softmax", arXiv 1611.01144, Table 2."""

from analysis.papers.semi_supervised import draw

__all__ = ["draw"]
