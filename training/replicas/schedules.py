"""Temperature schedules."""

from __future__ import annotations

import math
from typing import Any

from training.errors import UserError


def anneals(config: dict[str, Any]) -> bool:
    """Whether the schedule of a run's config changes its estimator's temperature."""
    schedule, name = config["schedule"], config["estimator"]["name"]
    if schedule["name"] == "constant":
        return False
    return not schedule["only"] or not {name, f"{name} on {config['task']['name']}"}.isdisjoint(schedule["only"])


def temperature_at(schedule: dict[str, Any], start: float, step: int) -> float:
    """``max(minimum, start * exp(-rate * t))`` where t is the step (from 0), refreshed every ``every`` steps.

    Reference: Jang, Gu, Poole, arXiv 1611.01144 (start 1, minimum 0.5, rate 1e-5 or 1e-4, every 500 or 1000).
    """
    refreshed = step - step % schedule["every"]
    return max(schedule["minimum"], start * math.exp(-schedule["rate"] * refreshed))


def check(config: dict[str, Any]) -> None:
    """Raise ``UserError`` for a schedule that the run's estimator cannot follow, or numbers out of range."""
    schedule, estimator = config["schedule"], config["estimator"]
    if not anneals(config):
        return
    if "temperature" not in estimator:
        raise UserError(
            f"schedule={schedule['name']} anneals a temperature, but estimator={estimator['name']} has none; "
            "use schedule=constant, or name those to anneal in schedule.only=[...]"
        )
    if not schedule["minimum"] > 0:
        raise UserError(f"schedule.minimum must be positive, not {schedule['minimum']}")
    if schedule["rate"] < 0:
        raise UserError(f"schedule.rate must not be negative, not {schedule['rate']}")
    if schedule["every"] < 1:
        raise UserError(f"schedule.every must be at least 1, not {schedule['every']}")
