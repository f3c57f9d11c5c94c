"""A pack: runs that are trained together as replicas, built from their configs. Objects are instantiated here only."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import hydra.utils
import torch
from torch import Tensor, nn

from estimators import noise_source
from tasks.datasets import DataError, Dataset, blank_dataset, load_dataset
from training.config import validity
from training.errors import UserError
from training.kernels.capture import capture
from training.replicas import optimisers, schedules
from training.replicas.batches import Batches
from training.replicas.divergence import Health
from training.replicas.streams import Streams
from training.replicas.variance import GradientVariance

Config = dict[str, Any]


@lru_cache(maxsize=2)
def load_once(**options: Any) -> Dataset:
    """The data of a config: a sweep's jobs run in one process and share them. ``UserError`` if they are not there."""
    try:
        return load_dataset(**options)
    except DataError as error:
        raise UserError(str(error)) from None


class Pack:
    """Task, estimators, optimiser, data and randomness of the runs in ``configs``, one replica each.

    The configs may differ in numbers only (seed, learning rate, temperature, ...). ``data`` stands in for the data that
    they name. ``estimators`` are alike, one for each layer of latents: what one keeps or learns belongs to a layer.

    Raises:
        UserError: for a value that the data, the task, the estimator or the optimiser does not accept.
    """

    def __init__(self, configs: Sequence[Config], device: torch.device, data: Dataset | None = None) -> None:
        self.configs, self.device = list(configs), device
        first = configs[0]
        self.data = data or load_once(**first["data"])
        check(first, self.data)
        self.streams = Streams([config["seed"] for config in configs])
        numbers = self._numbers("task")
        self.task = _instantiate(first["task"], data=self.data, streams=self.streams, **numbers).to(device)
        layers = getattr(self.task, "layers_of_latents", None) or [self.task.latents]
        self.estimators = self._make_estimators(layers).to(device)
        # Nested, each evaluation of an outer layer's loss is a whole estimate of the inner one.
        self.evaluations = math.prod(
            estimator.evaluations_for(torch.empty(1, layer.latents, layer.categories))
            for estimator, layer in zip(self.estimators, layers, strict=True)
        )
        self.batches = Batches(self.data, first["batch_size"], self.streams, device)
        self.noise = self.streams.source("estimator", device)
        self.parameters: list[nn.Parameter] = [*self.task.parameters(), *self.estimators.parameters()]
        self.optimizer = optimisers.ReplicaOptimizer(self.parameters, [config["optimizer"] for config in configs])
        encoder = {id(parameter) for parameter in self.task.encoder_parameters()}
        self._encoder = [index for index, parameter in enumerate(self.parameters) if id(parameter) in encoder]
        squares = self.optimizer.mean_squares(GradientVariance.decay, self._encoder)
        self.variance = GradientVariance([self.parameters[index] for index in self._encoder], squares)
        batch_size = first["batch_size"]
        self._cotangent = torch.full((self.replicas, batch_size), 1 / batch_size, device=device)
        self.step = 0
        self.seconds = self.evaluation_seconds = 0.0
        self.loss_sum = torch.zeros(self.replicas, device=device)
        self.loss_steps = 0
        self.health = Health(self.replicas, device, self.estimators)
        self._temperatures: list[float] = []
        self._captured: Callable[[Tensor], Tensor] | None = None
        # Why the step is not a CUDA graph, on a GPU; set before the first step, it keeps it from becoming one.
        self.not_captured = ""

    @property
    def replicas(self) -> int:
        return len(self.configs)

    @property
    def estimator(self) -> Any:
        """The first layer's: what it declares and how it is set holds for all of them."""
        return self.estimators[0]

    def _make_estimators(self, layers: Sequence[Any]) -> Any:
        """A ``ModuleList``."""
        made = nn.ModuleList()
        with noise_source(self.streams.fresh("estimator parameters")):
            for layer in layers:
                offered = {
                    "replicas": self.replicas,
                    "context_features": self.task.context_features,
                    "latents": layer.latents,
                    "categories": layer.categories,
                }
                # Its numbers are tensors of its own, too: a buffer would share the memory of a tensor.
                own = self._numbers("estimator")
                made.append(_instantiate(self.configs[0]["estimator"], offered=offered, **own))
        try:
            self.task.kl_for(made[0])
        except ValueError as error:
            raise UserError(str(error)) from None
        return made

    def _numbers(self, group: str) -> dict[str, Any]:
        """The floats among a group's options, as tensors ``[replicas, 1, 1, 1]``: they broadcast against logits."""
        numbers: dict[str, Any] = {}
        for key in self.configs[0][group]:
            values = [config[group][key] for config in self.configs]
            if any(isinstance(value, float) for value in values):
                if None in values:
                    raise UserError(
                        f"{group}.{key} is null in some runs of a pack and a number in others; train them apart"
                    )
                numbers[key] = torch.tensor([float(value) for value in values]).reshape(-1, 1, 1, 1)
        return numbers

    def anneal(self) -> None:
        """Set the temperatures of this step, in place."""
        if schedules.anneals(self.configs[0]):
            temperatures = [
                schedules.temperature_at(config["schedule"], config["estimator"]["temperature"], self.step)
                for config in self.configs
            ]
            if temperatures != self._temperatures:
                self._temperatures = temperatures
                for estimator in self.estimators:
                    estimator.temperature.copy_(torch.tensor(temperatures).view_as(estimator.temperature))

    def train_step(self) -> Tensor:
        """One step of every replica; returns the detached losses ``[replicas]`` (mean over examples, nats)."""
        self.anneal()
        self.streams.fill(self.step)
        rows = self.batches.rows(self.step)
        if self.device.type == "cuda" and self._captured is None and not self.not_captured:
            self._captured, self.not_captured = capture(self.update, rows, self._written())
            self.streams.fill(self.step)  # an estimator may have worked in the buffers
        losses = self.update(rows) if self._captured is None else self._captured(rows)
        self.step += 1
        self.loss_steps += 1
        return losses

    def update(self, rows: Tensor) -> Tensor:
        """The work of a step on the device, for the images ``rows`` ``[replicas, batch_size]``; returns the losses.

        A function of ``rows``, of the noise in the streams and of the tensors that :meth:`_written` lists, which it
        updates in place. It neither waits for the device nor looks at a number, so it can be a CUDA graph.
        """
        self.streams.rewind()
        batch = self.batches.gather(rows)
        with noise_source(self.noise):
            losses = self.task.loss(batch, *self.estimators)
        # The gradient of losses.mean(-1).sum(): a replica's is that of its own mean loss.
        gradients: Sequence[Tensor | None]
        gradients = torch.autograd.grad(losses, self.parameters, self._cotangent, allow_unused=True)
        gradients = self.health.check(losses.detach(), gradients, self.optimizer.freeze)
        self.optimizer.step(gradients)
        self.variance.update([gradients[index] for index in self._encoder])  # type: ignore[misc]
        losses = losses.detach().mean(-1)
        self.loss_sum += losses
        return losses

    def divergences(self, replicas: Sequence[int], everywhere: bool) -> list[tuple[int, dict[str, Any]]]:
        """Those of ``replicas`` that diverged, with the step, the temperature and the range of their logits in it.

        ``everywhere``: look at all parameters, too.
        """
        if everywhere:
            self.health.look_everywhere(self.parameters)
        found, first_bad = [], self.health.first_bad.tolist()
        for r in [r for r in replicas if first_bad[r] >= 0]:
            name, step = self.configs[r]["estimator"]["name"], first_bad[r]
            low, high = self.health.logits_range[:, r].tolist()
            temperatures = [float(values[r]) for values in self.temperatures()]
            at = f", temperature {' and '.join(f'{value:.4g}' for value in temperatures)}" if temperatures else ""
            logits = f"logits from {low:.4g} to {high:.4g}" if low <= high else "logits not finite"
            logits = "logits not seen" if low > high else logits
            text = f"not finite at step {step}: {name}{at}, {logits}"
            details = {"diverged_at": step, "divergence": text, "temperature": next(iter(temperatures), None)}
            found.append((r, details | {"logits_min": _finite(low), "logits_max": _finite(high)}))
        return found

    def temperatures(self) -> list[Tensor]:
        """Of each layer ``[replicas]``; empty for an estimator that has none."""
        own = [getattr(estimator, "temperature", None) for estimator in self.estimators]
        flat = [torch.as_tensor(temperature).detach().flatten() for temperature in own if temperature is not None]
        return [values if len(values) == self.replicas else values[:1].expand(self.replicas) for values in flat]

    def _written(self) -> list[Tensor]:
        """Every tensor that :meth:`update` writes."""
        state = [*self.optimizer.tensors(), *self.variance.tensors(), *self.health.tensors()]
        return [*self._stacked().values(), *state, self.loss_sum]

    def _stacked(self) -> dict[str, Tensor]:
        """Every parameter and buffer with a leading replica dimension, by name."""
        tensors = {f"task.{name}": value for name, value in self.task.state_dict(keep_vars=True).items()}
        for layer, estimator in enumerate(self.estimators):  # the first has the name that it has alone
            own = estimator.state_dict(keep_vars=True)
            tensors |= {f"estimator{layer or ''}.{name}": value for name, value in own.items()}
        return tensors

    def state(self, replica: int) -> dict[str, Any]:
        """Everything that one replica's training depends on, independent of the pack it is in."""
        return _cloned(
            {
                "step": self.step,
                "seconds": self.seconds,
                "evaluation_seconds": self.evaluation_seconds,
                "loss_sum": self.loss_sum[replica],
                "loss_steps": self.loss_steps,
                "tensors": {name: value.detach()[replica] for name, value in self._stacked().items()},
                "optimizer": self.optimizer.state(replica),
                "streams": self.streams.state(replica),
                "variance": self.variance.state(replica),
            }
        )

    @torch.no_grad()
    def restore(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on from :meth:`state`, one per replica, all of the same step. Raises ``ValueError`` for other shapes."""
        first = states[0]
        for state in states:  # before anything is written: a wrong shape might broadcast
            for name, value in self._stacked().items():
                if state["tensors"][name].shape != value.shape[1:]:
                    raise ValueError(f"{name} has shape {list(state['tensors'][name].shape)}")
        self._temperatures = []
        self.step, self.loss_steps = first["step"], first["loss_steps"]
        self.seconds = max(state["seconds"] for state in states)
        self.evaluation_seconds = max(state["evaluation_seconds"] for state in states)
        self.health.step.fill_(self.step)
        self.streams.restore([state["streams"] for state in states], self.device)
        for replica, state in enumerate(states):
            for name, value in self._stacked().items():
                value[replica] = state["tensors"][name]
            self.loss_sum[replica] = state["loss_sum"]
            self.optimizer.restore(replica, state["optimizer"])
            self.variance.restore(replica, state["variance"], self.step)


def _finite(value: float) -> float | str:
    """For JSON, which has no infinities."""
    return value if math.isfinite(value) else str(value)


def _cloned(value: Any) -> Any:
    """Deep copies on the CPU: saving a view of a stacked tensor would save the whole stack."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _cloned(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_cloned(inner) for inner in value]
    return value


def _instantiate(config: Config, offered: dict[str, Any] | None = None, **arguments: Any) -> Any:
    """Build ``config["_target_"]``; of the ``offered`` arguments it gets those that its constructor takes."""
    node = {key: value for key, value in config.items() if key != "name"}
    factory = hydra.utils.instantiate(node, _partial_=True)
    taken = inspect.signature(factory.func).parameters
    arguments |= {key: value for key, value in (offered or {}).items() if key in taken}
    try:
        return factory(**arguments)
    except ValueError as error:
        raise UserError(str(error)) from None


def rehearse(config: Config) -> None:
    """Build a run's pack with blank data and forget it: a millisecond or ten that find what no run can have.

    Raises:
        UserError: for a value that the task, the estimator or the optimiser does not accept.
    """
    name, binarization, train_evaluated = (config["data"][key] for key in ("name", "binarization", "train_evaluated"))
    try:
        data = blank_dataset(name, binarization, train_evaluated, images=max(1000, config["batch_size"]))
    except DataError as error:
        raise UserError(str(error)) from None
    Pack([config], torch.device("cpu"), data=data)


def check(config: Config, data: Dataset) -> None:
    """Raise ``UserError`` for a config that makes no sense, or not for this data."""
    validity.check(config)
    if config["batch_size"] > len(data.train):
        raise UserError(
            f"batch_size={config['batch_size']} is larger than the {len(data.train)} training images of "
            f"data={data.name}; use a smaller batch_size"
        )
    if reason := validity.against(config):
        raise UserError(f"estimator={config['estimator']['name']} {reason}")
