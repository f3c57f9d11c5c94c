"""Figures of gradient variance at the same point: over training, against bias, and for the same work."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.figures.curves import save
from analysis.figures.style import STYLE, in_order, looks
from analysis.statistics import variance
from analysis.statistics.settings import labelled
from analysis.statistics.variance import Panel
from analysis.tables.table import write as write_tables
from analysis.tables.variance import tables

NO_VARIANCE = 1e-9
"""Relative to the squared gradient: what is left of no variance after rounding."""
ROW = 0.17
"""Inches for a line of text."""
Row = dict[str, Any]


def write(frame: pd.DataFrame, output: Path) -> Iterator[Path]:
    """Tables and figures of a frame of :func:`analysis.records.load_basket` into ``output``; none of an empty one."""
    found = variance.panels(frame)
    if not found:
        return
    yield from write_tables(tables(found), output / "variance", ("md", "csv"))
    yield from save(over_training(found), output / "variance_over_training")
    for panel in found:
        yield from save(bias_variance(panel), output / f"bias_variance_{panel.name}")
        yield from save(ranking(panel), output / f"variance_ranking_{panel.name}")


@matplotlib.style.context(STYLE)
def over_training(found: list[Panel]) -> Figure:
    """Variance per parameter against the step, both logarithmic, a panel for each task; bars: two standard errors."""
    columns = min(2, len(found))
    methods = {row["measured"]: row for panel in found for row in panel.rows.to_dict("records")}
    order = sorted(
        methods,
        key=lambda name: (in_order({m["method"] for m in methods.values()}).index(methods[name]["method"]), name),
    )
    drawn = _looks(methods.values())
    legend_rows = -(-len(order) // (2 * columns + 1))
    figure = Figure(figsize=(3.6 * columns, 3.5 * -(-len(found) // columns) + ROW * legend_rows + 0.1))
    for place, panel in enumerate(found):
        axes = figure.add_subplot(-(-len(found) // columns), columns, place + 1)
        axes.set(title=panel.title, xscale="log", yscale="log", xlabel="training steps")
        if place % columns == 0:
            axes.set_ylabel("variance per parameter")
        for name in order:
            own = panel.rows[(panel.rows["measured"] == name) & (panel.rows["relative_variance"] > NO_VARIANCE)]
            if own.empty:
                continue
            middle = own["variance"]
            bars = [middle - own["variance_low"], own["variance_high"] - middle]
            axes.errorbar(own["step"], middle, bars, elinewidth=0.7, **drawn[name])
    figure.legend(
        handles=[Line2D([], [], label=methods[name]["label"], **drawn[name]) for name in order],
        loc="outside lower center",
        ncols=2 * columns + 1,
        fontsize=7,
    )
    return figure


@matplotlib.style.context(STYLE)
def bias_variance(panel: Panel) -> Figure:
    """At the last step, relative bias with its interval against the relative standard deviation of one gradient.

    Below, on an axis of their own, stand those whose bias cannot be told from 0, with the largest that it could be; a
    star means that an estimator is declared biased.
    """
    rows = panel.at_the_end().to_dict("records")
    rows = [row for row in rows if row["relative_variance"] > NO_VARIANCE]
    seen = sorted((row for row in rows if row["bias_low"] > 0), key=lambda row: row["method"])
    unseen = sorted((row for row in rows if not row["bias_low"] > 0), key=_std, reverse=True)
    figure = Figure(figsize=(5.2, 3.0 + ROW * (len(unseen) + 1) + ROW * (len(seen) // 3 + 1)))
    plane, strip = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, ROW * (len(unseen) + 1)))
    plane.set(title=panel.title, xscale="log", yscale="log", ylabel="relative bias")
    drawn = _looks(rows)
    for row in seen:
        line = drawn[row["measured"]] | {"linestyle": ""}
        below, above = row["bias"] - row["bias_low"], row["bias_high"] - row["bias"]
        plane.errorbar(_std(row), row["bias"], [[below], [above]], elinewidth=0.8, **line)
    if not seen:
        plane.annotate("none", (0.5, 0.5), xycoords="axes fraction")
    for place, row in enumerate(unseen):
        strip.plot(_std(row), place, **(drawn[row["measured"]] | {"linestyle": ""}))
        at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 7}
        strip.annotate(f"< {row['bias_high']:.2g}", (1.01, place), **at)
    for axis in (plane.yaxis, strip.xaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())

    def minor(value: float, _: float) -> str:
        low, high = plane.get_ylim()
        return f"{value:g}" if f"{value:e}"[0] in ("235" if high > 5 * low else "2345678") else ""

    plane.yaxis.set_minor_formatter(FuncFormatter(minor))
    strip.set_yticks(range(len(unseen)), [_name(row) for row in unseen], fontsize=7)
    strip.set(
        ylim=(-0.7, len(unseen) - 0.3), ylabel="bias not seen", xlabel="relative standard deviation of one gradient"
    )
    handles = [Line2D([], [], label=row["label"], **(drawn[row["measured"]] | {"linestyle": ""})) for row in seen]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=7)
    return figure


@matplotlib.style.context(STYLE)
def ranking(panel: Panel) -> Figure:
    """Cost to reach unit signal-to-noise at the last step: relative variance x cost per gradient.

    That is the relative variance times evaluations per gradient (left: a count per example) and times seconds per
    gradient (right: a measurement on one machine), with intervals of two standard errors, on the right joined with the
    quartiles of the time. Best at the top, in the order of the left; those whose bias is seen stand apart, with it.
    """
    rows = [row for row in panel.at_the_end().to_dict("records") if row["relative_variance"] > NO_VARIANCE]
    rows.sort(key=lambda row: row["relative_variance"] * row["evaluations"])
    parts = [[row for row in rows if (row["bias_low"] > 0) is biased] for biased in (False, True)]
    gap = 1 if all(parts) else 0
    figure = Figure(figsize=(7.2, ROW * (len(rows) + gap) + 0.9))
    left, right = figure.subplots(1, 2, sharey=True)
    places = [*range(len(parts[0])), *range(len(parts[0]) + gap, len(rows) + gap)]
    ordered = [*parts[0], *parts[1]]
    _dots(left, places, ordered, lambda row: (row["evaluations"],) * 3)
    _dots(right, places, ordered, lambda row: (row["seconds_low"], row["seconds"], row["seconds_high"]))
    left.set_yticks(places, [_name(row) for row in ordered], fontsize=7)
    left.set_ylim(len(rows) + gap - 0.3, -0.7)
    left.set_xlabel("evaluations per example")
    right.set_xlabel("seconds")
    figure.suptitle(f"Until noise and gradient are equally long: {panel.title}", fontsize=9)
    at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 7}
    if parts[1]:
        place = len(parts[0]) + gap - 1
        for axes in (left, right):
            axes.axhline(place, color="black", linewidth=0.7)
        right.annotate("bias", (1.02, place), **at)
        for place, row in zip(places[len(parts[0]) :], parts[1], strict=True):
            right.annotate(f"{row['bias']:.2g}", (1.02, place), **at)
    return figure


def _dots(axes: Axes, places: list[int], rows: list[Row], cost: Callable[[Row], tuple[float, ...]]) -> None:
    drawn = _looks(rows)
    axes.set_xscale("log")
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    for place, row in zip(places, rows, strict=True):
        sizes = (row["relative_low"], row["relative_variance"], row["relative_high"])
        low, middle, high = (size * price for size, price in zip(sizes, cost(row), strict=True))
        line = drawn[row["measured"]] | {"linestyle": ""}
        axes.errorbar(middle, place, xerr=[[middle - low], [high - middle]], elinewidth=0.8, capsize=1.5, **line)
    if rows:
        axes.hlines(places, axes.get_xlim()[0], np.nan, linewidth=0)


def _name(row: Row) -> str:
    """With a star if it is declared biased, which its place may not say."""
    return row["label"] + ("" if row["unbiased"] else " *")


def _std(row: Row) -> float:
    return math.sqrt(row["relative_variance"])


def _looks(rows: Collection[Row]) -> dict[str, dict[str, Any]]:
    """How the measured estimators of one figure are drawn; one of other options is a variant of its method."""
    names = {
        row["measured"]: labelled(row["method"], "" if row["measured"] == row["method"] else row["measured"])
        for row in rows
    }
    families = {names[row["measured"]]: row.get("family") for row in rows}
    found = looks(names.values(), families)
    return {measured: found[name].line() for measured, name in names.items()}
