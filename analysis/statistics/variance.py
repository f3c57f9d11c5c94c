"""What runs with a basket measured (:func:`analysis.records.load_basket`): one row per panel, step and estimator.

A panel is one task, data set and estimator that trains, with equal settings; its runs differ in the seed alone and are
averaged. Intervals are two standard errors to either side: they hold the noise of the measurement, at the parameters
that these runs had. ``bias`` is ``|E g - r| / |r|`` with r the exact gradient or the recorded reference; where its
interval begins at 0 it cannot be told from no bias. Estimators of another objective (VIMCO) are left out.
"""

from __future__ import annotations

import math
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

    Columns of their rows: ``step``, ``measured``, ``label``, ``method``, ``unbiased`` (declared), ``evaluations``,
    ``variance`` (per parameter, ``variance_low`` to ``variance_high``), ``relative_variance`` (over the squared
    reference, ``relative_low`` to ``relative_high``), ``signal_to_noise``, ``bias`` (``bias_low`` to ``bias_high``),
    ``cosine``, ``cosine_error``, ``seconds`` (``seconds_low`` to ``seconds_high``) and ``runs``.
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


def bias_text(row: dict[str, float]) -> str:
    """The relative bias with its interval, or up to which size it could be there."""
    if np.isnan(row["bias"]):
        return "not measured"
    if row["bias_low"] == 0:
        return f"~0 (< {row['bias_high']:.2g})" if row["bias_high"] > ROUNDING else "0"
    return f"{row['bias']:.3g} ({row['bias_low']:.3g} .. {row['bias_high']:.3g})"
