"""``python -m analysis.papers.class_speed FILE.json OUTDIR``: what ``training.benchmarks.classes`` measured, drawn."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import output
from analysis.figures.curves import save
from analysis.figures.style import STYLE, in_order, look, looks
from analysis.output import make_printable
from analysis.papers.published import all_published
from analysis.tables.table import NONE, Table, to_markdown, write

MARGINALISED = "exact"


def published_ratios() -> dict[int, float]:
    """Steps per second of Gumbel-Softmax over those of marginalisation by the number of classes (Jang et al. 2017)."""
    found = {}
    for value in all_published():
        if value.metric == "ratio" and value.source == "jang2017":
            (categories,) = re.findall(r"(\d+) classes", value.setting)
            found[int(categories)] = value.value
    return found


@matplotlib.style.context(STYLE)
def speed(rows: pd.DataFrame, published: dict[int, float]) -> Figure:
    """Steps per second against the number of classes, and how many times those of marginalisation they are.

    ``rows``: ``categories``, ``batch_size``, ``estimator``, ``steps_per_second``, ``ratio``; ``published``: ratios of
    Gumbel-Softmax by the number of classes, drawn as crosses.
    """
    figure = Figure(figsize=(6.6, 2.9))
    left, right = figure.subplots(1, 2)
    handles = []
    for name, style in looks(rows["estimator"]).items():
        own = rows[rows["estimator"] == name].sort_values("categories")
        left.plot(own["categories"], own["steps_per_second"], **style.line())
        if name != MARGINALISED:
            right.plot(own["categories"], own["ratio"], **style.line())
        handles.append(Line2D([], [], label=style.label, **style.line()))
    crosses: dict[str, Any] = {"color": "black", "linestyle": "", "marker": "x", "markersize": 7, "zorder": 5}
    right.plot(list(published), list(published.values()), **crosses)
    handles.append(Line2D([], [], label="Gumbel-Softmax, Jang et al. (GPU, convolutions)", **crosses))
    right.axhline(1, color="0.5", linewidth=0.8)
    sizes = rows.drop_duplicates("categories").sort_values("categories")
    smaller = sizes[sizes["batch_size"] < sizes["batch_size"].max()]
    words = [f"batch {sizes['batch_size'].max()}"]
    words += [f"{row.batch_size} at {row.categories}" for row in smaller.itertuples()]
    left.set_title(", ".join(words))
    left.set_ylabel("steps per second")
    right.set_ylabel("times those of Exact")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="classes")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def table(rows: pd.DataFrame, published: dict[int, float]) -> Table:
    """A line per number of classes, ``steps per second (times those of Exact)`` per estimator."""
    names = in_order(set(rows["estimator"]))
    header = ["classes", "batch", *(look(name).label for name in names), "Jang et al."]
    lines = []
    for (categories, batch), group in rows.groupby(["categories", "batch_size"]):
        own = group.set_index("estimator")
        cells = [
            f"{own.loc[name, 'steps_per_second']:.3g}"
            + (f" ({own.loc[name, 'ratio']:.2f}x)" if name != MARGINALISED else "")
            for name in names
        ]
        theirs = f"{published[int(categories)]:.1f}x" if int(categories) in published else NONE
        lines.append([str(categories), str(batch), *cells, theirs])
    return Table(header, lines, labels=0, numbers=rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; write ``speed.png``, ``speed.pdf``, ``speed.csv`` and ``speed.md``."""
    make_printable()
    parser = argparse.ArgumentParser(prog="python -m analysis.papers.class_speed", description=__doc__)
    parser.add_argument("file", type=Path, help="what python -m training.benchmarks.classes wrote")
    parser.add_argument("output", type=Path, help="folder for figure and table")
    options = parser.parse_args(arguments)
    report = json.loads(options.file.read_text(encoding="utf-8"))
    rows, published = pd.DataFrame(report["rows"]), published_ratios()
    options.output.mkdir(parents=True, exist_ok=True)
    measured = [table(rows, published)]
    write(measured, options.output / "speed", ("csv", "md"))
    print(to_markdown(measured))
    save(speed(rows, published), options.output / "speed")
    return 0


if __name__ == "__main__":
    output.run(main)
