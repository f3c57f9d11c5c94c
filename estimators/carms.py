"""CARMS: many antithetic samples of categorical latents."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from estimators import noise
from estimators._surrogate import with_gradient
from estimators.base import Estimator, Loss
from estimators.categorical import one_hot, probabilities


class CARMS(Estimator):
    r"""The leave-one-out estimator on ``num_samples`` antithetic samples, weighted by the ratio of joint masses.

    gradient = 1 / (n (n - 1)) * sum_{i<j} r(z_i, z_j) (loss_i - loss_j) (z_i - z_j)   per latent,
    r(a, b) = p(a) p(b) / P(z_i = a, z_j = b).

    The samples invert the distribution function at uniform variables with the Dirichlet copula of ARMS,
    u_k = (1 - d_k)^(n - 1), so that P(u_i < s, u_j < t) = max(0, s^{1/(n-1)} + t^{1/(n-1)} - 1)^{n-1}. The order of
    the categories is drawn anew per example and latent among K (K - 1) / 2 orders in which every pair has the two
    ends once, and P is the mean over these orders. So P(a, b) > 0 wherever p(a) p(b) > 0, which makes the estimator
    unbiased, and r <= K (K - 1) / 2.

    ``loss`` is called once with ``z`` of ``[num_samples, *batch, latents, K]``; the value is the mean over samples.
    Memory grows with ``K (K - 1) / 2 * num_samples (num_samples - 1) / 2`` numbers per latent. Equal to DisARM for
    K = 2 and two samples.

    Args:
        num_samples: at least 2; every gradient costs as many evaluations of the loss.

    Raises:
        ValueError: if ``num_samples`` is less than 2.

    Example::

        losses = CARMS(4)(logits, loss)   # logits [batch, latents, categories]

    Reference: Dimitriev, Zhou, "CARMS: categorical-antithetic-REINFORCE multi-sample gradient estimator", arXiv
    2110.14002 (its inverse-CDF construction). Differences from the authors' code: masses in double precision and r
    bounded by its maximum instead of an added 1e-6, which is a bias; the variants with antithetic Gumbels (a Monte-
    Carlo joint mass, which is not unbiased) and sticks (DisARMIW for two samples) are left out.
    """

    unbiased = True

    def __init__(self, num_samples: int = 4) -> None:
        super().__init__()
        if num_samples < 2:
            raise ValueError(f"CARMS: num_samples must be at least 2, not {num_samples}; REINFORCE needs one sample")
        self.evaluations = num_samples

    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        n = self.evaluations
        p = probabilities(logits.detach().double())
        before = torch.einsum("mkc,...c->m...k", _precedes(p.shape[-1], p.device).to(p.dtype), p)
        index = self._sample(p, before)
        losses = loss(one_hot(index, logits))
        i, j = torch.triu_indices(n, n, offset=1, device=p.device)
        ratio = self._ratio(p, before, index, i, j)
        f = losses.detach().to(p.dtype)
        weight = (ratio * (f[i] - f[j]).unsqueeze(-1)).unsqueeze(-1) / (n * (n - 1))
        z = one_hot(index, p)
        return with_gradient(losses, (weight * (z[i] - z[j])).sum(dim=0), logits)

    def _sample(self, p: Tensor, before: Tensor) -> Tensor:
        """Categories ``[num_samples, *batch, latents]``; ``before`` ``[orders, *batch, latents, K]``: their starts."""
        orders, n = before.shape[0], self.evaluations
        e = -torch.log1p(-noise.uniform((n, *p.shape[:-1]), dtype=p.dtype, device=p.device, event_dims=1))
        u = (1 - e / e.sum(dim=0)) ** (n - 1)
        pick = noise.uniform(p.shape[:-1], dtype=p.dtype, device=p.device, event_dims=1)
        pick = (pick * orders).long().clamp(max=orders - 1)
        start = before.gather(0, pick[None, ..., None].expand(1, *p.shape)).squeeze(0)
        # the last possible category that starts at or below u
        return torch.where((start <= u.unsqueeze(-1)) & (p > 0), start, -1.0).argmax(dim=-1)

    def _ratio(self, p: Tensor, before: Tensor, index: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """``r`` of the pairs ``(i, j)`` of samples, ``[pairs, *batch, latents]``."""
        power = self.evaluations - 1
        orders = before.shape[0]
        low = torch.stack([before.gather(-1, k.expand(orders, *k.shape).unsqueeze(-1)).squeeze(-1) for k in index], 1)
        mass = torch.stack([p.gather(-1, k.unsqueeze(-1)).squeeze(-1) for k in index])
        low, high = low.clamp(0, 1) ** (1 / power), (low + mass).clamp(0, 1) ** (1 / power)

        def joint(s: Tensor, t: Tensor) -> Tensor:
            return (s[:, i] + t[:, j] - 1).clamp_min(0) ** power

        both = (joint(high, high) - joint(low, high) - joint(high, low) + joint(low, low)).mean(dim=0)
        independent = mass[i] * mass[j]
        return independent / torch.maximum(both, independent / orders)


def _precedes(categories: int, device: torch.device) -> Tensor:
    """``[orders, K, K]``: whether category ``c`` comes before ``k``."""
    ranks = torch.tensor(_ranks(categories), device=device)
    return ranks.unsqueeze(-2) < ranks.unsqueeze(-1)


@cache
def _ranks(categories: int) -> list[list[int]]:
    """Each category's place in each order; order ``(a, b)``: a, then cyclically from b + 1 to b without a."""
    ranks = []
    for a in range(categories):
        for b in range(a + 1, categories):
            order = [a] + [c % categories for c in range(b + 1, b + categories + 1) if c % categories != a]
            ranks.append([order.index(c) for c in range(categories)])
    return ranks
