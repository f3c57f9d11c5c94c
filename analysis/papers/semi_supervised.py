"""``python -m analysis.papers.semi_supervised runs/SWEEP``: accuracy of semi-supervised classification, its table
and figures.

What is chosen by validation is chosen by accuracy here, not by the bound, and the baseline is the classifier trained on
the labelled images alone (task ``labelled_only``), run by run: the same seed has the same labelled images in both.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from analysis import output, records
from analysis.figures.curves import save
from analysis.figures.style import STYLE, Look, families_of, in_order, look, looks
from analysis.output import make_printable
from analysis.papers.published import all_published
from analysis.records.images import read_images
from analysis.statistics.curves import Metric, average
from analysis.statistics.intervals import interval
from analysis.statistics.summary import check_protocols, final_rows, select
from analysis.tables import table
from analysis.tables.table import NONE, Table

TASK, BASELINE = "semi_supervised", "labelled_only"
BASELINE_LOOK = Look("labelled images only", "0.45", (0, (1, 1)), "")
NATS = {"elbo": "test_elbo", "bound": "test_bound"}


def chosen(frame: pd.DataFrame) -> pd.DataFrame:
    """The finished runs of the setting with the best mean validation accuracy, per task and estimator, a row each.

    ``frame``: as of :func:`analysis.records.load`, of one data set. A run that went on after a result has its last one
    here. Raises ``ValueError`` for several, or if no run of
    these tasks is finished.
    """
    runs = final_rows(frame[frame["task"].isin([TASK, BASELINE])])
    runs = runs.sort_values("step", kind="stable", na_position="first").drop_duplicates("run", keep="last").sort_index()
    if runs["data"].nunique() > 1:
        raise ValueError(f"one data set at a time, not {', '.join(sorted(set(runs['data'])))}")
    check_protocols(runs)
    if not (runs["status"] == "finished").any():
        raise ValueError(f"no run of task={TASK} or task={BASELINE} is finished here")
    best = select(runs.assign(valid=runs["valid_accuracy"].astype(float)))
    return best[best["status"] == "finished"]


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per estimator, and one for the baseline, of the runs of :func:`chosen`.

    ``accuracy`` in percent, ``gain`` over the baseline in points (mean of differences of equal seeds), ``elbo``
    and ``bound`` in nats, of test, each with ``_low`` and ``_high``, the 95 % interval of the mean over the ``n`` seeds
    (nan for one seed); ``setting`` and how many ``settings`` were tried; ``published_accuracy`` and ``published_elbo``.
    """
    data = runs["data"].iloc[0]
    theirs = {
        (value.estimator, value.metric): value.value
        for value in all_published()
        if (value.source, value.table, value.task, value.data) == ("jang2017", "Table 2", TASK, data)
    }
    labelled = runs[runs["task"] == BASELINE].set_index("seed")["test_accuracy"].astype(float)
    rows = []
    for (task, estimator), own in runs.groupby(["task", "estimator"]):
        accuracy = own.set_index("seed")["test_accuracy"].astype(float)
        is_baseline = task == BASELINE
        row: dict[str, Any] = {"estimator": BASELINE if is_baseline else estimator, "n": len(own)}
        row |= {"setting": own["setting"].iloc[0], "settings": own["settings"].iloc[0]}
        gain = (accuracy - labelled).dropna()
        columns = {"accuracy": accuracy, "gain": gain[:0] if is_baseline else gain}
        columns |= {} if is_baseline else {name: own[column].astype(float) for name, column in NATS.items()}
        for name in ("accuracy", "gain", *NATS):
            values = columns.get(name, accuracy[:0])
            found = interval(values) if len(values) else (math.nan,) * 3
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))
        row["published_accuracy"] = math.nan if is_baseline else theirs.get((estimator, "accuracy"), math.nan)
        row["published_elbo"] = math.nan if is_baseline else theirs.get((estimator, "elbo"), math.nan)
        rows.append(row)
    order = [*in_order({row["estimator"] for row in rows} - {BASELINE}), BASELINE]
    return pd.DataFrame(rows).sort_values("estimator", key=lambda names: names.map(order.index), ignore_index=True)


def to_markdown(summarised: pd.DataFrame) -> str:
    """The frame of :func:`summary` as a table, published values in parentheses, and what was chosen below it."""
    return table.to_markdown([printed(summarised)])


def printed(summarised: pd.DataFrame) -> Table:
    """The table of :func:`to_markdown`."""

    def cell(row: pd.Series, name: str, digits: int, theirs: float = math.nan) -> str:
        if math.isnan(row[name]):
            return NONE
        half = (row[f"{name}_high"] - row[f"{name}_low"]) / 2
        text = table.fixed(row[name], digits) + ("" if math.isnan(half) else f" ± {half:.{digits}f}")
        return text if math.isnan(theirs) else f"{text} ({theirs})"

    header = ["estimator of the class", "accuracy, %", "gain over labels alone", "ELBO", "bound", "seeds"]
    rows = []
    for _, row in summarised.iterrows():
        cells = [BASELINE_LOOK.label if row["estimator"] == BASELINE else row["estimator"]]
        cells += [cell(row, "accuracy", 1, row["published_accuracy"]), cell(row, "gain", 1)]
        cells += [cell(row, "elbo", 1, row["published_elbo"]), cell(row, "bound", 1), str(row["n"])]
        rows.append(cells)
    notes = ["Test, mean and 95 % interval over seeds (Student t); the gain is of equal seeds."]
    if summarised["published_accuracy"].notna().any():
        notes.append("In parentheses: Jang et al. 2017, Table 2, selected on test.")
    for _, row in summarised[summarised["settings"] > 1].iterrows():
        notes.append(f"{row['estimator']}: {row['setting']}, best of {row['settings']} by validation accuracy.")
    return Table(header, rows, notes, numbers=summarised)


@matplotlib.style.context(STYLE)
def accuracy_curves(frame: pd.DataFrame) -> Figure:
    """Validation accuracy (%) against steps of the runs of ``frame``: mean over seeds, pointwise 95 % interval."""
    figure = Figure(figsize=(4.4, 3.0))
    axes = figure.add_subplot()
    handles = []
    semi = frame[frame["task"] == TASK]
    drawn = looks(semi["estimator"], families_of(semi))
    groups = [(each, semi[semi["estimator"] == name]) for name, each in drawn.items()]
    groups.append((BASELINE_LOOK, frame[frame["task"] == BASELINE]))
    for style, runs in groups:
        curve = None if runs.empty else average(runs, Metric("valid_accuracy"))
        if curve is None:
            continue
        axes.plot(curve.x, curve.mean, markevery=max(1, curve.x.size // 7), **style.line())
        if curve.band:
            axes.fill_between(curve.x, *curve.band, color=style.color, alpha=0.1, linewidth=0)
        handles.append(Line2D([], [], label=style.label, **style.line()))
    axes.set(xlabel="training steps", ylabel="validation accuracy [%]")
    axes.set_ylim(top=min(axes.get_ylim()[1], 100))  # an interval of few seeds goes beyond
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


@matplotlib.style.context(STYLE)
def analogies(originals: NDArray[Any], grid: NDArray[Any], title: str) -> Figure:
    """Originals ``[n, h, w]`` in the first column; then ``grid`` ``[n, classes, h, w]``, a class in each column."""
    n, classes, height, width = grid.shape
    gap = max(1, width // 14)
    canvas = np.full((n * (height + gap) - gap, (classes + 1) * (width + gap) + gap), np.nan)
    for row in range(n):
        for column in range(-1, classes):
            left = (column + 1) * (width + gap) + (gap if column >= 0 else 0)
            image = originals[row] if column < 0 else grid[row, column]
            canvas[row * (height + gap) : row * (height + gap) + height, left : left + width] = image
    figure = Figure(figsize=(4.4, 4.4 * canvas.shape[0] / canvas.shape[1] + 0.45))
    axes = figure.add_subplot()
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    places = [width / 2, *((column + 1) * (width + gap) + gap + width / 2 for column in range(classes))]
    axes.set_xticks(places, ["style of", *map(str, range(classes))])
    axes.tick_params(length=0)
    axes.set(yticks=[], xlabel="class", title=title)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure


def draw(frame: pd.DataFrame, out: Path) -> list[Path]:
    """Write table and figures of the long ``frame`` into ``out``; returns the files. Raises ``ValueError`` as
    :func:`chosen` does."""
    runs = chosen(frame)
    out.mkdir(parents=True, exist_ok=True)
    files = table.write([printed(summary(runs))], out / "accuracy", ("csv", "md"))
    files += save(accuracy_curves(frame[frame["path"].isin(runs["path"])]), out / "accuracy")
    first = runs[runs["task"] == TASK].sort_values(["estimator", "seed"]).drop_duplicates("estimator")
    for name, path in zip(first["estimator"], first["path"], strict=True):
        if arrays := read_images(Path(path)):
            drawn = analogies(arrays["originals"], arrays["analogies"], look(name).label)
            files += save(drawn, out / f"analogies_{name}")
    return files


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; write it and the figures."""
    make_printable()
    parser = argparse.ArgumentParser(prog="python -m analysis.papers.semi_supervised", description=__doc__)
    parser.add_argument("path", type=Path, help="a sweep (runs/NAME)")
    parser.add_argument("--output", type=Path, help="where they are written (default: PATH/report)")
    options = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            frame = records.load(options.path)
        output = options.output or options.path / "report"
        draw(frame, output)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print((output / "accuracy.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    output.run(main)
