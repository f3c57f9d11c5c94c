"""The normaliser of the von Mises-Fisher distribution in any dimension, at any concentration."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor, nn

LEAST_ORDER, TERMS = 24, 12
"""The Debye expansion is used at this order of the Bessel function or above, with so many terms after the first."""


def debye_polynomials(terms: int) -> list[list[Fraction]]:
    """The coefficients of ``u_0 .. u_terms``, by power of t, exactly (NIST Digital Library of Mathematical Functions,
    10.41.9): ``u_{k+1} = t^2 (1 - t^2) u_k' / 2 + int_0^t (1 - 5 s^2) u_k(s) ds / 8``."""
    polynomials = [[Fraction(1)]]
    for _ in range(terms):
        following = [Fraction(0)] * (len(polynomials[-1]) + 3)
        for power, c in enumerate(polynomials[-1]):
            following[power + 1] += c * Fraction(power, 2) + c / (8 * (power + 1))
            following[power + 3] -= c * Fraction(power, 2) + 5 * c / (8 * (power + 3))
        polynomials.append(following)
    return polynomials


class LogNormaliser(nn.Module):
    r"""``log C_D(k)``, so that ``C_D(k) exp(k cos)`` integrates to 1 over the unit sphere of D dimensions.

    ``C_D(k) = k^v / ((2 pi)^(D/2) I_v(k))``, v = D/2 - 1. With the area of the sphere apart,
    ``log C_D(k) = log Gamma(D/2) - log 2 - (D/2) log pi - G_v(k)``, where ``G_v(k) = log 0F1(; v + 1; k^2 / 4)`` is the
    log of the mean of ``exp(k cos)`` over the sphere: no term of it is large where their difference is small. At an
    order n of ``LEAST_ORDER`` or more it comes from the uniform (Debye) expansion of ``I_n`` (DLMF 10.41.3), for small
    and large k alike: with ``s = sqrt(1 + (k/n)^2)``, ``t = 1/s``

        ``G_n = n (s - 1 - log((1 + s) / 2)) - log(s) / 2 + log(U(t) / U(1))``,  ``U(t) = sum_k u_k(t) / n^k``

    and below it by going down, where errors shrink: ``r_n = 2n I_n / (k I_{n-1}) = 1 / (1 + k^2 r_{n+1} / (4n(n+1)))``,
    ``G_{n-1} = G_n - log r_n``. In float64, whatever the dtype of k, and differentiable (the derivative of ``-G_v`` is
    ``-I_{v+1} / I_v``): for D from 2 to 10,000 the value is right to 1e-14 of the largest of 1, D and k, the derivative
    to 1e-14 of itself.

    Args:
        dimension: D >= 2.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.order = dimension / 2 - 1
        self.steps = max(0, math.ceil(LEAST_ORDER - self.order))
        self.log_area = math.log(2) + dimension / 2 * math.log(math.pi) - math.lgamma(dimension / 2)
        # U(t) / U(1) by power of t, at the order that the steps begin from and, for the first ratio, at the next
        coefficients = [_ratio(self.order + self.steps + more) for more in (0, 1)]
        self.coefficients = nn.Buffer(torch.tensor(coefficients, dtype=torch.float64), persistent=False)
        self.powers = nn.Buffer(torch.arange(3 * TERMS + 1, dtype=torch.float64), persistent=False)

    def forward(self, concentration: Tensor) -> Tensor:
        """``concentration`` > 0, of any shape -> ``log C_D`` of that shape, float64."""
        k = concentration.double()
        top = self.order + self.steps
        log_mean = self._expansion(k, top, 0)
        if self.steps:
            ratio = (self._expansion(k, top + 1, 1) - log_mean).exp()
            for step in range(self.steps):
                n = top - step
                inverse = 1 + k**2 * ratio / (4 * n * (n + 1))
                log_mean, ratio = log_mean + inverse.log(), 1 / inverse
        return -self.log_area - log_mean

    def _expansion(self, k: Tensor, n: float, row: int) -> Tensor:
        square = (k / n) ** 2
        s = (1 + square).sqrt()
        more = square / (1 + s)  # s - 1
        series = (s.reciprocal().unsqueeze(-1) ** self.powers * self.coefficients[row]).sum(-1)
        return n * (more - (more / 2).log1p()) - s.log() / 2 + series.log()


def _ratio(n: float) -> list[float]:
    """The coefficients of ``U(t) / U(1)`` at order ``n``."""
    total = [Fraction(0)] * (3 * TERMS + 1)
    for k, polynomial in enumerate(debye_polynomials(TERMS)):
        for power, c in enumerate(polynomial):
            total[power] += c / Fraction(n) ** k
    return [float(c / sum(total)) for c in total]
