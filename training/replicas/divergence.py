"""Divergence: which replicas met a loss or a gradient that is not finite, at which step, with which logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from estimators.base import in_functorch

SMALL = 4096
"""Gradients with at most this many elements per replica are checked in every step."""


class SeenLogits:
    """The logits that estimators were called with, since they were last asked for."""

    def __init__(self, estimators: Iterable[nn.Module]) -> None:
        self._seen: list[Tensor] = []
        for estimator in estimators:
            estimator.register_forward_pre_hook(lambda _, arguments: self._look_at(arguments[0]))

    def _look_at(self, logits: Tensor) -> None:
        if not in_functorch():
            self._seen.append(logits.detach())

    def take(self) -> list[Tensor]:
        """Each ``[..., replicas, examples, latents, categories]``; none afterwards."""
        seen, self._seen = self._seen, []
        return seen


@dataclass
class Health:
    """Which replicas of a pack are well, as tensors.

    ``first_bad`` ``[replicas]``: the first step (from 1) whose loss or gradient was not finite, else -1.
    ``logits_range`` ``[2, replicas]``: least and largest logit that the estimators of all layers saw at that step
    (but for calls within a ``torch.func`` transform, whose tensors are of no use outside of it). ``step``: a number.
    """

    first_bad: Tensor
    logits_range: Tensor
    step: Tensor

    @classmethod
    def start(cls, replicas: int, device: torch.device) -> Health:
        """All are well, before the first step."""
        first_bad = torch.full((replicas,), -1, device=device)
        step = torch.zeros((), dtype=torch.int64, device=device)
        return cls(first_bad, torch.zeros(2, replicas, device=device), step)

    @torch.no_grad()
    def check(
        self, losses: Tensor, gradients: Sequence[Tensor | None], seen: Sequence[Tensor], looks: bool
    ) -> tuple[Sequence[Tensor | None], list[int]]:
        """Look at a step's ``losses`` ``[replicas, examples]``, stacked gradients and ``seen`` logits; returns the
        gradients to use, and which replicas rest.

        Of the gradients only small ones, the biases', are looked at: what is not finite at an output is not finite
        there either, and weights would cost another pass over memory (:meth:`look_everywhere` does it now and then).
        ``looks``: whether the host may look at a number, as on a CPU. Then a replica that diverges rests: it gets zero
        gradients from then on. A GPU is not waited for, and a compiled step has no branches: the replica's parameters
        go on being worthless, and what is recorded is where that began.
        """
        self.step += 1
        finite = losses.isfinite().all(-1)
        for gradient in gradients:
            if gradient is not None and gradient[0].numel() <= SMALL:
                finite &= gradient.flatten(1).sum(1).isfinite()
        healthy = self.first_bad < 0
        bad = healthy & ~finite
        if not looks:
            self.logits_range.copy_(torch.where(healthy, self._range(seen), self.logits_range))
            self.first_bad.copy_(torch.where(bad, self.step, self.first_bad))
            return gradients, []
        if bad.any():
            self.logits_range[:, bad] = self._range(seen)[:, bad]
            self.first_bad[bad] = self.step
        elif healthy.all():
            return gradients, []
        resting = self.first_bad >= 0
        masked = [g if g is None else g.masked_fill(resting.reshape(-1, *(1,) * (g.dim() - 1)), 0.0) for g in gradients]
        return masked, resting.nonzero().flatten().tolist()

    @torch.no_grad()
    def look_everywhere(self, parameters: Sequence[Tensor]) -> None:
        """Count replicas as diverged whose stacked parameters are not all finite."""
        sums = torch.stack([parameter.flatten(1).sum(1) for parameter in parameters])
        self.first_bad[(self.first_bad < 0) & ~sums.isfinite().all(0)] = self.step

    def _range(self, seen: Sequence[Tensor]) -> Tensor:
        """``[2, replicas]``: least and largest of several logits ``[..., replicas, examples, latents, categories]``;
        infinity and its negative if no estimator was called (``task.kl=relaxed`` takes a sample and its density)."""
        if not seen:
            unseen = torch.full_like(self.logits_range[0], torch.inf)
            return torch.stack((unseen, -unseen))
        extremes = []
        for logits in seen:  # dimension by dimension: as one, two halves of categories would be read number by number
            others = [dim for dim in range(logits.dim()) if dim != logits.dim() - 4]
            extremes.append(torch.stack((logits.amin(others), logits.amax(others))).float())
        least, most = torch.stack(extremes, dim=-1).unbind(0)
        return torch.stack((least.amin(-1), most.amax(-1)))
