"""Curves along training: a metric of the runs of one label, its mean over seeds and the interval of that."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.statistics.intervals import student_half_width
from analysis.statistics.summary import curve


@dataclass(frozen=True)
class Metric:
    """How one column of the records is drawn: negated where higher is better, on a log scale with geometric means."""

    name: str
    label: str = ""
    negated: bool = False
    log: bool = False

    def transform(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """What is averaged."""
        return np.log(values) if self.log else -values if self.negated else values

    def back(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """What is drawn, of what was averaged."""
        return np.exp(values) if self.log else values


@dataclass(frozen=True)
class Curve:
    """A metric of some runs at the places that all of them have.

    Attributes:
        metric: which, and how it is averaged.
        x: ``[m]``, the places.
        paths: those of the runs, n of them.
        averaged: ``[n, m]``, a line per run as ``metric.transform`` gives it.
    """

    metric: Metric
    x: NDArray[Any]
    paths: list[str]
    averaged: NDArray[np.floating]

    @property
    def lines(self) -> NDArray[np.floating]:
        """``[n, m]``, each run as it is drawn."""
        return self.metric.back(self.averaged)

    @property
    def mean(self) -> NDArray[np.floating]:
        """``[m]``, over the runs."""
        return self.metric.back(self.averaged.mean(axis=0))

    @property
    def band(self) -> tuple[NDArray[np.floating], NDArray[np.floating]] | None:
        """Ends ``[m]`` of the mean's pointwise 95 % interval (Student's t); ``None`` for one run."""
        mean, half = self.averaged.mean(axis=0), self._half
        return (self.metric.back(mean - half), self.metric.back(mean + half)) if np.isfinite(half).all() else None

    @cached_property
    def _half(self) -> NDArray[np.floating]:
        return student_half_width(self.averaged)

    def thinned(self, points: int) -> Curve:
        """The curve at no more than ``points`` of its places, the first and the last among them."""
        kept = np.unique(np.linspace(0, self.x.size - 1, min(points, self.x.size)).round().astype(int))
        return Curve(self.metric, self.x[kept], self.paths, self.averaged[:, kept])


def average(runs: pd.DataFrame, metric: Metric, x: str = "step") -> Curve | None:
    """The curve of the long frame ``runs`` against ``x`` (:func:`analysis.statistics.summary.curve`).

    A value that has no logarithm counts as missing where ``metric`` is averaged as one. ``None`` if no place is left.
    """
    rows = runs[list(dict.fromkeys(["path", "step", metric.name, x]))].dropna(subset=["step", metric.name])
    rows = rows[rows[metric.name] > 0] if metric.log else rows
    places, values = curve(rows, metric.name, x)
    if places.size == 0:
        return None
    return Curve(metric, places, sorted(rows["path"].unique()), metric.transform(values))
