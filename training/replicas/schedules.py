"""Temperature schedules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from training.errors import UserError


def anneals(config: dict[str, Any]) -> bool:
    """Whether the schedule of a run's config changes its estimator's temperature."""
    schedule, name = config["schedule"], config["estimator"]["name"]
    if schedule["name"] == "constant":
        return False
    return not schedule["only"] or not {name, f"{name} on {config['task']['name']}"}.isdisjoint(schedule["only"])


INSTEAD = "schedule=constant, or name those to anneal in schedule.only=[...]"


class Annealing:
    """``temperature(t) = max(minimum, start * exp(-rate * t))``, t the step (from 0), refreshed every ``every`` steps.

    Reference: Jang, Gu, Poole, arXiv 1611.01144 (start 1, minimum 0.5, rate 1e-5 or 1e-4, every 500 or 1000).

    Args:
        configs: of a pack's runs, each with a start and a schedule of its own; all anneal or none does.
    """

    def __init__(self, configs: Sequence[dict[str, Any]], device: torch.device) -> None:
        def column(name: str, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.tensor([config["schedule"][name] for config in configs], dtype=dtype, device=device)

        starts = [config["estimator"]["temperature"] for config in configs]
        self._start = torch.tensor(starts, dtype=torch.float64, device=device)
        self._rate, self._minimum, self._every = column("rate"), column("minimum"), column("every", torch.int64)

    def at(self, step: Tensor) -> Tensor:
        """``[replicas]`` float64, for a step that the device knows (int64, a number)."""
        refreshed = step - step % self._every
        return torch.maximum(self._minimum, self._start * (-self._rate * refreshed).exp())


def check(config: dict[str, Any]) -> None:
    """Raise ``UserError`` for a schedule that the run's estimator cannot follow."""
    schedule, estimator = config["schedule"], config["estimator"]
    if not anneals(config):
        return
    if "temperature" not in estimator:
        raise UserError(
            f"schedule={schedule['name']} anneals a temperature, but estimator={estimator['name']} has none; "
            f"use {INSTEAD}"
        )


def nothing_to_anneal(config: dict[str, Any]) -> str:
    """The sentence for a schedule whose estimator has a temperature that cannot be set."""
    name, learns = config["estimator"]["name"], config["estimator"].get("learn")
    what = "learned" if learns else "no buffer `temperature` of it, which could be set"
    return (
        f"schedule={config['schedule']['name']} anneals a temperature, but that of estimator={name} is {what}, so "
        f"nothing would change; use {'estimator.learn=false, ' if learns else ''}{INSTEAD}"
    )
