"""What a run is: the options that determine its trajectory, as opposed to those that only watch or place it.

Every option has a role, which stands in the metadata of its field in :mod:`training.config.schema`:

=============  ==============================================================================================
``trains``     determines the trajectory (model, data, estimator, optimiser, schedule, batch, seed): the run's name
``lasts``      how long: ``steps`` is a target, and a longer run goes on from the checkpoint of a shorter one
``evaluates``  what is measured at the end, from the final state alone
``watches``    what is measured on the way, and changes nothing
``places``     where, how fast and how visibly a run happens
=============  ==============================================================================================

An option that is added later has a ``neutral`` value, with which training is what it was before: it is left out of the
name then, so that no run is renamed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from analysis.records import Target
from training.config import schema, targets

ROLES = ("trains", "lasts", "evaluates", "watches", "places")


def role(option: str) -> str:
    """The role of an option, with dots (``data.root``); an option within a group has its group's, if none of its own.

    An option that the schema does not have, such as those of a user's own estimator, trains.
    """
    top, _, rest = option.partition(".")
    own = _metadata(top, rest).get("role") if rest else None
    return str(own or (_top_level()[top].metadata["role"] if top in _top_level() else "trains"))


@functools.cache
def _top_level() -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(schema.Config)}


@functools.cache
def _metadata(group: str, option: str) -> dict[str, Any]:
    """Of an option of a group, merged over the schemas that the group may have."""
    found: dict[str, Any] = {}
    for node in schema.nodes_of(group):
        for field in dataclasses.fields(node):
            if field.name == option:
                found |= field.metadata
    return found


def leaves(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every option of a config with dots and its value; lists, and what a basket holds, are values."""
    for key, value in config.items():
        if isinstance(value, dict) and f"{prefix}{key}" not in ("basket.estimators", "basket.reference"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def with_role(config: dict[str, Any], *roles: str) -> dict[str, Any]:
    """The options of a config that have one of ``roles``, with dots."""
    return {option: value for option, value in leaves(config) if role(option) in roles}


def trajectory(config: dict[str, Any]) -> dict[str, Any]:
    """What determines a run's numbers up to any step: its options that train, without those at their neutral value."""
    neutral = {(option, canonical(value)) for option, value in neutral_values(config).items()}
    options = with_role(config, "trains")
    return {option: value for option, value in options.items() if (option, canonical(value)) not in neutral}


def neutral_values(config: dict[str, Any]) -> dict[str, Any]:
    """The neutral values of the options of this config that were added later."""
    found = {}
    for group in (key for key, value in config.items() if isinstance(value, dict)):
        for node in schema.nodes_of(group):
            if group not in ("estimator", "task") or _target(node) == config[group].get("_target_"):
                for field in dataclasses.fields(node):
                    if "neutral" in field.metadata:
                        found[f"{group}.{field.name}"] = field.metadata["neutral"]
    for name, field in _top_level().items():
        if "neutral" in field.metadata:
            found[name] = field.metadata["neutral"]
    return found


def _target(node: type) -> Any:
    return next((field.default for field in dataclasses.fields(node) if field.name == "_target_"), None)


def run_name(config: dict[str, Any]) -> str:
    """``<estimator>-<task>-<data>-s<seed>-<hash of the trajectory>``: the same training, the same name."""
    digest = hashlib.sha256(canonical(trajectory(config)).encode()).hexdigest()[:10]
    names = "-".join(config[group]["name"] for group in ("estimator", "task", "data"))
    return f"{re.sub('[^A-Za-z0-9_.-]', '_', names)[:100]}-s{config['seed']}-{digest}"


def canonical(content: Any) -> str:
    """One text for equal content."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def kind_of(basket: dict[str, Any]) -> str:
    """A short name of what a basket asks for, by which its rows are told from those of another; empty for nothing."""
    nothing = basket.get("name", "none") == "none"
    return "" if nothing else hashlib.sha256(canonical(basket).encode()).hexdigest()[:8]


def target_of(config: dict[str, Any]) -> Target:
    """What a config asks of its run besides the training."""
    basket = config.get("basket", {})
    evaluation = with_role(config, "evaluates")
    return Target(config["steps"], evaluation, basket if kind_of(basket) else {})


def facts(config: dict[str, Any]) -> dict[str, Any]:
    """What a run's record says of its options: each by its role, and the neutral values of those added later; and
    the ``family`` of its estimator."""
    return {
        "run": run_name(config),
        "options": {each: with_role(config, each) for each in ROLES},
        "neutral": neutral_values(config),
        "family": targets.method_of(config["estimator"]).family if "_target_" in config["estimator"] else None,
        "basket": kind_of(config.get("basket", {})),
    }
