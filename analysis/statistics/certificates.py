"""The JSON of ``python -m estimators.check --json`` as a frame of the rows that runs with a basket record."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from analysis.figures.style import KNOWN

Report = Mapping[str, Any]
DEGREE = 3
"""Degree of the polynomial that is the loss of a certificate's problems."""


def frame(report: Report) -> pd.DataFrame:
    """A row for each estimator, number of categories and temperature, with the columns of
    :func:`analysis.records.load_basket` that :func:`analysis.statistics.variance.panels` reads.

    All are of one layer and a loss of degree 3; ``temperature`` is NaN with the default arguments. ``task`` is
    ``K = 2`` or ``K = 4``, ``name`` the certificate's name of the estimator, and ``categories``, ``needs_gradient``,
    ``rescales`` and ``stochastic`` stand there, too.
    """
    return pd.DataFrame([row for result in up_to_date(report)["estimators"] for row in _rows(result)])


def comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """Without what rescales its gradient (NVIL, which has its unscaled form), and without enumeration."""
    return rows[~rows["rescales"] & rows["stochastic"]]


def _rows(result: Report) -> Iterator[dict[str, Any]]:
    declared, costs = result["declared"], {cost["categories"]: cost for cost in result["costs"]}
    method, variant = _method(result["name"])
    about = {"name": result["name"], "measured": f"{method} {variant}".strip(), "method": method, "path": "certificate"}
    about |= {name: declared[name] for name in ("unbiased", "objective", "needs_gradient", "rescales")}
    about |= {"stochastic": declared.get("stochastic", method != "exact"), "method_family": declared.get("family")}
    about |= {"data": "none", "estimator": "none", "step": 0, "reference": "exact", "reference_error": 0.0}
    defaults = [{**found, "temperature": math.nan} for found in result["problems"] if found["layers"] == 1]
    swept = [
        found for found in result.get("bias", []) if found["degree"] == DEGREE and found["temperature"] is not None
    ]
    for found in [*defaults, *swept]:
        if cost := costs.get(found["categories"]):  # else measuring it failed
            seconds = dict.fromkeys(
                ("seconds_low", "seconds", "seconds_high"), 1e-6 * cost.get("microseconds", math.nan)
            )
            yield {**about, **found, "task": f"K = {cost['categories']}", "evaluations": cost["evaluations"], **seconds}


def _method(name: str) -> tuple[str, str]:
    """The option of the harness and the variant that a certificate's name stands for; a user's class has its name."""
    option, _, variant = ("STGumbelSoftmax" if name == "GumbelSoftmax hard" else name).partition(" ")
    known = {key.replace("_", ""): key for key in KNOWN}
    return known.get(option.lower(), option.rsplit(":", 1)[-1]), variant


def up_to_date(report: Report) -> dict[str, Any]:
    """The report as today's code would have written it: see :func:`_corrected`."""
    results = [
        {**result, **{part: [_corrected(found) for found in result.get(part, [])] for part in ("problems", "bias")}}
        for result in report["estimators"]
    ]
    return {**report, "estimators": results}


def _corrected(found: Report) -> dict[str, Any]:
    """The figures of a point; those of older code had the noise of the mean in the bias, and no errors.

    With ``b`` that bias and ``e`` its resolution, ``b^2 - e^2`` is the corrected square. Its standard error is at most
    that of noise in one direction: ``sqrt(4 (b^2 - e^2) e^2 + 2 e^4)``.
    """
    if "bias_square" in found or found["relative_bias"] is None:
        return dict(found)
    noise = found.get("resolution", 0.0) ** 2
    square = found["relative_bias"] ** 2 - noise
    error = math.sqrt(4 * max(square, 0.0) * noise + 2 * noise**2)
    return {**found, "bias_square": square, "bias_square_error": error}
