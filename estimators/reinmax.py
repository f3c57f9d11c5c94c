"""ReinMax: straight-through with second-order accuracy."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from estimators._autograd import with_term
from estimators._surrogate import softmax_jacobian
from estimators.base import Pathwise, Range, numbers
from estimators.categorical import Number, harden, perturbed_scores, probabilities

FROM_ONE = Range("at least 1", 1, closed=(1,), hint="for a sharper backward pass use StraightThrough or GumbelRao")


class ReinMax(Pathwise):
    r"""Straight-through by Heun's method instead of Euler's: a mix of two softmax Jacobians.

    z ~ q exactly one-hot;  p = softmax(logits),  p_t = softmax(logits / temperature),  J_m = diag(m) - m m^T;
    gradient = (2 J_{(p_t + z)/2} - 1/2 J_p)  d loss / d z  at the hard z.

    At temperature 1 this is 1/2 (J_p + (z - p)(z - p)^T) d loss / d z, also known as ZGR: the mean of straight-through
    and DARN with centre p, exact in the mean for quadratic losses. It can be more biased than straight-through beyond.

    Args:
        temperature: >= 1 and finite, a float or a tensor that broadcasts against ``logits``; 1 to 1.5 in the paper.

    Raises:
        ValueError: on another ``temperature``.

    Example::

        z = ReinMax(temperature=1.1).sample(logits)   # one-hot, differentiable

    References: Liu, Dong, Liu, Yu, Gao, "Bridging discrete and backpropagation: straight-through and beyond", arXiv
    2304.08612; Shekhovtsov, "Cold analysis of Rao-Blackwellized straight-through Gumbel-softmax gradient estimator",
    ICML 2023 (ZGR). Differences from the authors' package: none in the gradient; it also returns p.
    """

    tempered = "temperature"

    def __init__(self, temperature: Annotated[Number, ("range", "[1, inf)")] = 1.0) -> None:
        super().__init__()
        self.temperature = self._number("temperature", temperature, FROM_ONE)

    @property
    def exact_for(self) -> int | None:  # type: ignore[override]
        """2 at temperature 1 (quadratic losses), else ``None``."""
        return 2 if bool(numbers(self.temperature).eq(1).all()) else None

    def sample(self, logits: Tensor) -> Tensor:
        clean = logits.detach()
        hard = harden(perturbed_scores(clean), logits)
        middle = (probabilities(clean, self.temperature) + hard) / 2
        jacobian = 2 * softmax_jacobian(middle, logits) - 0.5 * softmax_jacobian(probabilities(clean), logits)
        return with_term(hard, jacobian)
