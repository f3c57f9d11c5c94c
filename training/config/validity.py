"""Which combinations of options make no sense, known before anything trains."""

from __future__ import annotations

from typing import Any

from analysis.papers.published import sources
from estimators import UnorderedSet
from tasks.datasets import CLASSES, DATASETS
from tasks.likelihoods import check_likelihood
from training import loggers
from training.config import ranges, targets
from training.errors import UserError
from training.replicas import schedules


def check(config: dict[str, Any]) -> None:
    """Raise ``UserError`` for values of a config that no run can have."""
    ranges.check(config)
    if config["source"] not in ("", *sources()):
        raise UserError(f"source={config['source']} has no published numbers here: use {', '.join(sources())}, or ''")
    if config["retry"] not in ("", "failed", "diverged"):
        raise UserError(f"retry must be failed or diverged (or empty: all that is unfinished), not {config['retry']!r}")
    if "likelihood" in config["task"]:
        try:
            task = config["task"]
            check_likelihood(task["likelihood"], config["data"]["binarization"], task.get("concentration"))
        except ValueError as error:
            raise UserError(str(error)) from None
    loggers.check(config["logger"])
    schedules.check(config)


def against(config: dict[str, Any]) -> str | None:
    """Why this estimator cannot train this task on this data, to be read after its name; ``None`` if it can.

    These are combinations: each of the options is right with others, so a sweep skips the run. An option that no run
    could have is an error: :func:`check` and :func:`training.pack.pack.rehearse`.
    """
    estimator, task = config["estimator"], config["task"]
    if not task.get("unlabelled", True) and estimator["name"] != "exact":
        return f"would never be asked by task={task['name']}, which learns from labels alone; use estimator=exact"
    method = targets.class_of(estimator, "estimator")
    return _of_latents(method, estimator, task) or _of_kl(method, estimator, task) or _of_data(config)


def caution(config: dict[str, Any]) -> str | None:
    """What one should know of a combination that is trained all the same, to be read after the estimator's name."""
    estimator, task = config["estimator"], config["task"]
    rescales = getattr(targets.class_of(estimator, "estimator"), "rescales", False)
    if task.get("kl") == "analytic" and rescales and estimator.get("variance_normalisation", True):
        return (
            "divides its gradient by a running scale, and the KL beside it, with task.kl=analytic, is not divided: it "
            "weighs as many times too much and may collapse the posterior; task.kl=auto has it inside"
        )
    return None


def _of_latents(method: type, estimator: dict[str, Any], task: dict[str, Any]) -> str | None:
    categories, layers = task.get("categories", 2), task.get("layers", 1)
    if getattr(method, "binary_only", False) and categories != 2:
        return (
            f"is defined for Bernoulli latents, but task={task['name']} has {categories} categories; "
            "use a task with task.categories=2, such as vae_bernoulli"
        )
    if _of_weights(method) and layers > 1:
        return (
            f"trains a multi-sample bound, whose gradient does not nest: with the {layers} layers of "
            f"task={task['name']} it would be wrong; use task.layers=1, or rloo"
        )
    # Exact: one layer's states are enumerated within each state of the layer before.
    latents = task.get("latents", 1) * layers
    if "max_states" in estimator and (latents > 63 or categories**latents > estimator["max_states"]):
        return (
            f"would enumerate the {categories}**{latents} joint states of task={task['name']}, more than "
            f"estimator.max_states={estimator['max_states']}; use fewer latents, or a sampling estimator such as rloo"
        )
    if issubclass(method, UnorderedSet) and latents < 64 and estimator.get("num_samples", 0) > categories**latents:
        return (
            f"wants {estimator['num_samples']} different states, and task={task['name']} has {categories}**{latents}; "
            "use fewer samples, or exact, which sums over all of them"
        )
    return None


def _of_kl(method: type, estimator: dict[str, Any], task: dict[str, Any]) -> str | None:
    kl = task.get("kl")
    if kl == "relaxed" and (estimator.get("hard") or not hasattr(method, "sample_with_log_prob")):
        return (
            "has no relaxed samples with a Concrete density, which task.kl=relaxed needs: use estimator=gumbel_softmax "
            "with estimator.hard=false, or task.kl=auto"
        )
    if kl == "analytic" and _of_weights(method):
        return (
            "trains a multi-sample bound, which holds the KL at the samples: with task.kl=analytic the objective would "
            "be no bound; use task.kl=auto"
        )
    return None


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
    if task.get("likelihood", "bernoulli") != "bernoulli" and data["binarization"] != "none":
        return (
            f"cannot train task={task['name']} on data={data['name']}: task.likelihood={task['likelihood']} is a "
            f"density of grey images, and data.binarization={data['binarization']} makes bits of them; use data=mnist "
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


def _of_weights(method: type) -> bool:
    return getattr(method, "objective", "mean") == "multi_sample_bound"
