"""DisARM for categorical latents: through sequences of binary decisions, or through an importance weight."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from estimators._surrogate import antithetic_bits, with_gradient
from estimators.base import Estimator, Loss

Order = Literal["ascending", "descending"] | None


class _Decisions(Estimator):
    """Categories as the leaves of a binary tree with ``K - 1`` nodes; a node's bit says left (0) or right (1)."""

    unbiased = True
    evaluations = 2
    order: Order = None

    @abstractmethod
    def _tree(self, categories: int) -> tuple[Tensor, Tensor]:
        """The leaves left and right of every node, two boolean ``[K - 1, K]``."""

    def _couple(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Antithetic ``z`` ``[2, *batch, latents, K]``, and per node log-odds, bits, whether it decides."""
        left, right = (side.to(logits.device) for side in self._tree(logits.shape[-1]))
        place = None
        # -1e30 for -inf: never chosen either, and nodes without a possible leaf keep finite log-odds
        leaves = logits.clamp_min(-1e30)
        if self.order is not None:
            place = leaves.detach().argsort(dim=-1, descending=self.order == "descending")
            leaves = leaves.gather(-1, place)
        spread = leaves.unsqueeze(-2)
        odds = torch.where(right, spread, -torch.inf).logsumexp(-1) - torch.where(left, spread, -torch.inf).logsumexp(
            -1
        )
        bits, _ = antithetic_bits(odds, event_dims=2)
        dtype = logits.dtype
        z = (bits @ left.to(dtype) + (1 - bits) @ right.to(dtype) == 0).to(dtype)
        decided = z @ (left | right).to(dtype).mT
        if place is not None:
            z = z.gather(-1, place.argsort(dim=-1).expand_as(z))
        return z, odds, bits, decided

    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        z, odds, bits, decided = self._couple(logits)
        losses = loss(z)
        first, second = losses.detach()
        clean = odds.detach()
        both = decided[0] * decided[1]
        factor = both * (bits[0] - bits[1]) * clean.abs().sigmoid()
        alone = (decided - both) * (bits - clean.sigmoid())
        return with_gradient(losses, 0.5 * (first - second)[..., None, None] * (factor + alone[0] - alone[1]), odds)


class DisARMTree(_Decisions):
    r"""DisARM on the decisions of a balanced binary tree whose leaves are the categories.

    Node log-odds a = logsumexp(logits of the right half) - logsumexp(logits of the left half); all nodes' bits b and
    antithetic bits b~ are drawn, z and z~ are the leaves they lead to, and in the log-odds of a node
    gradient = 1/2 (loss(z) - loss(z~)) * { (b - b~) sigmoid(\|a\|)  if both paths pass the node;
    b - sigmoid(a)  if only z's does;  -(b~ - sigmoid(a))  if only z~'s does;  0 otherwise },
    carried to the logits by the chain rule. The last three cases are DisARM's conditional mean given what matters.

    ``loss`` is called once with ``z`` of ``[2, *batch, latents, K]``. Unbiased; DisARM for K = 2. Memory grows with
    ``K^2`` per latent.

    Example::

        losses = DisARMTree()(logits, loss)   # logits [batch, latents, categories]

    Reference: Dong, Mnih, Tucker, "Coupled gradient estimators for discrete latent variables", arXiv 2106.08056.
    Difference from the authors' code: any number of categories, not only powers of two.
    """

    def _tree(self, categories: int) -> tuple[Tensor, Tensor]:
        sides: list[tuple[Tensor, Tensor]] = []
        leaf = torch.arange(categories)

        def split(low: int, high: int) -> None:
            if high - low > 1:
                middle = (low + high) // 2
                sides.append(((leaf >= low) & (leaf < middle), (leaf >= middle) & (leaf < high)))
                split(low, middle)
                split(middle, high)

        split(0, categories)
        left, right = zip(*sides, strict=True)
        return torch.stack(left), torch.stack(right)


class DisARMStickBreaking(_Decisions):
    r"""DisARM on the decisions of a stick-breaking construction: "is it category k?", one category after the other.

    Log-odds of decision k: a_k = logit_k - logsumexp(logits of the categories after k); the gradient is that of
    DisARMTree with this tree: decisions up to min(z, z~) get DisARM's factor, those up to max(z, z~) the score.

    Args:
        order: in which the decisions are made: by "ascending" or "descending" logits (per example and latent), or
            ``None``, as the categories stand.

    Raises:
        ValueError: on another ``order``.

    Reference: Dong, Mnih, Tucker, arXiv 2106.08056. Difference from the authors' code: no order by \|logit\|, which
    depends on a constant added to all logits.
    """

    def __init__(self, order: Order = "ascending") -> None:
        super().__init__()
        if order not in ("ascending", "descending", None):
            raise ValueError(f"{type(self).__name__}: order must be 'ascending', 'descending' or None, not {order!r}")
        self.order = order

    def _tree(self, categories: int) -> tuple[Tensor, Tensor]:
        return _sticks(categories)


class DisARMIW(_Decisions):
    r"""Two samples from the antithetic stick-breaking coupling with an importance weight instead of decisions.

    gradient in the logits = 1/2 r(z, z~) (loss(z) - loss(z~)) (z - z~) per latent,  r = p(z) p(z~) / P(z, z~)
    = (1 - s_m) prod_{i<m} (1 - s_i)^2 / (1 - 2 s_i),  s_i = sigmoid(a_i): the chance of decision i of the sticks in
    ascending order;  m: the decision at which z and z~ part.

    The ascending order is what makes it unbiased: s_i <= 1/3 before the last decision, so that every pair of
    categories can occur. ``loss`` is called once with ``z`` of ``[2, *batch, latents, K]``. DisARM for K = 2.

    Reference: Dong, Mnih, Tucker, arXiv 2106.08056. Difference from the authors' code: the order is fixed, not an
    option (others are biased), so no threshold near s = 1/2 is needed.
    """

    order: Order = "ascending"

    def _tree(self, categories: int) -> tuple[Tensor, Tensor]:
        return _sticks(categories)

    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        z, odds, bits, decided = self._couple(logits)
        losses = loss(z)
        first, second = losses.detach()
        s = odds.detach().sigmoid()
        stay = (1 - s[..., :-1]) ** 2 / (1 - 2 * s[..., :-1])
        before = torch.cat((torch.ones_like(s[..., :1]), stay.cumprod(dim=-1)), dim=-1)
        part = decided[0] * decided[1] * (bits[0] != bits[1])
        ratio = (part * before * (1 - s)).sum(dim=-1, keepdim=True)
        return with_gradient(losses, 0.5 * ratio * (first - second)[..., None, None] * (z[0] - z[1]), logits)


def _sticks(categories: int) -> tuple[Tensor, Tensor]:
    """Decision ``k``: right is category ``k`` alone, left all later ones."""
    leaf = torch.arange(categories)
    node = leaf[:-1].unsqueeze(-1)
    return leaf > node, leaf == node
