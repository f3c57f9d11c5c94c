"""Where a sweep trains: the device, how many processes, how many runs in a pack."""

from __future__ import annotations

import os
from typing import Any

import torch

from training.errors import UserError

LARGEST_PACK_ON_CPU = 32
"""Beyond, a pack is not faster per replica on a CPU, and a step, an evaluation, a checkpoint take too long."""


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


def worker_count(options: dict[str, Any]) -> int:
    """``workers``, or if that is 0 one for each GPU, and without a GPU one for each core."""
    if options["workers"]:
        return int(options["workers"])
    if options["cluster"]["name"] == "slurm":
        return max(int(options["cluster"]["parallelism"]), 1)
    device = pick_device(options["device"])
    if device.type == "cuda":
        return 1 if device.index is not None else torch.cuda.device_count()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def largest_pack(options: dict[str, Any]) -> int:
    """``pack_size``, or if that is 0 what a CPU handles well; on a GPU memory alone decides, when the pack is made."""
    if options["pack_size"]:
        return int(options["pack_size"])
    if options["cluster"]["name"] == "slurm":  # jobs do not run here: this machine's devices say nothing
        on_cpu = options["device"] == "cpu" or not options["cluster"]["gpus"]
        return LARGEST_PACK_ON_CPU if on_cpu else 100_000
    return LARGEST_PACK_ON_CPU if pick_device(options["device"]).type == "cpu" else 100_000
