"""The certificate of :mod:`estimators.check` as a table for a screen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any


def certificate(report: dict[str, Any]) -> str:
    """The result of ``python -m estimators.check`` as text, at most 120 columns."""
    results = report["estimators"]
    threshold = max(result["threshold"] for result in results)
    lines = [
        f"{report['draws']} gradients per problem; z: largest deviation of the mean gradient from the exact one in "
        "standard errors,",
        f"allowed up to {threshold:.2f} (confidence 1 - {report['false_alarm']:g}); var: trace of the covariance / "
        "|exact gradient|^2;",
        "evals: loss evaluations per gradient; us: microseconds per example and gradient, one thread.",
        "",
        *_aligned([_FIRST, *(_first_row(result) for result in results)], left=2),
    ]
    biased = [row for result in results for row in _bias_rows(result)]
    if biased:
        lines += [
            "",
            "Relative bias |E g - exact| / |exact|, corrected for the noise of the mean, +- 2 x its resolution (about "
            "95 %",
            "or more), for losses of degree d and K categories; T: temperature (1 / beta for the smoothed bits).",
            "",
            *_aligned([_SECOND, *biased], left=1),
        ]
    notes = [f"* {result['name']}: {result['note']}." for result in results if result["note"]]
    broken = [sentence for result in results for sentence in result["contract"]["sentences"]]
    lines += ["", *notes] if notes else []
    lines += ["", "Broken:", *broken] if broken else []
    return "\n".join(lines)


_FIRST = ["estimator", "contract", "z K=2", "nested", "z K=4", "nested"]
_FIRST += ["var K=2", "K=4", "evals K=2", "K=4", "us K=2", "K=4"]
_SECOND = ["biased", "T", *(f"K={k} d={d}" for k in (2, 4) for d in (1, 2, 3))]


def _first_row(result: dict[str, Any]) -> list[str]:
    problems = {(p["categories"], p["layers"]): p for p in result["problems"]}
    costs = {cost["categories"]: cost for cost in result["costs"]}
    z = [number(problems.get((k, layers), {}).get("max_z"), ".2f") for k in (2, 4) for layers in (1, 2)]
    variance = [number(problems.get((k, 1), {}).get("relative_variance"), ".3g") for k in (2, 4)]
    evaluations = [number(costs.get(k, {}).get("evaluations"), "d") for k in (2, 4)]
    microseconds = [number(costs.get(k, {}).get("microseconds"), ".2f") for k in (2, 4)]
    verdict = ("pass" if result["contract"]["holds"] else "BROKEN") + ("*" if result["note"] else "")
    return [_short(result), verdict, *z, *variance, *evaluations, *microseconds]


def _bias_rows(result: dict[str, Any]) -> Iterator[list[str]]:
    cells = {(row["temperature"], row["categories"], row["degree"]): row for row in result["bias"]}
    for temperature in dict.fromkeys(key[0] for key in cells):
        row = [cells.get((temperature, k, degree)) for k in (2, 4) for degree in (1, 2, 3)]
        yield [_short(result), number(temperature, "g"), *(_with_interval(cell) for cell in row)]


def _short(result: dict[str, Any]) -> str:
    return result["name"].rsplit(":", 1)[-1][:26]


def _with_interval(cell: dict[str, Any] | None) -> str:
    if cell is None or cell["relative_bias"] is None:
        return "-"
    return f"{bias(cell):.3f}+-{2 * cell['resolution']:.3f}"


def bias(cell: dict[str, Any]) -> float:
    """The relative bias; certificates of older code have it with the noise of the mean, ``resolution``, in it."""
    noise = 0.0 if "bias_square" in cell else cell.get("resolution", 0.0)
    return math.sqrt(max(cell["relative_bias"] ** 2 - noise**2, 0.0))


def number(value: float | None, form: str) -> str:
    if value is None:
        return "-"
    return "0" if form != "d" and abs(value) < 1e-12 else format(value, form)


def _aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
