"""Which combinations of options make no sense, known before anything trains."""

from __future__ import annotations

from typing import Any

import hydra.utils

from training import loggers, optimisers, schedules


def check(config: dict[str, Any]) -> None:
    """Raise ``UserError`` for values of a config that no run can have."""
    loggers.check(config["logger"])
    optimisers.check(config["optimizer"])
    schedules.check(config["schedule"], config["estimator"])


def against(config: dict[str, Any]) -> str | None:
    """Why this estimator cannot train this task, to be read after its name; ``None`` if it can."""
    estimator, task = config["estimator"], config["task"]
    categories = task.get("categories", 2)
    if getattr(hydra.utils.get_class(estimator["_target_"]), "binary_only", False) and categories != 2:
        return (
            f"is defined for Bernoulli latents, but task={task['name']} has {categories} categories; "
            "use task=vae_bernoulli"
        )
    return None
