"""The identity straight-through estimator."""

from __future__ import annotations

from torch import Tensor

from estimators._autograd import with_term
from estimators._surrogate import finite
from estimators.base import Pathwise
from estimators.categorical import from_bits, harden, is_binary, perturbed_scores, scores


class IdentityStraightThrough(Pathwise):
    r"""A hard sample forward, the identity backward: the gradient of ``z`` is passed to the logits as it is.

    z ~ q exactly one-hot;  gradient in logits = d loss / d z  at the hard z  (K > 2);
    for K = 2 the bit has derivative 1 in the log-odds a = logits[..., 1] - logits[..., 0].

    The oldest and crudest form; it has no sigmoid or softmax factor, so its size does not vanish for sure latents,
    and it is biased even for linear losses. For K > 2 the gradient does not sum to 0 over the categories.

    Example::

        z = IdentityStraightThrough().sample(logits)   # one-hot, differentiable

    Reference: Bengio, Leonard, Courville, "Estimating or propagating gradients through stochastic neurons for
    conditional computation", arXiv 1308.3432, after Hinton's lectures (2012).
    """

    def sample(self, logits: Tensor) -> Tensor:
        hard = harden(perturbed_scores(logits.detach()), logits)
        term = finite(scores(logits))
        return with_term(hard, from_bits(term) if is_binary(logits) else term)
