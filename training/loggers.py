"""Loggers beside the local files: none, Weights & Biases or TensorBoard (imported only when used)."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import netrc
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
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


class TensorBoardLogger:
    """One event file per run, in ``tensorboard/`` of its directory: ``tensorboard --logdir runs/SWEEP`` shows a sweep.

    An event file cannot be gone on with: where a run goes on, its history is written anew from the record's metrics,
    and each step is there once.
    """

    def __init__(self, config: dict[str, Any], record: RunRecord) -> None:
        from tensorboardX import SummaryWriter

        folder = record.path / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        self._writer, self._step = SummaryWriter(str(folder)), 0
        self._writer.add_text("config", f"```json\n{json.dumps(config, indent=1, default=str)}\n```")
        for row in read_metrics(record.path / METRICS):
            self.log(row)

    def log(self, row: dict[str, Any]) -> None:
        """Write the numbers of a metrics row at its step."""
        self._step = row["step"]
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, self._step)

    def finish(self, status: str) -> None:
        """Close the file with the status; once it is closed, do nothing."""
        if self._writer is not None:
            self._writer.add_text("status", status, self._step)
            self._writer.close()
            self._writer = None


LOGGERS: dict[str, Callable[[dict[str, Any], RunRecord], Logger]] = {
    "none": lambda config, record: NoLogger(),
    "wandb": WandbLogger,
    "tensorboard": TensorBoardLogger,
}
PACKAGES = {"wandb": "wandb", "tensorboard": "tensorboardX"}


def check(options: dict[str, Any]) -> None:
    """Raise ``UserError`` for a logger that could not start; asked before anything is written."""
    name = options["name"]
    package = PACKAGES.get(name)
    if name == "wandb" and options["mode"] not in ("offline", "online"):
        raise UserError(f"logger.mode must be offline or online, not {options['mode']!r}")
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"logger={name} needs the package {package}: pip install {package}, or use logger=none")
    if name != "wandb":
        return
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
            loggers.append(LOGGERS[config["logger"]["name"]](config, record))
        yield loggers
    finally:
        for logger in loggers:
            logger.finish("interrupted")
