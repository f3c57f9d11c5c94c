"""Records of older code, which had no ``run.json``: the roles of their options, by the names that these had."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

PLACES = {
    *("runs_dir", "sweep", "budget", "source", "logger", "device", "threads", "replicas", "checkpoint_seconds"),
    *(
        "progress",
        "workers",
        "pack_size",
        "retries",
        "retry",
        "dry_run",
        "compile",
        "race",
        "cluster",
        "tune",
        "compare",
        "data.root",
        "data.download",
    ),
}
EVALUATES = {"train_samples", "valid_samples", "test_samples", "data.train_evaluated"}
WATCHES = {"evaluate_every", "evaluate_samples", "basket"}


def facts(config: dict[str, Any]) -> dict[str, Any]:
    """The ``run.json`` that a run with this config would have."""
    options: dict[str, dict[str, Any]] = {role: {} for role in ("trains", "lasts", "evaluates", "watches", "places")}
    for name, value in leaves(config):
        options[role_of(name)][name] = value
    return {"options": options, "legacy": True}


def protocol(found: dict[str, Any]) -> dict[str, Any]:
    """A recorded protocol in today's words: of a deep VAE with one layer they were once those of several."""
    if found.get("layers") != 1 or "every layer" not in str(found.get("evaluation")):
        return found
    words = {key: value for key, value in found.items() if key != "layers"}
    return words | {"evaluation": "hard samples, analytic KL in the ELBO"}


def role_of(option: str) -> str:
    """The role of an option, from its name with dots."""
    for role, names in {"places": PLACES, "evaluates": EVALUATES, "watches": WATCHES, "lasts": {"steps"}}.items():
        if option in names or option.split(".")[0] in names:
            return role
    return "trains"


def leaves(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every option of a config, with dots, and its value."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nested(options: dict[str, Any]) -> dict[str, Any]:
    """The config of which ``options`` are the :func:`leaves`."""
    config: dict[str, Any] = {}
    for name, value in options.items():
        *groups, leaf = name.split(".")
        node = config
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = value
    return config
