"""ReinMax-Rao: ReinMax with a Rao-Blackwellised Gumbel-Softmax in place of its first Jacobian."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from estimators._autograd import carried, with_term
from estimators._surrogate import finite, softmax_jacobian
from estimators.base import Pathwise
from estimators.categorical import (
    Count,
    Positive,
    harden,
    log_probabilities,
    perturbed_scores,
    probabilities,
    relax,
    scores,
)
from estimators.gumbel_rao import perturbed_given


class ReinMaxRao(Pathwise):
    r"""ReinMax whose first term looks at many Gumbel-Softmax samples around the midpoint instead of at the midpoint.

    z ~ q exactly one-hot;  p = softmax(logits),  m = (p + z) / 2,  J_q = diag(q) - q q^T;
    G_1, ..., G_n ~ Gumbel noise given argmax(log m + G) = z,  y_k = softmax((log m + G_k) / temperature);
    gradient = (2/n sum_k J_{y_k} / temperature - 1/2 J_p)  d loss / d z  at the hard z.

    ReinMax is the same with J_m in the place of the mean over k. Biased at every temperature, for linear losses too.
    The limit of temperature 0 with many draws is 1/2 (z - p)(z - p)^T d loss / d z, half of DARN with centre p; at high
    temperatures only -1/2 J_p d loss / d z is left, minus half of straight-through. Memory grows with ``num_inner``
    times the size of ``logits``.

    Args:
        temperature: > 0, a float or a tensor that broadcasts against ``logits`` ([replicas, 1, 1, 1], say).
        num_inner: at least 1; draws of the conditional noise (100 in the authors' code).

    Raises:
        ValueError: on other arguments.

    Example::

        z = ReinMaxRao(temperature=1.0, num_inner=100).sample(logits)   # one-hot, differentiable

    Reference: Wang, Bui, "Beyond ReinMax: low-variance gradient estimators for discrete latent variables", arXiv
    2603.08257; the formula is that of the authors' code (its variant 3). Differences from it: it adds 1e-20 inside a
    logarithm and takes exponentials of the logits, here everything is in log space and K = 2 draws one variable.
    """

    tempered = "temperature"

    def __init__(self, temperature: Positive = 1.0, num_inner: Count = 10) -> None:
        super().__init__()
        if num_inner < 1:
            raise ValueError(f"ReinMaxRao: num_inner must be at least 1, not {num_inner}")
        self.temperature = self._positive("temperature", temperature)
        self.num_inner = num_inner

    def sample(self, logits: Tensor) -> Tensor:
        clean = logits.detach()
        hard = harden(perturbed_scores(clean), logits)
        middle = log_probabilities(clean) + midpoint_shift(hard, clean)
        perturbed = perturbed_given(hard, middle, self.num_inner) + carried(finite(scores(logits)))
        first = relax(perturbed, logits, self.temperature).mean(dim=0)
        return with_term(hard, 2 * first - 0.5 * softmax_jacobian(probabilities(clean), logits))


def midpoint_shift(hard: Tensor, logits: Tensor) -> Tensor:
    """``log(1 + 1 / p_z)`` at the sampled category, else 0: ``log p`` with it is ``log((p + z) / 2)`` + a constant."""
    return torch.where(hard > 0, F.softplus(-log_probabilities(logits)), 0.0)
