"""REINFORCE with the leave-one-out baseline."""

from __future__ import annotations

from torch import Tensor

from estimators._autograd import score_term
from estimators.base import BlackBox, Surrogate
from estimators.categorical import Samples, sample_with_log_prob


class RLOO(BlackBox):
    r"""The score function with several samples, each of which has the mean of the others' losses as its baseline.

    gradient = 1/S sum_s (loss(z_s) - mean_{t != s} loss(z_t)) * d log q(z_s) / d logits,  z_1..z_S ~ q independent.

    ``loss`` is called once with ``z`` ``[num_samples, *batch, latents, categories]`` and must broadcast over the
    leading dimension; the value is the mean over the samples. Unbiased, without anything to learn or to tune. With S =
    2 and one Bernoulli the estimate is ``(f1 - f0) / 2`` if the samples differ and 0 otherwise, and its variance
    ``(f1 - f0)^2 p(1-p) (1/2 - p(1-p))``.
    Layers of the loss that take dimension 1 for features, such as BatchNorm1d, need care: :mod:`estimators.base`.

    Args:
        num_samples: S >= 2, which is also the number of loss evaluations.

    Raises:
        ValueError: at construction, if ``num_samples < 2``.

    Example::

        RLOO(4)(logits, loss).mean().backward()

    References: Salimans, Knowles, "On using control variates with stochastic approximation for variational Bayes",
    arXiv 1401.1022; Kool, van Hoof, Welling, "Buy 4 REINFORCE samples, get a baseline for free!", ICLR workshop 2019.
    Differences from the paper: none.
    """

    family = "score function"
    unbiased = True

    def __init__(self, num_samples: Samples = 2) -> None:
        super().__init__()
        if num_samples < 2:
            raise ValueError(f"RLOO: num_samples must be at least 2, not {num_samples}; use REINFORCE or NVIL for one")
        self.num_samples = self.evaluations = num_samples

    def draw(self, logits: Tensor, context: Tensor | None) -> tuple[Tensor, Surrogate]:
        z, log_prob = sample_with_log_prob(logits.expand(self.num_samples, *logits.shape))

        def surrogate(losses: Tensor) -> Tensor:
            # f_s - mean of the others = S / (S - 1) * (f_s - mean of all)
            frozen = losses.detach()
            signal = (frozen - frozen.mean(dim=0)) * (self.num_samples / (self.num_samples - 1))
            return score_term(losses, signal, log_prob).mean(dim=0)

        return z, surrogate
