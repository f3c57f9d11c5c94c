"""Bias and variance of a basket of estimators along a run: ``basket=default`` on the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from analysis.records import BASKET, RunRecord
from training import basket
from training.gradients import moments, point
from training.interrupt import asked
from training.pack.pack import Config, Pack


class Basket:
    """Measures what a pack's ``basket`` option asks for, at the steps that it asks for, into the runs' records.

    A row for each estimator and step has the fields of :class:`training.basket.PointVariance`, the ``reference`` that
    bias was measured against with its relative standard error ``reference_error``, ``examples``, ``parameters``, and
    ``seconds_low``, ``seconds``, ``seconds_high`` (quartiles), which alone are not repeatable. All else is a function
    of the run's config and of the parameters at that step: an interrupted run goes on with the first row that is
    missing, and training does not notice that it is watched.
    """

    def __init__(self, pack: Pack, records: Sequence[RunRecord]) -> None:
        self.pack, self.records = pack, records
        self.options: Config = pack.configs[0].get("basket", {"name": "none"})
        self.steps = (
            set() if self.options["name"] == "none" else steps(pack.configs[0]["steps"], self.options["points"])
        )
        self.names = list(self.options.get("estimators", {}))
        self._misfits: dict[str, str | None] = {}

    def is_due(self) -> bool:
        """Whether there is something to measure at the pack's step."""
        return self.pack.step in self.steps

    def __call__(self, replicas: Sequence[int]) -> None:
        """Measure what is missing at the pack's step; ends early when a signal asked for a stop."""
        if self.is_due():
            for replica in replicas:
                self._measure(replica)

    def _measure(self, replica: int) -> None:
        record, options = self.records[replica], self.options
        there = {row["measured"] for row in record.basket() if row["step"] == self.pack.step}
        wanted = {name: node for name, node in options["estimators"].items() if name not in there}
        if not wanted or asked():
            return
        here = point.Point(self.pack, replica, options["examples"])
        for name in wanted.keys() - self._misfits.keys():
            self._misfits[name] = point.misfit(here, wanted[name])
            if self._misfits[name]:
                record.log(f"basket: {name} {self._misfits[name]}")
        wanted = {name: node for name, node in wanted.items() if not self._misfits[name]}
        if not wanted:
            return
        kind, reference = point.reference_gradient(
            here,
            options["reference"],
            draws=options["reference_draws"],
            warm_up=options["warm_up"],
            max_states=options["max_states"],
        )
        (_, noise), norm = reference.mean, moments.square(reference.mean)
        about = {
            "reference": kind,
            "reference_error": math.sqrt(noise / norm) if norm > 0 else math.nan,
            "examples": len(here.batch),
            "parameters": reference.means.shape[1],
        }
        times = point.seconds(here, wanted, options["rounds"])
        found = basket.measure(here, wanted, draws=options["draws"], warm_up=options["warm_up"], reference=reference)
        for result in found:
            low, middle, high = times[result.measured]
            row = {"step": self.pack.step, **asdict(result), **about}
            row |= {"seconds_low": low, "seconds": middle, "seconds_high": high}
            record.append({key: _json(value) for key, value in row.items()}, BASKET)
            if asked():
                return


def steps(last: int, points: int) -> set[int]:
    """``points`` steps from 1 to ``last``, evenly spaced on a logarithmic axis (fewer where they coincide)."""
    return {round(last ** (place / max(points - 1, 1))) for place in range(points)} if points > 1 else {last}


def _json(value: Any) -> Any:
    """``None`` for what is not finite, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
