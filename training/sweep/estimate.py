"""What packs will take: seconds and bytes, measured by a short trial of each kind of pack."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import torch

from training.config.plan import PackPlan, structure
from training.devices import pick_device
from training.pack import memory
from training.pack.build import load_once
from training.progress import clock

MOST_REPLICAS, TRIAL_STEPS = 8, 10
BUDGET_SECONDS = 5.0
"""Kinds of packs that are not tried within this time are taken to be like the mean of those that were."""


def lines(packs: Sequence[PackPlan], workers: int) -> list[str]:
    """A line for each pack, and the sum, for people."""
    torch.set_num_threads(packs[0][0].config["threads"] if packs else 1)
    costs: dict[tuple[str, int], tuple[float, float, float]] = {}
    keys = [(structure(pack[0].config), min(len(pack), MOST_REPLICAS)) for pack in packs]
    kinds = list({key: pack[0].config for pack, key in zip(packs, keys, strict=True)}.items())
    random.Random(0).shuffle(kinds)  # should time be out before all were tried, those that were are of all sorts
    began = time.monotonic()
    for key, config in kinds:
        if time.monotonic() - began < BUDGET_SECONDS:
            costs[key] = _cost(config, key[1])
    if not costs:
        return []
    mean = tuple(sum(cost[i] for cost in costs.values()) / len(costs) for i in range(3))
    text, ends = [], [0.0] * min(workers, len(packs))
    for number, (pack, key) in enumerate(zip(packs, keys, strict=True), start=1):
        seconds, constant, per_replica = costs.get(key, mean)
        seconds *= len(pack)
        ends[ends.index(min(ends))] += seconds
        megabytes = (constant + per_replica * len(pack)) / 2**20
        about = "about" if key in costs else "perhaps"
        text.append(f"pack {number}: {pack[0].label} x {len(pack)}: {about} {clock(seconds)}, {megabytes:.0f} MiB")
    return [*text, f"about {clock(max(ends))} with {len(ends)} workers"]


def _cost(config: dict[str, Any], replicas: int) -> tuple[float, float, float]:
    """``(seconds per run, constant bytes, bytes per run)`` in a pack of ``replicas``."""
    device = pick_device(config["device"])
    constant, per_replica = memory.bytes_of(config, device)
    pack = memory.trial_pack(config, replicas, device)

    def seconds(action: Any, times: int) -> float:
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / times / replicas

    step = seconds(pack.train_step, TRIAL_STEPS)
    per_sample = seconds(lambda: pack.task.evaluate("valid", memory.TRIAL_SAMPLES), 1)
    per_sample /= memory.TRIAL_SAMPLES * len(pack.data.valid)
    data = load_once(**config["data"])
    evaluations = max(config["steps"] // config["evaluate_every"] - 1, 0) * len(data.valid) * config["evaluate_samples"]
    images = {"train": min(len(data.train), data.train_evaluated), "valid": len(data.valid), "test": len(data.test)}
    evaluations += sum(count * config[f"{split}_samples"] for split, count in images.items())
    return config["steps"] * step + evaluations * per_sample, constant, per_replica
