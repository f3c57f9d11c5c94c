"""Bias and variance of estimators at a point, whoever measured it: a run with a basket, or a certificate.

Of what runs measured (:func:`analysis.records.load_basket`) there is one row per panel, step and estimator; of a
certificate (:func:`certified`) one per estimator, problem and temperature. Both have the columns of :func:`point`.

A panel is one task, data set and estimator that trains, with equal settings; its runs differ in the seed alone and are
averaged. Intervals are two standard errors to either side: they hold the noise of the measurement, at the parameters
that these runs had. ``bias`` is ``|E g - r| / |r|`` with r the exact gradient or the recorded reference; where its
interval begins at 0 it cannot be told from no bias. Estimators of another objective (VIMCO) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures.style import look
from analysis.statistics.settings import as_text

PANEL = ("task", "data", "estimator")
SETTINGS = ("task.", "data.", "optimizer", "schedule", "basket.", "steps", "batch_size")
DEGREE = 3
"""Of the polynomial that is the loss of a certificate's problems."""
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

    errors = ("variance_error", "bias_square_error", "cosine_error")
    values = ("variance", "relative_variance", "signal_to_noise", "bias_square", "cosine")
    label = look(first["method"]).label
    return {
        "step": int(first["step"]),
        "measured": first["measured"],
        "method": first["method"],
        "family": first.get("method_family"),
        "label": label if first["measured"] == first["method"] else f"{label} ({first['measured']})",
        "unbiased": bool(first["unbiased"]),
        "evaluations": int(first["evaluations"]),
        **point({**{name: mean(name) for name in values}, **{name: error(name) for name in errors}}),
        **{name: mean(name) for name in ("seconds_low", "seconds", "seconds_high")},
        "runs": runs,
    }


def point(figures: Mapping[str, Any]) -> dict[str, float]:
    """What a row says of bias and variance, with intervals of two standard errors.

    Args:
        figures: the fields of ``estimators.moments.Figures``, as a run's basket and a certificate record them; what is
            missing, or ``None``, is not known.
    """
    known = {name: math.nan if value is None else float(value) for name, value in figures.items()}
    variance, relative = (known.get(name, math.nan) for name in ("variance", "relative_variance"))
    spread = 2 * known.get("variance_error", math.nan)
    share = spread / variance if variance > 0 else 0.0 if variance == 0 else math.nan
    square, error = known.get("bias_square", math.nan), known.get("bias_square_error", math.nan)
    low, middle, high = (
        math.nan if math.isnan(square) else math.sqrt(max(square + sign * 2 * error, 0.0)) for sign in (-1, 0, 1)
    )
    return {
        "variance": variance,
        "variance_low": max(variance - spread, 0.0),
        "variance_high": variance + spread,
        "relative_variance": relative,
        "relative_low": max(relative * (1 - share), 0.0),
        "relative_high": relative * (1 + share),
        "signal_to_noise": known.get("signal_to_noise", math.nan),
        "bias": middle,
        "bias_low": low if low > ROUNDING else 0.0,
        "bias_high": high,
        "cosine": known.get("cosine", math.nan),
        "cosine_error": known.get("cosine_error", math.nan),
    }


def certified(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The points of one estimator, as :func:`point` has them, in what ``python -m estimators.check --json`` wrote.

    Where: ``categories``, ``layers``, ``degree`` of the loss, ``swept`` and, where that is true, ``temperature``; the
    others have the default arguments, and ``evaluations`` and ``seconds`` of one gradient of an example.
    """
    about = {"measured": result["name"], "unbiased": result["declared"]["unbiased"]}
    costs = {cost["categories"]: cost for cost in result["costs"]}
    rows: list[dict[str, Any]] = []
    for found in result["problems"]:
        cost = costs.get(found["categories"])
        where = {"categories": found["categories"], "layers": found["layers"], "degree": DEGREE, "swept": False}
        price = {"evaluations": cost["evaluations"], "seconds": 1e-6 * cost["microseconds"]} if cost else {}
        rows.append({**about, **where, **point(_corrected(found)), **price})
    for found in result["bias"]:
        where = {name: found[name] for name in ("categories", "degree", "temperature")}
        rows.append({**about, "layers": 1, **where, "swept": True, **point(_corrected(found))})
    return rows


def _corrected(found: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a point; those of older code had the noise of the mean in the bias, and no errors.

    With ``b`` that bias and ``e`` its resolution, ``b^2 - e^2`` is the corrected square. Its standard error is at most
    that of noise in one direction: ``sqrt(4 (b^2 - e^2) e^2 + 2 e^4)``.
    """
    if "bias_square" in found or found["relative_bias"] is None:
        return dict(found)
    square, noise = found["relative_bias"] ** 2 - found["resolution"] ** 2, found["resolution"] ** 2
    error = math.sqrt(4 * max(square, 0.0) * noise + 2 * noise**2)
    return {**found, "bias_square": square, "bias_square_error": error}


def bias_text(row: dict[str, float]) -> str:
    """The relative bias with its interval, or up to which size it could be there."""
    if np.isnan(row["bias"]):
        return "not measured"
    if row["bias_low"] == 0:
        return f"~0 (< {row['bias_high']:.2g})" if row["bias_high"] > ROUNDING else "0"
    return f"{row['bias']:.3g} ({row['bias_low']:.3g} .. {row['bias_high']:.3g})"
