"""What runs with a basket measured (:func:`analysis.records.load_basket`): one row per panel, step and estimator.

A panel is one task, data set and estimator that trains, with equal settings; its runs differ in the seed alone and are
averaged. Intervals are two standard errors to either side: they hold the noise of the measurement, at the parameters
that these runs had. ``bias`` is ``|E g - r| / |r|`` with r the exact gradient or the recorded reference; where its
interval begins at 0 it cannot be told from no bias. Estimators of another objective (VIMCO) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.figures.style import look
from analysis.statistics.settings import as_text

PANEL = ("task", "data", "estimator")
SETTINGS = ("task.", "data.", "optimizer", "schedule", "basket.", "steps", "batch_size")
ROUNDING = 1e-5
"""A relative bias below is that of float32."""


@dataclass(frozen=True)
class Panel:
    """Measurements that belong together: ``rows`` has the columns of :func:`panels`."""

    task: str
    data: str
    trainer: str
    name: str
    reference: str
    runs: int
    rows: pd.DataFrame

    @property
    def title(self) -> str:
        where = self.task if self.data == "none" else f"{self.task}, {self.data}"
        return f"{where}, trained by {look(self.trainer).label}"

    def at_the_end(self) -> pd.DataFrame:
        """The rows of the last step at which all were measured (of a run under way the last one has some of them)."""
        counts = self.rows.groupby("step").size()
        return self.rows[self.rows["step"] == counts[counts == counts.max()].index.max()]


def panels(frame: pd.DataFrame) -> list[Panel]:
    """The panels of a frame of :func:`analysis.records.load_basket`; none of an empty one.

    Columns of their rows: ``step``, ``measured``, ``label``, ``method``, ``family``, ``unbiased`` (declared),
    ``evaluations``, ``variance`` (per parameter, ``variance_low`` to ``variance_high``), ``relative_variance`` (over
    the squared reference, ``relative_low`` to ``relative_high``), ``signal_to_noise``, ``bias`` (``bias_low`` to
    ``bias_high``), ``cosine``, ``cosine_error``, ``seconds`` (``seconds_low`` to ``seconds_high``) and ``runs``.
    """
    if frame.empty:
        return []
    frame = frame[frame["objective"] == "mean"]
    given = [name for name in map(str, frame.columns) if name.startswith(SETTINGS)]
    key = frame[[*PANEL, *given]].map(as_text).agg("\x1f".join, axis=1)
    found, names = [], set[str]()
    for _, group in frame.groupby(key, sort=True):
        first = group.iloc[0]
        name = f"{first['task']}_{first['data']}"
        while name in names:
            name += "_"
        names.add(name)
        rows = [_row(own) for _, own in group.groupby(["step", "measured"], sort=True)]
        error = group["reference_error"].astype(float).max()
        reference = (
            "the enumerated gradient"
            if first["reference"] == "exact"
            else (
                f"the mean of {first['basket.reference_draws']} gradients of {look(first['reference']).label} "
                f"(relative standard error up to {error:.2g})"
            )
        )
        where = (str(first["task"]), str(first["data"]), str(first["estimator"]))
        found.append(Panel(*where, name, reference, group["path"].nunique(), pd.DataFrame(rows)))
    return found


def _row(own: pd.DataFrame) -> dict[str, object]:
    """One estimator at one step from its rows, one per run."""
    first, runs = own.iloc[0], len(own)

    def mean(name: str) -> float:
        return float(own[name].astype(float).mean())

    def error(name: str) -> float:
        return math.sqrt(float(own[name].astype(float).pow(2).sum())) / runs

    variance, spread = mean("variance"), 2 * error("variance_error")
    relative = mean("relative_variance")
    share = spread / variance if variance > 0 else 0.0
    low, middle, high = (
        math.sqrt(max(mean("bias_square") + sign * 2 * error("bias_square_error"), 0.0))
        if not np.isnan(mean("bias_square"))
        else math.nan
        for sign in (-1, 0, 1)
    )
    label = look(first["method"]).label
    return {
        "step": int(first["step"]),
        "measured": first["measured"],
        "method": first["method"],
        "family": first.get("method_family"),
        "label": label if first["measured"] == first["method"] else f"{label} ({first['measured']})",
        "unbiased": bool(first["unbiased"]),
        "evaluations": int(first["evaluations"]),
        "variance": variance,
        "variance_low": max(variance - spread, 0.0),
        "variance_high": variance + spread,
        "relative_variance": relative,
        "relative_low": max(relative * (1 - share), 0.0),
        "relative_high": relative * (1 + share),
        "signal_to_noise": mean("signal_to_noise"),
        "bias": middle,
        "bias_low": low if low > ROUNDING else 0.0,
        "bias_high": high,
        "cosine": mean("cosine"),
        "cosine_error": error("cosine_error"),
        **{name: mean(name) for name in ("seconds_low", "seconds", "seconds_high")},
        "runs": runs,
    }


def to_csv(found: list[Panel]) -> str:
    """Every panel, step and estimator at full precision."""
    about = [{"task": p.task, "data": p.data, "trainer": p.trainer, "reference": p.reference} for p in found]
    tables = [panel.rows.assign(**where) for panel, where in zip(found, about, strict=True)]
    table = pd.concat(tables, ignore_index=True)
    return table[[*about[0], *(name for name in table if name not in about[0])]].to_csv(index=False)


HEAD = (
    *("estimator", "log variance", "std / gradient", "bias / gradient", "cosine", "evaluations"),
    *("variance x evaluations", "ms per gradient", "variance x ms"),
)


def to_markdown(found: list[Panel]) -> str:
    """The last step of every panel, the least variance for its evaluations first."""
    blocks = []
    for panel in found:
        rows = panel.at_the_end()
        order = (rows["variance"] * rows["evaluations"]).sort_values().index
        lines = [f"| {' | '.join(cells)} |" for cells in _table(rows.loc[order])]
        lines.insert(1, f"| --- |{' ---: |' * (len(HEAD) - 1)}")
        runs = f"{panel.runs} runs" if panel.runs > 1 else "one run"
        notes = [
            f"Step {rows['step'].iloc[0]} of {runs}; bias against {panel.reference}; intervals of two standard errors.",
            "Variance: of the gradient of one minibatch's mean loss, mean over the encoder's parameters. ~0: bias that "
            "cannot be told from 0, and up to which size it could be there. *: declared biased. Times are those of one "
            "machine (quartiles).",
        ]
        blocks.append("\n".join([f"### {panel.title}", "", *lines, "", *(f"- {note}" for note in notes)]))
    return "\n\n".join(blocks) + "\n"


def _table(rows: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    yield HEAD
    for row in rows.to_dict("records"):
        share = (row["variance_high"] - row["variance"]) / row["variance"] if row["variance"] > 0 else 0.0
        resolved = row["cosine"] == row["cosine"]
        yield (
            row["label"] + ("" if row["unbiased"] else " \\*"),
            f"{math.log(row['variance']):.2f} ± {share:.2f}" if row["variance"] > 0 else "none",
            f"{row['relative_variance'] ** 0.5:.3g}",
            bias_text(row),
            f"{row['cosine']:.3f} ± {2 * row['cosine_error']:.3f}" if resolved else "not resolved",
            f"{row['evaluations']}",
            f"{row['variance'] * row['evaluations']:.2e}",
            f"{1e3 * row['seconds']:.2g} ({1e3 * row['seconds_low']:.2g} .. {1e3 * row['seconds_high']:.2g})",
            f"{1e3 * row['variance'] * row['seconds']:.2e}",
        )


def bias_text(row: dict[str, float]) -> str:
    """The relative bias with its interval, or up to which size it could be there."""
    if np.isnan(row["bias"]):
        return "not measured"
    if row["bias_low"] == 0:
        return f"~0 (< {row['bias_high']:.2g})" if row["bias_high"] > ROUNDING else "0"
    return f"{row['bias']:.3g} ({row['bias_low']:.3g} .. {row['bias_high']:.3g})"
