"""Decoupled straight-through: one temperature for sampling, another one for the gradient."""

from __future__ import annotations

from torch import Tensor

from estimators._autograd import with_term
from estimators.base import Pathwise, numbers
from estimators.categorical import Positive, harden, perturbed_scores, probabilities


class DecoupledStraightThrough(Pathwise):
    r"""Straight-through whose samples and whose Jacobian have temperatures of their own.

    z ~ softmax(logits / forward_temperature) exactly one-hot;
    gradient = (d softmax(logits / backward_temperature) / d logits)^T  d loss / d z  at the hard z.

    Unless ``forward_temperature`` is 1, ``z`` is **not** a sample of q = softmax(logits) and the value is that of the
    tempered distribution: not a bound when the loss is a negative ELBO with log q in it. With it at 1 this is
    ``StraightThrough(backward_temperature)``; with both equal it is ``StraightThrough()`` on logits / temperature.

    Args:
        forward_temperature: > 0, of the sampling (exploration); a float or a tensor that broadcasts against ``logits``.
        backward_temperature: > 0, of the gradient; likewise.

    Raises:
        ValueError: on other arguments.

    Example::

        z = DecoupledStraightThrough(1.0, 0.5).sample(logits)   # one-hot, differentiable

    Reference: Shah, Yan, Mozer, Liu, "Improving discrete optimisation via decoupled straight-through estimator",
    arXiv 2410.13331 v2 (v1 has the Gumbel-Softmax form).
    """

    tempered = "backward_temperature"

    def __init__(self, forward_temperature: Positive = 1.0, backward_temperature: Positive = 1.0) -> None:
        super().__init__()
        self.forward_temperature = self._positive("forward_temperature", forward_temperature)
        self.backward_temperature = self._positive("backward_temperature", backward_temperature)

    @property
    def exact_for(self) -> int | None:  # type: ignore[override]
        """1 with both temperatures 1 (linear losses), else ``None``."""
        both = (self.forward_temperature, self.backward_temperature)
        return 1 if all(bool(numbers(t).eq(1).all()) for t in both) else None

    def sample(self, logits: Tensor) -> Tensor:
        tempered = (logits.detach() / self.forward_temperature).to(logits.dtype)
        hard = harden(perturbed_scores(tempered), logits)
        return with_term(hard, probabilities(logits, self.backward_temperature))
