"""What the toy problems share: there is no model and no data, the parameters are the logits of the latents."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from tasks.base import Estimator, Primary, RandomStreams, Task
from tasks.datasets import Dataset
from tasks.distributions.latents import latents_of


class FreeLogits(Task):
    """Minimise ``E_q[loss(z)]`` over the logits of ``q`` themselves: a problem says the loss and what is known of it.

    There is no data: an example is one draw of the estimator, and ``batch_size`` draws are averaged. A problem
    implements :meth:`loss_of`, :meth:`expected` and :meth:`optimum`, and has a ``formula`` for the record.

    :meth:`evaluate` gives ``value``, the *negative* expected loss (higher is better, as of a bound), and ``gap``, the
    expected loss minus that of the optimum, both in closed form and float64.

    Args:
        data: must be ``data=none``.
        streams: for the number of replicas, and for the initial logits.
        latents, categories: L >= 1 and K >= 2.
        init: the logits (log-odds for K = 2) start uniform in +-``init``, >= 0; a tensor ``[replicas, 1, 1, 1]`` has
            one for each replica.
        shared: all latents have the same logits; they are independent given these.

    Raises:
        ValueError: for images, or a number out of range.
    """

    formula: str
    needs_images = False

    def __init__(
        self,
        data: Dataset,
        streams: RandomStreams,
        latents: int,
        categories: int,
        init: float | Tensor,
        *,
        shared: bool = False,
    ) -> None:
        super().__init__(data, streams)
        if data.name != "none":
            raise ValueError(f"a toy task has no images: use data=none instead of data={data.name}")
        self.latents = latents_of(latents, categories)
        # Those that there are parameters for.
        self._free = latents_of(1, categories) if shared else self.latents
        spread = torch.as_tensor(init, dtype=torch.float32).reshape(-1, 1, 1)
        if not bool(((spread >= 0) & spread.isfinite()).all()):
            raise ValueError(f"task.init must be at least 0 and finite, not {spread.flatten().tolist()}")
        u = streams.fresh("parameters")((self.replicas, 1, self._free.width), torch.float32, torch.device("cpu"), 1)
        self.outputs = nn.Parameter((2 * u - 1) * spread)

    @abstractmethod
    def loss_of(self, z: Tensor) -> Tensor:
        """``z`` ``[..., replicas, examples, latents, categories]``, relaxed or not -> ``[..., replicas, examples]``."""

    @abstractmethod
    def expected(self, p: Tensor) -> Tensor:
        """The expected loss ``[replicas]`` in closed form, at probabilities ``[replicas, latents, categories]``."""

    @abstractmethod
    def optimum(self) -> Tensor:
        """The least expected loss that there is, ``[replicas]``, float64."""

    def logits(self, outputs: Tensor) -> Tensor:
        """``[..., latents, categories]`` logits."""
        free: Tensor = self._free.logits(outputs)
        return free.expand(*free.shape[:-2], self.latents.latents, -1)

    def numbers(self, name: str, value: float | Tensor) -> Tensor:
        """An option as ``[replicas, 1, 1]``, which broadcasts against latents. Raises ``ValueError`` if not finite."""
        given = torch.as_tensor(value, dtype=torch.float32)
        if not bool(given.isfinite().all()):
            raise ValueError(f"task.{name} must be finite, not {given.flatten().tolist()}")
        return given.reshape(-1, 1, 1).expand(self.replicas, 1, 1).clone()

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters whose gradient variance is reported: the logits."""
        return [self.outputs]

    @property
    def primary(self) -> Primary:
        """By which runs are compared: the negative expected loss."""
        return Primary("value")

    def protocol(self) -> dict[str, Any]:
        """What an evaluation depends on; a tensor ``[replicas]`` has a number for each run."""
        return {
            "data": "none",
            "latents": self.latents.latents,
            "categories": self.latents.categories,
            "loss": self.formula,
            "optimum": self.optimum(),
            "evaluation": "negative expected loss, exact",
            "evaluation_is_bound": self.is_bound,
        }

    def loss(self, batch: Tensor, estimator: Estimator) -> Tensor:  # type: ignore[override]
        """``[replicas, examples]`` losses through ``estimator``; of ``batch`` ``[replicas, examples, 0]`` the shape."""
        return estimator(self.logits(self.outputs.expand(-1, batch.shape[1], -1)), self.loss_of)

    @torch.no_grad()
    def evaluate(self, split: str, num_samples: int, details: bool = False) -> dict[str, Tensor]:
        """``{"value": [replicas], "gap": [replicas]}``, exact whatever ``num_samples``; there are no more details."""
        expected = self.expected(self.logits(self.outputs.double()).softmax(-1).squeeze(1))
        return {"value": -expected, "gap": expected - self.optimum()}
