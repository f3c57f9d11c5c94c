"""The score-function estimator."""

from __future__ import annotations

from torch import Tensor

from estimators.base import ScoreFunction


class REINFORCE(ScoreFunction):
    r"""The score-function (likelihood-ratio) estimator without a baseline.

    gradient = loss(z) * d log q(z) / d logits,  z ~ q, one exact sample per example.

    Unbiased for every loss; its variance grows with the square of the loss, so a constant added to the loss adds
    variance (:class:`estimators.NVIL` removes that). One Bernoulli with ``p = sigmoid(logit)`` and values ``f0, f1``
    has variance ``p(1-p)[(1-p) f1^2 + p f0^2] - (f1-f0)^2 p^2 (1-p)^2``.

    Example::

        losses = REINFORCE()(logits, lambda z: -log_likelihood(z))   # [*batch]
        losses.mean().backward()

    Reference: Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning",
    Machine Learning 8, 1992.
    """

    def signal(self, losses: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return losses, None
