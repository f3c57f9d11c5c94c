"""From a composed config to the runs it asks for: which are finished, which to train, and where."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from analysis.records import HEARTBEAT_SECONDS, RunRecord, run_name
from training.errors import UserError
from training.heap import keep_freed_memory
from training.loop import load_checkpoint, train
from training.matmul import use_onednn, use_tf32
from training.pack import Pack


def train_job(config: DictConfig) -> None:
    """Train the ``replicas`` runs of one Hydra job that are neither finished nor being trained elsewhere.

    Raises:
        UserError: for a mistake in the config; no run's record is touched then.
    """
    job: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    train_runs(replicated(job), overrides)


def replicated(job: dict[str, Any]) -> list[dict[str, Any]]:
    """One config per run: the seeds ``seed .. seed + replicas - 1``, each as if it had been asked for alone."""
    if job["replicas"] < 1:
        raise UserError(f"replicas must be at least 1, not {job['replicas']}")
    if job["seed"] < 0:
        raise UserError(f"seed must not be negative, not {job['seed']}")
    runs = []
    for offset in range(job["replicas"]):
        run = copy.deepcopy(job)
        run["seed"], run["replicas"] = job["seed"] + offset, 1
        runs.append(run)
    return runs


def train_runs(configs: list[dict[str, Any]], overrides: list[str]) -> None:
    """Train the runs of ``configs`` that are to be trained, those at the same step as one pack."""
    first = configs[0]
    device = pick_device(first["device"])
    torch.set_num_threads(first["threads"])
    keep_freed_memory()
    use_onednn()
    use_tf32(first["allow_tf32"])
    sweep = Path(first["runs_dir"]).absolute() / first["sweep"]
    claimed: list[tuple[dict[str, Any], RunRecord]] = []
    try:
        for config in configs:
            record = RunRecord(sweep / run_name(config))
            if record.is_finished():
                print(f"finished already: {record.path.name}")
            elif not _claim(record):
                print(f"being trained by another process: {record.path.name}")
            elif record.is_finished():  # the other process finished between the two looks
                record.release()
            else:
                claimed.append((config, record))
        by_step: dict[int, list[tuple[dict[str, Any], RunRecord, dict[str, Any] | None]]] = {}
        for config, record in claimed:
            state = load_checkpoint(record.path)
            by_step.setdefault(state["step"] if state else 0, []).append((config, record, state))
        for members in by_step.values():
            _train_pack(members, device, overrides)
    finally:
        for _, record in claimed:
            record.release()
            with contextlib.suppress(OSError):
                record.path.rmdir()  # nothing was written: leave nothing behind


def _train_pack(
    members: list[tuple[dict[str, Any], RunRecord, dict[str, Any] | None]], device: torch.device, overrides: list[str]
) -> None:
    configs, records = [member[0] for member in members], [member[1] for member in members]
    pack = Pack(configs, device)
    states = [member[2] for member in members if member[2] is not None]
    if states:
        pack.restore(states)
    for config, record in zip(configs, records, strict=True):
        own = [line for line in overrides if not line.startswith(("seed=", "replicas="))]
        record.start(yaml.safe_dump(config, sort_keys=False), [*own, f"seed={config['seed']}"], keep_until=pack.step)
    try:
        with _heartbeats(records):
            train(pack, records)
    except Exception as error:
        for record in records:
            if not record.is_finished():
                record.status("failed", error=f"{type(error).__name__}: {error}")
        raise


@contextlib.contextmanager
def _heartbeats(records: list[RunRecord]) -> Iterator[None]:
    """Keep the claims alive from a thread: an evaluation can take longer than a claim lasts."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS / 6):
            for record in records:
                record.heartbeat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _claim(record: RunRecord) -> bool:
    try:
        return record.claim()
    except OSError as error:
        raise UserError(
            f"runs_dir: cannot write to {record.path} ({error.strerror}); choose another folder with runs_dir=PATH"
        ) from None


def pick_device(name: str) -> torch.device:
    """``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:N``."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, not {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={name}: {torch.cuda.device_count()} CUDA devices are visible; use device=cpu or auto")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, not {name!r}")
    return device
