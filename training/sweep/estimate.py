"""What packs will take: seconds and bytes, measured by a short trial of each kind of pack, and how sure that is."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from training.config import validity
from training.config.plan import PackPlan, RunPlan, packs_of, structure
from training.devices import largest_pack, pick_device, worker_count
from training.gradients import watcher
from training.pack import memory
from training.pack.build import load_once
from training.pack.pack import Pack
from training.progress import clock

MOST_REPLICAS, TRIALS, TRIAL_STEPS, TRIAL_SECONDS = 8, 6, 2, 0.5
"""A pack is tried in so many rounds of so many steps, or as many of them as fit into the time."""
BUDGET_SECONDS = 20.0
"""Kinds of packs that are not tried within this time are taken to be like the mean of those that were."""


@dataclass(frozen=True)
class Cost:
    """Of one run in a kind of pack.

    Attributes:
        step: seconds of a step with its share of evaluations: lower quartile, median, upper quartile over the trials.
        last: of the last evaluation, in seconds.
        basket: of all that a basket measures, in seconds.
        constant, per_replica: bytes of a pack, and of each run in it.
    """

    step: tuple[float, float, float]
    last: float
    basket: float
    constant: float
    per_replica: float

    def seconds(self, steps: int, to_the_end: bool) -> tuple[float, float, float]:
        """Of so many steps, and of what comes with them."""
        besides = self.basket + (self.last if to_the_end else 0.0)
        low, middle, high = (each * steps + besides for each in self.step)
        return low, middle, high


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
    keys = [(structure(pack[0].config), min(len(pack), MOST_REPLICAS)) for pack, _ in packs]
    kinds = list({key: pack[0].config for (pack, _), key in zip(packs, keys, strict=True)}.items())
    costs = _measured(kinds)
    if not costs:
        return []
    mean = _mean(list(costs.values()))
    text, ends = [], [[0.0] * 3 for _ in range(min(workers, len(packs)))]
    for number, ((pack, start), key) in enumerate(zip(packs, keys, strict=True), start=1):
        cost = costs.get(key, mean)
        each = cost.seconds(pack[0].last - start, not pack[0].until)
        seconds = [len(pack) * part for part in each]
        end = min(ends, key=lambda sums: sums[1])
        end[:] = [before + more for before, more in zip(end, seconds, strict=True)]
        megabytes = (cost.constant + cost.per_replica * len(pack)) / 2**20
        about = "about" if key in costs else "perhaps"
        steps = f", steps {start} to {pack[0].last}" if start or pack[0].until else ""
        basket = f", {clock(len(pack) * cost.basket)} of it for its basket" if cost.basket else ""
        takes = f"{about} {_range(seconds)}{basket}, {megabytes:.0f} MiB"
        text.append(f"pack {number}: {pack[0].label} x {len(pack)}{steps}: {takes}")
    last = [max(sums[part] for sums in ends) for part in range(3)]
    measured = f"{len(costs)} of {len(kinds)} kinds of packs were tried, the quartiles of their steps in brackets"
    return [*text, f"about {_range(last)} with {len(ends)} workers; {measured}"]


def _range(seconds: Sequence[float]) -> str:
    low, middle, high = map(clock, seconds)
    return middle if low == high else f"{middle} ({low} to {high})"


def _measured(kinds: Sequence[tuple[tuple[str, int], dict[str, Any]]]) -> dict[tuple[str, int], Cost]:
    """The costs of kinds of packs, of as many of them as there is time for."""
    kinds = list(kinds)
    random.Random(0).shuffle(kinds)  # should time be out before all were tried, those that were are of all sorts
    deadline = time.monotonic() + BUDGET_SECONDS
    costs: dict[tuple[str, int], Cost] = {}
    for key, config in kinds:
        if time.monotonic() < deadline:
            costs[key] = _cost(config, key[1], deadline)
    return costs


def _mean(costs: Sequence[Cost]) -> Cost:
    low, middle, high = (statistics.fmean(cost.step[part] for cost in costs) for part in range(3))
    last, basket, constant, per_replica = (
        statistics.fmean(getattr(cost, name) for cost in costs)
        for name in ("last", "basket", "constant", "per_replica")
    )
    return Cost((low, middle, high), last, basket, constant, per_replica)


def _cost(config: dict[str, Any], replicas: int, deadline: float) -> Cost:
    """Of a run in a pack of ``replicas``; a basket's estimators for which there is no time are like the others."""
    device = pick_device(config["device"])
    constant, per_replica = memory.bytes_of(config, device)
    pack = memory.trial_pack(config, replicas, device)
    steps = [seconds / replicas for seconds in _trials(pack)]
    (block,) = _timed(lambda: pack.task.evaluate("valid", memory.TRIAL_SAMPLES), device, rounds=1)
    per_sample = block / replicas / memory.TRIAL_SAMPLES / len(pack.data.valid)
    data = load_once(**config["data"])
    evaluations = max(config["steps"] // config["evaluate_every"] - 1, 0) * len(data.valid) * config["evaluate_samples"]
    on_the_way = evaluations * per_sample / config["steps"]
    images = {"train": min(len(data.train), data.train_evaluated), "valid": len(data.valid), "test": len(data.test)}
    last = sum(count * config[f"{split}_samples"] for split, count in images.items())
    low, middle, high = (each + on_the_way for each in _quartiles(steps))
    return Cost((low, middle, high), last * per_sample, _basket(config, device, deadline), constant, per_replica)


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def _basket(config: dict[str, Any], device: torch.device, deadline: float) -> float:
    """Seconds of what a run's basket measures: draws in a pack, the training of what is learned, rounds of timing."""
    options = config.get("basket", {"name": "none"})
    if options["name"] == "none":
        return 0.0
    reference = {**options["reference"], "draws": options["reference_draws"]}
    nodes = [*({**node, "draws": options["draws"]} for node in options["estimators"].values()), reference]
    found: list[float] = []
    left_out = 0
    for node in nodes:
        draws = node.pop("draws")
        own = {**config, "estimator": node, "batch_size": options["examples"], "basket": {"name": "none"}}
        own["schedule"] = {"name": "constant"}
        if validity.reason_to_skip(own):
            left_out += 1
        elif time.monotonic() < deadline or not found:
            solo = memory.trial_pack(own, 1, device)
            alone = statistics.median(_trials(solo))
            together = statistics.median(_trials(memory.trial_pack(own, MOST_REPLICAS, device))) / MOST_REPLICAS
            learns = options["warm_up"] if solo.estimators.state_dict() else 0
            found.append(draws * together + (learns + options["rounds"]) * alone)
    points = len(watcher.steps(config["steps"], options["points"]))
    return points * (len(nodes) - left_out) * statistics.fmean(found) if found else 0.0


def _trials(pack: Pack) -> list[float]:
    """Seconds of a step of a pack, over the trials."""

    def steps() -> None:
        for _ in range(TRIAL_STEPS):
            pack.train_step()

    return [seconds / TRIAL_STEPS for seconds in _timed(steps, pack.device, TRIALS)]


def _timed(action: Callable[[], Any], device: torch.device, rounds: int) -> list[float]:
    """Seconds of ``action`` in each of at most so many rounds, after one that warms up."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    found: list[float] = []
    action()
    wait()
    while len(found) < rounds and (len(found) < 2 or sum(found) < TRIAL_SECONDS):
        start = time.perf_counter()
        action()
        wait()
        found.append(time.perf_counter() - start)
    return found
