"""Bias and variance of a basket of estimators along a run: ``basket=default`` on the command line."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from analysis.records import BASKET, REPLAYED
from estimators import moments
from training.config.identity import kind_of
from training.gradients import basket, point
from training.interrupt import Stopped, asked
from training.pack.pack import Config
from training.pack.watchers import LOOK_EVERY_ON_GPU, Training
from training.progress import MEASURING


class Basket:
    """Measures the estimators of a pack's ``basket`` option at its steps, and writes rows into the runs' records.

    A row for each estimator and step is that of :meth:`training.gradients.basket.PointVariance.row` with the
    ``reference`` that bias was measured against with its relative standard error ``reference_error``, ``examples``,
    ``parameters``, and ``seconds_low``, ``seconds``, ``seconds_high`` (quartiles), which alone are not repeatable. All
    else is a function of the run's config and of the parameters at that step: an interrupted run goes on with the first
    row that is missing, and training does not notice that it is watched.

    Args:
        training: of the pack.
        file: of the record; ``REPLAYED`` if the runs are finished, of which nothing else is written then.
    """

    def __init__(self, training: Training, file: str = BASKET) -> None:
        self.training, self.pack, self.file = training, training.pack, file
        self.options: Config = self.pack.configs[0].get("basket", {"name": "none"})
        self.names = list(self.options.get("estimators", {}))
        is_on = self.options["name"] != "none"
        self.steps = steps(training.steps, self.options["points"]) if is_on else set()
        self._left_out: dict[str, str | None] = {}

    def due(self) -> bool:
        """Whether there is something to measure at the pack's step."""
        return self.pack.step in self.steps or (self.file == REPLAYED and asked())

    def ahead(self) -> int:
        """Steps until the next that is measured."""
        return min((step - self.pack.step for step in self.steps if step > self.pack.step), default=LOOK_EVERY_ON_GPU)

    def look(self) -> None:
        """Measure what is missing at the pack's step. Raises ``Stopped`` if a signal asked for a stop."""
        training = self.training
        if self.file == BASKET:
            training.save()  # it can take longer than all the steps before
        self._report()
        with training.watch.doing("evaluation"):
            for replica in list(training.alive) if self.pack.step in self.steps else ():
                with training.writing(replica), contextlib.suppress(Stopped):
                    self._measure(replica)
        if asked():
            if self.file == BASKET:
                raise training.stop()
            raise Stopped("stopped; start the same command again to measure what is left of the basket")

    def _report(self) -> None:
        """How much of all that is to be measured, at every point and of every run, is there."""
        training = self.training
        points = sum(step < self.pack.step for step in self.steps) * len(self.names) * len(training.alive)
        here = sum(row["step"] == self.pack.step for replica in training.alive for row in self._rows(replica))
        total = len(self.steps) * len(self.names) * len(training.alive)
        training.report({"event": "phase", "phase": MEASURING, "done": min(points + here, total), "total": total})

    def is_complete(self, replica: int) -> bool:
        """Whether every step that is asked for has been measured, as ``basket`` asks for now."""
        there = {(row["step"], row["measured"]) for row in self._rows(replica)}
        names = [name for name in self.names if not self._reason(name, replica)] if self.steps else []
        return bool(self.steps) and all((step, name) in there for step in self.steps for name in names)

    def _rows(self, replica: int) -> list[dict[str, Any]]:
        kind = kind_of(self.options)
        return [row for row in self.training.records[replica].basket(self.file) if row.get("kind") == kind]

    def _reason(self, name: str, replica: int) -> str | None:
        if name not in self._left_out:
            here = point.Point(self.pack, replica, self.options["examples"])
            self._left_out[name] = point.reason_to_leave_out(here, self.options["estimators"][name])
            if self._left_out[name]:
                self.training.records[replica].log(f"basket: {name} {self._left_out[name]}")
        return self._left_out[name]

    def _measure(self, replica: int) -> None:
        record, options = self.training.records[replica], self.options
        there = {row["measured"] for row in self._rows(replica) if row["step"] == self.pack.step}
        if set(self.names) <= there or asked():
            return
        wanted = {
            name: node
            for name, node in options["estimators"].items()
            if name not in there and not self._reason(name, replica)
        }
        if not wanted:
            return
        here = point.Point(self.pack, replica, options["examples"])
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
            "kind": kind_of(options),
        }
        times = point.seconds(here, wanted, options["rounds"])
        found = basket.measure(here, wanted, draws=options["draws"], warm_up=options["warm_up"], reference=reference)
        for result in found:
            low, middle, high = times[result.measured]
            row = {"step": self.pack.step, **result.row(), **about}
            row |= {"seconds_low": low, "seconds": middle, "seconds_high": high}
            record.append({key: _json(value) for key, value in row.items()}, self.file)
            self._report()


def steps(last: int, points: int) -> set[int]:
    """``points`` steps from 1 to ``last``, evenly spaced on a logarithmic axis (fewer where they coincide)."""
    return {round(last ** (place / max(points - 1, 1))) for place in range(points)} if points > 1 else {last}


def _json(value: Any) -> Any:
    """``None`` for what is not finite, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
