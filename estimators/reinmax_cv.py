"""ReinMax-CV: ReinMax with the noise of a Gumbel-Softmax sample as a control variate."""

from __future__ import annotations

import torch
from torch import Tensor

from estimators._autograd import carried, with_term
from estimators._surrogate import finite, softmax_jacobian
from estimators.base import Pathwise
from estimators.categorical import (
    Count,
    Finite,
    Positive,
    harden,
    perturbed_scores,
    probabilities,
    relax,
    scores,
)
from estimators.gumbel_rao import perturbed_given
from estimators.reinmax_rao import midpoint_shift


class ReinMaxCV(Pathwise):
    r"""ReinMax minus a Gumbel-Softmax gradient at the midpoint, plus its mean given the sample.

    z = one_hot(argmax(logits + G)),  p = softmax(logits),  m = (p + z) / 2,  J_q = diag(q) - q q^T;
    G_1, ..., G_n ~ Gumbel noise given argmax(logits + G_k) = z,  y(G) = softmax((log m + G) / temperature);
    gradient = (2 J_m - 1/2 J_p + scale / temperature * (1/n sum_k J_{y(G_k)} - J_{y(G)}))  d loss / d z  at the hard z.

    Given z, G and the G_k have the same distribution: the added pair has mean 0 for every loss, and the mean gradient
    is ReinMax's, exact for quadratic losses. But given z, ReinMax is a constant, so the pair is uncorrelated with it
    and **the variance is at least ReinMax's**: larger by scale^2 (1 + 1/n) times the mean over z of the variance given
    z of J_{y(G)} d loss / d z / temperature. It is here to be compared with; ReinMax is the better estimator.

    Args:
        temperature: > 0, of the control variate, a float or a tensor that broadcasts against ``logits``.
        scale: finite, likewise; eta in the paper. 0 is ReinMax.
        num_inner: at least 1; draws of the conditional noise (100 in the authors' code).

    Raises:
        ValueError: on other arguments.

    Example::

        z = ReinMaxCV(temperature=1.0, scale=0.5).sample(logits)   # one-hot, differentiable

    Reference: Wang, Bui, "Beyond ReinMax: low-variance gradient estimators for discrete latent variables", arXiv
    2603.08257. Difference from the authors' code: there the G_k make z the argmax of log m + G_k, not of logits + G_k,
    and y(G) = softmax(log m + (logits + G) / temperature). Then the pair has another mean than 0 given z, which makes
    the method biased for linear losses; a change of the variance, in either direction, is part of that shift. The scale
    is 0.5 in the code, which otherwise searches over 0.1 to 2 and temperatures of 0.1 to 1.5.
    """

    exact_for = 2
    tempered = "temperature"

    def __init__(
        self,
        temperature: Positive = 1.0,
        scale: Finite = 0.5,
        num_inner: Count = 10,
    ) -> None:
        super().__init__()
        if num_inner < 1:
            raise ValueError(f"ReinMaxCV: num_inner must be at least 1, not {num_inner}")
        self.temperature = self._positive("temperature", temperature)
        self.scale = self._number("scale", scale)
        self.num_inner = num_inner

    def sample(self, logits: Tensor) -> Tensor:
        clean = logits.detach()
        own = perturbed_scores(clean)
        hard = harden(own, logits)
        p = probabilities(clean)
        reinmax = 2 * softmax_jacobian((p + hard) / 2, logits) - 0.5 * softmax_jacobian(p, logits)
        noisy = torch.cat((own.unsqueeze(0), perturbed_given(hard, clean, self.num_inner)))
        at_middle = noisy + scores(midpoint_shift(hard, clean)) + carried(finite(scores(logits)))
        relaxed = relax(at_middle, logits, self.temperature)
        return with_term(hard, reinmax + self.scale * (relaxed[1:].mean(dim=0) - relaxed[0]))
