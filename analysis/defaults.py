"""Defaults of options that a recorded config lacks: those of the schema, as data."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("defaults.json")
"""``python -m training.config.defaults`` writes it."""


def complete(config: dict[str, Any]) -> dict[str, Any]:
    """A recorded config with the options that it lacks, at their defaults.

    A run's config has every option that there was. What it lacks was added later, and the run went as the default of
    that option goes. Of a class that is not of this library no defaults are known, and nothing is added to its options.
    """
    known = defaults()
    full = {**known["config"], **config}
    for group, options in full.items():
        if isinstance(options, dict):
            own = known["names"].get(group, {})
            found = own.get(str(options.get("name")), own.get("*", {}))
            if "_target_" in options or isinstance(found, str):
                found = known["classes"].get(str(options.get("_target_", found)), {})
            full[group] = {**found, **options}
    return full


@functools.cache
def defaults() -> dict[str, Any]:
    """``{"config": {field: default}, "classes": {_target_: ...}, "names": {group: {name: _target_ or ...}}}``."""
    content: dict[str, Any] = json.loads(FILE.read_bytes())
    return content
