"""``python -m training.config.defaults``: write the defaults of every option into ``analysis/defaults.json``.

The analysis knows no schema, but it must know what a record means that lacks an option: it is older than the option,
and ran as the default goes. A test compares the file with the schema.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from analysis.defaults import FILE
from training.config import schema

CONF = Path(__file__).parents[2] / "conf"
BY_CLASS = ("estimator", "task")
"""Groups whose options are those of a class; those of the other groups go by their name."""


def defaults() -> dict[str, Any]:
    """``{"config": {field: default}, "classes": {_target_: ...}, "names": {group: {name: _target_ or ...}}}``.

    ``config`` has the groups that a run may lack with their names. The options of an estimator and a task are those of
    their class, those of another group stand under its name, or under ``*`` where all names have the same.
    """
    schema.register()
    nodes: dict[str, Any] = ConfigStore.instance().repo["hydra"]["schema"]
    groups: dict[str, Any] = {name: node for name, node in nodes.items() if isinstance(node, dict)}
    chosen = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    names = {key: name for choice in chosen if isinstance(choice, dict) for key, name in choice.items()}
    config = _plain(ConfigStore.instance().repo["schema.yaml"].node)
    config |= {group: {"name": names[group]} for group in groups if group not in (*BY_CLASS, "optimizer")}
    found: dict[str, Any] = {"config": config, "classes": {}, "names": {"data": {"*": _plain(nodes["data.yaml"].node)}}}
    for group, own in groups.items():
        by_schema: dict[str, Any] = {Path(file).stem: OmegaConf.to_container(entry.node) for file, entry in own.items()}
        if group not in BY_CLASS:
            found["names"][group] = {node["name"]: _plain(own[f"{key}.yaml"].node) for key, node in by_schema.items()}
            continue
        found["classes"] |= {node["_target_"]: _plain(own[f"{key}.yaml"].node) for key, node in by_schema.items()}
        found["names"][group] = {}
        for file in sorted((CONF / group).glob("*.yaml")):
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
            key = content["defaults"][0].removeprefix(f"/hydra/schema/{group}/").partition("@")[0]
            found["names"][group][content["name"]] = by_schema[key]["_target_"]
    return found


def _plain(node: Any) -> dict[str, Any]:
    """The options with a default."""
    content: Any = OmegaConf.to_container(node)
    return {key: value for key, value in content.items() if value != "???" and key not in ("name", "_target_")}


def text() -> str:
    """What the file holds."""
    return json.dumps(defaults(), indent=1, sort_keys=True, allow_nan=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
