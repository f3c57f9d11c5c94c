"""Many estimators as ranked dots: where they end, with the interval over seeds, instead of a curve for each."""

from __future__ import annotations

from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.style import STYLE, families_of, fit_titles, looks
from analysis.statistics.curves import Metric, average
from analysis.statistics.summary import COMPARISON

CURVES = 16
"""With more estimators than this on one task, curves are not told apart."""
MOST, FAR = 0.9, 3.0
"""On a linear axis, what is farther from the lowest than so many times this quantile is written and not drawn."""
PANEL = 2.0
"""Inches that a panel is wide at least, whatever the names beside it."""
ROW = 0.17
"""Inches for a line of text."""


def many(frame: pd.DataFrame) -> pd.Series:
    """Whether a row of a frame is of a task and data set with more than ``CURVES`` labels."""
    return frame.groupby(COMPARISON, observed=True)["label"].transform("nunique") > CURVES


@matplotlib.style.context(STYLE)
def ranked(rows: pd.DataFrame, quantity: str, log: bool = False) -> Figure | None:
    """A dot per estimator, the lowest ``mean`` on top, with its interval from ``low`` to ``high`` where it has one.

    Args:
        rows: those of :func:`~analysis.statistics.summary.summarise` or of :func:`variances`; a panel for each task
            and data set. An estimator without a mean is named at the bottom.
        quantity: the label of the axis.
        log: whether the axis is logarithmic.

    Returns:
        The figure; ``None`` without a mean. What lies far beyond the others stands at the right, with its value.
    """
    panels = [(where, group) for where, group in rows.groupby(COMPARISON, observed=True) if group["mean"].notna().any()]
    if not panels:
        return None
    rows_most = max(len(group) for _, group in panels)
    figure = Figure(figsize=(3.8 * len(panels), ROW * rows_most + 0.75))
    for place, ((task, data), group) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        axes.set(title=str(task) if data == "none" else f"{task}, {data}", xlabel=quantity)
        axes.set_xscale("log" if log else "linear")
        _dots(axes, group.sort_values("mean", na_position="last", ignore_index=True), log)
    figure.draw_without_rendering()
    narrow = PANEL - min(axes.get_window_extent().width for axes in figure.axes) / figure.dpi
    if narrow > 0:  # long names
        figure.set_figwidth(figure.get_figwidth() + narrow * len(panels))
    fit_titles(figure)
    return figure


def _dots(axes: Axes, group: pd.DataFrame, log: bool) -> None:
    drawn = looks(group["label"], families_of(group, "label"))
    means = group["mean"].dropna()
    most = np.inf if log else means.min() + FAR * (means.quantile(MOST) - means.min())
    for place, row in group.iterrows():
        if row["mean"] > most > means.min():
            at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "center", "fontsize": 7}
            axes.annotate(f"{row['mean']:.4g} \N{RIGHTWARDS ARROW}", (0.99, place), **at)
            continue
        if np.isnan(row["mean"]):
            axes.annotate("none finished", (0.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=7)
            continue
        bars = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]] if np.isfinite(row["low"]) else None
        line = drawn[row["label"]].line() | {"linestyle": ""}
        axes.errorbar(row["mean"], place, xerr=bars, elinewidth=0.8, capsize=1.5, **line)
    axes.set_ylim(len(group) - 0.3, -0.7)
    axes.set_yticks(range(len(group)), [drawn[label].label for label in group["label"]], fontsize=7)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)


def variances(frame: pd.DataFrame) -> pd.DataFrame:
    """The gradient variance at the last step that all seeds of a label have, for :func:`ranked`: geometric mean and its
    95 % interval. ``frame``: of :func:`~analysis.figures.curves.chosen`."""
    found = []
    finished = frame[frame["status"] == "finished"] if "gradient_variance" in frame else frame.iloc[:0]
    for (task, data, label), runs in finished.groupby([*COMPARISON, "label"], observed=True):
        curve = average(runs, Metric("gradient_variance", log=True))
        if curve is not None:
            low, high = (end[-1] for end in curve.band) if curve.band else (np.nan, np.nan)
            row = {"task": task, "data": data, "label": label, "mean": curve.mean[-1], "low": low, "high": high}
            found.append(row | {"family": runs["family"].iloc[0] if "family" in runs else None})
    return pd.DataFrame(found, columns=[*COMPARISON, "label", "mean", "low", "high", "family"])
