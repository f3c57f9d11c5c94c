"""Terms with value 0 and a prescribed gradient, shared by estimators that compute their gradient themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from estimators import noise
from estimators._autograd import with_term
from estimators.categorical import Number, is_binary, scores


def finite(x: Tensor) -> Tensor:
    """``x`` with infinite entries replaced by 0, which then get no gradient: a factor of a surrogate must be finite."""
    return x.masked_fill(x.isinf(), 0.0)


def with_gradient(losses: Tensor, gradient: Tensor, at: Tensor) -> Tensor:
    """Mean of ``losses`` ``[samples, *batch]`` over the samples; its backward adds ``gradient`` at ``at``.

    ``gradient`` and ``at`` are ``[*batch, *event]``; parameters that ``losses`` depend on keep their own gradient.
    """
    # A sum over the event that overflows, as it may in half precision, would make a NaN of the 0.
    surrogate = gradient.detach().to(torch.promote_types(losses.dtype, torch.float32)) * finite(at)
    total = with_term(losses.mean(dim=0), surrogate.sum(dim=tuple(range(losses.dim() - 1, at.dim()))))
    return total.to(torch.promote_types(losses.dtype, at.dtype))


def softmax_jacobian(mean: Tensor, logits: Tensor) -> Tensor:
    """A term ``[*batch, latents, categories]`` with derivative ``diag(mean) - mean mean^T`` in ``logits``.

    ``mean``: probabilities, treated as constants; they need not belong to ``logits``.
    """
    mean = mean.detach()
    if is_binary(logits):
        first, second = mean.mT.unbind(dim=-2)
        term = first * second * finite(scores(logits))
        return torch.stack((-term, term), dim=-2).mT
    theta = finite(logits)
    return mean * (theta - (mean * theta).sum(dim=-1, keepdim=True))


def antithetic_bits(odds: Tensor, event_dims: int = 1) -> tuple[Tensor, Tensor]:
    """Bits ``1[odds + e > 0]`` and ``1[odds - e > 0]`` as ``[2, *odds.shape]``, and the logistic noise ``e``."""
    clean = odds.detach()
    dtype = torch.promote_types(clean.dtype, torch.float32)
    e = noise.logistic(clean.shape, dtype=dtype, device=clean.device, event_dims=event_dims)
    return torch.stack((clean + e > 0, clean - e > 0)).to(clean.dtype), e


def per_latent(value: Number) -> Number:
    """A hyperparameter that broadcasts against ``logits``, for use with ``[*batch, latents]`` log-odds."""
    return value.squeeze(-1) if isinstance(value, Tensor) and value.dim() > 0 else value
