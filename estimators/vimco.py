"""VIMCO: the score function for the multi-sample bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from estimators.base import MultiSample
from estimators.categorical import Samples


class VIMCO(MultiSample):
    r"""Variational inference for Monte-Carlo objectives: a leave-one-out baseline for the multi-sample bound.

    value = -Lhat,  Lhat = log 1/S sum_s w_s,  w_s = exp(-loss(z_s)),  z_1..z_S ~ q independent;
    gradient = -sum_s (Lhat - Lhat_{-s}) * d log q(z_s) / d logits  -  sum_s w_s / (sum_t w_t) * d log w_s,
    where Lhat_{-s} replaces w_s by the geometric mean of the other weights.

    **Another objective than that of the other estimators**, whose ``loss`` is a negative log weight:
    :class:`estimators.MultiSample`. ``loss`` is called once with ``z`` ``[num_samples, *batch, latents, categories]``.
    Layers of the loss that take dimension 1 for features, such as BatchNorm1d, need care: :mod:`estimators.base`.

    Args:
        num_samples: S >= 2, which is also the number of loss evaluations.

    Raises:
        ValueError: at construction, if ``num_samples < 2``.

    Example::

        bound = -VIMCO(5)(logits, lambda z: log_q(z) - log_joint(z))   # [*batch], the 5-sample bound

    Nesting two VIMCOs nests their bounds; a deeper model usually takes one weight for all its layers.

    Reference: Mnih, Rezende, "Variational inference for Monte Carlo objectives", arXiv 1602.06725. Differences from the
    paper: none (of its two leave-one-out estimates the geometric mean, as in its experiments).
    """

    def __init__(self, num_samples: Samples = 5) -> None:
        if num_samples < 2:
            raise ValueError(
                f"VIMCO: num_samples must be at least 2, not {num_samples}; with one sample the bound is the ELBO, for "
                "which use NVIL or REINFORCE"
            )
        super().__init__(num_samples)

    def signals(self, log_weight: Tensor, bound: Tensor) -> Tensor:
        # Lhat - Lhat_{-s}
        return bound - self._left_out(log_weight)

    def _left_out(self, log_weight: Tensor) -> Tensor:
        """``Lhat_{-s}`` ``[num_samples, *batch]``: one weight is replaced by the geometric mean of the others."""
        # log of the geometric mean: mean_{t != s} log w_t
        others = (log_weight.sum(dim=0) - log_weight) / (self.num_samples - 1)
        itself = torch.eye(self.num_samples, dtype=torch.bool, device=log_weight.device)
        itself = itself.reshape(self.num_samples, self.num_samples, *(1,) * (log_weight.dim() - 1))
        replaced = torch.where(itself, others.unsqueeze(1), log_weight)
        # log 1/S sum_t w_t, with w_s replaced
        return replaced.logsumexp(dim=1) - math.log(self.num_samples)
