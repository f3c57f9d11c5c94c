"""The training step of a pack: a function of its state, of the rows of the images, and of noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from estimators import noise_source
from training.kernels.compiled import Work
from training.replicas.batches import Batches
from training.replicas.divergence import Health, SeenLogits
from training.replicas.optimisers import Moments, ReplicaOptimizer
from training.replicas.schedules import Annealing
from training.replicas.streams import Draws, Noise, Streams
from training.replicas.variance import GradientVariance

T = TypeVar("T")


@dataclass
class State:
    """Everything that a step changes, and what of the models it reads: tensors, and nothing else.

    Args:
        model: parameters and buffers of the task and the estimators, by name (:class:`Losses`): weights, running
            averages, temperatures.
        moments: the optimiser's, for each parameter.
        variance: moving moments of the encoder's gradient.
        health: which replicas diverged, when, with which logits.
        loss_sum: ``[replicas]``, nats, of the steps since the last evaluation.
    """

    model: dict[str, Tensor]
    moments: Moments
    variance: GradientVariance
    health: Health
    loss_sum: Tensor

    def tensors(self) -> list[Tensor]:
        """All of them, each once, in a fixed order."""
        found: dict[int, Tensor] = {}
        _mapped(self, lambda tensor: found.setdefault(id(tensor), tensor))
        return list(found.values())

    def with_tensors(self, tensors: Sequence[Tensor]) -> State:
        """A state of other tensors, in the order of :meth:`tensors`; what has two places here has both there."""
        new = {id(mine): other for mine, other in zip(self.tensors(), tensors, strict=True)}
        return _mapped(self, lambda tensor: new[id(tensor)])

    def copied(self) -> State:
        """The same numbers in memory of their own."""
        return self.with_tensors([tensor.detach().clone() for tensor in self.tensors()])


class Losses(nn.Module):
    """The losses of a task through its estimators, as one module, whose parameters and buffers a step is given."""

    def __init__(self, task: Any, estimators: nn.ModuleList) -> None:
        super().__init__()
        self.task, self.estimators = task, estimators

    def forward(self, batch: Tensor, step: Tensor) -> Tensor:
        """``[replicas, examples, pixels] -> [replicas, examples]``, after so many steps."""
        self.task.warm(step)
        losses: Tensor = self.task.loss(batch, *self.estimators)
        return losses


class Step:
    """One step of all replicas: gather, losses, gradients, divergence, optimiser, variance.

    ``step(state, rows, noise) -> (new state, losses)`` is a function of its arguments. :meth:`update` is the same work
    in place, which is what runs, is compiled and is captured: a state has one set of memory.

    ``looks``: whether it looks at numbers, as on a CPU. ``leads``: whether the device finds rows and noise from the
    state's own step, as on a GPU, so that the host has nothing to say.

    Args:
        task, estimators: whose parameters and buffers are ``own.model``, with which training begins.
        batches: of what rows are gathered.
        streams: of the noise that :meth:`update` draws.
        optimizer: of ``own.moments``.
        annealing: of the estimators' temperatures, if they are annealed.

    Attributes:
        annealed: the buffers that ``annealing`` sets.
    """

    def __init__(
        self,
        task: Any,
        estimators: nn.ModuleList,
        batches: Batches,
        streams: Streams,
        optimizer: ReplicaOptimizer,
        annealing: Annealing | None = None,
    ) -> None:
        self.losses, self.batches, self.streams, self.optimizer = Losses(task, estimators), batches, streams, optimizer
        self.device = batches.device
        self.looks, self.leads = self.device.type == "cpu", streams.counts(self.device)
        parameters = dict(self.losses.named_parameters())
        encoder = {id(parameter) for parameter in task.encoder_parameters()}
        self._parameters, self._learned = list(parameters), set(parameters)
        self._encoder = [index for index, own in enumerate(parameters.values()) if id(own) in encoder]
        self._seen = SeenLogits(estimators)
        self._cotangent = torch.full((streams.replicas, batches.batch_size), 1 / batches.batch_size, device=self.device)
        self.own, self._own_parameters = self._start(parameters), list(parameters.values())
        streams.clock = self.own.health.step
        self._annealing = annealing
        annealed = {id(getattr(estimator, "temperature", None)) for estimator in estimators if annealing}
        self.annealed = [name for name, buffer in self.losses.named_buffers() if id(buffer) in annealed]

    def _start(self, parameters: dict[str, nn.Parameter]) -> State:
        moments = self.optimizer.start(list(parameters.values()))
        squares = self.optimizer.mean_squares(moments, GradientVariance.decay, self._encoder)
        watched = [parameters[self._parameters[index]] for index in self._encoder]
        return State(
            model={**parameters, **dict(self.losses.named_buffers())},
            moments=moments,
            variance=GradientVariance.start(watched, squares),
            health=Health.start(self.streams.replicas, self.device),
            loss_sum=torch.zeros(self.streams.replicas, device=self.device),
        )

    def __call__(self, state: State, rows: Tensor, noise: Noise) -> tuple[State, Tensor]:
        """The state after a step, and the losses ``[replicas]`` (mean over examples, nats); arguments stay as they are.

        ``rows`` ``[replicas, batch_size]``: which images; ``noise``: what ``Streams.draw`` makes of :meth:`draws`.
        """
        new = state.copied()
        with self.streams.given(noise):
            return new, self.update(new, rows)

    def draws(self, rows: Tensor) -> Draws:
        """What a step draws, found by a rehearsal; it is the same in every step. ``rows``: of any."""
        with self.streams.rehearsal() as draws:
            self.update(self.own.copied(), rows)
        return draws

    def in_place(self, draws: Draws) -> Work:
        """:meth:`update` as work on a list of tensors: those of a state, which it writes, rows where the host knows
        them, and the noise."""
        count = len(self.own.tensors())

        def work(tensors: Sequence[Tensor]) -> Tensor:
            own, rest = tensors[:count], iter(tensors[count:])
            rows = None if self.leads else next(rest)
            noise = {purpose: [next(rest) for _ in shapes] for purpose, shapes in draws.items()}
            with self.streams.given(noise):
                return self.update(self.own.with_tensors(own), rows)

        return work

    def update(self, state: State, rows: Tensor | None = None) -> Tensor:
        """Take ``state`` a step on, in place, with noise from the streams; returns the detached losses ``[replicas]``.

        Without ``rows`` they are those of the state's own step, of whose epoch ``batches`` has the order at hand. It
        neither waits for the device nor looks at a number unless ``looks``, so it can be a CUDA graph.
        """
        rows = self.batches.rows_at(state.health.step) if rows is None else rows
        if self.annealed:
            temperatures = self._annealing.at(state.health.step)  # type: ignore[union-attr]
            for name in self.annealed:
                state.model[name].copy_(temperatures.view_as(state.model[name]))
        self.streams.rewind()
        self._seen.take()
        parameters: Sequence[Tensor] = self._own_parameters
        batch = self.batches.gather(rows)
        with noise_source(self.streams.source("estimator", self.device)):
            if state is self.own:
                losses = self.losses.forward(batch, state.health.step)
            else:
                model = {name: _leaf(value) if name in self._learned else value for name, value in state.model.items()}
                parameters = [model[name] for name in self._parameters]
                losses = functional_call(self.losses, model, (batch, state.health.step))
        # The gradient of losses.mean(-1).sum(): a replica's is that of its own mean loss.
        gradients: Sequence[Tensor | None]
        gradients = torch.autograd.grad(losses, parameters, self._cotangent, allow_unused=True)
        losses, looks = losses.detach(), self.looks and not torch.compiler.is_compiling()
        gradients, resting = state.health.check(losses, gradients, self._seen.take(), looks)
        self.optimizer.update(parameters, gradients, state.moments, resting)
        state.variance.update([gradients[index] for index in self._encoder])  # type: ignore[misc]
        losses = losses.mean(-1)
        state.loss_sum += losses
        return losses


def flat(noise: Noise) -> list[Tensor]:
    """The noise of a step, draw by draw, as :meth:`Step.in_place` takes it."""
    return [drawn for own in noise.values() for drawn in own]


def _leaf(value: Tensor) -> Tensor:
    """The same memory, to be differentiated in."""
    return value.detach().requires_grad_()


def _mapped(value: T, change: Callable[[Tensor], Tensor]) -> T:
    """``value``, of data classes, dictionaries and lists, with other tensors."""
    result: Any = value
    if isinstance(value, Tensor):
        result = change(value)
    elif isinstance(value, dict):
        result = {key: _mapped(inner, change) for key, inner in value.items()}
    elif isinstance(value, list):
        result = [_mapped(inner, change) for inner in value]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        result = dataclasses.replace(value, **{f.name: _mapped(getattr(value, f.name), change) for f in fields})
    return result  # type: ignore[no-any-return]
