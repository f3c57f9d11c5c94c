"""Gapped straight-through: the sampled category is put ahead of the others before the softmax."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from estimators._autograd import carried, with_term
from estimators._surrogate import finite, per_latent
from estimators.base import Pathwise
from estimators.categorical import (
    Number,
    Positive,
    harden,
    is_binary,
    perturbed_scores,
    probabilities,
    relax,
    scores,
)


class GappedStraightThrough(Pathwise):
    r"""Straight-through with logits shifted, by constants, so that the sampled category leads by a gap.

    z ~ q exactly one-hot;  shifted_z = max logits,  shifted_j = min(logit_j, max logits - gap) for the others;
    gradient = (d softmax((logits + Delta) / temperature) / d logits)^T  d loss / d z  at the hard z,
    Delta = shifted - logits treated as a constant.

    It keeps two properties of ST Gumbel-Softmax (the relaxed sample agrees with the hard one and is ahead of the
    others) without the variance of the Gumbel noise.

    Args:
        temperature: > 0, a float or a tensor that broadcasts against ``logits`` ([replicas, 1, 1, 1], say).
        gap: > 0, likewise; or "p", the gap -log(1 - p_z) / p_z of the sampled category's probability.

    Raises:
        ValueError: on other arguments.

    Example::

        z = GappedStraightThrough(temperature=0.7).sample(logits)   # one-hot, differentiable

    Reference: Fan, Chi, Rudnicky, Ramadge, "Training discrete deep generative models via gapped straight-through
    estimator", arXiv 2206.07235. Differences from the authors' code: the gap "p" is not capped by lowering p_z by
    1e-5; where p_z rounds to 1 the gradient is 0.
    """

    tempered = "temperature"

    def __init__(
        self, temperature: Positive = 1.0, gap: Annotated[Number | Literal["p"], ("range", "(0, inf)")] = 1.0
    ) -> None:
        super().__init__()
        self.temperature = self._positive("temperature", temperature)
        if isinstance(gap, str) and gap != "p":
            raise ValueError(f"GappedStraightThrough: gap must be positive and finite or 'p', not {gap!r}")
        given = self._positive("gap", 1.0 if isinstance(gap, str) else gap)
        self.gap = gap if isinstance(gap, str) else given

    def sample(self, logits: Tensor) -> Tensor:
        clean = logits.detach()
        hard = harden(perturbed_scores(clean), logits)
        shifted = self._shifted(hard, clean) + carried(finite(scores(logits)))
        return with_term(hard, relax(shifted, logits, self.temperature))

    def _shifted(self, hard: Tensor, clean: Tensor) -> Tensor:
        """The shifted scores (see :mod:`estimators.categorical`), in which the sampled category is ahead by the gap."""
        gap = self._probability_gap(hard, clean) if isinstance(self.gap, str) else self.gap
        if is_binary(clean):
            odds, gap = scores(clean), per_latent(gap)
            one = hard.mT.unbind(dim=-2)[1] > 0
            ahead = torch.as_tensor(gap, dtype=odds.dtype, device=odds.device)
            return torch.where(one, torch.maximum(odds, ahead), torch.minimum(odds, -ahead))
        top = clean.amax(dim=-1, keepdim=True)
        return torch.where(hard > 0, top, torch.minimum(clean, top - gap))

    def _probability_gap(self, hard: Tensor, clean: Tensor) -> Tensor:
        p = (hard * probabilities(clean)).sum(dim=-1, keepdim=True).clamp_min(torch.finfo(clean.dtype).tiny)
        return -torch.log1p(-p) / p
