"""The loop: one pack of runs from its first step (or its checkpoint) to a record per run."""

from __future__ import annotations

import io
import math
import platform
import resource
import subprocess
import time
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.records import IMAGES, METRICS, RunRecord, read_metrics, write_atomically
from training.gradients.watcher import Basket
from training.interrupt import Stopped, asked
from training.kernels import matmul
from training.pack import checkpoints
from training.pack.loggers import make_logger
from training.pack.pack import Pack
from training.progress import Report

LOOK_EVERY_ON_GPU = 50
REPORT_SECONDS = 0.5


def train(pack: Pack, records: list[RunRecord], report: Report, lost: Collection[RunRecord] = ()) -> None:
    """Train ``pack`` to its last step and write each run's metrics, pictures, checkpoint and result.

    A replica whose loss or gradient is not finite is frozen and recorded as ``diverged``; the others go on. A run in
    ``lost`` (another process has taken it over) is dropped.

    Raises:
        Stopped: if a signal asked for it; checkpoints are written and the runs are ``queued``.
    """
    config = pack.configs[0]
    steps, every = config["steps"], config["evaluate_every"]
    loggers = [make_logger(run, record.path) for run, record in zip(pack.configs, records, strict=True)]
    label = f"{config['estimator']['name']} on {config['task']['name']}"
    report({"event": "pack", "label": label, "replicas": pack.replicas, "step": pack.step, "steps": steps})
    alive, note = list(range(pack.replicas)), ""
    # Looking at the device's numbers waits for it; on a CPU that is free, on a GPU it is done now and then.
    look_every = 1 if pack.device.type == "cpu" else LOOK_EVERY_ON_GPU
    saved = reported = began = time.monotonic()
    earlier = pack.seconds
    not_training = 0.0
    basket = Basket(pack, records)

    def save() -> None:
        checkpoints.save(pack, [(r, records[r]) for r in alive])

    def stop() -> Stopped:
        save()
        for r in alive:
            records[r].status("queued", step=pack.step)
            records[r].log(f"stopped at step {pack.step} by a signal; its checkpoint is written")
        return Stopped(f"stopped at step {pack.step} of {steps}; start the same command again to go on")

    def measure() -> None:
        save()  # it can take longer than all the steps before
        start = time.monotonic()
        report(
            {"event": "step", "step": pack.step, "note": f"measuring the gradients of {len(basket.names)} estimators"}
        )
        basket(alive)
        pack.evaluation_seconds += time.monotonic() - start
        if asked():
            raise stop()

    def end(replica: int, result: dict[str, Any], error: str | None = None) -> None:
        records[replica].finish(result)
        records[replica].log(f"{result['status']} at step {pack.step}{': ' + error if error else ''}")
        loggers[replica].finish(result["status"])
        over = {"event": "run", "run": records[replica].path.name, "status": result["status"], "error": error}
        report(over)

    if basket.is_due():  # a stop came in between
        measure()
    while pack.step < steps and alive:
        pack.train_step()
        now = time.monotonic()
        pack.seconds = earlier + now - began - not_training
        evaluating = pack.step % every == 0 or pack.step == steps
        saving = pack.step < steps and (now - saved > config["checkpoint_seconds"] or asked())
        looking = evaluating or saving or basket.is_due()
        if looking or pack.step % look_every == 0:
            for r, details in pack.divergences(alive, everywhere=looking):
                alive.remove(r)
                end(r, summary(pack, r, "diverged", {}) | details, details["divergence"])
        alive = [r for r in alive if records[r] not in lost]
        if evaluating and alive:
            rows = evaluate(pack, last=pack.step == steps)
            pack.evaluation_seconds += time.monotonic() - now
            for r in alive:
                records[r].append(rows[r])
                loggers[r].log(rows[r])
            note = _note(rows, alive)
        if alive and basket.is_due():
            measure()
        if saving:
            if asked():
                raise stop()
            save()
            saved = now
        if evaluating or now - reported > REPORT_SECONDS:
            report({"event": "step", "step": pack.step, "note": note})
            reported = now
        not_training += time.monotonic() - now
    if alive:
        save()
        for r, pictures in enumerate(pack.task.examples()):
            if r in alive:
                if pictures:
                    _save_pictures(records[r].path / IMAGES, pictures)
                # From the file: a run that was killed after its last checkpoint has no row in memory.
                last_row = read_metrics(records[r].path / METRICS)[-1]
                end(r, summary(pack, r, "finished", last_row))


def evaluate(pack: Pack, last: bool) -> list[dict[str, Any]]:
    """A metrics row per replica: training averages since the last row, bounds on valid and, at the end, on all splits.

    The ``last`` row has the details of the bounds: standard errors over images, the bounds of fewer samples, exact
    values of small models.
    """
    config = pack.configs[0]
    columns: dict[str, Tensor] = {
        "train_loss": pack.loss_sum / max(pack.loss_steps, 1),
        "gradient_variance": pack.variance.value(),
    }
    for layer, temperature in enumerate(pack.temperatures(), start=1):
        columns["temperature" if layer == 1 else f"temperature_{layer}"] = temperature
    if last:
        skipped = ["train"] if config["train_samples"] == 0 or math.prod(pack.data.image_shape) == 0 else []
        splits = [split for split in ("train", "valid", "test") if split not in skipped]
        found = {split: pack.task.evaluate(split, config[f"{split}_samples"], details=True) for split in splits}
    else:
        found = {"valid": pack.task.evaluate("valid", config["evaluate_samples"])}
    columns |= {f"{split}_{name}": value for split, metrics in found.items() for name, value in metrics.items()}
    pack.loss_sum.zero_()
    pack.loss_steps = 0
    values = {name: column.tolist() for name, column in columns.items()}
    return [
        {
            "step": pack.step,
            "seconds": round(pack.seconds, 3),
            "loss_evaluations": pack.step * pack.evaluations,
            **{name: column[r] if math.isfinite(column[r]) else None for name, column in values.items()},
        }
        for r in range(pack.replicas)
    ]


def summary(pack: Pack, replica: int, status: str, row: dict[str, Any]) -> dict[str, Any]:
    """The result of a run: what was measured and everything that it depends on."""
    config = pack.configs[replica]
    relaxed = getattr(pack.estimator, "relaxed", False)
    protocol = {
        **{name: _own(value, replica) for name, value in pack.task.protocol().items()},
        "valid_samples": config["valid_samples"],
        "test_samples": config["test_samples"],
    }
    return {
        "status": status,
        "step": pack.step,
        "metrics": row,
        "config": config,
        "protocol": protocol,
        "objective": {
            "kl": pack.task.kl_for(pack.estimator),
            "samples": "relaxed" if relaxed else "hard",
            "is_bound": not relaxed and protocol["evaluation_is_bound"],
        },
        "loss_evaluations": pack.step * pack.evaluations,
        "wall_seconds": round(pack.seconds, 3),
        "evaluation_seconds": round(pack.evaluation_seconds, 3),
        "pack_replicas": pack.replicas,
        "peak_memory_bytes": _peak_memory(pack.device),
        "device": device_name(pack.device),
        "threads": torch.get_num_threads(),
        "kernels": {"onednn": matmul.is_on(), "not_a_cuda_graph": pack.not_captured},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "commit": _commit(),
        "ended": time.time(),
    }


def _own(value: Any, replica: int) -> Any:
    """Of numbers ``[replicas]`` the replica's, to the six digits that float32 is sure of; all else as it is."""
    return float(f"{value[replica].item():.6g}") if isinstance(value, Tensor) else value


def device_name(device: torch.device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if platform.system() == "Darwin" else kilobytes * 1024


@cache
def _commit() -> str | None:
    """The repository's commit, with ``+`` if files differ from it; ``None`` outside of a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _save_pictures(path: Path, pictures: dict[str, Tensor]) -> None:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: images.numpy() for name, images in pictures.items()}
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def _note(rows: list[dict[str, Any]], alive: list[int]) -> str:
    name = next(name for name in rows[0] if name.startswith("valid_"))
    values = [rows[r][name] for r in alive if rows[r][name] is not None]
    return f"{name} {sum(values) / len(values):.5g}" if values else ""
