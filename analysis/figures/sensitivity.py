"""How much an estimator depends on its learning rate, or on any other number of the config: data and a figure."""

from __future__ import annotations

import math
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from analysis.figures.style import STYLE, fit_titles, in_order, legend_below, look, with_looks
from analysis.statistics.intervals import interval
from analysis.statistics.settings import uses_of, with_settings
from analysis.statistics.summary import CELL, COMPARISON, check_protocols, final_rows, select
from analysis.tables.table import fixed

COLUMNS = 3
ABOVE = 1.0
"""How far the axis reaches above the worst estimator at its chosen value, in spans of these; arrows: beyond."""
MOST_LABELS = 6
SMALL: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7}


def sensitivity(frame: pd.DataFrame, field: str = "optimizer.lr") -> pd.DataFrame:
    """A row per estimator, task, data set and value of ``field``, of the long ``frame``; empty if it does not vary.

    ``mean``, ``low``, ``high``: the negative test bound in nats with 95 % interval over the ``n`` finished seeds, of
    the ``setting`` of all other hyperparameters that is best on validation at this value. ``diverged``, ``failed``,
    ``unfinished``, ``eliminated``: its other runs. Where a race ended all of them, ``rung`` is the step at which the
    best of them stopped, and ``at_rung`` its negative validation bound there, the mean over seeds. ``chosen``: whether
    the value is that of the cell's row in the table.

    Raises :class:`~analysis.statistics.summary.ProtocolsDiffer`.
    """
    runs, uses = final_rows(frame), uses_of(frame)
    check_protocols(runs)
    rows: list[dict[str, Any]] = []
    for cell, tried in runs.groupby(CELL) if field in runs else []:
        if tried[field].nunique() < 2:
            continue
        best = select(tried)
        for value, at_value in tried.groupby(field):
            settled = with_settings(at_value, uses)
            kept = select(settled)
            finished = kept[kept["status"] == "finished"]
            mean, low, high = interval(-finished["test"]) if len(finished) else (np.nan, np.nan, np.nan)
            counts = {word: int((kept["status"] == word).sum()) for word in ("diverged", "failed", "eliminated")}
            row = {
                **dict(zip(CELL, cell, strict=True)),
                "label": tried["label"].iloc[0],
                "family": tried["family"].iloc[0],
                field: value,
                "mean": mean,
                "low": low,
                "high": high,
            }
            row |= {"n": len(finished), **counts, "unfinished": len(kept) - len(finished) - sum(counts.values())}
            row |= _at_rung(settled if finished.empty else settled.iloc[:0])
            chosen = bool(best["setting"].notna().all() and (best[field] == value).all())
            rows.append({**row, "setting": kept["setting"].iloc[0], "chosen": chosen})
    columns = [
        *CELL,
        "label",
        "family",
        field,
        "mean",
        "low",
        "high",
        "n",
        "diverged",
        "failed",
        "unfinished",
        "eliminated",
        "rung",
        "at_rung",
        "setting",
        "chosen",
    ]
    return pd.DataFrame(rows, columns=columns)


def _at_rung(runs: pd.DataFrame) -> dict[str, float]:
    """Where the race ended of the runs at one value: the setting that came furthest, of those the best."""
    out = runs[runs["status"] == "eliminated"]
    if out.empty:
        return {"rung": np.nan, "at_rung": np.nan}
    last = out[out["step"] == out["step"].max()]
    return {"rung": float(last["step"].max()), "at_rung": -float(last.groupby("setting")["valid"].mean().max())}


@matplotlib.style.context(STYLE)
def figure(table: pd.DataFrame, field: str = "optimizer.lr") -> Figure | None:
    """The table of :func:`sensitivity` drawn: negative test bound against ``field``, a panel per task and data set.

    A ring marks the chosen value, a triangle one that a race eliminated, with its step, at its validation bound there;
    a cross one at which runs diverged, with their number; an arrow at the upper edge a mean beyond it, with its value.
    ``None`` for an empty table.
    """
    if table.empty:
        return None
    table = with_looks(table)
    panels = list(table.groupby(COMPARISON))
    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    names = in_order(set(table["label"]))
    drawn = Figure(figsize=(3.4 * columns + (1.0 if columns == 1 else 0), 2.7 * rows))
    for place, ((task, data), group) in enumerate(panels):
        axes = drawn.add_subplot(rows, columns, place + 1)
        axes.set_title(str(task) if data == "none" else f"{task}, {data}")
        axes.set_xlabel("learning rate" if field == "optimizer.lr" else field)
        axes.set_ylabel("negative test bound [nats]")
        if (group[field] > 0).all():
            axes.set_xscale("log")
            _label_values(axes, sorted(group[field].unique()))
        _panel(axes, group, field)
    shown = dict(zip(table["label"], table["look"], strict=True))
    names = [name for name in names if table.loc[table["label"] == name, ["mean", "at_rung"]].notna().any(axis=None)]
    entries = [(Line2D([], [], **shown[name].line()), look(name).label) for name in names]
    if (table["diverged"] > 0).any():
        entries.append((Line2D([], [], color="0.3", marker="x", linestyle=""), "runs diverged"))
    if table["chosen"].any():
        ring = Line2D([], [], color="0.3", marker="o", markersize=9, markerfacecolor="none", linestyle="")
        entries.append((ring, "chosen"))
    if table["at_rung"].notna().any():
        stopped = Line2D([], [], color="0.3", marker="v", markersize=5, markerfacecolor="none", linestyle="")
        entries.append((stopped, "eliminated at this step (validation)"))
    handles, labels = [line for line, _ in entries], [label for _, label in entries]
    legend_below(drawn, handles, labels, max(2, 2 * columns))
    fit_titles(drawn)
    return drawn


def _label_values(axes: Axes, values: list[float]) -> None:
    """Label the values that were tried, on a logarithmic axis those of them that are not too near to the one before."""
    span = math.log10(values[-1] / values[0]) or 1.0
    shown: list[float] = []
    for value in values:
        if not shown or math.log10(value / shown[-1]) > span / MOST_LABELS:
            shown.append(value)
    axes.set_xticks(shown, [f"{value:g}" for value in shown])
    axes.xaxis.set_minor_formatter(NullFormatter())


def _panel(axes: Axes, group: pd.DataFrame, field: str) -> None:
    best, means = group.loc[group["chosen"], "mean"].dropna(), group["mean"].fillna(group["at_rung"]).dropna()
    shown = best if len(best) > 1 else means
    span = (shown.max() - shown.min()) if len(shown) else 0.0
    top = (best if len(best) else means).max() + ABOVE * (span or 1.0) if len(means) else 1.0
    for name in in_order(set(group["label"])):
        own = group[group["label"] == name].sort_values(field)
        style = own["look"].iat[0]
        shown = own["mean"].clip(upper=top)
        half = (own["high"] - own["mean"]).where(own["mean"] <= top).fillna(0.0)
        axes.errorbar(own[field], shown, half, capsize=2, elinewidth=0.8, **style.line())
        ring = own[own["chosen"]]
        axes.plot(ring[field], ring["mean"].clip(upper=top), "o", markersize=9, mfc="none", mec=style.color)
        beyond = own[own["mean"] > top]
        for x, mean in zip(beyond[field], beyond["mean"], strict=True):
            axes.annotate("\u2191" + fixed(mean, 0), (x, top), (-5, 4), **SMALL, color=style.color, ha="right")
        out = own[own["at_rung"].notna()]
        heights = out["at_rung"].clip(upper=top)
        axes.plot(out[field], heights, "v", color=style.color, markersize=5, mfc="none")
        for x, y, rung in zip(out[field], heights, out["rung"], strict=True):
            axes.annotate(f"{rung:g}", (x, y), (4, -8), **SMALL, color=style.color)
        lost = own[own["diverged"] > 0]
        heights = lost["mean"].clip(upper=top).fillna(top)
        axes.plot(lost[field], heights, "x", color=style.color, markersize=8)
        for x, y, number in zip(lost[field], heights, lost["diverged"], strict=True):
            axes.annotate(str(number), (x, y), (4, 3), **SMALL, color=style.color)
    low, _ = axes.get_ylim()
    axes.set_ylim(low, top + 0.08 * (top - low))
