"""Which combinations of options make no sense, known before anything trains."""

from __future__ import annotations

from typing import Any

import hydra.utils

from training import loggers, optimisers, schedules
from training.errors import UserError

AT_LEAST_ONE = ("steps", "batch_size", "evaluate_every", "evaluate_samples", "valid_samples", "test_samples")


def check(config: dict[str, Any]) -> None:
    """Raise ``UserError`` for values of a config that no run can have."""
    for name in AT_LEAST_ONE:
        if config[name] < 1:
            raise UserError(f"{name} must be at least 1, not {config[name]}")
    if config["train_samples"] < 0:
        raise UserError(f"train_samples must be at least 0, not {config['train_samples']}; 0: no bound on train")
    loggers.check(config["logger"])
    optimisers.check(config["optimizer"])
    schedules.check(config)


def against(config: dict[str, Any]) -> str | None:
    """Why this estimator cannot train this task, to be read after its name; ``None`` if it can."""
    estimator, task = config["estimator"], config["task"]
    method = hydra.utils.get_class(estimator["_target_"])
    categories, layers = task.get("categories", 2), task.get("layers", 1)
    if getattr(method, "binary_only", False) and categories != 2:
        return (
            f"is defined for Bernoulli latents, but task={task['name']} has {categories} categories; "
            "use a task with task.categories=2, such as vae_bernoulli"
        )
    if getattr(method, "objective", "mean") == "multi_sample_bound" and layers > 1:
        return (
            f"trains a multi-sample bound, whose gradient does not nest: with the {layers} layers of "
            f"task={task['name']} it would be wrong; use task.layers=1, or rloo"
        )
    # Exact: one layer's states are enumerated within each state of the layer before.
    latents = task.get("latents", 1) * layers
    if "max_states" in estimator and categories**latents > estimator["max_states"]:
        return (
            f"would enumerate the {categories}**{latents} joint states of task={task['name']}, more than "
            f"estimator.max_states={estimator['max_states']}; use fewer latents, or a sampling estimator such as rloo"
        )
    return None
