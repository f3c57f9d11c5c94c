"""CARMS: many antithetic samples of categorical latents."""

from __future__ import annotations

import torch
from torch import Tensor

from estimators import noise
from estimators._surrogate import with_gradient
from estimators.base import BlackBox, Surrogate
from estimators.categorical import Samples, one_hot, probabilities

ORDERS_AT_ONCE = 64
"""Orders of the categories that are held in memory at a time, unless categories / num_samples are more."""
WRAP = 2**62
"""Larger than any category: added to those that a cyclic order reaches after the last category."""


class CARMS(BlackBox):
    r"""The leave-one-out estimator on ``num_samples`` antithetic samples, weighted by the ratio of joint masses.

    gradient = 1 / (n (n - 1)) * sum_{i<j} r(z_i, z_j) (loss_i - loss_j) (z_i - z_j)   per latent,
    r(a, b) = p(a) p(b) / P(z_i = a, z_j = b).

    The samples invert the distribution function at uniform variables with the Dirichlet copula of ARMS,
    u_k = (1 - d_k)^(n - 1), so that P(u_i < s, u_j < t) = max(0, s^{1/(n-1)} + t^{1/(n-1)} - 1)^{n-1}. The order of
    the categories is drawn anew per example and latent among K (K - 1) / 2 orders in which every pair has the two
    ends once, and P is the mean over these orders. So P(a, b) > 0 wherever p(a) p(b) > 0, which makes the estimator
    unbiased, and r <= K (K - 1) / 2.

    ``loss`` is called once with ``z`` of ``[num_samples, *batch, latents, K]``; the value is the mean over samples.
    Equal to DisARM for K = 2 and two samples. Time grows with ``K (K - 1) / 2 * num_samples (num_samples - 1) / 2``
    per latent, because P is a mean over that many orders; memory is linear in K.
    Layers of the loss that take dimension 1 for features, such as BatchNorm1d, need care: :mod:`estimators.base`.

    Args:
        num_samples: at least 2; every gradient costs as many evaluations of the loss.

    Raises:
        ValueError: if ``num_samples`` is less than 2.

    Example::

        losses = CARMS(4)(logits, loss)   # logits [batch, latents, categories]

    Reference: Dimitriev, Zhou, "CARMS: categorical-antithetic-REINFORCE multi-sample gradient estimator", arXiv
    2110.14002 (its inverse-CDF construction). Differences from the authors' code: masses in double precision and r
    bounded by its maximum instead of an added 1e-6, which is a bias; of a pair of ends theirs takes the order
    with first < last, the cyclic distances here take some pairs reversed (K >= 3; both are unbiased, no difference
    in variance was seen); the variants with antithetic Gumbels (a Monte-Carlo joint mass, which is not unbiased) and
    sticks (DisARMIW for two samples) are left out.
    """

    family = "coupled samples"
    unbiased = True

    def __init__(self, num_samples: Samples = 4) -> None:
        super().__init__()
        if num_samples < 2:
            raise ValueError(f"CARMS: num_samples must be at least 2, not {num_samples}; REINFORCE needs one sample")
        self.evaluations = num_samples

    def draw(self, logits: Tensor, context: Tensor | None) -> tuple[Tensor, Surrogate]:
        n = self.evaluations
        p = probabilities(logits.detach().double())
        through = p.cumsum(dim=-1)
        index = self._sample(p, through)

        def surrogate(losses: Tensor) -> Tensor:
            i, j = torch.triu_indices(n, n, offset=1, device=p.device)
            ratio = self._ratio(p, through, index, i, j)
            f = losses.detach().to(p.dtype)
            # w_ij = r(z_i, z_j) (loss_i - loss_j) / (n (n - 1))
            weight = ratio * (f[i] - f[j]).unsqueeze(-1) / (n * (n - 1))
            # sum_{i<j} w_ij (z_i - z_j) = sum_i z_i (sum_{j>i} w_ij - sum_{j<i} w_ji), with no one-hot tensor per pair
            per_sample = torch.zeros_like(index, dtype=p.dtype).index_add(0, i, weight).index_add(0, j, -weight)
            gradient = torch.zeros_like(p).scatter_add(-1, index.movedim(0, -1), per_sample.movedim(0, -1))
            return with_gradient(losses, gradient, logits)

        return one_hot(index, logits), surrogate

    def _sample(self, p: Tensor, through: Tensor) -> Tensor:
        """Categories ``[num_samples, *batch, latents]``; ``through``: the cumulative sums of ``p``."""
        categories, n = p.shape[-1], self.evaluations
        e = -torch.log1p(-noise.uniform((n, *p.shape[:-1]), dtype=p.dtype, device=p.device, event_dims=1))
        # u_k = (1 - d_k)^(n - 1),  d = E / sum E ~ Dirichlet(1, ..., 1) for E_k ~ Exp(1)
        u = (1 - e / e.sum(dim=0)) ** (n - 1)
        pick = noise.uniform(p.shape[:-1], dtype=p.dtype, device=p.device, event_dims=1)
        orders = categories * (categories - 1) // 2
        first, last = _ends((pick * orders).long().clamp(max=orders - 1).unsqueeze(-1), categories)
        k = torch.arange(categories, device=p.device)
        start = _start(k, through - p, first, last, p.gather(-1, first), through.gather(-1, last), through[..., -1:])
        start = start.masked_fill(p == 0, torch.inf)
        # the last possible category that starts at or below u; if rounding leaves none, the first possible one
        return torch.stack([torch.where(start <= x, start, -1 - start).argmax(dim=-1) for x in u.unsqueeze(-1)])

    def _ratio(self, p: Tensor, through: Tensor, index: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """``r`` of the pairs ``(i, j)`` of samples, ``[pairs, *batch, latents]``."""
        categories, power = p.shape[-1], self.evaluations - 1
        orders = categories * (categories - 1) // 2
        mass = torch.stack([p.gather(-1, k.unsqueeze(-1)) for k in index])
        before = torch.stack([through.gather(-1, k.unsqueeze(-1)) for k in index]) - mass
        both = torch.zeros_like(mass[i])
        at_once = max(categories // self.evaluations, ORDERS_AT_ONCE)
        for number in range(0, orders, at_once):
            chunk = torch.arange(number, min(number + at_once, orders), device=p.device)
            first, last = _ends(chunk, categories)
            total = through[..., -1:]
            low = _start(index.unsqueeze(-1), before, first, last, p[..., first], through[..., last], total)
            # C(s, t) = P(u_i < s, u_j < t) = max(0, s^(1/(n-1)) + t^(1/(n-1)) - 1)^(n-1); z_i = a where u_i is in
            # [low_a, high_a), so by inclusion and exclusion
            # P(z_i = a, z_j = b) = C(high_a, high_b) - C(low_a, high_b) - C(high_a, low_b) + C(low_a, low_b)
            low, high = low.clamp(0, 1) ** (1 / power), (low + mass).clamp(0, 1) ** (1 / power)
            joint = (high[i] + high[j] - 1).clamp_min(0) ** power
            joint -= (low[i] + high[j] - 1).clamp_min(0) ** power
            joint -= (high[i] + low[j] - 1).clamp_min(0) ** power
            joint += (low[i] + low[j] - 1).clamp_min(0) ** power
            both += joint.sum(dim=-1, keepdim=True)
        # r = p(a) p(b) / P, P the mean over the orders; r <= K (K - 1) / 2
        independent = mass[i] * mass[j]
        return (independent / torch.maximum(both / orders, independent / orders)).squeeze(-1)


def _ends(order: Tensor, categories: int) -> tuple[Tensor, Tensor]:
    """First and last category ``(a, b)`` of each order: every pair of categories once, by their cyclic distance."""
    first = order % categories
    return first, (first + order // categories + 1) % categories


def _start(
    k: Tensor, before: Tensor, first: Tensor, last: Tensor, p_first: Tensor, through_last: Tensor, total: Tensor
) -> Tensor:
    """Where category ``k`` starts in the order ``(a, b)``: a, then cyclically from b + 1 to b without a.

    ``before``: the mass of the categories below ``k``; ``through_last``: of those up to b.
    """
    begin = before - through_last + torch.where(k <= last, total, 0.0)  # of the categories from b + 1 to k - 1
    # a < k in the cyclic order that starts at b + 1: a is among those already; otherwise it comes in addition
    wrapped_first, wrapped_k = first + (first <= last) * WRAP, k + (k <= last) * WRAP
    begin = begin + torch.where(wrapped_first < wrapped_k, 0.0, p_first)
    return torch.where(k == first, 0.0, begin)
