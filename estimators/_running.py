"""A moving average over the examples of earlier calls: the baseline that costs nothing and keeps the mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from estimators.base import in_functorch, per_example
from estimators.categorical import Number


class MovingAverage(nn.Module):
    """Exponential moving average of ``[*batch]`` values over calls, each call counting by its mean over examples.

    A buffer, written in training mode as those of batch normalisation are (``eval()`` freezes it), never within a
    ``torch.func`` transform. It is corrected for its zero start, as Adam's moments are, and 0 before the first call.

    Args:
        replicas: if given, values are ``[..., replicas, examples]`` and each replica has its own average
            ``[replicas, 1]``; otherwise there is one for all examples.
    """

    def __init__(self, replicas: int | None) -> None:
        super().__init__()
        self.replicas = replicas
        per_replica = () if replicas is None else (replicas, 1)
        self.total = nn.Buffer(torch.zeros(per_replica))
        self.weight = nn.Buffer(torch.zeros(per_replica))

    def value(self) -> Tensor:
        """The average so far; it broadcasts against ``[*batch]``."""
        value = self.total / self.weight.clamp_min(torch.finfo(self.weight.dtype).tiny)
        if torch.compiler.is_compiling():
            # Left to itself, the compiled backward computes the value again from the buffers, updated by then. This is
            # no operation that it would repeat.
            value = value.unsqueeze(0).amin(dim=0)
        return value

    @torch.no_grad()
    def update(self, values: Tensor, decay: Number) -> None:
        """Take ``values`` in with weight ``1 - decay``."""
        if not self.training or in_functorch():
            return
        if self.replicas is None:
            mean = values.mean()
        else:  # replicas stand before examples, whatever sample dimensions are in front
            mean = values.reshape(-1, *values.shape[-2:]).mean((0, 2)).unsqueeze(-1)
        step = 1 - per_example(decay)
        self.total.lerp_(mean.to(self.total.dtype), step)
        self.weight.lerp_(torch.ones_like(self.weight), step)
