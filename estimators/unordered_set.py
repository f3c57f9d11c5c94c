"""The unordered set estimator: samples without replacement from the joint distribution of all latents."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from typing import Annotated, Any

import torch
from torch import Tensor

from estimators import noise
from estimators._autograd import score_term
from estimators.base import BlackBox, Surrogate
from estimators.categorical import log_probabilities, one_hot

LARGEST_SET, DEFAULT_SET = 10, 4
UNDERFLOW = -87.0
"""A category with a smaller log-probability (1e-38) counts as impossible."""


class UnorderedSet(BlackBox):
    r"""Samples without replacement, with their order integrated out and a leave-one-out baseline built in.

    value    = sum_{s in S} q(s) R(S, s) loss(s),
    gradient = sum_{s in S} d q(s) / d logits * R(S, s) (loss(s) - sum_{t in S} q(t) R_s(S, t) loss(t)),
    R(S, s) = P(S | s is drawn first) / P(S), and R_s(S, t) the same among the states without ``s`` (``R_s(S, s) = 1``).

    S are ``num_samples`` distinct joint states of all latents of an example, drawn by stochastic beam search over the
    latents, which is exact for a product of categoricals and never enumerates the joint states. ``R`` is computed
    exactly, by a recursion over the ``2**num_samples`` subsets whose terms are all positive (no cancellation). Both
    value and gradient are unbiased; with all states in the set they are exact. ``loss`` is called once with ``z``
    ``[num_samples, *batch, latents, categories]`` and must broadcast over the leading dimension.
    Layers of the loss that take dimension 1 for features, such as BatchNorm1d, need care: :mod:`estimators.base`.

    Args:
        num_samples: size of the set, 2 to 10; also the number of loss evaluations.

    Raises:
        ValueError: at construction, for another size; at the call, if there are fewer joint states than that.

    Example::

        UnorderedSet(4)(logits, loss).mean().backward()

    Reference: Kool, van Hoof, Welling, "Estimating gradients for discrete random variables by sampling without
    replacement", arXiv 2002.06043; the sampling: arXiv 1903.06059. Differences: the authors' code sums over all orders
    (k! terms) and switches to plain sums when the set holds nearly all probability, which the recursion does not need;
    a category whose probability underflows is never drawn, and if the possible states are fewer than the set, the first
    sample fills its place with weight 0.
    """

    family = "score function"
    unbiased = True

    def __init__(self, num_samples: Annotated[int, ("range", f"[2, {LARGEST_SET}]")] = DEFAULT_SET) -> None:
        super().__init__()
        if not 2 <= num_samples <= LARGEST_SET:
            raise ValueError(
                f"UnorderedSet: num_samples must be 2 to {LARGEST_SET}, not {num_samples}; use REINFORCE for one "
                "sample and RLOO for many"
            )
        self.num_samples = self.evaluations = num_samples

    @classmethod
    def skip(cls, latents: int, categories: int, layers: int = 1, **others: Any) -> str | None:
        """As of any, and a layer must have ``num_samples`` different joint states."""
        num_samples = others.get("options", {}).get("num_samples", DEFAULT_SET)
        if latents < 64 and num_samples > categories**latents:
            return (
                f"wants {num_samples} different states, and {others.get('task', 'the task')} has "
                f"{categories}**{latents}; use fewer samples, or exact, which sums over all of them"
            )
        return super().skip(latents, categories, layers, **others)

    def draw(self, logits: Tensor, context: Tensor | None) -> tuple[Tensor, Surrogate]:
        latents, categories = logits.shape[-2:]
        if latents < 64 and categories**latents < self.num_samples:
            raise ValueError(
                f"UnorderedSet: {categories}**{latents} joint states are fewer than num_samples={self.num_samples}; "
                "use Exact, which sums over all of them"
            )
        # In half precision the probabilities of the sets, sums of many, would be far off.
        log_q = log_probabilities(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        with torch.no_grad():
            index, log_prob = stochastic_beam_search(log_q.detach(), self.num_samples)
            everything = latents < 64 and categories**latents == self.num_samples
            log_first, log_second = log_ratios(log_prob, everything)
            weight = (log_prob + log_first).exp().movedim(-1, 0)  # q(s) R(S, s), [S, *batch]
            share = (log_prob.unsqueeze(-2) + log_second).exp()  # q(t) R_s(S, t), [*batch, s, t]
            z = one_hot(index, logits).movedim(-3, 0)  # [S, *batch, L, K]

        def surrogate(losses: Tensor) -> Tensor:
            losses = losses.masked_fill(weight == 0, 0.0)  # 0 * inf would be NaN
            frozen = losses.detach().to(share.dtype)
            # baseline_s = sum_t q(t) R_s(S, t) loss(t)
            baseline = (share @ frozen.movedim(0, -1).unsqueeze(-1)).squeeze(-1).movedim(-1, 0)
            # log q(s) = sum over the latents; where, not a product: 0 * -inf of an impossible category would be NaN
            with_graph = torch.where(z > 0, log_q, 0.0).sum(dim=(-2, -1))
            each = score_term(losses.to(share.dtype), frozen - baseline, with_graph)
            # sum_s q(s) R(S, s) [loss(s) + (loss(s) - baseline_s) d log q(s)], where q(s) d log q(s) = d q(s)
            return (weight * each).sum(dim=0).to(losses.dtype)

        return z, surrogate


def stochastic_beam_search(log_q: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """``size`` joint states without replacement, in the order of drawing: index ``[*batch, size, L]`` and log q.

    A prefix of latents carries the largest Gumbel-perturbed log-probability of its completions; its children's are
    drawn given that maximum, and only the ``size`` largest prefixes go on. Missing states have log q ``-inf``.
    """
    batch = log_q.shape[:-2]
    log_q = log_q.masked_fill(log_q < UNDERFLOW, -torch.inf)
    dtype = torch.promote_types(log_q.dtype, torch.float32)
    log_prob = log_q.new_zeros((*batch, 1))
    best = log_q.new_zeros((*batch, 1), dtype=dtype)  # the order does not depend on the overall maximum
    index = torch.zeros((*batch, 1, 0), dtype=torch.long, device=log_q.device)
    categories = log_q.shape[-1]
    for step in log_q.unbind(dim=-2):
        children = log_prob.unsqueeze(-1) + step.unsqueeze(-2)  # [*batch, beam, K]
        perturbed = children + noise.gumbel(children.shape, dtype=dtype, device=children.device)
        top = perturbed.amax(dim=-1, keepdim=True)
        # G_k given that the maximum Z of the children is the parent's G (arXiv 1903.06059):
        # v = G - G_k + log(1 - exp(G_k - Z)),  G_k | max = G - max(0, v) - log(1 + exp(-|v|))
        gap = (perturbed - top).nan_to_num(nan=-torch.inf)  # of a missing prefix all children are -inf
        shifted = best.unsqueeze(-1) - perturbed + torch.log(-torch.expm1(gap))
        given = best.unsqueeze(-1) - shifted.clamp_min(0) - torch.log1p(torch.exp(-shifted.abs()))
        given = torch.where(gap == 0, best.unsqueeze(-1), given).masked_fill(children.isneginf(), -torch.inf)
        best, chosen = given.flatten(-2).topk(min(size, given.shape[-1] * given.shape[-2]), dim=-1)
        log_prob = children.flatten(-2).gather(-1, chosen)
        parent = (chosen // categories).unsqueeze(-1).expand(*chosen.shape, index.shape[-1])
        index = torch.cat((index.gather(-2, parent), (chosen % categories).unsqueeze(-1)), dim=-1)
    missing = log_prob.isneginf().unsqueeze(-1)
    return torch.where(missing, index[..., :1, :], index), log_prob


@lru_cache
def _subsets(size: int) -> list[tuple[list[list[int]], list[list[int]], list[list[int]]]]:
    """Per number of drawn elements, from all to none: the sets, what remains of each, the places of their children."""
    place: dict[tuple[int, ...], int] = {}
    levels = []
    for drawn in range(size, -1, -1):
        sets = list(combinations(range(size), drawn))
        rest = [[s for s in range(size) if s not in chosen] for chosen in sets]
        children = [[place[tuple(sorted((*c, s)))] for s in r] for c, r in zip(sets, rest, strict=True)]
        for chosen in sets:
            place[chosen] = len(place)
        levels.append(([list(chosen) for chosen in sets], rest, children))
    return levels


def log_ratios(log_prob: Tensor, everything: bool) -> tuple[Tensor, Tensor]:
    """``log R(S, s)`` ``[*batch, k]`` and ``log R_s(S, t)`` ``[*batch, k, k]`` from ``log q`` ``[*batch, k]``.

    B(C) = P(the next draws are S without C | C is drawn) = sum_{s in S - C} q(s) / (1 - q(C)) B(C + s),  B(S) = 1;
    R(S, s) = B({s}) / B({}),  R_s(S, t) = B({s, t}) / B({s}).
    """
    size = log_prob.shape[-1]
    total = log_prob.logsumexp(dim=-1, keepdim=True)
    # 1 - q(C) as q(S - C) + q(outside S): positive terms, so that nothing cancels when S holds nearly everything.
    outside = torch.log(-torch.expm1(total.clamp_max(0)))
    if everything:
        outside = torch.full_like(outside, -torch.inf)
    values = torch.zeros_like(total)  # log B of all sets so far, by their place
    for _, rest, children in _subsets(size)[1:]:
        # log B(C) = logsumexp_{s in S - C} (log q(s) + log B(C + s)) - log(1 - q(C))
        remaining = log_prob[..., torch.tensor(rest, device=log_prob.device)]  # [*batch, sets, size of the rest]
        mass = torch.logaddexp(remaining.logsumexp(dim=-1), outside)
        level = (remaining + values[..., torch.tensor(children, device=log_prob.device)]).logsumexp(dim=-1) - mass
        values = torch.cat((values, level), dim=-1)
    pairs = {tuple(sorted(c)): i for i, c in enumerate(c for sets, _, _ in _subsets(size) for c in sets)}
    single = values[..., [pairs[(s,)] for s in range(size)]]
    double = [[pairs[tuple(sorted({s, t}))] for t in range(size)] for s in range(size)]
    # log R(S, s) = log B({s}) - log B({}),  log R_s(S, t) = log B({s, t}) - log B({s})
    first = single - values[..., -1:]
    second = values[..., torch.tensor(double, device=log_prob.device)] - single.unsqueeze(-1)
    missing = log_prob.isneginf().any(dim=-1, keepdim=True)  # then S holds all possible states
    return first.masked_fill(missing, 0.0), second.masked_fill(missing.unsqueeze(-1), 0.0)
