"""The tables of bias and variance, of the panels of :mod:`analysis.statistics.variance`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from analysis.statistics.variance import WHERE, Panel, bias_text
from analysis.tables.table import NONE, Table, fixed

Row = dict[Any, Any]


def tables(found: Sequence[Panel]) -> list[Table]:
    """A table for each panel: its last step, sorted by variance times evaluations; ``numbers`` has all rows.

    A column in which nothing is known is left out.
    """
    tables = []
    for panel in found:
        rows = panel.at_the_end()
        order = (rows["relative_variance"].fillna(rows["variance"]) * rows["evaluations"]).sort_values().index
        notes = [
            f"{panel.where}; bias against {panel.reference}; intervals of two standard errors.",
            f"Variance: {panel.gradient}; relative variance, also in products: their sum over the squared norm of the "
            "reference gradient. ~0: bias that cannot be told from 0, and up to which size it could be there. *: "
            "declared biased. Times are those of one machine (in brackets: quartiles).",
        ]
        where = dict(zip(WHERE, (panel.task, panel.data, panel.trainer, panel.reference), strict=True))
        numbers = panel.rows.assign(**where)[[*where, *panel.rows]]
        last = rows.loc[order].to_dict("records")
        columns = {name: [cell(row) for row in last] for name, cell in COLUMNS.items()}
        columns = {name: cells for name, cells in columns.items() if set(cells) != {NONE}}
        cells = [list(row) for row in zip(*columns.values(), strict=True)]
        tables.append(Table(list(columns), cells, notes, panel.title, numbers=numbers))
    return tables


def _log_variance(row: Row) -> str:
    if not row["variance"] > 0:
        return "none" if row["variance"] == 0 else NONE
    share = (row["variance_high"] - row["variance"]) / row["variance"]
    return f"{fixed(math.log(row['variance']), 2)} ± {share:.2f}"


def _cosine(row: Row) -> str:
    if math.isnan(row["cosine"]):
        return "not resolved" if row["cosine_error"] == row["cosine_error"] else NONE
    error = row["cosine_error"]
    return fixed(row["cosine"], 3) + ("" if math.isnan(error) else f" ± {2 * error:.3f}")


def _milliseconds(row: Row) -> str:
    low, middle, high = (f"{1e3 * row[name]:.2g}" for name in ("seconds_low", "seconds", "seconds_high"))
    return middle if low == high else f"{middle} ({low} .. {high})"


def _number(value: float, form: str) -> str:
    return NONE if math.isnan(value) else "0" if abs(value) < 1e-12 else format(value, form)


COLUMNS: dict[str, Callable[[Row], str]] = {
    "estimator": lambda row: row["label"] + ("" if row["unbiased"] else " *"),
    "log variance": _log_variance,
    "signal / noise": lambda row: _number(row["signal_to_noise"], ".3g"),
    "relative variance": lambda row: _number(row["relative_variance"], ".3g"),
    "relative bias": bias_text,
    "cosine": _cosine,
    "evaluations": lambda row: f"{row['evaluations']}",
    "variance x evaluations": lambda row: _number(row["relative_variance"] * row["evaluations"], ".3g"),
    "ms per gradient": _milliseconds,
    "variance x ms": lambda row: _number(1e3 * row["relative_variance"] * row["seconds"], ".3g"),
}
"""How each column is written."""
