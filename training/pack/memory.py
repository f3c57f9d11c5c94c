"""How many replicas fit into memory: measured on one and on two, since all memory but a constant is per replica."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from estimators.memory import Allocations
from tasks.datasets import DataError, Dataset, blank_dataset
from tasks.evaluation.chunks import BLOCK_SAMPLES, images_per_block
from training.config.plan import structure
from training.errors import UserError
from training.pack.build import build, load_once
from training.pack.pack import Pack
from training.replicas.streams import LimitedStreams, TooLarge

USABLE = 0.8
"""Of the free memory: allocators round up, and other processes want some."""


def bytes_of(config: dict[str, Any], device: torch.device) -> tuple[float, float]:
    """``(constant, per replica)``: peak bytes of a training step and a block of an evaluation."""
    alone, two = (_peak(config, replicas, device) for replicas in (1, 2))
    per_replica = max(two - alone, 1)
    return max(alone - per_replica, 0), per_replica


def _peak(config: dict[str, Any], replicas: int, device: torch.device) -> float:
    key = (structure(config), replicas, device)
    if key not in _peaks:
        with Allocations() as memory:
            pack = trial_pack(config, replicas, device)
            pack.runner.not_captured = "its memory is measured"
            for _ in range(2):  # the second finds moments and running averages in place
                pack.train_step()
            pack.task.evaluate("valid", TRIAL_SAMPLES)
        _peaks[key] = memory.peak
    return _peaks[key]


_peaks: dict[tuple[str, int, torch.device], float] = {}
TRIAL_SAMPLES = BLOCK_SAMPLES


def trial_pack(config: dict[str, Any], replicas: int, device: torch.device) -> Pack:
    """A pack like that of ``config`` with a block of images to evaluate, to try what a step and an evaluation take.

    Its step is not compiled, which would take longer than the trial.
    """
    data = load_once(**config["data"])
    valid = replace(data.valid, pixels=data.valid.pixels[: images_per_block(TRIAL_SAMPLES, device)])
    return build([{**config, "compile": "false"}] * replicas, device, replace(data, valid=valid))


def rehearse(config: dict[str, Any]) -> None:
    """Build a run's pack with blank data and forget it: a millisecond or ten that find what no run can have.

    A user's own data, whose form only they tell, are loaded.

    Raises:
        UserError: for a value that the task, the estimator or the optimiser does not accept, and for a run that cannot
            fit into the memory of this machine, before that is asked for it.
    """
    data = load_once(**config["data"]) if "_target_" in config["data"] else _blank(config)
    copies, free = 4 if config["optimizer"]["name"] == "adam" else 3, free_bytes(CPU)
    _check_samples(config, free)
    try:
        build([config], CPU, data=data, streams=LimitedStreams([config["seed"]], free / copies))
    except TooLarge as error:
        if config["cluster"]["name"] == "slurm":  # its machines may have more
            return
        raise UserError(
            f"one run takes at least {_gib(copies * error.bytes)} for parameters, gradients and moments, of which the "
            f"largest has shape {error.shape}, and {_gib(free)} of memory are free; use smaller task.* and estimator.*"
        ) from None


def _blank(config: dict[str, Any]) -> Dataset:
    name, binarization, train_evaluated = (config["data"][key] for key in ("name", "binarization", "train_evaluated"))
    try:
        return blank_dataset(name, binarization, train_evaluated, images=max(1000, config["batch_size"]))
    except DataError as error:
        raise UserError(str(error)) from None


def _check_samples(config: dict[str, Any], free: float) -> None:
    """Raise ``UserError`` if the samples of a step alone would not fit into memory."""
    estimator, task = config["estimator"], config["task"]
    latents, categories = task.get("latents", 1), task.get("categories", 2)
    states = categories**latents if "max_states" in estimator else 1
    samples = max(estimator.get("num_samples", 1), estimator.get("num_inner", 1))
    size = 4 * latents * categories * max(samples * config["batch_size"], states)
    if size > free and config["cluster"]["name"] != "slurm":
        raise UserError(
            f"the samples of a step of one run take at least {_gib(size)}, and {_gib(free)} of memory are free; use "
            "fewer samples (estimator.*), latents or examples (batch_size)"
        )


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"


CPU = torch.device("cpu")


def largest_pack(configs: list[dict[str, Any]], device: torch.device) -> int:
    """How many of ``configs`` (of one structure) fit into the free memory together; at least 1."""
    if len(configs) == 1:
        return 1
    shares = 1 if device.type == "cuda" else configs[0]["workers"] or os.cpu_count() or 1
    room = USABLE * free_bytes(device) / shares
    try:
        if _peak(configs[0], 1, device) * len(configs) <= room:  # what is constant counted for each of them
            return len(configs)
        constant, per_replica = bytes_of(configs[0], device)
    except Exception:  # whatever is wrong with the config, training it says so better
        return len(configs)
    return max(1, min(len(configs), int((room - constant) // per_replica)))


def free_bytes(device: torch.device) -> float:
    """Free memory of a GPU, or of this machine within the limit of its control group (all of it where none is told)."""
    if device.type == "cuda":  # what torch keeps for itself is free, too
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return free
