"""Gumbel-Softmax and straight-through Gumbel-Softmax."""

from __future__ import annotations

from torch import Tensor

from estimators.base import Pathwise
from estimators.categorical import Number, gradient_only, harden, perturbed_scores, relax


class GumbelSoftmax(Pathwise):
    r"""Gumbel-Softmax (the Concrete distribution): a relaxed sample, differentiated by reparameterisation.

    y = softmax((logits + G) / temperature),  G ~ Gumbel(0, 1) independently per category;
    gradient = (dy / d logits)^T  d loss / d z  at ``y``, or, with ``hard=True``, at ``z = one_hot(argmax y)``.

    Soft: unbiased for the relaxed objective E[loss(y)], biased for E_q[loss(z)]; the value of the call is the relaxed
    one, so it is **not** a bound when the loss is a negative ELBO. Hard (ST Gumbel-Softmax): ``z`` is an exact
    one-hot sample, the value is honest, the gradient is biased. Lower temperatures: less bias, more variance.

    Args:
        temperature: > 0, a float or a tensor that broadcasts against ``logits`` ([replicas, 1, 1, 1], say).
        hard: pass one-hot samples forward and the relaxed gradient backward.

    Example::

        z = GumbelSoftmax(temperature=0.5, hard=True).sample(logits)   # for F.gumbel_softmax(logits, 0.5, hard=True)

    References: Jang, Gu, Poole, arXiv 1611.01144; Maddison, Mnih, Teh, arXiv 1611.00712 (K = 2: binary Concrete, also
    known as Gumbel-sigmoid). Differences from ``torch.nn.functional.gumbel_softmax``: the noise is finite, hard samples
    are exactly one-hot (not up to rounding), and K = 2 is drawn with one logistic variable instead of two Gumbels.
    """

    def __init__(self, temperature: Number = 1.0, hard: bool = False) -> None:
        super().__init__()
        self.temperature = self._positive("temperature", temperature)
        self.hard = hard

    def sample(self, logits: Tensor) -> Tensor:
        perturbed = perturbed_scores(logits)
        soft = relax(perturbed, logits, self.temperature)
        return harden(perturbed.detach(), logits) + gradient_only(soft) if self.hard else soft
