"""The distribution of a layer of categorical latents, from the encoder's or the prior's outputs.

Two classes with the same functions: Bernoulli latents live on their log-odds (one output per latent, one input bit per
latent), categorical ones on K logits. ``outputs`` are ``[..., examples, latents]`` or ``[..., examples, latents * K]``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.distributions.likelihoods import bernoulli_nats, dot, nats_from_sigmoid
from tasks.layers import StackedMLP

RESOLUTION = 2.0**31
"""Noise for :meth:`Bernoulli.draw` is uniform on the integers below this."""
FEW_ONES = 4
"""With so many categories a one-hot code is cheaper as the places of its ones (on a CPU)."""


class _BernoulliKLToUniform(torch.autograd.Function):
    """``sum q a - softplus(a)``, q = sigmoid(a): the KL but for its constant. Its derivative ``q (1 - q) a`` is worth
    writing out: autograd takes it in eight operations, which a solo step on a CPU feels."""

    @staticmethod
    def forward(ctx: Any, log_odds: Tensor) -> Tensor:
        q = log_odds.sigmoid()
        ctx.save_for_backward(log_odds, q)
        return nats_from_sigmoid(log_odds, q, q).neg_()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        log_odds, q = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            q = log_odds.sigmoid()
        return q * (1 - q) * log_odds * grad.unsqueeze(-1)


def _uniform(noise: Tensor, like: Tensor) -> Tensor:
    """Integers 0 .. 2**31 - 1 as numbers in (0, 1); the factor is below 2**-31 so that none is rounded to 1."""
    return noise.to(like.dtype).mul_((1 - 2.0**-24) / RESOLUTION).add_(0.5 / RESOLUTION)


class Bernoulli:
    """``latents`` binary latents; ``outputs`` are log-odds, ``features`` the bits."""

    def __init__(self, latents: int) -> None:
        self.latents, self.categories, self.width = latents, 2, latents

    def logits(self, outputs: Tensor) -> Tensor:
        """``[..., latents, 2]`` logits for an estimator, the two halves contiguous in memory."""
        return torch.stack((torch.zeros_like(outputs), outputs), dim=-2).mT

    def features(self, z: Tensor) -> Tensor:
        """``z`` ``[..., latents, 2]`` -> the decoder's input ``[..., latents]``: the bits."""
        return z.mT[..., 1, :]  # as z[..., 1], with a contiguous backward

    def sample(self, outputs: Tensor, u: Tensor) -> Tensor:
        """Exact samples as features, from uniform noise ``u`` ``[..., latents]``."""
        return (u < outputs.sigmoid()).to(outputs.dtype)

    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Exact samples as features, from integers ``noise`` ``[..., latents]`` uniform in 0 .. 2**31 - 1.

        ``outputs`` ``[..., latents]`` broadcast to it. Those that many samples share become integers: probabilities are
        rounded to multiples of 2**-31, so that bits less likely than half of that never come up. Where each sample has
        its own, the noise becomes a number in (0, 1), as for :meth:`sample`, which takes half the time then.
        """
        if outputs.shape == noise.shape:
            p = outputs.sigmoid()
            return torch.lt(_uniform(noise, p), p, out=p)
        last = outputs.double().sigmoid_().mul_(RESOLUTION).round_().sub_(1).to(torch.int32)
        features = torch.empty(noise.shape, dtype=outputs.dtype, device=outputs.device)
        return torch.le(noise, last, out=features)

    def draw_codes(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """:meth:`draw`, in the form that :meth:`through` and :meth:`dot` are fastest with: the bits."""
        return self.draw(outputs, noise)

    def through(self, network: StackedMLP, codes: Tensor) -> Tensor:
        """``network`` of the features of ``codes`` ``[R, E, S, ...]``: ``[R, E, S, outputs]``."""
        return network(codes.flatten(1, 2)).unflatten(1, codes.shape[1:3])

    def dot(self, codes: Tensor, slope: Tensor) -> Tensor:
        """The features of ``codes`` ``[R, E, S, ...]`` times ``slope`` ``[R, E, width]``: ``[R, E, S]``."""
        return dot(codes, slope)

    def kl(self, outputs: Tensor, prior: Tensor | None) -> Tensor:
        """``KL(q || p)`` summed over latents, in nats, ``[..., examples]``; ``prior=None`` is uniform."""
        if prior is None and not torch._C._are_functorch_transforms_active():
            return _BernoulliKLToUniform.apply(outputs) + self.latents * math.log(2)
        return self.log_ratio(outputs.sigmoid(), outputs, prior)

    def log_ratio(self, features: Tensor, outputs: Tensor, prior: Tensor | None) -> Tensor:
        """``log q(z) - log p(z)`` in nats; linear in ``features``, so at the mean it is the KL. ``[..., examples]``."""
        if prior is None:
            return (features * outputs - F.softplus(outputs)).sum(-1) + self.latents * math.log(2)
        return (features * (outputs - prior) - F.softplus(outputs)).sum(-1) + F.softplus(prior).sum(-1)

    def log_ratio_terms(self, outputs: Tensor, prior: Tensor | None) -> tuple[Tensor, Tensor]:
        """``(slope [..., latents], constant [...])``: :meth:`log_ratio` is ``features . slope + constant``."""
        prior = torch.zeros_like(outputs) if prior is None else prior
        return outputs - prior, (F.softplus(prior) - F.softplus(outputs)).sum(-1)

    def nats(self, features: Tensor, outputs: Tensor) -> Tensor:
        """``-log p(z)`` under the distribution of ``outputs``; linear in ``features``. ``[..., examples]``."""
        return bernoulli_nats(outputs, features)


class Categorical:
    """``latents`` latents of ``categories`` classes; ``outputs`` are logits, ``features`` flattened one-hot codes."""

    def __init__(self, latents: int, categories: int) -> None:
        self.latents, self.categories, self.width = latents, categories, latents * categories

    def logits(self, outputs: Tensor) -> Tensor:
        """``[..., latents, categories]`` logits for an estimator."""
        return outputs.unflatten(-1, (self.latents, self.categories))

    def features(self, z: Tensor) -> Tensor:
        """``z`` ``[..., latents, categories]`` -> the decoder's input ``[..., latents * categories]``."""
        return z.flatten(-2)

    def sample(self, outputs: Tensor, u: Tensor) -> Tensor:
        """Exact samples as features, by inverting the cumulative distribution at ``u`` ``[..., latents]``."""
        cumulative = self.logits(outputs).softmax(-1).cumsum(-1)[..., :-1]
        index = (u.unsqueeze(-1) >= cumulative).sum(-1)
        return self.features(F.one_hot(index, self.categories).to(outputs.dtype))

    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Exact samples as features, from integers ``noise`` ``[..., latents]``; see :meth:`Bernoulli.draw`."""
        features = torch.zeros(*noise.shape[:-1], self.width, dtype=outputs.dtype, device=outputs.device)
        return features.scatter_(-1, self._draw_ones(outputs, noise), 1.0)

    def _draw_ones(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Which features are one, ``[..., latents]`` int64: by inverting the cumulative distribution at ``noise``."""
        # Categories go in front: along a last dimension of ten softmax and sums take six times as long.
        logits = self.logits(outputs).movedim(-1, 0).contiguous()
        if outputs.shape[:-1] == noise.shape[:-1]:
            last = (logits - logits.amax(0)).exp_().cumsum(0)
            u = _uniform(noise, outputs).mul_(last[-1])
        else:
            cumulative = logits.double().softmax(0).cumsum(0)
            u, last = noise, cumulative.mul_(RESOLUTION).round_().sub_(1).clamp_max_(RESOLUTION - 1).to(torch.int32)
        # A comparison for each category, added up in floats, takes a quarter of one with all of them and a sum.
        index, above = torch.empty(2, *noise.shape, dtype=torch.float32, device=noise.device)
        torch.gt(u, last[0], out=index)
        for limit in last[1:-1]:
            index.add_(torch.gt(u, limit, out=above))
        return index.long().add_(torch.arange(0, self.width, self.categories, device=noise.device))

    def draw_codes(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """:meth:`draw`, in the form that :meth:`through` and :meth:`dot` are fastest with.

        On a CPU, from ``FEW_ONES`` categories on, which features are one, ``[..., latents]`` int64: for 20 latents of
        10 categories the sum of rows of the weights takes a third of their product. Otherwise the features.
        """
        rows = outputs.device.type == "cpu" and self.categories >= FEW_ONES
        return self._draw_ones(outputs, noise) if rows else self.draw(outputs, noise)

    def through(self, network: StackedMLP, codes: Tensor) -> Tensor:
        """``network`` of the features of ``codes`` ``[R, E, S, ...]``: ``[R, E, S, outputs]``."""
        flat = codes.flatten(1, 2)
        outputs = network(flat) if codes.is_floating_point() else network.of_ones(flat, self.categories)
        return outputs.unflatten(1, codes.shape[1:3])

    def dot(self, codes: Tensor, slope: Tensor) -> Tensor:
        """The features of ``codes`` ``[R, E, S, ...]`` times ``slope`` ``[R, E, width]``: ``[R, E, S]``."""
        if codes.is_floating_point():
            return dot(codes, slope)
        return slope.gather(-1, codes.flatten(2)).view(codes.shape).sum(-1)

    def kl(self, outputs: Tensor, prior: Tensor | None) -> Tensor:
        """``KL(q || p)`` summed over latents, in nats, ``[..., examples]``; ``prior=None`` is uniform."""
        return self.log_ratio(self.features(self.logits(outputs).softmax(-1)), outputs, prior)

    def log_ratio(self, features: Tensor, outputs: Tensor, prior: Tensor | None) -> Tensor:
        """``log q(z) - log p(z)`` in nats; linear in ``features``, so at the mean it is the KL. ``[..., examples]``."""
        log_q = self.logits(outputs).log_softmax(-1)
        log_p = -math.log(self.categories) if prior is None else self.logits(prior).log_softmax(-1)
        return (features * (log_q - log_p).flatten(-2)).sum(-1)

    def log_ratio_terms(self, outputs: Tensor, prior: Tensor | None) -> tuple[Tensor, Tensor]:
        """``(slope [..., latents * K], 0)``: :meth:`log_ratio` is ``features . slope``."""
        log_p = -math.log(self.categories) if prior is None else self.logits(prior).log_softmax(-1)
        slope = (self.logits(outputs).log_softmax(-1) - log_p).flatten(-2)
        return slope, torch.zeros_like(slope[..., 0])

    def nats(self, features: Tensor, outputs: Tensor) -> Tensor:
        """``-log p(z)`` under the distribution of ``outputs``; linear in ``features``. ``[..., examples]``."""
        return -(features * self.logits(outputs).log_softmax(-1).flatten(-2)).sum(-1)


def latents_of(latents: int, categories: int) -> Bernoulli | Categorical:
    """The layer for ``latents`` >= 1 latents with ``categories`` >= 2; raises ``ValueError`` otherwise."""
    if latents < 1:
        raise ValueError(f"task.latents must be at least 1, not {latents}")
    if categories < 2:
        raise ValueError(f"task.categories must be at least 2, not {categories}; a Bernoulli latent has 2 categories")
    return Bernoulli(latents) if categories == 2 else Categorical(latents, categories)


def one_row(z: Tensor) -> Tensor:
    """``z`` ``[..., examples, latents, categories]`` with one row where it is the same for all examples.

    An enumeration of the joint states is (an expanded tensor, without a gradient): what is computed from the states
    alone is then computed once, and broadcasts against the examples.
    """
    if z.requires_grad or torch._C._are_functorch_transforms_active() or z.stride(-3) != 0:
        return z
    return z[..., :1, :, :]
