"""The toy problem on which estimators are first compared: an expectation whose value and optimum are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tasks.datasets import Dataset
from tasks.latents import latents_of
from tasks.vae import RandomStreams


class Toy(nn.Module):
    r"""Minimise ``E_q[(1 / L) sum_l (v . z_l - target)^2]`` over the logits of ``q`` themselves.

    L independent latents of K categories with the values ``v = (0, 1 / (K - 1), ..., 1)``, so for K = 2 ``v . z`` is
    the bit b: ``E[(b - t)^2]``. The logits start at zero. There is no data: an example is one draw of the estimator,
    and ``batch_size`` draws are averaged. The optimum puts all mass on the value that is nearest to the target; the
    loss is quadratic in relaxed ``z``, whose optimum is another: straight-through goes to ``v . p = target``.

    :meth:`evaluate` gives ``value``, the *negative* expected loss in closed form (higher is better, as of a bound).

    Args:
        data: must be ``data=none``.
        streams: for the number of replicas.
        latents, categories: L >= 1 and K >= 2.
        target: t; a tensor ``[replicas, 1, 1, 1]`` has one for each replica.

    Raises:
        ValueError: for images, or an L or K out of range.

    Reference: t = 0.45 in REBAR (arXiv 1703.07370), t = 0.499 in RELAX (1711.00123) and, with L = 200, in Titsias and
    Shi (2111.05300).
    """

    context_features = None

    def __init__(
        self,
        data: Dataset,
        streams: RandomStreams,
        *,
        latents: int = 1,
        categories: int = 2,
        target: float | Tensor = 0.499,
    ) -> None:
        super().__init__()
        if data.name != "none":
            raise ValueError(f"task=toy has no images: use data=none instead of data={data.name}")
        self.latents = latents_of(latents, categories)
        self.outputs = nn.Parameter(torch.zeros(streams.replicas, 1, self.latents.width))
        self.target = nn.Buffer(torch.as_tensor(target, dtype=torch.float32).expand(streams.replicas, 1, 1, 1).clone())
        self.values = nn.Buffer(torch.linspace(0, 1, categories), persistent=False)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters whose gradient variance is reported: the logits."""
        return [self.outputs]

    def kl_for(self, estimator: Callable[..., Tensor]) -> str:
        """There is none."""
        return "none"

    def protocol(self) -> dict[str, Any]:
        """What an evaluation depends on."""
        return {
            "data": "none",
            "latents": self.latents.latents,
            "categories": self.latents.categories,
            "evaluation": "negative expected loss, exact",
            "evaluation_is_bound": False,
        }

    def loss(self, batch: Tensor, estimator: Callable[..., Tensor]) -> Tensor:
        """``[replicas, examples]`` losses through ``estimator``; of ``batch`` ``[replicas, examples, 0]`` the shape."""
        target = self.target.squeeze(-1)
        logits = self.latents.logits(self.outputs.expand(-1, batch.shape[1], -1))
        return estimator(logits, lambda z: (z @ self.values.to(z.dtype) - target).square().mean(-1))

    @torch.no_grad()
    def evaluate(self, split: str, num_samples: int) -> dict[str, Tensor]:
        """``{"value": [replicas]}``, exact whatever ``num_samples``."""
        p = self.latents.logits(self.outputs.double()).softmax(-1)
        losses = (p * (self.values.double() - self.target.double()) ** 2).sum(-1).mean(-1)
        return {"value": -losses.squeeze(-1)}

    def examples(self, count: int = 10) -> list[dict[str, Tensor]]:
        """No pictures."""
        return [{} for _ in range(self.outputs.shape[0])]
