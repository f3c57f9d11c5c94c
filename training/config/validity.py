"""Which combinations of options make no sense, known before anything trains."""

from __future__ import annotations

from typing import Any

from analysis.papers.published import sources
from tasks.datasets import CLASSES, DATASETS
from tasks.distributions.likelihoods import check_likelihood
from training import loggers
from training.config import ranges, targets
from training.config.race import race_of
from training.errors import UserError
from training.replicas import schedules

FORM = {"latents": 1, "categories": 2, "layers": 1}
"""The options that say a task's form, and what a task has that does not have them."""


def check(config: dict[str, Any]) -> None:
    """Raise ``UserError`` for values of a config that no run can have."""
    ranges.check(config)
    if config["source"] not in ("", *sources()):
        raise UserError(f"source={config['source']} has no published numbers here: use {', '.join(sources())}, or ''")
    if config["retry"] not in ("", "failed", "diverged", "changed"):
        words = "failed, diverged or changed (or empty: all that is unfinished)"
        raise UserError(f"retry must be {words}, not {config['retry']!r}")
    if config["compile"].lower() not in ("auto", "true", "false"):
        raise UserError(f"compile must be auto, true or false, not {config['compile']!r}")
    if "likelihood" in config["task"]:
        try:
            task = config["task"]
            check_likelihood(task["likelihood"], _binarization(config["data"]), task.get("concentration"))
        except ValueError as error:
            raise UserError(str(error)) from None
    race_of(config)
    loggers.check(config["logger"])
    schedules.check(config)


def reason_to_skip(config: dict[str, Any]) -> str | None:
    """Why this estimator cannot train this task on this data, to be read after its name; ``None`` if it can.

    These are combinations: each of the options is right with others, so a sweep skips the run. An option that no run
    could have is an error: :func:`check` and :func:`training.pack.pack.rehearse`.
    """
    estimator, task = config["estimator"], config["task"]
    method = targets.method_of(estimator)
    if not task.get("unlabelled", True) and method.stochastic:
        return f"would never be asked by task={task['name']}, which learns from labels alone; use estimator=exact"
    latents, categories, layers = (task.get(key, default) for key, default in FORM.items())
    options = {key: value for key, value in estimator.items() if key not in ("name", "_target_")}
    reason = method.skip(latents, categories, layers, options=options, kl=task.get("kl"), task=f"task={task['name']}")
    return reason or _of_data(config)


def caution(config: dict[str, Any]) -> str | None:
    """What one should know of a combination that is trained all the same, to be read after the estimator's name."""
    estimator, task = config["estimator"], config["task"]
    rescales = targets.method_of(estimator).rescales
    if task.get("kl") == "analytic" and rescales and estimator.get("variance_normalisation", True):
        return (
            "divides its gradient by a running scale, and the KL beside it, with task.kl=analytic, is not divided: it "
            "weighs as many times too much and may collapse the posterior; task.kl=auto has it inside"
        )
    return None


def _binarization(data: dict[str, Any]) -> str:
    """Of a user's data, whose function may have no such option, the task asks the images themselves."""
    return str(data.get("binarization", "none"))


def _of_data(config: dict[str, Any]) -> str | None:
    """Read after the estimator's name, too."""
    task, data = config["task"], config["data"]
    made: Any = targets.class_of(task, "task")
    if made.needs_images == (data["name"] == "none"):
        wants = (
            "has no images: use data=none with it"
            if not made.needs_images
            else "needs images: use data=digits or data=mnist"
        )
        return f"cannot train task={task['name']} on data={data['name']}: the task {wants}"
    if task.get("likelihood", "bernoulli") != "bernoulli" and _binarization(data) != "none":
        return (
            f"cannot train task={task['name']} on data={data['name']}: task.likelihood={task['likelihood']} is a "
            f"density of grey images, and data.binarization={_binarization(data)} makes bits of them; use data=mnist "
            "data.binarization=none, or task.likelihood=bernoulli"
        )
    # Data under a name of their own (a benchmark's) are looked at by the task.
    if "labelled" in task and data["name"] in DATASETS and CLASSES.get(data["name"]) != task["categories"]:
        return (
            f"cannot train task={task['name']} on data={data['name']}: the task needs images with labels of "
            f"task.categories={task['categories']} classes, and these have {CLASSES.get(data['name'], 'none')}; use "
            "data=digits or data=mnist"
        )
    return None
