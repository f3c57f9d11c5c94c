"""Loggers beside the local files: none, or Weights & Biases (imported only when used)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from training.errors import UserError


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
        options = config["logger"]
        if options["mode"] not in ("offline", "online"):
            raise UserError(f"logger.mode must be offline or online, not {options['mode']!r}")
        try:
            import wandb
        except ImportError:
            raise UserError("logger=wandb needs the package wandb: pip install wandb, or use logger=none") from None
        import os

        if options["mode"] == "online" and not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
            raise UserError("logger.mode=online needs a key: set WANDB_API_KEY, or use logger.mode=offline")
        self._run = wandb.init(
            project=options["project"],
            entity=options["entity"],
            mode=options["mode"],
            group=config["sweep"],
            name=path.name,
            dir=str(path),
            config=config,
            reinit="create_new",
            settings=wandb.Settings(
                silent=True, console="off", x_disable_stats=True, disable_git=True, disable_code=True
            ),
        )

    def log(self, row: dict[str, Any]) -> None:
        """Send a metrics row."""
        self._run.log({key: value for key, value in row.items() if value is not None}, step=row["step"])

    def finish(self, status: str) -> None:
        """Close the run with its status."""
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status == "finished" else 1)


def make_logger(config: dict[str, Any], path: Path) -> Logger:
    """The logger that a run's config asks for."""
    return WandbLogger(config, path) if config["logger"]["name"] == "wandb" else NoLogger()
