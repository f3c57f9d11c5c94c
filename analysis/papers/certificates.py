"""``python -m analysis.papers.certificates FILE.json OUTDIR``: figures of what ``python -m estimators.check --json``
measured.

``bias_variance``: relative bias against relative variance, biased estimators as paths over their temperature, unbiased
ones below on an axis of their own. ``ranking``: variance times evaluations, what a fixed budget of evaluations leaves.
Both for K = 2 and 4 categories and the certificate's loss of degree 3; everything is relative to the exact gradient. An
estimator of another objective (VIMCO) is left out, and so is one that rescales its gradient (NVIL, which has its
unscaled form instead).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from analysis.figures.curves import save
from analysis.figures.style import KNOWN, STYLE, Look, looks
from analysis.statistics.variance import DEGREE, certified

LEAST_BIAS = 0.01
"""Biases below are drawn here: with the certificate's draws they cannot be told from 0."""
FRAME = (0.02, 100)
"""Minimum x-range; curves leave it where the gradient vanishes (bias 1), or where nothing but noise is left."""
NO_VARIANCE = 1e-9
"""What is left of no variance after rounding."""

Result = dict[str, Any]


def compared(report: Result) -> list[Result]:
    """The estimators whose figures are comparable: of the mean of the loss, and not rescaled."""
    results = report["estimators"]
    return [r for r in results if r["declared"]["objective"] == "mean" and not r["declared"]["rescales"]]


def styles(report: Result) -> dict[str, Look]:
    """The looks of the options that the methods' names stand for, by the methods' names; variants of one share it."""
    results = {result["name"]: result for result in report["estimators"]}
    options = {name: _option(name) for name in results}
    families = {options[name]: result["declared"].get("family") for name, result in results.items()}
    found = looks(options.values(), families)
    return {name: _of_variant(name, found[option]) for name, option in options.items()}


def _option(name: str) -> str:
    option = "STGumbelSoftmax" if name == "GumbelSoftmax hard" else name.partition(" ")[0]
    known = {key.replace("_", ""): key for key in KNOWN}
    return known.get(option.lower(), option.rsplit(":", 1)[-1])


def _of_variant(name: str, found: Look) -> Look:
    variant = name.partition(" ")[2]
    return replace(found, label=f"{found.label} {variant}") if variant and variant != "hard" else found


def _stochastic(result: Result) -> bool:
    """As declared; certificates of older code did not say it."""
    return bool(result["declared"].get("stochastic", result["name"] != "Exact"))


def variance(result: Result, categories: int) -> float | None:
    """Relative variance of one gradient with the estimator's default arguments, ``None`` if it does not take K."""
    found = _default(result, categories)
    return found["relative_variance"] if found else None


def _default(result: Result, categories: int) -> Result | None:
    """The point with default arguments in one layer, ``None`` if the estimator does not take K."""
    found = (p for p in certified(result) if not p["swept"] and (p["categories"], p["layers"]) == (categories, 1))
    return next(found, None)


def path(result: Result, categories: int) -> list[tuple[float | None, float, float, tuple[float, float]]]:
    """Of a biased estimator ``(temperature, relative variance, relative bias, its interval)`` by temperature."""
    rows = [p for p in certified(result) if p["swept"] and (p["categories"], p["degree"]) == (categories, DEGREE)]
    return [(p["temperature"], p["relative_variance"], p["bias"], (p["bias_low"], p["bias_high"])) for p in rows]


@matplotlib.style.context(STYLE)
def bias_variance(report: Result) -> Figure:
    """The plane of relative bias (up) and relative variance (right), a column per number of categories.

    A marker per temperature, the larger the hotter; vertical bars are the biases' intervals.
    Temperatures at which an estimator has nearly no gradient lie outside of the frame.
    """
    results, style = compared(report), styles(report)
    biased = [r for r in results if not r["declared"]["unbiased"]]
    unbiased = [r for r in results if r["declared"]["unbiased"] and _stochastic(r)]
    unbiased.sort(key=lambda result: variance(result, 2) or math.inf, reverse=True)
    rows = 0.165 * len(unbiased) + 0.3
    figure = Figure(figsize=(7.2, 3.4 + rows + 1.1))
    grid = figure.subplots(2, 2, sharex="col", sharey="row", height_ratios=(3.4, rows))
    for column, categories in enumerate((2, 4)):
        plane, strip = grid[0, column], grid[1, column]
        plane.set(title=f"K = {categories}", xscale="log", yscale="log")
        for result in biased:
            _draw_path(plane, result, categories, style[result["name"]])
        drawn = [value for result in unbiased if (value := variance(result, categories) or 0) > NO_VARIANCE]
        strip.set_xlim(min([FRAME[0], *drawn]), max([FRAME[1], *drawn]))
        for row, result in enumerate(unbiased):
            _draw_dot(strip, row, variance(result, categories), style[result["name"]])
        strip.set_xlabel("relative variance of one gradient")
        strip.xaxis.set_major_formatter(FuncFormatter(_plain))
    grid[0, 0].yaxis.set_major_formatter(FuncFormatter(_plain))
    grid[0, 0].set_ylabel("relative bias")
    grid[1, 0].set_ylabel("no bias")
    grid[1, 0].set_yticks(range(len(unbiased)), [style[r["name"]].label for r in unbiased], fontsize=7)
    grid[1, 0].set_ylim(-0.7, len(unbiased) - 0.3)
    temperatures = sorted({row["temperature"] for r in biased for row in r["bias"]} - {None})
    figure.legend(
        title=f"temperatures {', '.join(f'{t:g}' for t in temperatures)}: from small to large markers",
        title_fontsize=8,
        handles=[Line2D([], [], label=style[r["name"]].label, **style[r["name"]].line()) for r in biased],
        loc="outside upper center",
        ncols=4,
    )
    return figure


def _draw_path(axes: Axes, result: Result, categories: int, how: Look) -> None:
    points = path(result, categories)
    line = how.line()
    x, y = [p[1] for p in points], [max(p[2], LEAST_BIAS) for p in points]
    axes.plot(x, y, color=line["color"], linestyle=line["linestyle"], linewidth=0.9)
    for (temperature, *_, interval), at, up in zip(points, x, y, strict=True):
        size = 5.0 if temperature is None else 5.0 + 1.5 * math.log10(temperature)
        axes.plot(at, up, **(line | {"linestyle": ""}), markersize=size)
        axes.plot([at, at], [max(end, LEAST_BIAS) for end in interval], color=line["color"], linewidth=0.7)


def _draw_dot(axes: Axes, row: int, value: float | None, how: Look) -> None:
    if value is None:
        return
    line = how.line() | {"linestyle": ""}
    if value > NO_VARIANCE:
        axes.plot(value, row, **line)
    else:  # to the left of a logarithmic axis
        axes.annotate("0", (0.015, row), xycoords=("axes fraction", "data"), va="center", fontsize=7, color=how.color)


@matplotlib.style.context(STYLE)
def ranking(report: Result) -> Figure:
    """Relative variance times evaluations with default arguments, best at the top; the biased ones apart, with bias."""
    style = styles(report)
    results = [r for r in compared(report) if _stochastic(r)]
    columns = {k: list(_ranked(results, k)) for k in (2, 4)}
    most = max(map(len, columns.values()))
    values = [row[1] for rows in columns.values() for row in rows if row and row[1] > NO_VARIANCE]
    figure = Figure(figsize=(7.2, 0.165 * most + 0.9))
    right: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 7}
    for axes, (categories, rows) in zip(figure.subplots(1, 2, squeeze=False)[0], columns.items(), strict=True):
        axes.set(title=f"K = {categories}", xscale="log", xlim=(min(values) / 1.8, max(values) * 2.2))
        labels = [style[row[0]["name"]].label if row else "" for row in rows]
        axes.set_yticks(range(len(rows)), labels, fontsize=7)
        axes.set_ylim(most - 0.3, -0.7)
        axes.tick_params(axis="y", length=0)
        for number, row in enumerate(rows):
            if row is None:
                axes.axhline(number, color="black", linewidth=0.7)
                axes.annotate("bias", (1.02, number), **right)
                continue
            result, value, bias = row
            how = style[result["name"]]
            if value > NO_VARIANCE:
                axes.hlines(number, axes.get_xlim()[0], value, color=how.color, linewidth=0.9)
            _draw_dot(axes, number, value, how)
            if bias is not None:
                axes.annotate(f"{bias:.2f}", (1.02, number), **right)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        axes.set_xlabel("relative variance x evaluations")
    return figure


def _ranked(results: Sequence[Result], categories: int) -> Iterator[tuple[Result, float, float | None] | None]:
    """Rows ``(result, variance x evaluations, bias if declared biased)``, the unbiased first; ``None`` separates."""
    taken = [(result, found) for result in results if (found := _default(result, categories))]
    taken.sort(key=lambda pair: _cost(pair[1]))
    for unbiased in (True, False):
        for result, found in taken:
            if result["declared"]["unbiased"] == unbiased:
                yield result, _cost(found), None if unbiased else found["bias"]
        if unbiased:
            yield None


def _cost(found: Result) -> float:
    return float(found["relative_variance"] * found["evaluations"])


def _plain(value: float, _: float) -> str:
    return f"{value:g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.papers.certificates", description="Bias and variance figures."
    )
    parser.add_argument("file", type=Path, help="written by python -m estimators.check --json FILE")
    parser.add_argument("output", type=Path, help="folder for the figures")
    options = parser.parse_args(arguments)
    try:
        report = json.loads(options.file.read_text(encoding="utf-8"))
        drawn = {"bias_variance": bias_variance(report), "ranking": ranking(report)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{options.file}: not a certificate of estimators.check ({error!r})", file=sys.stderr)
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        print(*(f"wrote {file}" for file in save(figure, options.output / name)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
