"""A quadratic form of one category or of two: the toy problem of Gumbel-Rao."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from tasks.base import RandomStreams
from tasks.datasets import Dataset
from tasks.options import Categories, NotNegative
from tasks.toys.free_logits import FreeLogits


class ToySimplex(FreeLogits):
    r"""Minimise ``E_q[(z_1 - c)^T Q (z_L - c)]``, ``Q_ij = exp(-2 |i - j|)``, ``c = 1 / K``, over K logits.

    L = 1: one latent. The expected loss ``sum_k p_k (e_k - c)^T Q (e_k - c)`` is linear in ``p``, and for K = 3 all
    mass on the middle category is best; straight-through minimises ``(p - c)^T Q (p - c)`` instead, and goes to the
    uniform ``p = c``. L = 2: two independent latents that share their logits. There the expected loss *is*
    ``(p - c)^T Q (p - c)``, with the optimum 0 at ``p = c``.

    Args:
        data, streams, init: as in :mod:`tasks.toys.free_logits`; with L = 2 ``init=0`` starts at the optimum.
        latents: 1 or 2.
        categories: K >= 2.

    Raises:
        ValueError: for images, or a number out of range.

    Reference: Paulus, Maddison, Krause, "Rao-Blackwellizing the straight-through Gumbel-softmax gradient estimator",
    arXiv 2010.04838: a quadratic programme with this ``Q`` and ``c`` for K = 3, at which gradient variances are
    compared over the simplex. Open, since not read there: whether its samples enter once or twice (hence both), and
    the temperatures.
    """

    formula = "(z_1 - c)^T Q (z_L - c), Q_ij = exp(-2 abs(i - j)), c = 1/K, one set of logits"

    def __init__(
        self,
        data: Dataset,
        streams: RandomStreams,
        *,
        latents: Annotated[int, ("range", "[1, 2]")] = 1,
        categories: Categories = 3,
        init: NotNegative = 1.0,
    ) -> None:
        if latents not in (1, 2):
            raise ValueError(f"task.latents must be 1 or 2 (z once or twice in the quadratic form), not {latents}")
        super().__init__(data, streams, latents, categories, init, shared=True)
        place = torch.arange(categories, dtype=torch.float64)
        self.q = nn.Buffer((-2 * (place - place.unsqueeze(-1)).abs()).exp(), persistent=False)
        self.c = 1 / categories

    def loss_of(self, z: Tensor) -> Tensor:
        centred = z - self.c
        first, last = centred[..., 0, :], centred[..., -1, :]
        return (first @ self.q.to(z.dtype) * last).sum(-1)

    def _of_corners(self) -> Tensor:
        """The loss of each category, ``[categories]``, for one latent."""
        corners = torch.eye(self.latents.categories, dtype=torch.float64, device=self.q.device).unsqueeze(-2)
        return self.loss_of(corners)

    def expected(self, p: Tensor) -> Tensor:
        return self.loss_of(p) if self.latents.latents == 2 else p.squeeze(-2) @ self._of_corners()

    def optimum(self) -> Tensor:
        least = self._of_corners().amin() if self.latents.latents == 1 else self.q.new_zeros(())
        return least.expand(self.replicas)
