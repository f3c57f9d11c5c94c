"""Which certificate is that of an estimator with given options: a method may be certified in several forms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.statistics import certificates
from analysis.statistics.settings import as_text
from analysis.statistics.variance import largest_bias, point

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Form:
    """A method with the arguments with which it was certified.

    Attributes:
        name: of the certificate, such as ``MuProp scaled``.
        arguments: of the constructor; ``None`` if an older certificate does not say them.
        declared: what the method declares with them.
        rows: those of :func:`analysis.statistics.certificates.frame`.
    """

    name: str
    arguments: Options | None
    declared: Options
    rows: pd.DataFrame

    def is_of(self, options: Options) -> bool:
        """Whether an estimator with these options is what was certified.

        Its temperature may be another one. Numbers, such as a number of samples or the width of a baseline, make no
        difference for what is unbiased, nor for the direction of what is an unbiased gradient but for its scale.
        """
        if self.arguments is None:
            return not options
        return not any(self._differ(name, value) for name, value in options.items())

    def _differ(self, name: str, value: Any) -> bool:
        assert self.arguments is not None
        if name not in self.arguments:
            return True
        certified = self.arguments[name]
        numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (value, certified))
        if numbers and (
            name == self.declared.get("tempered") or self.declared["unbiased"] or self.declared["rescales"]
        ):
            return False
        return as_text(value) != as_text(certified)

    def text(self, options: Options) -> str:
        """What is certified: unbiased, or the largest relative bias for a loss of degree 3, and where that is.

        Of a gradient that is rescaled it is the bias of the direction. Of a temperature that was not measured, that of
        the default one, and which that is.
        """
        if self.declared["objective"] != "mean":
            return f"of another objective ({self.declared['objective']})"
        if self.declared["unbiased"]:
            return "unbiased"
        rows, temperature = self._at_the_temperature(options)
        measured = rows[["bias_square", "bias_square_error"]].to_dict("records")
        points = {task: point(row) for task, row in zip(rows["task"], measured, strict=True)}
        where = max(points, key=lambda task: -1.0 if math.isnan(points[task]["bias"]) else points[task]["bias"])
        found = points[where]
        bias = f"bias {largest_bias(found) if found['bias_low'] == 0 else format(found['bias'], '.2g')}"
        at = "" if temperature is None else f" at temperature {temperature:g}"
        return f"{'rescaled; its direction has ' if self.declared['rescales'] else ''}{bias}{at} ({where})"

    def _at_the_temperature(self, options: Options) -> tuple[pd.DataFrame, float | None]:
        default = self.rows[self.rows["temperature"].isna()]
        name = self.declared.get("tempered")
        if name is None or self.arguments is None:
            return default, None
        inverse = bool(self.declared.get("inverse_temperature"))
        own, asked = (
            1 / value if inverse else value
            for value in (float(self.arguments[name]), float(options.get(name, self.arguments[name])))
        )
        rows = self.rows[(self.rows["temperature"] - asked).abs() < 1e-6 * asked]
        return (default, own) if rows.empty else (rows, asked)


def forms(report: Mapping[str, Any]) -> Iterator[Form]:
    """Those of a certificate of ``estimators.check --json``."""
    frame = certificates.frame(report)
    for result in report["estimators"]:
        rows = frame[frame["name"] == result["name"]]
        yield Form(result["name"], result.get("arguments"), result["declared"], rows)


def certificate(certified: Sequence[Form], options: Options) -> str:
    """What is certified of an estimator with these options; of a form that was not, what is of the first one, which
    is the default."""
    if not certified:
        return "none"
    own = next((form for form in certified if form.is_of(options)), None)
    return own.text(options) if own else f"default form: {certified[0].text({})}"
