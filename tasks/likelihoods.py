"""Likelihoods of observations, in nats."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_GROUP = 100
"""Factors multiplied before a logarithm is taken: each is in [1/2, 1], and 2**-100 is far from underflow."""


@cache
def _group(pixels: int) -> int:
    return next(group for group in range(LARGEST_GROUP, 0, -1) if pixels % group == 0)


def nats_from_sigmoid(logits: Tensor, p: Tensor, x: Tensor) -> Tensor:
    """``sum_d softplus(logits_d) - x_d logits_d`` given ``p = sigmoid(logits)``, without a derivative.

    ``softplus(a) = max(a, 0) - log max(p, 1 - p)``, and the logarithms of up to ``LARGEST_GROUP`` factors are taken at
    once as that of their product. This is the largest elementwise cost of a step and of an evaluation on a CPU.
    """
    factors = 1 - p
    torch.maximum(factors, p, out=factors)
    linear = logits.relu().addcmul_(logits, x, value=-1).sum(-1)
    return linear.sub_(factors.unflatten(-1, (-1, _group(logits.shape[-1]))).prod(-1).log_().sum(-1))


class _BernoulliNats(torch.autograd.Function):
    """:func:`nats_from_sigmoid` with its derivative ``p - x``: one sigmoid serves both."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        p = logits.sigmoid()
        ctx.save_for_backward(logits, x, p)
        return nats_from_sigmoid(logits, p, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, x, p = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        by_x = (-logits * grad).sum_to_size(x.shape) if ctx.needs_input_grad[1] else None
        if torch.is_grad_enabled():  # a second derivative is wanted
            return (logits.sigmoid() - x) * grad, by_x
        return (p - x).mul_(grad), by_x


def bernoulli_nats(logits: Tensor, x: Tensor) -> Tensor:
    """``-log p(x)`` of independent Bernoulli pixels: ``sum_d softplus(logits_d) - x_d logits_d``.

    ``logits`` ``[..., D]`` and ``x`` in [0, 1] that broadcasts to it (a cross-entropy if it is not binary) ->
    ``[...]`` nats; or ``logits`` ``[S, ..., R, 1, D]``, the same for all examples of ``x`` ``[R, E, D]``, ->
    ``[S, ..., R, E]``, without a tensor of samples, examples and pixels. Twice differentiable, and usable under
    ``torch.func``.
    """
    if x.dim() == 3 < logits.dim() and logits.shape[-2] == 1 < x.shape[-2]:
        rows = logits.squeeze(-2).movedim(-2, 0)  # [R, ..., D]
        linear = torch.bmm(rows.flatten(1, -2), x.mT).unflatten(1, rows.shape[1:-1]).movedim(0, -2)
        return F.softplus(logits).sum(-1) - linear
    if torch._C._are_functorch_transforms_active():  # they want a Function of another form, which costs more per call
        return F.softplus(logits).sum(-1) - torch.linalg.vecdot(logits, x.expand_as(logits))
    return _BernoulliNats.apply(logits, x)


def dot(rows: Tensor, vectors: Tensor) -> Tensor:
    """``rows`` ``[R, E, S, D]``, dense, times ``vectors`` ``[R, E, D]`` -> ``[R, E, S]``, in one pass over the rows.

    The vector stands on the left: as a column MKL takes ten times as long.
    """
    return torch.bmm(vectors.flatten(0, 1).unsqueeze(1), rows.flatten(0, 1).mT).view(rows.shape[:-1])


def bernoulli_log_prob_(logits: Tensor, x: Tensor) -> Tensor:
    """``log p(x)`` of independent Bernoulli pixels for evaluation: no derivative, and ``logits`` are overwritten.

    ``logits`` ``[R, E, S, D]``, dense, and ``x`` ``[R, E, D]`` in [0, 1] -> ``[R, E, S]`` nats, by::

        log p(x) = sum_d (x_d - 1/2) a_d - 1/2 |a_d| + log sigmoid(|a_d|)

    whose first term is a product of matrices and whose last takes one logarithm for up to ``LARGEST_GROUP`` pixels:
    half the passes over the pixels that :func:`bernoulli_nats` makes.
    """
    linear = dot(logits, x - 0.5)
    linear.add_(logits.abs_().sum(-1), alpha=-0.5)
    factors = logits.sigmoid_().unflatten(-1, (-1, _group(logits.shape[-1])))
    return linear.add_(factors.prod(-1).log_().sum(-1))
