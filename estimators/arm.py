"""ARM: augment, REINFORCE, merge."""

from __future__ import annotations

from torch import Tensor

from estimators._surrogate import antithetic_bits, with_gradient
from estimators.base import BlackBox, Surrogate
from estimators.categorical import from_bits, scores


class ARM(BlackBox):
    r"""Two antithetic samples of all bits at once, weighted by the uniform variable that made them.

    gradient in the log-odds a = (loss(b) - loss(b~)) (u - 1/2),   u ~ Uniform(0, 1) per latent,
    b = 1[u > sigmoid(-a)],  b~ = 1[u < sigmoid(a)];   0 whenever the two samples coincide.

    ``loss`` is called once with ``z`` of ``[2, *batch, latents, 2]``; the value is the mean over the two samples.
    Unbiased, no learned parts, no derivative of the loss. DisARM is its conditional mean given ``(b, b~)`` and has
    at most its variance at the same cost: ARM is here for comparisons. Var for one bit, with m = max(p, 1 - p) and
    D = loss(1) - loss(0): D^2 [1/12 - 2/3 (m - 1/2)^3 - p^2 (1 - p)^2].
    Layers of the loss that take dimension 1 for features, such as BatchNorm1d, need care: :mod:`estimators.base`.

    Raises:
        ValueError: if the latents have more than two categories (ARSM is the categorical form).

    Example::

        losses = ARM()(logits, loss)   # logits [batch, latents, 2]

    Reference: Yin, Zhou, "ARM: Augment-REINFORCE-merge gradient for stochastic binary networks", arXiv 1807.11143.
    Differences from the paper: none; ``u`` is the sigmoid of the logistic noise on the log-odds.
    """

    family = "coupled samples"
    unbiased = True
    evaluations = 2
    binary_only = True

    def draw(self, logits: Tensor, context: Tensor | None) -> tuple[Tensor, Surrogate]:
        odds = scores(logits)
        bits, e = antithetic_bits(odds)

        def surrogate(losses: Tensor) -> Tensor:
            first, second = losses.detach()
            # (loss(b) - loss(b~)) (u - 1/2), as sigmoid(e) - 1/2 = tanh(e / 2) / 2
            return with_gradient(losses, (first - second).unsqueeze(-1) * 0.5 * (e / 2).tanh(), odds)

        return from_bits(bits), surrogate
