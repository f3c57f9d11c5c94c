"""A pack: runs that are trained together as replicas, their state, and the step that takes it on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from estimators import noise_source
from tasks.datasets import Dataset
from training.kernels.capture import capture
from training.replicas import schedules
from training.replicas.batches import Batches
from training.replicas.divergence import Health
from training.replicas.optimisers import ReplicaOptimizer
from training.replicas.streams import BlockSource, ReplicaSource, Streams
from training.replicas.variance import GradientVariance

Config = dict[str, Any]


@dataclass
class Pack:
    """Runs in training, one replica each; made by :func:`training.pack.build.build`.

    ``estimators``: a ``ModuleList``, alike, one for each layer of latents. ``evaluations``: of the loss, per gradient
    and example. ``along``: for each replica the row of an evaluation at this very step, which a longer run goes on
    from. ``not_captured``: why the step is not a CUDA graph, on a GPU; set before the first step, it keeps it from
    being one.
    """

    configs: list[Config]
    device: torch.device
    data: Dataset
    task: Any
    estimators: Any
    evaluations: int
    streams: Streams
    batches: Batches
    parameters: list[nn.Parameter]
    optimizer: ReplicaOptimizer

    step: int = 0
    seconds: float = 0.0
    evaluation_seconds: float = 0.0
    loss_steps: int = 0
    not_captured: str = ""
    noise: ReplicaSource | BlockSource = field(init=False)
    health: Health = field(init=False)
    variance: GradientVariance = field(init=False)
    loss_sum: Tensor = field(init=False)
    along: list[dict[str, Any] | None] = field(init=False)

    def __post_init__(self) -> None:
        self.noise = self.streams.source("estimator", self.device)
        encoder = {id(parameter) for parameter in self.task.encoder_parameters()}
        self._encoder = [index for index, parameter in enumerate(self.parameters) if id(parameter) in encoder]
        squares = self.optimizer.mean_squares(GradientVariance.decay, self._encoder)
        self.variance = GradientVariance([self.parameters[index] for index in self._encoder], squares)
        batch_size = self.configs[0]["batch_size"]
        self._cotangent = torch.full((self.replicas, batch_size), 1 / batch_size, device=self.device)
        self.loss_sum = torch.zeros(self.replicas, device=self.device)
        self.health = Health(self.replicas, self.device, self.estimators)
        self.along = [None] * self.replicas
        self._temperatures: list[float] = []
        self._captured: Callable[[Tensor], Tensor] | None = None

    @property
    def replicas(self) -> int:
        return len(self.configs)

    @property
    def estimator(self) -> Any:
        """First layer's estimator; all layers share class and hyperparameters."""
        return self.estimators[0]

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
        self.along = [None] * self.replicas
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
                "along": self.along[replica],
            }
        )

    @torch.no_grad()
    def restore(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on from :meth:`state`, one per replica, all of the same step. Raises ``ValueError`` for other shapes."""
        states = [{**state, "tensors": self._named_as_now(state["tensors"])} for state in states]
        first = states[0]
        for state in states:  # before anything is written: a wrong shape might broadcast
            for name, value in self._stacked().items():
                if state["tensors"][name].shape != value.shape[1:]:
                    raise ValueError(f"{name} has shape {list(state['tensors'][name].shape)}")
        self._temperatures = []
        self.step, self.loss_steps = first["step"], first["loss_steps"]
        self.along = [state["along"] for state in states]
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

    def _named_as_now(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state's tensors, which older code may have named otherwise (:attr:`tasks.Task.renamed`)."""
        for old, new in self.task.renamed.items():
            begins = f"task.{old}"
            tensors = {
                f"task.{new}{name.removeprefix(begins)}" if name.startswith(begins) else name: each
                for name, each in tensors.items()
            }
        return tensors


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
