"""Categorical samples, probabilities and relaxations, shared by the estimators.

A Bernoulli latent is a categorical one with two categories whose bit is ``z[..., 1]``. With K = 2 everything is
computed on the log-odds: half the noise, no softmax over a dimension of two (seven times slower than a sigmoid on a
CPU). Shapes: ``logits`` and ``z`` are ``[*batch, latents, categories]``; *scores* are ``[*batch, latents]``
log-odds when K = 2 and ``[*batch, latents, categories]`` logits otherwise.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from estimators import noise
from estimators._autograd import gradient_only as gradient_only

Number = float | Tensor
Positive = Annotated[Number, ("range", "(0, inf)")]
Decay = Annotated[Number, ("range", "[0, 1)")]
NotNegative = Annotated[Number, ("range", "[0, inf)")]
Finite = Annotated[Number, ("range", "(-inf, inf)")]
Count = Annotated[int, ("range", "[1, inf)")]
Samples = Annotated[int, ("range", "[2, inf)")]
"""Hyperparameters with their range as data, which the harness reads; the constructors check it."""

SHORT = 16
"""Below this, torch's CPU softmax over the last dimension does not vectorise: it goes category by category instead."""


def softmax(x: Tensor) -> Tensor:
    """``x.softmax(dim=-1)``; for fewer than 16 categories on a CPU ten times faster than that."""
    if x.shape[-1] >= SHORT or x.device.type != "cpu":
        return x.softmax(dim=-1)
    return x.movedim(-1, 0).softmax(dim=0).movedim(0, -1).contiguous()


def log_softmax(x: Tensor) -> Tensor:
    """``x.log_softmax(dim=-1)``; for fewer than 16 categories on a CPU ten times faster than that."""
    if x.shape[-1] >= SHORT or x.device.type != "cpu":
        return x.log_softmax(dim=-1)
    return x.movedim(-1, 0).log_softmax(dim=0).movedim(0, -1).contiguous()


def is_binary(logits: Tensor) -> bool:
    """Whether the latents are Bernoulli, that is, have two categories."""
    return logits.shape[-1] == 2


def scores(logits: Tensor) -> Tensor:
    """Log-odds ``logits[..., 1] - logits[..., 0]`` for K = 2, the logits themselves otherwise."""
    if not is_binary(logits):
        return logits
    # Along the transposed dimension the backward stacks contiguous halves (ten times faster than interleaving them).
    first, second = logits.mT.unbind(dim=-2)
    return second - first


def from_bits(bits: Tensor) -> Tensor:
    """``[*batch, latents]`` bits or probabilities -> ``[*batch, latents, 2]`` as ``(1 - bit, bit)``.

    In memory the two halves lie one after the other, so that taking ``z[..., 1]`` again costs no strided access.
    """
    return torch.stack((1 - bits, bits), dim=-2).mT


def perturbed_scores(logits: Tensor) -> Tensor:
    """Scores with noise whose argmax (for K = 2: whose sign) is an exact sample of the categorical distribution.

    Logistic noise on the log-odds for K = 2, Gumbel noise on the logits otherwise (the Gumbel-max trick). A category
    with logit ``-inf`` is never chosen.
    """
    clean = scores(logits)
    dtype = torch.promote_types(clean.dtype, torch.float32)
    draw = noise.logistic if is_binary(logits) else noise.gumbel
    return clean + draw(clean.shape, dtype=dtype, device=clean.device)


def harden(perturbed: Tensor, logits: Tensor) -> Tensor:
    """Exactly one-hot ``z`` of the largest score (``perturbed`` as from :func:`perturbed_scores` of ``logits``)."""
    if is_binary(logits):
        return from_bits((perturbed > 0).to(logits.dtype))
    return one_hot(perturbed.argmax(dim=-1), logits)


def one_hot(index: Tensor, logits: Tensor) -> Tensor:
    """``index`` ``[*batch, latents]`` -> one-hot in the dtype and number of categories of ``logits``."""
    if torch.compiler.is_compiling():
        # Inductor's CPU backend may fuse what reads the result with what makes the index, in front of a scatter.
        return (index.unsqueeze(-1) == torch.arange(logits.shape[-1], device=index.device)).to(logits.dtype)
    # One zero, expanded, so that scatter makes the one tensor there is (in place it would not go under vmap).
    zeros = index.new_zeros((), dtype=logits.dtype).expand(*index.shape, logits.shape[-1])
    return zeros.scatter(-1, index.unsqueeze(-1), 1)


def chosen(x: Tensor, index: Tensor) -> Tensor:
    """``x`` ``[*batch, latents, categories]`` at ``index`` ``[*batch, latents]``."""
    if torch.compiler.is_compiling():  # a gather's backward is a scatter: see one_hot
        return torch.where(one_hot(index, x) > 0, x, 0.0).sum(dim=-1)
    return x.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def relax(clean: Tensor, logits: Tensor, temperature: Number = 1.0) -> Tensor:
    """``softmax(scores / temperature)`` as ``[*batch, latents, categories]`` in the dtype of ``logits``."""
    if is_binary(logits):
        if isinstance(temperature, Tensor) and temperature.dim() > 0:
            temperature = temperature.squeeze(-1)
        return from_bits((clean / temperature).sigmoid().to(logits.dtype))
    return softmax(clean / temperature).to(logits.dtype)


def probabilities(logits: Tensor, temperature: Number = 1.0) -> Tensor:
    """``softmax(logits / temperature)``, ``[*batch, latents, categories]``."""
    return relax(scores(logits), logits, temperature)


def log_probabilities(logits: Tensor) -> Tensor:
    """``log_softmax(logits)``, ``[*batch, latents, categories]``."""
    if is_binary(logits):
        odds = scores(logits)
        return torch.stack((F.logsigmoid(-odds), F.logsigmoid(odds)), dim=-1)
    return log_softmax(logits)


def sample_with_log_prob(logits: Tensor) -> tuple[Tensor, Tensor]:
    """An exact one-hot sample ``z`` (no gradient) and ``log q(z)`` over all latents, ``[*batch]`` (with gradient)."""
    if is_binary(logits):
        odds = scores(logits)
        bits = (perturbed_scores(logits.detach()) > 0).to(logits.dtype)
        return from_bits(bits), F.logsigmoid((2 * bits - 1) * odds).sum(dim=-1)
    index = perturbed_scores(logits.detach()).argmax(dim=-1)
    return one_hot(index, logits), chosen(log_softmax(logits), index).sum(dim=-1)
