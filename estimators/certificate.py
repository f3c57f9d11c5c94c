"""Tables for a screen of what :mod:`estimators.check` and ``python -m training.basket`` measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from estimators.moments import Figures

Row = Mapping[str, Any]


def table(rows: Sequence[Row]) -> str:
    """Bias and variance of estimators' gradients, a line for each of ``rows``.

    Args:
        rows: each with ``measured`` (the estimator's name), the fields of :class:`estimators.moments.Figures` and,
            where they are known, ``categories``, ``objective``, ``evaluations``, ``microseconds`` and ``draws``. A
            column without any value is left out.
    """
    cells = {name: [cell(row, _figures(row)) for row in rows] for name, cell in _COLUMNS.items()}
    cells = {name: column for name, column in cells.items() if set(column) != {NONE}}
    lines = _aligned([list(cells), *map(list, zip(*cells.values(), strict=True))], left=1)
    if any(_other_objective(row) for row in rows):
        lines.append("* of another objective (a multi-sample bound): not comparable with the others")
    return "\n".join(lines)


NONE = "-"
_COLUMNS: dict[str, Callable[[Row, Figures], str]] = {
    "estimator": lambda row, _: _short(row["measured"]) + (" *" if _other_objective(row) else ""),
    "K": lambda row, _: number(row.get("categories"), "d"),
    "log variance": lambda _, own: _plus_minus(own.log_variance, own.log_variance_error, 2),
    "rel. var": lambda _, own: number(own.relative_variance, ".3g"),
    "SNR": lambda _, own: number(own.signal_to_noise, ".3g"),
    "rel. bias": lambda _, own: _interval(own),
    "cosine": lambda _, own: number(own.cosine, ".3f"),
    "evals": lambda row, _: number(row.get("evaluations"), "d"),
    "var x evals": lambda row, own: number(own.relative_variance * row.get("evaluations", math.nan), ".3g"),
    "us": lambda row, _: number(row.get("microseconds"), ".2f"),
    "draws": lambda row, _: number(row.get("draws"), "d"),
}


def certificate(report: Row) -> str:
    """The result of ``python -m estimators.check`` as text, at most 120 columns."""
    results = report["estimators"]
    threshold = max(result["threshold"] for result in results)
    lines = [
        f"{report['draws']} gradients per problem; z: largest deviation of the mean gradient from the exact one in "
        "standard errors,",
        f"allowed up to {threshold:.2f} (confidence 1 - {report['false_alarm']:g}).",
        "",
        *_aligned([_CONTRACT, *(_contract_row(result) for result in results)], left=2),
        "",
        "Default arguments, losses of degree 3, K categories, r: the exact gradient. rel. var: trace of the covariance "
        "/ |r|^2;",
        "SNR: |E g| / sqrt(trace); rel. bias: |E g - r| / |r| within two standard errors; evals: loss evaluations per "
        "gradient;",
        "us: microseconds per example and gradient, one thread.",
        "",
        table([row for result in results for row in default_rows(result)]),
    ]
    biased = [row for result in results for row in _bias_rows(result)]
    if biased:
        lines += [
            "",
            "rel. bias for losses of degree d; T: temperature (1 / beta for the smoothed bits).",
            "",
            *_aligned([_BIASED, *biased], left=1),
        ]
    notes = [f"* {result['name']}: {result['note']}." for result in results if result["note"]]
    broken = [sentence for result in results for sentence in result["contract"]["sentences"]]
    lines += ["", *notes] if notes else []
    lines += ["", "Broken:", *broken] if broken else []
    return "\n".join(lines)


_CONTRACT = ["estimator", "contract", "z K=2", "nested", "z K=4", "nested"]
_BIASED = ["biased", "T", *(f"K={k} d={d}" for k in (2, 4) for d in (1, 2, 3))]


def _contract_row(result: Row) -> list[str]:
    problems = {(p["categories"], p["layers"]): p for p in result["problems"]}
    z = [number(problems.get((k, layers), {}).get("max_z"), ".2f") for k in (2, 4) for layers in (1, 2)]
    verdict = ("pass" if result["contract"]["holds"] else "BROKEN") + ("*" if result["note"] else "")
    return [_short(result["name"]), verdict, *z]


def default_rows(result: Row) -> Iterator[dict[str, Any]]:
    """The rows for :func:`table` of one certified estimator with its default arguments, in one layer."""
    costs = {cost["categories"]: cost for cost in result["costs"]}
    about = {"measured": result["name"], "objective": result["declared"]["objective"]}
    for found in result["problems"]:
        if found["layers"] == 1:
            row = {**about, **found, **costs.get(found["categories"], {})}
            yield {name: value for name, value in row.items() if name != "draws"}  # stands above the tables


def _bias_rows(result: Row) -> Iterator[list[str]]:
    cells = {(row["temperature"], row["categories"], row["degree"]): row for row in result["bias"]}
    for temperature in dict.fromkeys(key[0] for key in cells):
        row = [cells.get((temperature, k, degree)) for k in (2, 4) for degree in (1, 2, 3)]
        intervals = [_interval(_figures(cell)) if cell else NONE for cell in row]
        yield [_short(result["name"]), number(temperature, "g"), *intervals]


def _figures(row: Row) -> Figures:
    """JSON has ``None`` for NaN."""
    known = {field.name: row.get(field.name) for field in fields(Figures)}
    return Figures(**{name: math.nan if value is None else value for name, value in known.items()})


def _other_objective(row: Row) -> bool:
    return bool(row.get("objective", "mean") != "mean")


def _short(name: str) -> str:
    return name.rsplit(":", 1)[-1][:26]


def _plus_minus(value: float, error: float, digits: int) -> str:
    return f"{value:.{digits}f} +- {2 * error:.{digits}f}" if math.isfinite(value) else NONE


def _interval(figures: Figures) -> str:
    low, high = figures.bias_interval if not math.isnan(figures.bias_square) else (math.nan, math.nan)
    return NONE if math.isnan(high) else f"{low:.3f}..{high:.3f}"


def number(value: float | None, form: str) -> str:
    """``value`` in the format ``form``; ``-`` for none."""
    if value is None or math.isnan(value):
        return NONE
    return "0" if form != "d" and abs(value) < 1e-12 else format(value, form)


def _aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
