"""Three Bernoulli variables that share one logit: the toy problem of sampling without replacement."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tasks.base import RandomStreams
from tasks.datasets import Dataset
from tasks.options import NotNegative
from tasks.toys.free_logits import FreeLogits

TARGETS = (0.6, 0.51, 0.48)


class ToyBernoulli3(FreeLogits):
    r"""Minimise ``E_q[sum_l (b_l - t_l)^2]``, t = (0.6, 0.51, 0.48), over the one log-odds that three bits share.

    With ``p`` the probability of a one the expected loss is ``sum_l t_l^2 + p sum_l (1 - 2 t_l)``: linear, least at
    ``p = 1``, where it is 0.6705. Straight-through goes to ``p = mean_l t_l = 0.53``.

    Args:
        data, streams, init: as in :class:`tasks.toys.free_logits.FreeLogits`.

    Raises:
        ValueError: for images, or a negative ``init``.

    Reference: Kool, van Hoof, Welling, "Estimating gradients for discrete random variables by sampling without
    replacement", arXiv 2002.06043, who measure variances along ``p`` and do not train.
    """

    formula = "sum_l (b_l - t_l)^2, t = 0.6, 0.51, 0.48, one logit"

    def __init__(self, data: Dataset, streams: RandomStreams, *, init: NotNegative = 0.0) -> None:
        super().__init__(data, streams, len(TARGETS), 2, init, shared=True)
        self.targets = nn.Buffer(torch.tensor(TARGETS, dtype=torch.float64), persistent=False)

    def loss_of(self, z: Tensor) -> Tensor:
        return (self.latents.features(z) - self.targets.to(z.dtype)).square().sum(-1)

    def _of_bits(self) -> Tensor:
        """The loss of each latent's two bits, ``[latents, 2]``."""
        return torch.stack((self.targets, self.targets - 1), dim=-1).square()

    def expected(self, p: Tensor) -> Tensor:
        return (p * self._of_bits()).sum(dim=(-2, -1))

    def optimum(self) -> Tensor:
        return self._of_bits().sum(0).amin().expand(self.replicas)
