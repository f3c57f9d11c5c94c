"""DisARM for categorical latents: through sequences of binary decisions, or through an importance weight."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from estimators._surrogate import antithetic_bits, with_gradient
from estimators.base import BlackBox, Surrogate

Order = Literal["ascending", "descending"] | None


class _Decisions(BlackBox):
    """Categories as the leaves of a binary tree with ``K - 1`` nodes; a node's bit says left (0) or right (1)."""

    family = "coupled samples"
    unbiased = True
    evaluations = 2
    order: Order = None

    @abstractmethod
    def _odds(self, leaves: Tensor) -> Tensor:
        """From logits ``[..., K]`` the nodes' log-odds ``[..., K - 1]``: logsumexp of right leaves minus left ones."""

    @abstractmethod
    def _walk(self, bits: Tensor) -> tuple[Tensor, Tensor]:
        """From bits ``[..., K - 1]`` the leaf they lead to, one-hot ``[..., K]``, and which nodes are on the way."""

    def _couple(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Antithetic ``z`` ``[2, *batch, latents, K]``, and per node log-odds, bits, whether it decides."""
        place = None
        # -1e30 for -inf: never chosen either, and nodes without a possible leaf keep finite log-odds. Not in half
        # precision, which has no such number and whose sums over leaves would be far off.
        leaves = logits.to(torch.promote_types(logits.dtype, torch.float32)).clamp_min(-1e30)
        if self.order is not None:
            place = leaves.detach().argsort(dim=-1, descending=self.order == "descending")
            leaves = leaves.gather(-1, place)
        odds = self._odds(leaves)
        bits, _ = antithetic_bits(odds, event_dims=2)
        z, decided = self._walk(bits)
        if place is not None:
            z = z.gather(-1, place.argsort(dim=-1).expand_as(z))
        return z.to(logits.dtype), odds, bits, decided

    def draw(self, logits: Tensor, context: Tensor | None) -> tuple[Tensor, Surrogate]:
        z, odds, bits, decided = self._couple(logits)

        def surrogate(losses: Tensor) -> Tensor:
            first, second = losses.detach()
            clean = odds.detach()
            both = decided[0] * decided[1]
            # both paths pass the node: (b - b~) sigmoid(|a|); one of them alone: b - sigmoid(a)
            factor = both * (bits[0] - bits[1]) * clean.abs().sigmoid()
            alone = (decided - both) * (bits - clean.sigmoid())
            return with_gradient(
                losses, 0.5 * (first - second)[..., None, None] * (factor + alone[0] - alone[1]), odds.to(logits.dtype)
            )

        return z, surrogate


class DisARMTree(_Decisions):
    r"""DisARM on the decisions of a balanced binary tree whose leaves are the categories.

    Node log-odds a = logsumexp(logits of the right half) - logsumexp(logits of the left half); all nodes' bits b and
    antithetic bits b~ are drawn, z and z~ are the leaves they lead to, and in the log-odds of a node
    gradient = 1/2 (loss(z) - loss(z~)) * { (b - b~) sigmoid(\|a\|)  if both paths pass the node;
    b - sigmoid(a)  if only z's does;  -(b~ - sigmoid(a))  if only z~'s does;  0 otherwise },
    carried to the logits by the chain rule. The last three cases are DisARM's conditional mean given what matters.

    ``loss`` is called once with ``z`` of ``[2, *batch, latents, K]``. Unbiased; DisARM for K = 2. Neighbours are
    paired level by level; where their number is odd, the last one waits for the next level.
    Layers of the loss that take dimension 1 for features, such as BatchNorm1d, need care: :mod:`estimators.base`.

    Example::

        losses = DisARMTree()(logits, loss)   # logits [batch, latents, categories]

    Reference: Dong, Mnih, Tucker, "Coupled gradient estimators for discrete latent variables", arXiv 2106.08056.
    Difference from the authors' code: any number of categories, not only powers of two.
    """

    def _odds(self, leaves: Tensor) -> Tensor:
        levels = []
        while leaves.shape[-1] > 1:
            paired = leaves.shape[-1] // 2 * 2
            left, right = leaves[..., :paired].unflatten(-1, (-1, 2)).unbind(dim=-1)
            levels.append(right - left)
            leaves = torch.cat((torch.logaddexp(left, right), leaves[..., paired:]), dim=-1)
        return torch.cat(levels, dim=-1)

    def _walk(self, bits: Tensor) -> tuple[Tensor, Tensor]:
        sizes, alive = [], bits.shape[-1] + 1
        while alive > 1:
            sizes.append(alive // 2)
            alive -= alive // 2
        reached, decided = torch.ones_like(bits[..., :1]), []
        for level in reversed(bits.split(sizes, dim=-1)):
            nodes, waiting = reached[..., : level.shape[-1]], reached[..., level.shape[-1] :]
            decided.append(nodes)
            below = torch.stack((nodes * (1 - level), nodes * level), dim=-1).flatten(-2)
            reached = torch.cat((below, waiting), dim=-1)
        return reached, torch.cat(decided[::-1], dim=-1)


class _Sticks(_Decisions):
    """Decision ``k``: right is category ``k`` alone, left all later ones."""

    def _odds(self, leaves: Tensor) -> Tensor:
        later = leaves[..., 1:].flip(-1).logcumsumexp(dim=-1).flip(-1)
        return leaves[..., :-1] - later

    def _walk(self, bits: Tensor) -> tuple[Tensor, Tensor]:
        left = (1 - bits).cumprod(dim=-1)
        decided = torch.cat((torch.ones_like(left[..., :1]), left[..., :-1]), dim=-1)
        return torch.cat((decided * bits, left[..., -1:]), dim=-1), decided


class DisARMStickBreaking(_Sticks):
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


class DisARMIW(_Sticks):
    r"""Two samples from the antithetic stick-breaking coupling with an importance weight instead of decisions.

    gradient in the logits = 1/2 r(z, z~) (loss(z) - loss(z~)) (z - z~) per latent,  r = p(z) p(z~) / P(z, z~)
    = (1 - s_m) prod_{i<m} (1 - s_i)^2 / (1 - 2 s_i),  s_i = sigmoid(a_i): the chance of decision i of the sticks in
    ascending order;  m: the decision at which z and z~ part.

    The ascending order is what makes it unbiased: s_i <= 1/3 before the last decision, so that every pair of
    categories can occur. ``loss`` is called once with ``z`` of ``[2, *batch, latents, K]``. DisARM for K = 2.
    Layers of the loss that take dimension 1 for features, such as BatchNorm1d, need care: :mod:`estimators.base`.

    Reference: Dong, Mnih, Tucker, arXiv 2106.08056. Difference from the authors' code: the order is fixed, not an
    option (others are biased), so no threshold near s = 1/2 is needed.
    """

    order: Order = "ascending"

    def draw(self, logits: Tensor, context: Tensor | None) -> tuple[Tensor, Surrogate]:
        z, odds, bits, decided = self._couple(logits.detach())

        def surrogate(losses: Tensor) -> Tensor:
            first, second = losses.detach()
            s = odds.sigmoid()
            # r = (1 - s_m) prod_{i<m} (1 - s_i)^2 / (1 - 2 s_i) at the decision m where z and z~ part
            stay = (1 - s[..., :-1]) ** 2 / (1 - 2 * s[..., :-1])
            before = torch.cat((torch.ones_like(s[..., :1]), stay.cumprod(dim=-1)), dim=-1)
            part = decided[0] * decided[1] * (bits[0] != bits[1])
            ratio = (part * before * (1 - s)).sum(dim=-1, keepdim=True)
            # 1/2 r (loss(z) - loss(z~)) (z - z~)
            return with_gradient(losses, 0.5 * ratio * (first - second)[..., None, None] * (z[0] - z[1]), logits)

        return z, surrogate
