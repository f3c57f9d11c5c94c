"""Smoothing of bits by overlapping continuous variables, as in discrete variational autoencoders."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from estimators import noise
from estimators._autograd import with_term
from estimators._surrogate import finite, per_latent
from estimators.base import Pathwise, Range
from estimators.categorical import Number, from_bits, scores

SHARPNESS = Range("at most 80 and positive", 0, 80, (80,), "for hard bits use StraightThrough or DisARM")
Beta = Annotated[Number, ("range", f"(0, {SHARPNESS.high:g}]")]


class _Smoothing(Pathwise):
    """A relaxed bit s in [0, 1] with distribution function (1 - p) R0 + p R1, sampled by inverting it.

    The derivative at fixed noise is ds/dp = -(R1 - R0) / density, written in closed form for the log-odds.
    """

    family = "relaxation"
    binary_only = True
    relaxed = True
    tempered = "beta"
    inverse_temperature = True

    def __init__(self, beta: Number) -> None:
        super().__init__()
        self.beta = self._number("beta", beta, SHARPNESS)

    @abstractmethod
    def _invert(self, odds: Tensor, v: Tensor, beta: Number) -> tuple[Tensor, Tensor]:
        """The relaxed bits and their derivatives in the log-odds; ``v`` uniform, large ``v`` for small bits."""

    def sample(self, logits: Tensor) -> Tensor:
        # In float32 from the start: close to the spike a rounded log-odds moves the relaxed bit far.
        odds = scores(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        clean = odds.detach()
        v = noise.uniform(clean.shape, dtype=clean.dtype, device=clean.device, event_dims=1)
        smooth, slope = self._invert(clean, v, per_latent(self.beta))
        # The slope, up to e^beta / beta, is beyond half precision.
        smooth = with_term(smooth.clamp(0, 1), slope * finite(odds).to(slope.dtype))
        return from_bits(smooth.to(logits.dtype))


class SpikeAndExponential(_Smoothing):
    r"""A bit smoothed by a spike at 0 and an exponential that rises towards 1.

    s = 0 with probability 1 - p, else s ~ beta e^{beta s} / (e^beta - 1) on [0, 1];  p = sigmoid(a), a the log-odds;
    by inversion s = log(1 + (1 - v / p) (e^beta - 1)) / beta for v < p, else 0,  v ~ Uniform(0, 1);
    gradient = ds/da  d loss / d s,  ds/da = (1 - p) (e^{beta (1 - s)} - 1) / beta where s > 0.

    ``z = (1 - s, s)`` is relaxed: unbiased for the relaxed objective E[loss(s)] and biased for E_q[loss(z)], so the
    value is **not** a bound when the loss is a negative ELBO.

    Args:
        beta: in (0, 80], sharpness: s tends to a hard bit as beta grows, and the variance of the gradient grows too. A
            float or a tensor that broadcasts against ``logits``.

    Raises:
        ValueError: on another ``beta``, or if the latents have more than two categories.

    Example::

        z = SpikeAndExponential(beta=3.0).sample(logits)   # z[..., 1] in [0, 1]

    Reference: Rolfe, "Discrete variational autoencoders", arXiv 1609.02200 (with a Boltzmann machine as the prior, a
    learned beta and a bound on the smoothed model; here only the smoothing, with beta a constant).
    """

    def __init__(self, beta: Beta = 3.0) -> None:
        super().__init__(beta)

    def _invert(self, odds: Tensor, v: Tensor, beta: Number) -> tuple[Tensor, Tensor]:
        ratio = v.log() - F.logsigmoid(odds)  # log(v / p)
        on = ratio < 0
        fraction = -torch.expm1(torch.where(on, ratio, 0.0))
        beta = torch.as_tensor(beta, dtype=odds.dtype, device=odds.device)
        smooth = torch.log1p(fraction * torch.expm1(beta)) / beta
        slope = (-odds).sigmoid() * torch.expm1(beta * (1 - smooth)) / beta
        return smooth, torch.where(on, slope, 0.0)


class OverlappingExponential(_Smoothing):
    r"""A bit smoothed by two exponentials, falling from 0 if it is 0 and rising to 1 if it is 1.

    s ~ (1 - p) e^{-beta s} / Z + p e^{-beta (1 - s)} / Z on [0, 1],  Z = (1 - e^{-beta}) / beta,  p = sigmoid(a);
    by inversion s = -log(m) / beta, m the positive root of (1 - p) m^2 + B m - p e^{-beta} = 0 with
    B = u (1 - e^{-beta}) - (1 - p) + p e^{-beta},  u ~ Uniform(0, 1);
    gradient = ds/da  d loss / d s,  ds/da = p (1 - p) (1 - e0)(1 - e1) / (beta ((1 - p) e0 + p e1)),
    e0 = e^{-beta s},  e1 = e^{-beta (1 - s)}.

    Relaxed as SpikeAndExponential is: the value is **not** that of hard bits. Both values of the bit now have a
    density everywhere, which allows Boltzmann machines with any structure as priors in the reference.

    Args:
        beta: in (0, 80], sharpness (an inverse temperature), a float or a tensor that broadcasts against ``logits``.

    Raises:
        ValueError: on another ``beta``, or if the latents have more than two categories.

    Reference: Vahdat, Macready, Bian, Khoshaman, Andriyash, "DVAE++: discrete variational autoencoders with overlapping
    transformations", arXiv 1802.04920. Differences: only the smoothing; the root in a form without cancellation and
    the derivative by implicit differentiation.
    """

    def __init__(self, beta: Beta = 8.0) -> None:
        super().__init__(beta)

    def _invert(self, odds: Tensor, v: Tensor, beta: Number) -> tuple[Tensor, Tensor]:
        p, q = odds.sigmoid(), (-odds).sigmoid()
        beta = torch.as_tensor(beta, dtype=odds.dtype, device=odds.device)
        last = torch.exp(-beta)
        middle = (1 - v) * -torch.expm1(-beta) - q + p * last
        root = (middle**2 + 4 * q * p * last).sqrt()
        # of the two forms of the positive root, the one that adds what has equal signs
        rising = (2 * p).log() - beta - (middle + root).log()
        falling = (root - middle).log() - (2 * q).log()
        smooth = (-torch.where(middle > 0, rising, falling) / beta).clamp(0, 1)
        e0, e1 = torch.exp(-beta * smooth), torch.exp(-beta * (1 - smooth))
        steep = (beta * (q * e0 + p * e1)).clamp_min(torch.finfo(odds.dtype).tiny)
        return smooth, p * q * (1 - e0) * (1 - e1) / steep
