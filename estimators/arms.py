"""ARMS: many antithetic samples of binary latents through a copula."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from estimators import noise
from estimators._surrogate import with_gradient
from estimators.base import BlackBox, Surrogate
from estimators.categorical import Samples, from_bits, scores


class ARMS(BlackBox):
    r"""The leave-one-out estimator on ``num_samples`` negatively correlated samples, corrected for the correlation.

    gradient in the log-odds = 1 / (n - 1) * sum_k (loss(b_k) - mean loss) (b_k - p) * p (1 - p) / (p - P11),
    b_1..b_n exchangeable Bernoulli(p) with P11 = P(b_i = b_j = 1), independent across latents.

    The samples come from uniform variables u_k that share a copula. With m = min(p, 1 - p) the rarer value is taken
    where u_k < m. ``dirichlet``: u_k = (1 - d_k)^(n - 1), d ~ Dirichlet(1, ..., 1), and
    P11(m) = max(0, 2 m^{1/(n-1)} - 1)^{n-1}; ``gaussian``: u_k = Phi(x_k), x normal with correlations -1 / (n - 1),
    P11 by Gauss-Legendre quadrature. Two samples are DisARM for both; independent samples would be RLOO.

    ``loss`` is called once with ``z`` of ``[num_samples, *batch, latents, 2]``; the value is the mean over samples.
    Layers of the loss that take dimension 1 for features, such as BatchNorm1d, need care: :mod:`estimators.base`.

    Args:
        num_samples: at least 2; every gradient costs as many evaluations of the loss.
        copula: "dirichlet" (lower variance in the paper) or "gaussian".

    Raises:
        ValueError: on other arguments, or if the latents have more than two categories (CARMS is categorical).

    Example::

        losses = ARMS(4)(logits, loss)   # logits [batch, latents, 2]

    Reference: Dimitriev, Zhou, "ARMS: antithetic-REINFORCE-multi-sample gradient for binary variables", arXiv
    2105.14141. Differences from the authors' code: comparisons and the correction are in log space, so that rare
    bits are right; the bivariate normal distribution function is a quadrature instead of scipy's.
    """

    family = "coupled samples"
    unbiased = True
    binary_only = True

    def __init__(
        self,
        num_samples: Samples = 4,
        copula: Literal["dirichlet", "gaussian"] = "dirichlet",
    ) -> None:
        super().__init__()
        if num_samples < 2:
            raise ValueError(f"ARMS: num_samples must be at least 2, not {num_samples}; REINFORCE needs one sample")
        if copula not in ("dirichlet", "gaussian"):
            raise ValueError(f"ARMS: copula must be 'dirichlet' or 'gaussian', not {copula!r}")
        self.evaluations = num_samples
        self.copula = copula

    def draw(self, logits: Tensor, context: Tensor | None) -> tuple[Tensor, Surrogate]:
        odds = scores(logits)
        clean = odds.detach().to(torch.promote_types(odds.dtype, torch.float32))
        log_m = F.logsigmoid(-clean.abs())
        rare, both = (self._dirichlet if self.copula == "dirichlet" else self._gaussian)(log_m)
        bits = (rare ^ (clean > 0)).to(logits.dtype)

        def surrogate(losses: Tensor) -> Tensor:
            signal = (losses.detach() - losses.detach().mean(dim=0)).unsqueeze(-1)
            # p (1 - p) / (p - P11), the same for the rarer value: m (1 - m) / (m - P11(m)) = (1 - m) / (1 - P11(m) / m)
            correction = -torch.expm1(log_m) / (1 - both)
            # 1 / (n - 1) sum_k (loss_k - mean loss) b_k * correction: p drops out, as the signals sum to 0
            return with_gradient(losses, (signal * bits).sum(dim=0) * correction / (self.evaluations - 1), odds)

        return from_bits(bits), surrogate

    def _uniform(self, log_m: Tensor) -> Tensor:
        return noise.uniform((self.evaluations, *log_m.shape), dtype=log_m.dtype, device=log_m.device, event_dims=1)

    def _dirichlet(self, log_m: Tensor) -> tuple[Tensor, Tensor]:
        """Which samples take the rarer value, ``[num_samples, *batch, latents]``, and ``P11 / m``."""
        n = self.evaluations
        e = -torch.log1p(-self._uniform(log_m))
        # log(1 - d_k) = log(sum_{j != k} E_j) - log(sum_j E_j), without cancellation
        others = torch.tensordot(1 - torch.eye(n, dtype=e.dtype, device=e.device), e, dims=1)
        rest = others.log() - e.sum(dim=0).log()
        # u_k = (1 - d_k)^(n - 1) < m;  P11 / m = max(0, 2 m^(1/(n-1)) - 1)^(n-1) / m = max(0, 2 - m^(-1/(n-1)))^(n-1)
        return (n - 1) * rest < log_m, (2 - torch.exp(-log_m / (n - 1))).clamp_min(0) ** (n - 1)

    def _gaussian(self, log_m: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`_dirichlet`."""
        n = self.evaluations
        x = torch.special.ndtri(self._uniform(log_m))
        # variance 1 and correlations -1 / (n - 1)
        x = (x - x.mean(dim=0)) * math.sqrt(n / (n - 1))
        log_m = log_m.clamp_min(-80)  # rarer values are never drawn; the tails below are then finite
        rare = x < torch.special.ndtri(log_m.exp())
        if n == 2:
            return rare, torch.zeros_like(log_m)
        # P11 = m^2 - 1/(2 pi) int_0^{asin(1/(n-1))} exp(-h^2 / (1 - sin t)) dt  with  Phi(h) = m
        wide = log_m.double()
        h = torch.special.ndtri(wide.exp())
        integral = torch.zeros_like(wide)
        for node, weight in zip(*_gauss_legendre(0.0, math.asin(1 / (n - 1))), strict=True):
            integral = integral + weight * torch.exp(-(h**2) / (1 - node.sin()) - wide)
        return rare, (wide.exp() - integral / (2 * math.pi)).clamp_min(0).to(log_m.dtype)


def _gauss_legendre(low: float, high: float, order: int = 20) -> tuple[Tensor, Tensor]:
    """Nodes and weights of ``int_low^high``, from the eigenvectors of the Jacobi matrix (Golub and Welsch)."""
    k = torch.arange(1, order, dtype=torch.float64, device="cpu")
    off_diagonal = torch.diag(k / (4 * k**2 - 1).sqrt(), 1)
    nodes, vectors = torch.linalg.eigh(off_diagonal + off_diagonal.T)
    half = (high - low) / 2
    return low + half * (1 + nodes), 2 * half * vectors[0] ** 2
