"""Temperature schedules."""

from __future__ import annotations

import math
from typing import Any

from training.errors import UserError


def temperature_at(schedule: dict[str, Any], start: float, step: int) -> float:
    """The temperature at a step (counted from 0).

    ``constant``: ``start``. ``exponential``: ``max(minimum, start * exp(-rate * t))`` where t is the step, refreshed
    every ``every`` steps (Jang, Gu, Poole, arXiv 1611.01144, with start 1, minimum 0.5).
    """
    if schedule["name"] == "constant":
        return start
    refreshed = step - step % schedule["every"]
    return max(schedule["minimum"], start * math.exp(-schedule["rate"] * refreshed))


def check(schedule: dict[str, Any], estimator: dict[str, Any]) -> None:
    """Raise ``UserError`` for a schedule that the estimator cannot follow, or numbers out of range."""
    if schedule["name"] == "constant":
        return
    if "temperature" not in estimator:
        raise UserError(
            f"schedule={schedule['name']} anneals a temperature, but estimator {estimator['name']} has none; "
            "use schedule=constant"
        )
    if not schedule["minimum"] > 0:
        raise UserError(f"schedule.minimum must be positive, not {schedule['minimum']}")
    if schedule["rate"] < 0:
        raise UserError(f"schedule.rate must not be negative, not {schedule['rate']}")
    if schedule["every"] < 1:
        raise UserError(f"schedule.every must be at least 1, not {schedule['every']}")
