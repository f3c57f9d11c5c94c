"""How many replicas fit into memory: measured on one and on two, since all memory but a constant is per replica."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from estimators.memory import Allocations
from tasks.chunks import BLOCK_SAMPLES, images_per_block
from training.config.plan import structure
from training.pack.build import build, load_once
from training.pack.pack import Pack

USABLE = 0.8
"""Of the free memory: allocators round up, and other processes want some."""


def bytes_of(config: dict[str, Any], device: torch.device) -> tuple[float, float]:
    """``(constant, per replica)``: peak bytes of a training step and a block of an evaluation."""
    key = (structure(config), device)
    if key not in _measured:
        peaks = []
        for replicas in (1, 2):
            with Allocations() as memory:
                pack = trial_pack(config, replicas, device)
                pack.not_captured = "its memory is measured"  # operator by operator
                for _ in range(2):  # the second finds moments and running averages in place
                    pack.train_step()
                pack.task.evaluate("valid", TRIAL_SAMPLES)
            peaks.append(memory.peak)
            del pack
        per_replica = max(peaks[1] - peaks[0], 1)
        _measured[key] = (max(peaks[0] - per_replica, 0), per_replica)
    return _measured[key]


_measured: dict[tuple[str, torch.device], tuple[float, float]] = {}
TRIAL_SAMPLES = BLOCK_SAMPLES


def trial_pack(config: dict[str, Any], replicas: int, device: torch.device) -> Pack:
    """A pack like that of ``config`` with a block of images to evaluate, to try what a step and an evaluation take."""
    data = load_once(**config["data"])
    valid = replace(data.valid, pixels=data.valid.pixels[: images_per_block(TRIAL_SAMPLES, device)])
    return build([config] * replicas, device, replace(data, valid=valid))


def largest_pack(configs: list[dict[str, Any]], device: torch.device) -> int:
    """How many of ``configs`` (of one structure) fit into the free memory together; at least 1."""
    if len(configs) == 1:
        return 1
    try:
        constant, per_replica = bytes_of(configs[0], device)
    except Exception:  # whatever is wrong with the config, training it says so better
        return len(configs)
    shares = 1 if device.type == "cuda" else configs[0]["workers"] or os.cpu_count() or 1
    return max(1, min(len(configs), int((USABLE * free_bytes(device) / shares - constant) // per_replica)))


def free_bytes(device: torch.device) -> float:
    """Free memory of a GPU, or of this machine within the limit of its control group."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = float("inf")
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return free
