"""Hand-made run records, written through ``RunRecord`` as training writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from analysis.records import IMAGES, RESULT, RunRecord
from training.config.identity import facts, run_name

PROTOCOL = {
    "data": "binarized_mnist",
    "sizes": [50000, 10000, 10000],
    "binarization": "fixed",
    "prior": "uniform",
    "kl": "analytic",
    "likelihood": "bernoulli",
    "test_samples": 1000,
    "valid_samples": 100,
    "hard_samples": True,
    "is_bound": True,
}

NETS = {"vae_bernoulli": {"latents": 200, "categories": 2}, "vae_categorical": {"latents": 20, "categories": 10}}


def make_config(
    estimator="nvil", task="vae_bernoulli", data="binarized_mnist", seed=0, **settings: Any
) -> dict[str, Any]:
    """A run's config; ``settings`` replace or add keys, dotted with ``__``: ``optimizer__lr=.1``."""
    config: dict[str, Any] = {
        "estimator": {"name": estimator},
        "task": {"name": task, "prior": "uniform", "kl": "analytic", "hidden": [], **NETS.get(task, {})},
        "data": {"name": data, "root": "data/", "binarization": "fixed"},
        "optimizer": {"name": "adam", "lr": 0.001},
        **{
            "seed": seed,
            "steps": 1000,
            "batch_size": 100,
            "test_samples": 1000,
            "evaluate_samples": 100,
            "valid_samples": 1000,
        },
        **{"runs_dir": "runs", "sweep": "fake", "device": "cpu"},
    }
    for key, value in settings.items():
        *groups, leaf = key.split("__")
        place = config
        for group in groups:
            place = place[group]
        place[leaf] = value
    return config


def write_run(
    sweep: Path,
    config: dict[str, Any] | None = None,
    *,
    test: float = -105.0,
    valid: float = -104.0,
    status: str = "finished",
    protocol: dict[str, Any] | None = None,
    pseudo: bool = False,
    steps: int = 4,
    row: Callable[[int], dict[str, float]] | None = None,
    images: bool = False,
    overrides: Sequence[str] = (),
    **facts_of_result: Any,
) -> Path:
    """Write one run with ``steps`` evaluated steps; returns its directory. ``row`` gives the metrics of a step,
    ``facts_of_result`` what else its result says."""
    config = config or make_config()
    record = RunRecord(sweep / run_name(config))
    assert record.claim.take()
    record.start(yaml.safe_dump(config), list(overrides), facts(config))
    kind = "pseudo_" if pseudo else ""
    last = 0
    for number in range(1, steps + 1):
        last = number * config["steps"] // steps
        metrics: dict[str, float] = {"step": last, "seconds": 0.1 * number, "loss_evaluations": 100 * last}
        metrics |= {"train_loss": -valid, "gradient_variance": 1e-3 / number}
        metrics |= {f"valid_{kind}elbo": valid - 3.0 - 50.0 / number, f"valid_{kind}bound": valid}
        metrics |= row(last) if row else {}
        if number == steps and status == "finished":
            metrics |= {f"test_{kind}elbo": test - 3.0, f"test_{kind}bound": test}
        if number == steps and status == "diverged":
            metrics = {"step": last}
        record.append(metrics)
    if images:
        arrays = np.random.default_rng(config["seed"]).random((3, 8, 14, 14))
        np.savez(record.path / IMAGES, **dict(zip(("originals", "reconstructions", "samples"), arrays, strict=True)))
    if status in ("finished", "diverged"):
        result = {"status": status, "step": last, "protocol": {**PROTOCOL, **(protocol or {})}}
        result |= {"wall_seconds": 1.0, "diverged_at": last if status == "diverged" else None}
        record.finish({**result, **facts_of_result})
    elif status == "eliminated":
        record.eliminate(last)
    elif status == "failed":
        record.status("failed", error="Traceback ...\nRuntimeError: out of memory")
    record.claim.release()
    return record.path


def seal_again(path: Path) -> None:
    """Seal a finished run as it is now, as somebody would who changed it and does not want it to be noticed."""
    record = RunRecord(path)
    record.finish(json.loads((path / RESULT).read_bytes()))
