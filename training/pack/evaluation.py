"""Rows of metrics and results of a pack's runs."""

from __future__ import annotations

import io
import math
import os
import platform
import resource
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.records import write_atomically
from estimators import noise_source
from tasks.evaluation.chunks import intensities
from training.config.identity import with_role
from training.kernels import matmul
from training.pack.pack import Pack
from training.processes import ROOT
from training.replicas.streams import ReplicaSource, derive_seed

Row = dict[str, Any]


def evaluate(pack: Pack) -> list[Row]:
    """A metrics row per replica: averages of training since the last row, and bounds on the validation images."""
    columns = _of_training(pack)
    pack.tensors.loss_sum.zero_()
    pack.loss_steps = 0
    found = pack.task.evaluate("valid", pack.configs[0]["evaluate_samples"])
    return _rows(pack, columns | {f"valid_{name}": value for name, value in found.items()})


def evaluate_last(pack: Pack) -> list[Row]:
    """A row per replica of the state that training ends in: what :func:`evaluate` said of it, if it was asked at this
    step, and the bounds of all splits with their details (standard errors over images, the bounds of fewer samples,
    exact values of small models). The pack is left as it is: it may be trained further."""
    config = pack.configs[0]
    skipped = ["train"] if config["train_samples"] == 0 or math.prod(pack.data.image_shape) == 0 else []
    columns = {} if pack.loss_steps == 0 else _of_training(pack)
    for split in ("train", "valid", "test"):
        if split not in skipped:
            found = pack.task.evaluate(split, config[f"{split}_samples"], details=True) | _relaxed(pack, split)
            columns |= {f"{split}_{name}": value for name, value in found.items()}
    return [{**(carried or {}), **row} for carried, row in zip(pack.carried_row, _rows(pack, columns), strict=True)]


@torch.no_grad()
def _relaxed(pack: Pack, split: str) -> dict[str, Tensor]:
    """``relaxed_elbo``: minus the training objective at relaxed samples, ``[replicas]``, mean over the split's images.

    It is what "ELBO" often means where samples are soft, and no bound on ``log p(x)``. Empty for estimators with hard
    samples, and for tasks whose result is not a bound. One sample an image; the same at each call.
    """
    if not getattr(pack.estimator, "relaxed", False) or pack.task.primary.metric != "bound":
        return {}
    images = pack.data.evaluated(split)
    total = torch.zeros(pack.replicas, dtype=torch.float64, device=pack.device)
    with noise_source(ReplicaSource([derive_seed(config["seed"], f"relaxed/{split}") for config in pack.configs])):
        for some in images.pixels.split(pack.configs[0]["batch_size"]):  # as many as fit in a step
            x = intensities(some, images.levels, pack.replicas, next(pack.task.parameters()))
            total -= pack.task.loss(x, *pack.estimators).double().sum(-1)
    return {"relaxed_elbo": total / len(images)}


def rows_of(pack: Pack, split: str, samples: int) -> int:
    """Samples of images that an evaluation of a split computes; 0 where there are no images."""
    images = len(getattr(pack.data, split))
    images = min(images, pack.data.train_evaluated) if split == "train" else images
    return 0 if math.prod(pack.data.image_shape) == 0 else images * samples


def last_rows(pack: Pack) -> int:
    """As :func:`rows_of`, of :func:`evaluate_last`."""
    return sum(rows_of(pack, split, pack.configs[0][f"{split}_samples"]) for split in ("train", "valid", "test"))


def _of_training(pack: Pack) -> dict[str, Tensor]:
    columns = {
        "train_loss": pack.tensors.loss_sum / max(pack.loss_steps, 1),
        "gradient_variance": pack.tensors.variance.value(),
    }
    scale = pack.estimator.gradient_scale()
    if scale is not None and len(pack.estimators) == 1:  # layers have a scale each, and their gradients are added
        columns["gradient_variance_unscaled"] = columns["gradient_variance"] * scale.flatten().square()
    for layer, temperature in enumerate(pack.temperatures(), start=1):
        columns["temperature" if layer == 1 else f"temperature_{layer}"] = temperature
    return columns


def _rows(pack: Pack, columns: dict[str, Tensor]) -> list[Row]:
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


def summary(pack: Pack, replica: int, status: str, row: Row) -> dict[str, Any]:
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
        "evaluation": with_role(config, "evaluates"),
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
        "kernels": {
            "onednn": matmul.is_on(),
            "not_a_cuda_graph": pack.runner.not_captured,
            "not_compiled": pack.runner.not_compiled,
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "commit": commit(),
        "ended": time.time(),
    }


def save_pictures(path: Path, pictures: dict[str, Tensor]) -> None:
    """Write the pictures of one run as ``.npz``."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: images.numpy() for name, images in pictures.items()}
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def _own(value: Any, replica: int) -> Any:
    """One replica's value of a tensor ``[replicas]``, rounded to six significant digits; all else as it is."""
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
def commit() -> str | None:
    """The commit of the code that runs, with ``+`` if files differ from it; ``None`` outside of a checkout.

    It is that of the first call: what is committed while a process trains is not what trains.
    """
    own = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}  # a hook's are of its own

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, env=own, capture_output=True, encoding="utf-8", errors="replace", check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", str(Path(__file__).absolute()))  # a copy in another repository
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
