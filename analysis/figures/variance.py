"""Figures of bias and variance at the same point: against each other, for the same work, and over training."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.figures.curves import save
from analysis.figures.style import STYLE, fit_titles, in_order, legend_below, looks
from analysis.statistics.settings import labelled
from analysis.statistics.variance import Panel, largest_bias
from analysis.tables.table import write as write_tables
from analysis.tables.variance import tables

NO_VARIANCE = 1e-9
"""Rounding error of a variance of 0, relative to the squared gradient."""
LEAST_BIAS = 0.01
"""On a path, a bias that cannot be told from 0 is drawn here at least."""
ROW = 0.17
"""Inches for a line of text."""
Row = dict[str, Any]
Looks = dict[str, dict[str, Any]]


def write(found: Sequence[Panel], output: Path) -> Iterator[Path]:
    """The tables and figures of ``found`` into ``output``; none for no panels.

    Each panel of runs has figures of its own; those of a certificate, which are alike, share one.
    """
    if not found:
        return
    yield from write_tables(tables(found), output / "variance", ("md", "csv"))
    if found[0].trainer == "none":
        yield from save(bias_variance(found), output / "bias_variance")
        yield from save(ranking(found), output / "ranking")
        return
    yield from save(over_training(found), output / "variance_over_training")
    for panel in found:
        yield from save(bias_variance([panel]), output / f"bias_variance_{panel.name}")
        yield from save(ranking([panel]), output / f"variance_ranking_{panel.name}")


@matplotlib.style.context(STYLE)
def over_training(found: Sequence[Panel]) -> Figure:
    """Variance per parameter against the step, both logarithmic, a panel for each task; bars: two standard errors."""
    columns = min(2, len(found))
    methods = {row["measured"]: row for panel in found for row in panel.rows.to_dict("records")}
    order = _in_order(methods)
    drawn = _looks(methods.values())
    figure = Figure(figsize=(3.6 * columns, 3.5 * -(-len(found) // columns)))
    shown = set()
    for place, panel in enumerate(found):
        axes = figure.add_subplot(-(-len(found) // columns), columns, place + 1)
        axes.set(title=panel.title, xscale="log", yscale="log", xlabel="training steps")
        if place % columns == 0:
            axes.set_ylabel("variance per parameter")
        for name in order:
            own = panel.rows[(panel.rows["measured"] == name) & (panel.rows["relative_variance"] > NO_VARIANCE)]
            if own.empty:
                continue
            shown.add(name)
            middle = own["variance"]
            bars = [middle - own["variance_low"], own["variance_high"] - middle]
            axes.errorbar(own["step"], middle, bars, elinewidth=0.7, **drawn[name])
    order = [name for name in order if name in shown]
    handles = [Line2D([], [], **drawn[name]) for name in order]
    legend_below(figure, handles, [methods[name]["label"] for name in order], 2 * columns + 1, fontsize=7)
    fit_titles(figure)
    return figure


@matplotlib.style.context(STYLE)
def bias_variance(found: Sequence[Panel]) -> Figure:
    """Relative bias with its interval against the relative variance of one gradient, a column for each panel.

    An estimator that was measured at several temperatures is a path, with larger markers for higher ones. Below, on an
    axis of their own, stand those whose bias is seen in no panel, with the largest that it could be; a star means that
    an estimator is declared biased. Points where the gradient vanishes lie outside of the frame.
    """
    paths = [{name: _records(rows) for name, rows in panel.paths().items()} for panel in found]
    every = {name: rows[0] for own in reversed(paths) for name, rows in own.items()}
    drawn = _looks(every.values())
    has_bias = {name for own in paths for name, rows in own.items() if any(row["bias_low"] > 0 for row in rows)}
    seen = _in_order({name: every[name] for name in has_bias})
    unseen = [name for name in _in_order(every) if name not in has_bias]
    unseen.sort(key=lambda name: every[name]["relative_variance"], reverse=True)
    columns, below = (3, 4)[len(found) > 1], ROW * (len(unseen) + 1)
    width = 5.2 if len(found) == 1 else 3.6 * len(found)
    figure = Figure(figsize=(width, 3.2 + below + ROW))
    grid = figure.subplots(2, len(found), sharex=True, sharey="row", height_ratios=(2.8, below), squeeze=False)
    for (plane, strip), panel, own in zip(grid.T, found, paths, strict=True):
        plane.set(title=panel.title, xscale="log", yscale="log")
        for name in seen:
            _draw_path(plane, own.get(name, []), drawn[name])
        if not seen:
            plane.annotate("none", (0.5, 0.5), xycoords="axes fraction")
        for place, name in enumerate(unseen):
            for row in own.get(name, []):
                _draw_dot(strip, place, row, drawn[name])
                _write_right(strip, place, largest_bias(row))
        strip.set_xlabel("relative variance of one gradient")
    temperatures = sorted({row["temperature"] for own in paths for rows in own.values() for row in rows if _hot(row)})
    if temperatures:
        values = [value for panel in found for value in panel.at_the_end()["relative_variance"] if value > NO_VARIANCE]
        grid[0, 0].set_xlim(min(values) / 3, 3 * max(values))
    _format(grid[0, 0], grid[1, 0])
    grid[0, 0].set_ylabel("relative bias")
    grid[1, 0].set_yticks(range(len(unseen)), [_name(every[name]) for name in unseen], fontsize=7)
    grid[1, 0].set(ylim=(-0.7, len(unseen) - 0.3), ylabel="bias not seen")
    line = {} if temperatures else {"linestyle": ""}
    handles = [Line2D([], [], **(drawn[name] | line)) for name in seen]
    about = f"temperatures {', '.join(f'{t:g}' for t in temperatures)}: from small to large markers"
    title = {"title": about, "title_fontsize": 8} if temperatures else {}
    labels = [every[name]["label"] for name in seen]
    legend_below(figure, handles, labels, columns, loc="outside upper center", fontsize=7, **title)
    fit_titles(figure)
    return figure


def _draw_path(axes: Axes, rows: Sequence[Row], line: dict[str, Any]) -> None:
    x = [row["relative_variance"] for row in rows]
    y = [max(row["bias"], LEAST_BIAS) if row["bias_low"] == 0 else row["bias"] for row in rows]
    if len(rows) > 1:
        axes.plot(x, y, color=line["color"], linestyle=line["linestyle"], linewidth=0.9)
    for row, at, up in zip(rows, x, y, strict=True):
        size = 5.0 + (1.5 * math.log10(row["temperature"]) if _hot(row) else 0.0)
        bars = [[up - max(row["bias_low"], min(up, LEAST_BIAS))], [max(row["bias_high"] - up, 0.0)]]
        axes.errorbar(at, up, bars, elinewidth=0.8, **(line | {"linestyle": "", "markersize": size}))


def _draw_dot(axes: Axes, place: int, row: Row, line: dict[str, Any]) -> None:
    if row["relative_variance"] > NO_VARIANCE:
        axes.plot(row["relative_variance"], place, **(line | {"linestyle": ""}))
    else:  # to the left of a logarithmic axis
        at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 7}
        axes.annotate("0", (0.015, place), color=line["color"], **at)


def _write_right(axes: Axes, place: float, text: str) -> None:
    axes.annotate(text, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=7)


def _format(plane: Axes, strip: Axes) -> None:
    """Plain numbers instead of powers of ten."""
    for axis in (plane.yaxis, strip.xaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())

    def minor(value: float, _: float) -> str:
        low, high = plane.get_ylim()
        if high > 50 * low:
            return ""
        return f"{value:g}" if f"{value:e}"[0] in ("235" if high > 5 * low else "2345678") else ""

    plane.yaxis.set_minor_formatter(FuncFormatter(minor))


@matplotlib.style.context(STYLE)
def ranking(found: Sequence[Panel]) -> Figure:
    """Cost to reach unit signal-to-noise at the last step: relative variance x cost per gradient, a row for each panel.

    That is the relative variance times evaluations per gradient (left: a count per example) and times seconds per
    gradient (right: a measurement on one machine), with intervals of two standard errors, on the right joined with the
    quartiles of the time. Best at the top, in the order of the left; those whose bias is seen stand apart, with it.
    """
    rows = [list(_ranked(panel)) for panel in found]
    figure = Figure(figsize=(7.2, sum(ROW * len(own) + 0.75 for own in rows) + 0.2))
    grid = figure.subplots(len(found), 2, squeeze=False, height_ratios=[len(own) + 2 for own in rows], sharex="col")
    for (left, right), panel, own in zip(grid, found, rows, strict=True):
        for axes, costs in ((left, ["evaluations"] * 3), (right, ["seconds_low", "seconds", "seconds_high"])):
            _draw_costs(axes, own, costs)
        left.set_title(panel.title, loc="left")
        left.set_yticks(range(len(own)), [_name(row) if row else "" for row in own], fontsize=7)
        right.set_yticks(range(len(own)), [])
        for place, row in enumerate(own):
            if row is None:
                _write_right(right, place, "bias")
            elif place > own.index(None):
                _write_right(right, place, f"{row['bias']:.2g}")
    grid[-1, 0].set_xlabel("evaluations per example")
    grid[-1, 1].set_xlabel("seconds")
    figure.suptitle("Cost to reach unit signal-to-noise: relative variance x cost of one gradient", fontsize=9)
    return figure


def _ranked(panel: Panel) -> Iterator[Row | None]:
    """A panel's rows by variance times evaluations: those whose bias is not seen, ``None``, and the others."""
    rows = _records(panel.at_the_end())
    rows.sort(key=lambda row: row["relative_variance"] * row["evaluations"])
    yield from (row for row in rows if not row["bias_low"] > 0)
    yield None
    yield from (row for row in rows if row["bias_low"] > 0)


def _draw_costs(axes: Axes, rows: Sequence[Row | None], costs: Sequence[str]) -> None:
    drawn = _looks([row for row in rows if row])
    axes.set(xscale="log", ylim=(len(rows) - 0.3, -0.7))
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    for place, row in enumerate(rows):
        if row is None:
            axes.axhline(place, color="black", linewidth=0.7)
        elif row["relative_variance"] > NO_VARIANCE:
            sizes = (row["relative_low"], row["relative_variance"], row["relative_high"])
            low, middle, high = (size * row[cost] for size, cost in zip(sizes, costs, strict=True))
            line = drawn[row["measured"]] | {"linestyle": ""}
            axes.errorbar(middle, place, xerr=[[middle - low], [high - middle]], elinewidth=0.8, capsize=1.5, **line)
        else:
            _draw_dot(axes, place, row, drawn[row["measured"]])


def _records(rows: pd.DataFrame) -> list[Row]:
    """The rows whose variance is known relative to the gradient."""
    return rows[rows["relative_variance"].notna()].to_dict("records")  # type: ignore[return-value]


def _hot(row: Row) -> bool:
    return not math.isnan(row["temperature"])


def _in_order(rows: Mapping[str, Row]) -> list[str]:
    """The names of what was measured, in the order that methods have in every figure."""
    order = in_order({row["method"] for row in rows.values()})
    return sorted(rows, key=lambda name: (order.index(rows[name]["method"]), name))


def _name(row: Row) -> str:
    """The label, with a star if the estimator is declared biased: its place in the figure may not say so."""
    return row["label"] + ("" if row["unbiased"] else " *")


def _looks(rows: Collection[Row]) -> Looks:
    """How the measured estimators of one figure are drawn; one of other options is a variant of its method."""
    names = {
        row["measured"]: labelled(row["method"], "" if row["measured"] == row["method"] else row["measured"])
        for row in rows
    }
    families = {names[row["measured"]]: row.get("family") for row in rows}
    found = looks(names.values(), families)
    return {measured: found[name].line() for measured, name in names.items()}
