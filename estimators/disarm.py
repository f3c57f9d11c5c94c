"""DisARM, also known as U2G: ARM without the variance of its augmentation."""

from __future__ import annotations

from torch import Tensor

from estimators._surrogate import antithetic_bits, with_gradient
from estimators.base import BlackBox, Surrogate
from estimators.categorical import from_bits, scores


class DisARM(BlackBox):
    r"""Two antithetic samples of all bits at once; the uniform variables of ARM are integrated out.

    gradient in the log-odds a = 1/2 (loss(b) - loss(b~)) (b - b~) sigmoid(\|a\|) per latent,
    b = 1[u > sigmoid(-a)],  b~ = 1[u < sigmoid(a)],  u ~ Uniform(0, 1) per latent.

    It is E[ARM | b, b~]. ``loss`` is called once with ``z`` of ``[2, *batch, latents, 2]``; the value is the mean
    over the two samples. Unbiased. Var for one bit, with m = max(p, 1 - p) and D = loss(1) - loss(0):
    D^2 m^2 (1 - m) (m - 1/2), which is 0 at p = 1/2.
    Layers of the loss that take dimension 1 for features, such as BatchNorm1d, need care: :mod:`estimators.base`.

    Raises:
        ValueError: if the latents have more than two categories (DisARMTree and its siblings are categorical).

    Example::

        losses = DisARM()(logits, loss)   # logits [batch, latents, 2]

    References: Dong, Mnih, Tucker, "DisARM: an antithetic gradient estimator for binary latent variables", arXiv
    2006.10680; Yin, Ho, Yan, Qian, Zhou, "Probabilistic best subset selection via gradient-based optimization",
    arXiv 2006.06448 (the same estimator, as U2G). Differences: one pair per call; for more, add a leading dimension.
    """

    family = "coupled samples"
    unbiased = True
    evaluations = 2
    binary_only = True

    def draw(self, logits: Tensor, context: Tensor | None) -> tuple[Tensor, Surrogate]:
        odds = scores(logits)
        bits, _ = antithetic_bits(odds)

        def surrogate(losses: Tensor) -> Tensor:
            first, second = losses.detach()
            # 1/2 (loss(b) - loss(b~)) (b - b~) sigmoid(|a|)
            gradient = 0.5 * (first - second).unsqueeze(-1) * (bits[0] - bits[1]) * odds.detach().abs().sigmoid()
            return with_gradient(losses, gradient, odds)

        return from_bits(bits), surrogate
