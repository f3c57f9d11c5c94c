"""Online gradient variance of the encoder, per replica."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass
class GradientVariance:
    r"""Per-parameter variance of the gradient from moving moments, averaged over parameters.

    ``m1 <- d m1 + (1 - d) g``, ``m2 <- d m2 + (1 - d) g^2`` with d = 0.999, both divided by ``1 - d^t``;
    variance = mean over parameters of ``m2 - m1^2``. The gradient is that of the mean loss of a minibatch, so data and
    latents both vary; compare with numbers of summed gradients after dividing those by the squared batch size.

    Reference: the protocol of REBAR (arXiv 1703.07370) and DisARM (arXiv 2006.10680).

    Args:
        first, second: m1 and m2, for each parameter as it is stacked, ``[replicas, ...]``.
        steps: t, a number.
        kept_elsewhere: m2 is the optimiser's (Adam with beta2 = 0.999 and no weight decay keeps it); it is only read.
    """

    first: list[Tensor]
    second: list[Tensor]
    steps: Tensor
    kept_elsewhere: bool
    decay: ClassVar[float] = 0.999

    @classmethod
    def start(cls, parameters: Sequence[Tensor], second: Sequence[Tensor] | None = None) -> GradientVariance:
        """Of stacked parameters, before the first step; ``second``: m2 if something else keeps it."""

        def zeros() -> list[Tensor]:
            return [torch.zeros_like(parameter) for parameter in parameters]

        steps = torch.zeros((), device=parameters[0].device)
        return cls(zeros(), zeros() if second is None else list(second), steps, second is not None)

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor]) -> None:
        """Take in the stacked gradients ``[replicas, ...]`` of one step."""
        self.steps += 1
        for first, second, gradient in zip(self.first, self.second, gradients, strict=True):
            first.lerp_(gradient, 1 - self.decay)
            if not self.kept_elsewhere:
                second.mul_(self.decay).addcmul_(gradient, gradient, value=1 - self.decay)

    @torch.no_grad()
    def value(self) -> Tensor:
        """``[replicas]``, in squared units of the gradient; NaN before the second step."""
        steps = int(self.steps)
        weight = 1 - self.decay**steps if steps > 1 else float("nan")
        total = torch.zeros(len(self.first[0]), device=self.first[0].device)
        for first, second in zip(self.first, self.second, strict=True):
            total += (second / weight - (first / weight) ** 2).flatten(1).sum(1)
        return total / sum(first[0].numel() for first in self.first)

    def state(self, replica: int) -> dict[str, object]:
        """One replica's moments (a part of a checkpoint)."""
        return {"first": [m[replica] for m in self.first], "second": [m[replica] for m in self.second]}

    def restore(self, replica: int, state: dict[str, list[Tensor]], steps: int) -> None:
        """Go on from :meth:`state` after ``steps`` updates."""
        self.steps.fill_(steps)
        for moments, saved in ((self.first, state["first"]), (self.second, state["second"])):
            for moment, value in zip(moments, saved, strict=True):
                moment[replica].copy_(value)
