"""The toy problem on which estimators are first compared: each latent's distance from a target."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from tasks.base import RandomStreams
from tasks.datasets import Dataset
from tasks.options import Categories, Count, Finite, NotNegative
from tasks.toys.free_logits import FreeLogits


class Toy(FreeLogits):
    r"""Minimise ``E_q[(1 / L) sum_l |v . z_l - target|^exponent]`` over the logits of ``q`` themselves.

    L independent latents of K categories with the values ``v = (0, 1 / (K - 1), ..., 1)``, so for K = 2 ``v . z`` is
    the bit b and the default is ``E[(b - t)^2]``. The optimum puts all mass on the value that is nearest to the target.
    Relaxed ``z`` lie between the values, where the loss has another minimum: straight-through goes, for exponent 2, to
    ``v . p = target``.

    Time and memory are linear in K, and small beside the drawing of ``z``: the product of a one-hot ``z`` with ``v`` is
    the value itself, bit for bit, and on a CPU ten times as fast as to look for the one and read there.

    Args:
        data, streams, init: as in :class:`tasks.toys.free_logits.FreeLogits`.
        latents, categories: L >= 1 and K >= 2.
        target: t; a tensor ``[replicas, 1, 1, 1]`` has one for each replica.
        exponent: >= 1, likewise.

    Raises:
        ValueError: for images, or a number out of range.

    Reference: t = 0.45 in REBAR (arXiv 1703.07370), t = 0.499 in RELAX (1711.00123) and, with L = 200, in Titsias and
    Shi (2111.05300). The polynomial programme of ReinMax (2304.08612) is t = 0.45, L = 128, exponents 1.5, 2 and 3.
    """

    formula = "mean_l abs(v.z_l - target)^exponent"

    def __init__(
        self,
        data: Dataset,
        streams: RandomStreams,
        *,
        latents: Count = 1,
        categories: Categories = 2,
        target: Finite = 0.499,
        exponent: Annotated[float | Tensor, ("range", "[1, inf)")] = 2.0,
        init: NotNegative = 0.0,
    ) -> None:
        super().__init__(data, streams, latents, categories, init)
        self.target = nn.Buffer(self.numbers("target", target))
        self.exponent = nn.Buffer(self.numbers("exponent", exponent))
        if not bool((self.exponent >= 1).all()):
            raise ValueError(f"task.exponent must be at least 1, not {self.exponent.flatten().tolist()}")
        self.values = nn.Buffer(torch.linspace(0, 1, categories), persistent=False)

    def loss_of(self, z: Tensor) -> Tensor:
        return (z @ self.values.to(z.dtype) - self.target).abs().pow(self.exponent).mean(-1)

    def _of_values(self) -> Tensor:
        """Each value's loss, ``[replicas, 1, categories]``, float64."""
        return (self.values.double() - self.target.double()).abs().pow(self.exponent.double())

    def expected(self, p: Tensor) -> Tensor:
        return (p * self._of_values()).sum(-1).mean(-1)

    def optimum(self) -> Tensor:
        return self._of_values().amin(dim=(-2, -1))

    def protocol(self) -> dict[str, Any]:
        return super().protocol() | {"target": self.target.flatten(), "exponent": self.exponent.flatten()}
