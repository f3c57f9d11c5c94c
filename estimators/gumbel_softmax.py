"""Gumbel-Softmax and straight-through Gumbel-Softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from estimators._autograd import with_term
from estimators.base import Pathwise
from estimators.categorical import Number, Positive, harden, perturbed_scores, relax
from estimators.concrete import relaxed_log_prob, relaxed_log_sample

LogProb = Callable[..., Tensor]


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

    family = "relaxation"
    tempered = "temperature"

    def __init__(self, temperature: Positive = 1.0, hard: bool = False) -> None:
        super().__init__()
        self.temperature = self._positive("temperature", temperature)
        self.hard = hard

    @classmethod
    def examples(
        cls, latents: int = 2, categories: int = 2, context_features: int | None = None
    ) -> dict[str, dict[str, Any]]:
        """Soft and hard."""
        return {"": {}, "hard": {"hard": True}}

    @classmethod
    def _has_density(cls, options: Mapping[str, Any]) -> bool:
        return not options.get("hard")

    @property
    def relaxed(self) -> bool:  # type: ignore[override]
        """``True`` unless ``hard``."""
        return not self.hard

    def sample(self, logits: Tensor) -> Tensor:
        perturbed = perturbed_scores(logits)
        soft = relax(perturbed, logits, self.temperature)
        return with_term(harden(perturbed.detach(), logits), soft) if self.hard else soft

    def sample_with_log_ratio(
        self, logits: Tensor, prior_logits: Tensor, prior_temperature: Number | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""``z`` as from :meth:`sample`, and ``log q(z) - log p(z)`` of Concrete densities at it, ``[*batch]`` nats.

        q = Concrete(logits, temperature),  p = Concrete(prior_logits, prior_temperature), independent latents.

        The mean of the ratio is the *relaxed* KL(q || p), at least the KL of the discrete distributions; with it
        ``loss(z) + ratio`` is a bound if ``z`` is taken for the model's latent variable, and none on the model with
        discrete latents. Both results have their gradient by reparameterisation, the ratio also directly in its
        arguments. Densities are taken from ``log z``: in single precision many ``z`` round to 0 or 1 at a temperature
        of 0.1, and still have a ratio here.

        Args:
            logits: ``[*batch, latents, categories]``, finite.
            prior_logits: finite, of the shape of ``logits`` or one that broadcasts to it.
            prior_temperature: > 0, a float or a tensor that broadcasts against ``logits``; ``None``: the estimator's.

        Raises:
            ValueError: with ``hard=True`` (one-hot samples have no density, and the KL of discrete distributions is a
                tighter bound without noise), or if ``prior_temperature`` is a float that is not positive.

        Example::

            z, log_ratio = GumbelSoftmax(2 / 3).sample_with_log_ratio(logits, torch.zeros_like(logits), 1 / 2)
            losses = negative_log_likelihood(z) + log_ratio

        Reference: Maddison, Mnih, Teh, arXiv 1611.00712, eq. 20; for two categories, the temperatures of the example.
        """
        z, log_q, log_prob = self.sample_with_log_prob(logits)
        return z, log_q - log_prob(prior_logits, prior_temperature)

    def sample_with_log_prob(self, logits: Tensor) -> tuple[Tensor, Tensor, LogProb]:
        """``z`` as from :meth:`sample`, ``log q(z)`` ``[*batch]``, and ``log_prob(other_logits, temperature=None)``.

        ``log_prob`` is the density at the same sample of another Concrete distribution, such as one that is known only
        after ``z``: a model's p(z | sample of the layer above). Densities are of the log-ratios
        (:func:`estimators.concrete.relaxed_log_prob`); arguments and errors as for :meth:`sample_with_log_ratio`.
        """
        if self.hard:
            raise ValueError(
                "GumbelSoftmax: one-hot samples (hard=True) have no Concrete density; use hard=False, or the KL of the "
                "discrete distributions"
            )
        self._check_logits(logits)
        log_z = relaxed_log_sample(logits, self.temperature)

        def log_prob(other_logits: Tensor, temperature: Number | None = None) -> Tensor:
            temperature = self.temperature if temperature is None else temperature
            return relaxed_log_prob(log_z, other_logits, temperature).sum(dim=-1)

        return log_z.exp(), log_prob(logits), log_prob
