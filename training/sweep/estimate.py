"""What packs will take: seconds and bytes, measured by a short trial of each kind of pack."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from training.config.plan import PackPlan, RunPlan, packs_of, structure
from training.devices import largest_pack, pick_device, worker_count
from training.pack import memory
from training.pack.build import load_once
from training.progress import clock

MOST_REPLICAS, TRIAL_STEPS = 8, 10
BUDGET_SECONDS = 5.0
"""Kinds of packs that are not tried within this time are taken to be like the mean of those that were."""


def lines(packs: Sequence[PackPlan], workers: int) -> list[str]:
    """A line for each pack, and the sum, for people."""
    return _lines([(pack, 0) for pack in packs], workers)


def of_race(runs: Iterable[tuple[RunPlan, int]], options: dict[str, Any]) -> list[str]:
    """As :func:`lines`, of runs that go on from a step."""
    workers = worker_count(options)
    legs: dict[tuple[int, int], list[RunPlan]] = {}
    for run, start in runs:
        legs.setdefault((run.last, start), []).append(run)
    packs = [
        (pack, start)
        for (_, start), own in sorted(legs.items())
        for pack in packs_of(own, workers, largest_pack(options))
    ]
    return _lines(packs, workers)


def _lines(packs: Sequence[tuple[PackPlan, int]], workers: int) -> list[str]:
    """Of packs with the steps from which they go on."""
    torch.set_num_threads(packs[0][0][0].config["threads"] if packs else 1)
    costs: dict[tuple[str, int], tuple[float, float, float, float]] = {}
    keys = [(structure(pack[0].config), min(len(pack), MOST_REPLICAS)) for pack, _ in packs]
    kinds = list({key: pack[0].config for (pack, _), key in zip(packs, keys, strict=True)}.items())
    random.Random(0).shuffle(kinds)  # should time be out before all were tried, those that were are of all sorts
    began = time.monotonic()
    for key, config in kinds:
        if time.monotonic() - began < BUDGET_SECONDS:
            costs[key] = _cost(config, key[1])
    if not costs:
        return []
    mean = tuple(sum(cost[i] for cost in costs.values()) / len(costs) for i in range(4))
    text, ends = [], [0.0] * min(workers, len(packs))
    for number, ((pack, start), key) in enumerate(zip(packs, keys, strict=True), start=1):
        per_step, last, constant, per_replica = costs.get(key, mean)
        seconds = len(pack) * (per_step * (pack[0].last - start) + (0 if pack[0].until else last))
        ends[ends.index(min(ends))] += seconds
        megabytes = (constant + per_replica * len(pack)) / 2**20
        about = "about" if key in costs else "perhaps"
        steps = f", steps {start} to {pack[0].last}" if start or pack[0].until else ""
        text.append(
            f"pack {number}: {pack[0].label} x {len(pack)}{steps}: {about} {clock(seconds)}, {megabytes:.0f} MiB"
        )
    return [*text, f"about {clock(max(ends))} with {len(ends)} workers"]


def _cost(config: dict[str, Any], replicas: int) -> tuple[float, float, float, float]:
    """``(seconds of a run's step with its share of evaluations, of its last evaluation, constant bytes, bytes per
    run)`` in a pack of ``replicas``."""
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
    on_the_way = evaluations * per_sample / config["steps"]
    images = {"train": min(len(data.train), data.train_evaluated), "valid": len(data.valid), "test": len(data.test)}
    last = sum(count * config[f"{split}_samples"] for split, count in images.items())
    return step + on_the_way, last * per_sample, constant, per_replica
