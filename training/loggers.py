"""Loggers beside the local files: none, or Weights & Biases (imported only when used)."""

from __future__ import annotations

import contextlib
import importlib.util
import netrc
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from analysis.records import METRICS, RunRecord, read_metrics
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
    """One Weights & Biases run per run, grouped by sweep; its files lie in the run's directory.

    The record keeps its id. Where a run goes on, so does the one of that id; what Weights & Biases does not have of the
    history it gets from the record's metrics. Offline that is all of it, since an offline run cannot be gone on with:
    what an earlier process left is replaced.
    """

    def __init__(self, config: dict[str, Any], record: RunRecord) -> None:
        import wandb

        options, identity = config["logger"], record.known_as("wandb", secrets.token_hex(8))
        for earlier in (record.path / "wandb").glob(f"offline-run-*-{identity}"):
            shutil.rmtree(earlier)
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
                name=record.path.name,
                dir=str(record.path),
                id=identity,
                resume="allow" if options["mode"] == "online" else None,
                config=config,
                reinit="create_new",
                settings=wandb.Settings(init_timeout=INIT_TIMEOUT, **quiet),
            )
        except wandb.errors.CommError as error:
            raise UserError(f"logger.mode=online: Weights & Biases cannot be reached ({error}); use offline") from None
        self._open = True
        for row in read_metrics(record.path / METRICS):
            self.log(row)

    def log(self, row: dict[str, Any]) -> None:
        """Send a metrics row, unless it is there: a run goes on from its checkpoint, which may be older."""
        if row["step"] >= self._run.step:
            self._run.log({key: value for key, value in row.items() if value is not None}, step=row["step"])

    def finish(self, status: str) -> None:
        """Close the run with its status; once it is closed, do nothing."""
        if self._open:
            self._open = False
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


@contextlib.contextmanager
def open_loggers(configs: Sequence[dict[str, Any]], records: Sequence[RunRecord]) -> Iterator[list[Logger]]:
    """The loggers that the configs of runs ask for. Those that are open in the end are closed: their runs may go on."""
    loggers: list[Logger] = []
    try:
        for config, record in zip(configs, records, strict=True):
            loggers.append(WandbLogger(config, record) if config["logger"]["name"] == "wandb" else NoLogger())
        yield loggers
    finally:
        for logger in loggers:
            logger.finish("interrupted")
