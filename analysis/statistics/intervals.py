"""Confidence intervals of means over seeds.

Student's t covers 95 % of normal samples for every n >= 2. Of skewed ones it covers less: with skewness 1 (a gamma
distribution of shape 4) .93 for n = 3 to 10 and .945 for n = 30; with skewness 2 (an exponential distribution) .88 for
n = 3 to 7, .90 for n = 10 and .93 for n = 30. ``tests/test_intervals.py`` holds the figures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEW = 31
"""Below this many values the interval is Student's t, then the bootstrap's, which covers too little for fewer."""


def interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of ``values [n]`` with a two-sided confidence interval of the mean: ``(mean, low, high)``.

    ``n = 1``: no interval (``nan``). ``n < 31``: Student's t. Otherwise: bias-corrected and accelerated (BCa)
    bootstrap with a fixed seed. Values that are all equal give width zero. Raises ``ValueError`` for no values.
    """
    sample = np.asarray(values, dtype=float)
    if sample.ndim != 1 or sample.size == 0:
        raise ValueError(f"values must be [n] with n >= 1, not of shape {sample.shape}")
    mean = float(sample.mean())
    if sample.size == 1:
        return mean, float("nan"), float("nan")
    if np.all(sample == sample[0]):
        return float(sample[0]), float(sample[0]), float(sample[0])
    if sample.size < FEW:
        half = float(student_half_width(sample[:, None], confidence)[0])
        return mean, mean - half, mean + half
    from scipy.stats import bootstrap

    result = bootstrap(
        (sample,), np.mean, confidence_level=confidence, n_resamples=4999, rng=np.random.default_rng(0), method="BCa"
    )
    return mean, float(result.confidence_interval.low), float(result.confidence_interval.high)


def interval_name(n: int) -> str:
    """Which interval :func:`interval` gives for ``n`` values, in words."""
    if n < 2:
        return "none"
    return "Student t" if n < FEW else "BCa bootstrap"


def student_half_width(values: NDArray[np.floating], confidence: float = 0.95) -> NDArray[np.floating]:
    """Half-width ``[m]`` of Student's t interval of the means of ``values [n, m]`` over ``n``; ``nan`` for n = 1."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return np.full(values.shape[1], np.nan)
    return t.ppf((1 + confidence) / 2, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n)
