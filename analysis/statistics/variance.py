"""Bias and variance of estimators at a point, whoever measured it: a run with a basket, or a certificate.

Runs (:func:`analysis.records.load_basket`) and certificates (:func:`analysis.statistics.certificates.frame`) record the
same rows. A panel is one task, data set and estimator that trains, with equal settings; its runs differ in the seed
alone and are averaged. A certificate has a panel for each number of categories, and there nothing trains. Intervals
are two standard errors to either side: they hold the noise of the measurement, at the parameters that these runs had.
``bias`` is ``|E g - r| / |r|`` with r the exact gradient or the recorded reference; where its interval begins at 0 it
cannot be told from no bias. Estimators of another objective (VIMCO) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures.style import look
from analysis.statistics.settings import as_text

PANEL = ("task", "data", "estimator")
WHERE = ("task", "data", "trainer", "reference")
"""What a file of panels says of each of them."""
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
        return where if self.trainer == "none" else f"{where}, trained by {look(self.trainer).label}"

    @property
    def where(self) -> str:
        """The parameters at which its last rows were measured."""
        if self.trainer == "none":
            return "Default arguments"
        runs = f"{self.runs} runs" if self.runs > 1 else "one run"
        return f"Step {self.at_the_end()['step'].iloc[0]} of {runs}"

    @property
    def gradient(self) -> str:
        """The gradient whose variance is measured, and over what the variance is averaged."""
        if self.trainer == "none":
            return "of one gradient, mean over the logits"
        return "of the gradient of one minibatch's mean loss, mean over the encoder's parameters"

    def at_the_end(self) -> pd.DataFrame:
        """The rows of the last step at which all were measured (of a run under way the last one has some of them),
        with the estimators' own arguments."""
        rows = self.rows[self.rows["temperature"].isna()]
        counts = rows.groupby("step").size()
        return rows[rows["step"] == counts[counts == counts.max()].index.max()]

    def paths(self) -> dict[str, pd.DataFrame]:
        """Each estimator's rows, sorted by temperature; if it has no temperature, its row :meth:`at_the_end`."""
        swept = self.rows[self.rows["temperature"].notna()].sort_values("temperature")
        single = self.at_the_end()
        single = single[~single["measured"].isin(swept["measured"])]
        return dict(list(pd.concat([swept, single]).groupby("measured", sort=False)))


def panels(frame: pd.DataFrame) -> list[Panel]:
    """The panels of a frame of rows; none of an empty one.

    Columns of their rows: ``step``, ``temperature`` (NaN with the estimator's own arguments), ``measured``, ``method``,
    ``family``, ``label``, ``unbiased`` (declared), ``evaluations``, ``variance`` (per parameter, ``variance_low`` to
    ``variance_high``), ``relative_variance`` (over the squared reference, ``relative_low`` to ``relative_high``),
    ``signal_to_noise``, ``bias`` (``bias_low`` to ``bias_high``), ``cosine``, ``cosine_error``, ``seconds``
    (``seconds_low`` to ``seconds_high``) and ``runs``.
    """
    frame = frame if frame.empty else frame[frame["objective"] == "mean"]
    if frame.empty:
        return []
    given = [name for name in map(str, frame.columns) if name.startswith(SETTINGS)]
    key = frame[[*PANEL, *given]].map(as_text).agg("\x1f".join, axis=1)
    found, names = [], set[str]()
    for _, group in frame.groupby(key, sort=True):
        first = group.iloc[0]
        name = f"{first['task']}_{first['data']}"
        while name in names:
            name += "_"
        names.add(name)
        if "temperature" not in group:
            group = group.assign(temperature=math.nan)
        places = group.groupby(["step", "measured", "temperature"], sort=True, dropna=False)
        rows = [_row(own) for _, own in places]
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
        return float(own[name].astype(float).mean()) if name in own else math.nan

    def error(name: str) -> float:
        known = own[name].astype(float) if name in own else pd.Series([math.nan])
        return math.sqrt(float(known.pow(2).sum(skipna=False))) / runs

    errors = ("variance_error", "bias_square_error", "cosine_error")
    values = ("variance", "relative_variance", "signal_to_noise", "bias_square", "cosine")
    label, variant = look(first["method"]).label, str(first["measured"]).removeprefix(f"{first['method']} ")
    return {
        "step": int(first["step"]),
        "temperature": float(first["temperature"]),
        "measured": first["measured"],
        "method": first["method"],
        "family": first.get("method_family"),
        "label": label if variant == first["method"] else f"{label} ({variant})",
        "unbiased": bool(first["unbiased"]),
        "evaluations": int(first["evaluations"]),
        **point({**{name: mean(name) for name in values}, **{name: error(name) for name in errors}}),
        **{name: mean(name) for name in ("seconds_low", "seconds", "seconds_high")},
        "runs": runs,
    }


def point(figures: Mapping[str, Any]) -> dict[str, float]:
    """Bias and variance of a row, with intervals of two standard errors.

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


def read(file: Path) -> list[Panel]:
    """The panels of which ``file`` (``variance.csv``) has the rows."""
    rows = pd.read_csv(file)
    if not {*WHERE, "bias", "relative_variance"} <= set(rows):
        raise ValueError(f"{file} has no rows of gradient variance (columns {', '.join(WHERE)}, ...)")
    rows = rows.assign(**{name: math.nan for name in ("temperature", "family") if name not in rows})
    rows["data"], rows["trainer"] = rows["data"].fillna("none"), rows["trainer"].fillna("none")
    found = []
    for (task, data, trainer, reference), own in rows.groupby(list(WHERE), sort=False):
        name, runs = f"{task}_{data}", int(own["runs"].max())
        found.append(Panel(task, data, trainer, name, reference, runs, own.drop(columns=list(WHERE))))
    return found


def bias_text(row: dict[str, float]) -> str:
    """The relative bias with its interval, or up to which size it could be there."""
    if np.isnan(row["bias"]):
        return "not measured"
    if row["bias_low"] == 0:
        most = largest_bias(row)
        return "0" if most == "0" else f"~0 ({most})"
    return f"{row['bias']:.3g} ({row['bias_low']:.3g} .. {row['bias_high']:.3g})"


def largest_bias(row: Mapping[str, float]) -> str:
    """The largest size that a bias that cannot be told from 0 could have."""
    return f"< {row['bias_high']:.2g}" if row["bias_high"] > ROUNDING else "0"
