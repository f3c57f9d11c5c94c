"""Gumbel-Rao: straight-through Gumbel-Softmax, averaged over the noise given the sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from estimators import noise
from estimators._autograd import carried, with_term
from estimators._surrogate import finite
from estimators.base import Pathwise
from estimators.categorical import (
    Count,
    Positive,
    harden,
    is_binary,
    log_probabilities,
    perturbed_scores,
    relax,
    scores,
)


class GumbelRao(Pathwise):
    r"""The Rao-Blackwellised ST Gumbel-Softmax: one hard sample, many draws of the Gumbels that could have made it.

    z ~ q exactly one-hot;  G_1, ..., G_m ~ Gumbel noise given argmax(logits + G) = z;
    gradient = (1/m sum_k d softmax((logits + G_k) / temperature) / d logits)^T  d loss / d z  at the hard z,
    with the G_k treated as constants. With E_j ~ Exp(1) and log-probabilities l_j:
    (l + G)_z = -log E_z  and  (l + G)_j = -log(E_j / exp(l_j) + E_z) for the others.

    For every ``num_inner`` the same mean as ``GumbelSoftmax(temperature, hard=True)`` and less variance; for
    ``num_inner=1`` the same distribution. ``loss`` is still evaluated once. The limit of temperature 0 with many
    draws is ReinMax(1). Memory grows with ``num_inner`` times the size of ``logits``.

    Args:
        temperature: > 0, a float or a tensor that broadcasts against ``logits`` ([replicas, 1, 1, 1], say).
        num_inner: at least 1; draws of the conditional noise.

    Raises:
        ValueError: on other arguments.

    Example::

        z = GumbelRao(temperature=0.3, num_inner=100).sample(logits)   # one-hot, differentiable

    Reference: Paulus, Maddison, Krause, "Rao-Blackwellizing the straight-through Gumbel-softmax gradient estimator",
    arXiv 2010.04838. Differences from the paper: it remarks that the derivative is also taken through G_k; that would
    not have the mean of ST Gumbel-Softmax, and like the other implementations this one treats G_k as constant.
    K = 2 draws one conditional logistic variable.
    """

    tempered = "temperature"

    def __init__(self, temperature: Positive = 1.0, num_inner: Count = 10) -> None:
        super().__init__()
        if num_inner < 1:
            raise ValueError(f"GumbelRao: num_inner must be at least 1, not {num_inner}")
        self.temperature = self._positive("temperature", temperature)
        self.num_inner = num_inner

    def sample(self, logits: Tensor) -> Tensor:
        hard = harden(perturbed_scores(logits.detach()), logits)
        # l + G_k: its value given z, its gradient that of l alone
        perturbed = perturbed_given(hard, logits.detach(), self.num_inner) + carried(finite(scores(logits)))
        # z + 1/m sum_k [softmax((l + G_k) / temperature) - its value]
        return with_term(hard, relax(perturbed, logits, self.temperature).mean(dim=0))


def perturbed_given(hard: Tensor, logits: Tensor, draws: int) -> Tensor:
    """``[draws, ...]`` scores as from :func:`perturbed_scores`, up to a constant, given that they make ``hard``."""
    return (_logistic_given if is_binary(logits) else _gumbels_given)(hard, logits, draws)


def _gumbels_given(hard: Tensor, logits: Tensor, draws: int) -> Tensor:
    """``log p + G`` given that ``hard`` is its argmax, ``[draws, *batch, latents, K]``."""
    log_p = log_probabilities(logits).to(torch.promote_types(logits.dtype, torch.float32))
    log_e = -noise.gumbel((draws, *log_p.shape), dtype=log_p.dtype, device=log_p.device)
    # -log E_z for the sampled category, -log(E_j / p_j + E_z) for the others
    chosen = hard > 0
    log_top = torch.where(chosen, log_e, -torch.inf).amax(dim=-1, keepdim=True)
    return -torch.where(chosen, log_top, torch.logaddexp(log_e - log_p, log_top))


def _logistic_given(hard: Tensor, logits: Tensor, draws: int) -> Tensor:
    """Log-odds plus logistic noise given that its sign is the bit of ``hard``, ``[draws, *batch, latents]``."""
    odds = scores(logits).to(torch.promote_types(logits.dtype, torch.float32))
    v = noise.uniform((draws, *odds.shape), dtype=odds.dtype, device=odds.device, event_dims=1)
    # +-log((1 + v exp(+-a)) / (1 - v)) with a the log-odds, v uniform, and the sign that of the bit
    sign = 2 * hard.mT.unbind(dim=-2)[1].to(odds.dtype) - 1
    return sign * (F.softplus(sign * odds + v.log()) - torch.log1p(-v))
