"""From the configs of runs to a pack: data, task, estimators, optimiser."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from estimators import noise_source
from tasks.datasets import Dataset
from training.config import targets, validity
from training.errors import UserError
from training.pack.pack import Config, Pack
from training.replicas.batches import Batches
from training.replicas.optimisers import ReplicaOptimizer
from training.replicas.streams import Streams


def load_once(**options: Any) -> Dataset:
    """The data of a config (:func:`training.config.targets.load`): a sweep's jobs run in one process and share them."""
    return _load(json.dumps(options, sort_keys=True))


@lru_cache(maxsize=2)
def _load(options: str) -> Dataset:
    return targets.load(json.loads(options))


def build(
    configs: Sequence[Config],
    device: torch.device,
    data: Dataset | None = None,
    streams: Streams | None = None,
) -> Pack:
    """The pack of the runs in ``configs``, one replica each, at its first step.

    The configs may differ in numbers only (seed, learning rate, temperature, ...). ``data`` stands in for the data that
    they name, ``streams`` for those of their seeds.

    Raises:
        UserError: for a value that the data, the task, the estimator or the optimiser does not accept.
    """
    configs = list(configs)
    first = configs[0]
    data = data or load_once(**first["data"])
    check(first, data)
    streams = streams or Streams([config["seed"] for config in configs])
    task = targets.build(first, "task", data=data, streams=streams, **_numbers(configs, "task")).to(device)
    layers = task.layers_of_latents
    estimators = _make_estimators(configs, task, layers, streams).to(device)
    # Nested, each evaluation of an outer layer's loss is a whole estimate of the inner one.
    evaluations = math.prod(
        estimator.evaluations_for(torch.empty(1, layer.latents, layer.categories))
        for estimator, layer in zip(estimators, layers, strict=True)
    )
    parameters: list[nn.Parameter] = [*task.parameters(), *estimators.parameters()]
    return Pack(
        configs=configs,
        device=device,
        data=data,
        task=task,
        estimators=estimators,
        evaluations=evaluations,
        streams=streams,
        batches=Batches(data, first["batch_size"], streams, device),
        parameters=parameters,
        optimizer=ReplicaOptimizer([config["optimizer"] for config in configs], device),
    )


def _make_estimators(configs: list[Config], task: Any, layers: Sequence[Any], streams: Streams) -> Any:
    """A ``ModuleList``, one for each layer of latents, all alike: what one keeps or learns belongs to a layer."""
    made = nn.ModuleList()
    with noise_source(streams.fresh("estimator parameters")):
        for layer in layers:
            offered = {
                "replicas": len(configs),
                "context_features": task.context_features,
                "latents": layer.latents,
                "categories": layer.categories,
            }
            # Its numbers are tensors of its own, too: a buffer would share the memory of a tensor.
            own = _numbers(configs, "estimator")
            made.append(targets.build(configs[0], "estimator", offered=offered, **own))
    try:
        task.kl_for(made[0])
    except ValueError as error:
        raise UserError(str(error)) from None
    return made


def _numbers(configs: list[Config], group: str) -> dict[str, Any]:
    """The floats among a group's options, as tensors ``[replicas, 1, 1, 1]``: they broadcast against logits."""
    numbers: dict[str, Any] = {}
    for key in configs[0][group]:
        values = [config[group][key] for config in configs]
        if any(isinstance(value, float) for value in values):
            if None in values:
                raise UserError(
                    f"{group}.{key} is null in some runs of a pack and a number in others; train them apart"
                )
            numbers[key] = torch.tensor([float(value) for value in values]).reshape(-1, 1, 1, 1)
    return numbers


def check(config: Config, data: Dataset) -> None:
    """Raise ``UserError`` for a config that makes no sense, or not for this data."""
    validity.check(config)
    if config["batch_size"] > len(data.train):
        raise UserError(
            f"batch_size={config['batch_size']} is larger than the {len(data.train)} training images of "
            f"data={data.name}; use a smaller batch_size"
        )
    if reason := validity.reason_to_skip(config):
        raise UserError(f"estimator={config['estimator']['name']} {reason}")
