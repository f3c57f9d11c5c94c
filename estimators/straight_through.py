"""The straight-through estimator."""

from __future__ import annotations

from torch import Tensor

from estimators._autograd import with_term
from estimators.base import Pathwise, numbers
from estimators.categorical import Positive, harden, perturbed_scores, probabilities


class StraightThrough(Pathwise):
    r"""The straight-through estimator: a hard sample forward, the probabilities' Jacobian backward.

    z ~ q exactly one-hot;  gradient = (d softmax(logits / temperature) / d logits)^T  d loss / d z  at the hard z.

    Biased; exact in the mean for losses linear in ``z`` when ``temperature`` is 1. On the toy ``(b - t)^2`` it drives
    ``p`` to ``t`` instead of to the optimum at 0 or 1.

    Args:
        temperature: > 0; of the backward softmax only, the sample is never relaxed. A float or a tensor that broadcasts
            against ``logits``. Lowering it during training steepens the slope (slope-annealed straight-through).

    Example::

        z = StraightThrough().sample(logits)   # one-hot, differentiable

    Reference: Bengio, Leonard, Courville, "Estimating or propagating gradients through stochastic neurons for
    conditional computation", arXiv 1308.3432; for categorical latents as in Jang, Gu, Poole, arXiv 1611.01144. The
    identity variant (Jacobian replaced by 1) is a different estimator.
    """

    tempered = "temperature"

    def __init__(self, temperature: Positive = 1.0) -> None:
        super().__init__()
        self.temperature = self._positive("temperature", temperature)

    @property
    def exact_for(self) -> int | None:  # type: ignore[override]
        """1 at temperature 1 (linear losses), else ``None``."""
        return 1 if bool(numbers(self.temperature).eq(1).all()) else None

    def sample(self, logits: Tensor) -> Tensor:
        hard = harden(perturbed_scores(logits.detach()), logits)
        return with_term(hard, probabilities(logits, self.temperature))
