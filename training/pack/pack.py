"""A pack: runs that are trained together as replicas, where they are, and what is kept of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tasks.datasets import Dataset
from training.errors import UserError
from training.pack.runner import Runner, choice
from training.pack.step import State, Step
from training.replicas.batches import Batches
from training.replicas.optimisers import ReplicaOptimizer
from training.replicas.schedules import Annealing, anneals, nothing_to_anneal
from training.replicas.streams import Streams

Config = dict[str, Any]


@dataclass
class Pack:
    """Runs in training, one replica each; made by :func:`training.pack.build.build`.

    ``estimators``: a ``ModuleList``, alike, one for each layer of latents. ``evaluations``: of the loss, per gradient
    and example. ``tensors``: the state that the ``program``, the step, takes on, as the ``runner`` runs it.
    ``carried_row``: for each replica the row of an evaluation at this very step, which a longer run goes on from.
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
    program: Step = field(init=False)
    runner: Runner = field(init=False)
    tensors: State = field(init=False)
    carried_row: list[dict[str, Any] | None] = field(init=False)

    def __post_init__(self) -> None:
        annealing = Annealing(self.configs, self.device) if anneals(self.configs[0]) else None
        parts = self.task, self.estimators, self.batches, self.streams, self.optimizer
        self.program = Step(*parts, annealing)
        if annealing is not None and not self.program.annealed:
            raise UserError(nothing_to_anneal(self.configs[0]))
        self.tensors = self.program.own
        self.carried_row = [None] * self.replicas
        self.runner = self._runner()

    def _runner(self, before: bool | None = None) -> Runner:
        first = self.configs[0]
        numbers = sum(parameter.numel() for parameter in self.parameters)
        ahead = min([first["steps"], *first.get("race", {}).get("rungs", [])])  # most of a race ends at its first rung
        return Runner(self.program, *choice(first.get("compile", "false"), self.device, ahead, numbers, before))

    @property
    def replicas(self) -> int:
        return len(self.configs)

    @property
    def estimator(self) -> Any:
        """First layer's estimator; all layers share class and hyperparameters."""
        return self.estimators[0]

    def train_step(self) -> Tensor:
        """One step of every replica; returns the detached losses ``[replicas]`` (mean over examples, nats)."""
        return self._taken(1)

    def train_steps(self, count: int) -> Tensor:
        """As many steps; returns the losses of the last. A GPU takes several on its own, if nobody looks in between."""
        losses, last = torch.empty(0), self.step + count
        while self.step < last:
            left = self.batches.turn_to(self.step)
            losses = self._taken(min(last - self.step, left)) if self.program.leads else self.train_step()
        return losses

    def _taken(self, count: int) -> Tensor:
        losses = self.runner(self.step, count)
        self.step += count
        self.loss_steps += count
        self.carried_row = [None] * self.replicas
        return losses

    def divergences(self, replicas: Sequence[int], everywhere: bool) -> list[tuple[int, dict[str, Any]]]:
        """Those of ``replicas`` that diverged, with the step, the temperature and the range of their logits in it.

        ``everywhere``: look at all parameters, too.
        """
        if everywhere:
            self.tensors.health.look_everywhere(self.parameters)
        found, first_bad = [], self.tensors.health.first_bad.tolist()
        for r in [r for r in replicas if first_bad[r] >= 0]:
            name, step = self.configs[r]["estimator"]["name"], first_bad[r]
            low, high = self.tensors.health.logits_range[:, r].tolist()
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

    def _stacked(self) -> dict[str, Tensor]:
        """Every parameter and buffer with a leading replica dimension, by name."""
        tensors = {f"task.{name}": value for name, value in self.task.state_dict(keep_vars=True).items()}
        for layer, estimator in enumerate(self.estimators):  # the first has the name that it has alone
            own = estimator.state_dict(keep_vars=True)
            tensors |= {f"estimator{layer or ''}.{name}": value for name, value in own.items()}
        return tensors

    def state(self, replica: int) -> dict[str, Any]:
        """Everything that one replica's training depends on, independent of the pack it is in."""
        tensors = self.tensors
        return _cloned(
            {
                "step": self.step,
                "seconds": self.seconds,
                "evaluation_seconds": self.evaluation_seconds,
                "loss_sum": tensors.loss_sum[replica],
                "loss_steps": self.loss_steps,
                "tensors": {name: value.detach()[replica] for name, value in self._stacked().items()},
                "optimizer": {
                    name: own if name == "steps" else [moment[replica] for moment in own]
                    for name, own in tensors.moments.items()
                },
                "streams": self.streams.state(replica),
                "variance": tensors.variance.state(replica),
                "along": self.carried_row[replica],
                "compiled": not self.runner.not_compiled,
            }
        )

    @torch.no_grad()
    def restore(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on from :meth:`state`, one per replica, all of the same step. Raises ``ValueError`` for other shapes."""
        states = [{**state, "tensors": self._named_as_now(state["tensors"])} for state in states]
        first, tensors = states[0], self.tensors
        for state in states:  # before anything is written: a wrong shape might broadcast
            for name, value in self._stacked().items():
                if state["tensors"][name].shape != value.shape[1:]:
                    raise ValueError(f"{name} has shape {list(state['tensors'][name].shape)}")
        before = first.get("compiled")
        self.runner = self._runner(before if isinstance(before, bool) else None)
        self.step, self.loss_steps = first["step"], first["loss_steps"]
        self.carried_row = [state["along"] for state in states]
        self.seconds = max(state["seconds"] for state in states)
        self.evaluation_seconds = max(state["evaluation_seconds"] for state in states)
        self.tensors.health.step.fill_(self.step)
        self.streams.restore([state["streams"] for state in states], self.device)
        for replica, state in enumerate(states):
            for name, value in self._stacked().items():
                value[replica] = state["tensors"][name]
            tensors.loss_sum[replica] = state["loss_sum"]
            for name, own in tensors.moments.items():
                for tensor, saved in zip(own, state["optimizer"][name], strict=True):
                    (tensor if name == "steps" else tensor[replica]).copy_(saved)
            tensors.variance.restore(replica, state["variance"], self.step)

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
