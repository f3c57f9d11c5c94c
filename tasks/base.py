"""The contract of a task: what those who train, evaluate and compare ask of it, and what they give it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from tasks.datasets import Dataset
from tasks.distributions.latents import Bernoulli, Categorical

Estimator = Callable[..., Tensor]
"""``estimator(logits, loss, context=None) -> losses``, the value of ``E_q[loss(z)]`` with a gradient for ``logits``.

``logits`` ``[R, E, latents, categories]``; ``loss`` maps ``z``, of that shape or with dimensions of samples in front,
to ``[..., R, E]``; ``context`` ``[R, E, context_features]``, for an input-dependent baseline; losses ``[R, E]``.
"""


class RandomStreams(Protocol):
    """Per-replica randomness, a function of each run's seed and of the purpose alone.

    Noise has the shape ``[..., replicas, examples, *event]`` with ``event_dims`` event dimensions.
    """

    @property
    def replicas(self) -> int: ...

    def fresh(self, purpose: str) -> Callable[..., Tensor]:
        """Starts a stream of uniform noise ``(shape, dtype, device, event_dims) -> Tensor`` in (0, 1)."""
        ...

    def source(self, purpose: str, device: torch.device) -> Callable[..., Tensor]:
        """The stream of uniform noise for training steps, which goes on from call to call."""
        ...

    def words(self, purpose: str) -> Callable[..., Tensor]:
        """Starts a stream of int32 noise ``([replicas, ...], device) -> Tensor`` in 0 .. 2**31 - 1."""
        ...


@dataclass(frozen=True)
class Primary:
    """The metric by which runs of a task are compared, as :meth:`Task.evaluate` names it, and its direction."""

    metric: str
    higher_is_better: bool = True


class Task(nn.Module, ABC):
    """A model with its objective, its data and its evaluation, for R replicas at once.

    A task derives from this class. Its constructor takes ``data``, ``streams`` and its options, and sets ``latents``.
    Parameters have a leading dimension of replicas; those of a replica, and all that is computed from them, depend on
    its own run alone. :func:`tasks.check_task` says whether that holds.

    Args:
        data: images, and what is known of them.
        streams: per-replica randomness: ``fresh("parameters")`` for initial weights, ``source(purpose, device)`` for
            noise of the task's own in training steps, ``words`` or ``fresh`` for evaluation.
    """

    needs_images: ClassVar[bool] = True
    """False: it is trained with ``data=none``, whose images have no pixels."""

    renamed: ClassVar[Mapping[str, str]] = {}
    """How names of parameters and buffers began in checkpoints that older code wrote, and how they begin now."""

    latents: Bernoulli | Categorical
    """Of one layer (:func:`tasks.distributions.latents.latents_of`): how many, of how many categories."""

    def __init__(self, data: Dataset, streams: RandomStreams) -> None:
        super().__init__()
        self.data, self.streams = data, streams

    @property
    def replicas(self) -> int:
        """R, the number of runs that are trained together."""
        return self.streams.replicas

    @property
    def layers_of_latents(self) -> list[Bernoulli | Categorical]:
        """Each layer, from the first that is sampled; it gets an estimator of its own."""
        return [self.latents]

    @property
    def context_features(self) -> int | None:
        """Size of the ``context`` that estimators are given, the image; ``None`` if they are given none."""
        return math.prod(self.data.image_shape) or None

    @abstractmethod
    def loss(self, batch: Tensor, *estimators: Estimator) -> Tensor:
        """The training objective through the estimators, one for each layer, which the task nests.

        ``batch`` ``[R, E, D]`` intensities in [0, 1] -> ``[R, E]``, lower is better.
        """

    def warm(self, step: Tensor) -> None:  # noqa: B027
        """Set what depends on ``step``, how many were taken (a number on the device, from 0), in buffers and in place.

        It is a part of each step, so it does not look at the number.
        """

    @abstractmethod
    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters whose gradient variance is reported."""

    @abstractmethod
    def evaluate(self, split: str, num_samples: int, details: bool = False) -> dict[str, Tensor]:
        """What is measured on ``train``, ``valid`` or ``test``: ``{metric: [R]}``, by ``num_samples`` exact samples.

        Never through an estimator, in bounded memory, without a change of the task; each call gives the same numbers.
        ``details``: what is worth its time at the end of a run only.
        """

    @property
    @abstractmethod
    def primary(self) -> Primary:
        """By which metric runs are compared."""

    @property
    def is_bound(self) -> bool:
        """Whether what :meth:`evaluate` measures is a bound on a log-likelihood in the mean."""
        return False

    def kl_for(self, estimator: Estimator) -> str:
        """The KL that the loss has with this estimator, for the record.

        Raises:
            ValueError: one sentence, for an estimator that it cannot be trained with.
        """
        return "none"

    def protocol(self) -> dict[str, Any]:
        """What an evaluation depends on; numbers of different protocols are not compared.

        Values that JSON has, or tensors ``[R]`` with a number for each run. ``quantity`` names what is bounded if that
        is not ``-log p(x)``.
        """
        return self.data.protocol() | {"evaluation_is_bound": self.is_bound}

    def examples(self, count: int = 10) -> list[dict[str, Tensor]]:
        """Pictures for the figures, for each replica ``{name: [at most count, H, W]}`` in [0, 1]."""
        return [{} for _ in range(self.replicas)]
