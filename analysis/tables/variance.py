"""The tables of gradient variance, of the panels of :mod:`analysis.statistics.variance`."""

from __future__ import annotations

import math
from typing import Any

from analysis.statistics.variance import Panel, bias_text
from analysis.tables.table import Table

HEAD = (
    *("estimator", "log variance", "std / gradient", "bias / gradient", "cosine", "evaluations"),
    *("variance x evaluations", "ms per gradient", "variance x ms"),
)


def tables(found: list[Panel]) -> list[Table]:
    """Of every panel the last step, the least variance for its evaluations first; ``numbers`` has all steps."""
    tables = []
    for panel in found:
        rows = panel.at_the_end()
        order = (rows["variance"] * rows["evaluations"]).sort_values().index
        runs = f"{panel.runs} runs" if panel.runs > 1 else "one run"
        notes = [
            f"Step {rows['step'].iloc[0]} of {runs}; bias against {panel.reference}; intervals of two standard errors.",
            "Variance: of the gradient of one minibatch's mean loss, mean over the encoder's parameters. ~0: bias that "
            "cannot be told from 0, and up to which size it could be there. *: declared biased. Times are those of one "
            "machine (quartiles).",
        ]
        where = {"task": panel.task, "data": panel.data, "trainer": panel.trainer, "reference": panel.reference}
        numbers = panel.rows.assign(**where)[[*where, *panel.rows]]
        cells = [_cells(row) for row in rows.loc[order].to_dict("records")]
        tables.append(Table(HEAD, cells, notes, panel.title, numbers=numbers))
    return tables


def _cells(row: dict[Any, Any]) -> list[str]:
    share = (row["variance_high"] - row["variance"]) / row["variance"] if row["variance"] > 0 else 0.0
    resolved = row["cosine"] == row["cosine"]
    return [
        row["label"] + ("" if row["unbiased"] else " *"),
        f"{math.log(row['variance']):.2f} ± {share:.2f}" if row["variance"] > 0 else "none",
        f"{row['relative_variance'] ** 0.5:.3g}",
        bias_text(row),
        f"{row['cosine']:.3f} ± {2 * row['cosine_error']:.3f}" if resolved else "not resolved",
        f"{row['evaluations']}",
        f"{row['variance'] * row['evaluations']:.2e}",
        f"{1e3 * row['seconds']:.2g} ({1e3 * row['seconds_low']:.2g} .. {1e3 * row['seconds_high']:.2g})",
        f"{1e3 * row['variance'] * row['seconds']:.2e}",
    ]
