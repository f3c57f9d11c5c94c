"""Loggers beside the local files: none, or Weights & Biases (imported only when used)."""

from __future__ import annotations

import contextlib
import importlib.util
import netrc
import os
from pathlib import Path
from typing import Any, Protocol

from training.errors import UserError

INIT_TIMEOUT = 30.0
"""Seconds that an online start may take; unreachable, wandb would otherwise block the run for 90 s."""


class Logger(Protocol):
    """What the loop tells a logger."""

    def log(self, row: dict[str, Any]) -> None: ...

    def finish(self, status: str) -> None: ...


class NoLogger:
    """The local files are enough."""

    def log(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def finish(self, status: str) -> None:
        """Nothing."""


class WandbLogger:
    """One Weights & Biases run per run, grouped by sweep; its files lie in the run's directory."""

    def __init__(self, config: dict[str, Any], path: Path) -> None:
        import wandb

        options = config["logger"]
        quiet: dict[str, Any] = {
            "silent": True,
            "console": "off",
            "x_disable_stats": True,
            "disable_git": True,
            "disable_code": True,
        }
        try:
            self._run = wandb.init(
                project=options["project"],
                entity=options["entity"],
                mode=options["mode"],
                group=config["sweep"],
                name=path.name,
                dir=str(path),
                config=config,
                reinit="create_new",
                settings=wandb.Settings(init_timeout=INIT_TIMEOUT, **quiet),
            )
        except wandb.errors.CommError as error:
            raise UserError(f"logger.mode=online: Weights & Biases cannot be reached ({error}); use offline") from None

    def log(self, row: dict[str, Any]) -> None:
        """Send a metrics row."""
        self._run.log({key: value for key, value in row.items() if value is not None}, step=row["step"])

    def finish(self, status: str) -> None:
        """Close the run with its status."""
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status == "finished" else 1)


def check(options: dict[str, Any]) -> None:
    """Raise ``UserError`` for a logger that could not start; asked before anything is written."""
    if options["name"] != "wandb":
        return
    if options["mode"] not in ("offline", "online"):
        raise UserError(f"logger.mode must be offline or online, not {options['mode']!r}")
    if importlib.util.find_spec("wandb") is None:
        raise UserError("logger=wandb needs the package wandb: pip install wandb, or use logger=none")
    # Without a key wandb would ask for one at the terminal, or end the process where there is none.
    if options["mode"] == "online" and not (os.environ.get("WANDB_API_KEY") or _key_in_netrc()):
        raise UserError("logger.mode=online needs a key: set WANDB_API_KEY, or use logger.mode=offline")


def _key_in_netrc() -> bool:
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return any("wandb" in host for host in netrc.netrc().hosts)
    return False


def make_logger(config: dict[str, Any], path: Path) -> Logger:
    """The logger that a run's config asks for."""
    return WandbLogger(config, path) if config["logger"]["name"] == "wandb" else NoLogger()
