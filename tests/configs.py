"""Configs of runs as ``train.py`` composes them: what Hydra has composed once is kept for the session."""

from __future__ import annotations

import copy
import functools
import os
from typing import Any

from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from training.config import schema
from training.config.compose import _Composer


def config(*overrides: str) -> dict[str, Any]:
    """One run's config, the caller's own.

    Values are set in a composed config as a sweep sets them, which ``tests/test_plan.py`` compares with Hydra's own.
    """
    composer, parser = _composer(os.environ.get("DATA_DIR"))
    return copy.deepcopy(composer(parser.parse_overrides(list(overrides))))


@functools.cache
def _composer(data: str | None) -> tuple[_Composer, OverridesParser]:
    """For this ``DATA_DIR``, which stands in the configs."""
    schema.register()
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", version_base="1.3"):
        hydra: Any = GlobalHydra.instance().hydra
        master = hydra.compose_config("config", [], run_mode=RunMode.MULTIRUN)
        return _Composer(master, hydra.config_loader), OverridesParser.create(config_loader=hydra.config_loader)
