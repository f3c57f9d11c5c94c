"""DARN, the half estimator: a first-order baseline with the derivative taken at the sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from estimators._autograd import with_term
from estimators._control_variates import value_and_slope
from estimators._running import MovingAverage, running_scale, update_moments
from estimators.base import DECAY, Estimator, Loss, Range
from estimators.categorical import Decay, Finite, log_probabilities, sample_with_log_prob

CENTRE = Range("finite", hint="None is 1 / categories")


class DARN(Estimator):
    r"""The estimator of deep autoregressive networks, also known as the 1/2 estimator.

    gradient = sum over latents l of  (g_l . (z_l - centre)) * d log q(z_l) / d logits_l  [/ max(1, sigma)],
    z ~ q,  g = d loss / d z at the sample ``z``; the product is taken over one latent's categories;
    sigma^2: with variance normalisation the moving variance, over the examples of earlier calls, of the products' sum
    over latents, which is the method's stand-in for ``loss(z) - loss(centre)``.

    The score function with the loss replaced by its first-order expansion around the sample: biased. For every number
    of categories and every constant ``centre`` the mean is exact for a loss linear in ``z`` (``exact_for = 1``); with
    two categories and ``centre`` 1/2 also for a quadratic one, products of latents included, because
    ``f(1) - f(0) = (f'(0) + f'(1)) / 2``; it is biased from degree 3 on.

    Args:
        centre: of the expansion, a float or a tensor that broadcasts against ``logits``; ``None``: ``1 / categories``.
        variance_normalisation: divide by ``max(1, sigma)``. Then the mean has a scale of its own: ``exact_for`` is
            ``None`` and ``rescales`` is ``True``, and every other term on the same logits belongs into ``loss``.
        decay: of the moving variance, in [0, 1), as of :class:`estimators.NVIL`; its buffers are frozen by ``eval()``.
        replicas: if given, ``logits`` are ``[..., replicas, examples, latents, categories]`` and the moving variance is
            kept per replica; otherwise there is one for all examples.

    Raises:
        RuntimeError: in the backward pass, if gradient checkpointing computes the call again with variance
            normalisation: the averages hold its own losses by then.

    Example::

        DARN()(logits, loss).mean().backward()

    References: Gregor, Danihelka, Mnih, Blundell, Wierstra, "Deep autoregressive networks", arXiv 1310.8499; in this
    form Gu, Levine, Sutskever, Mnih, arXiv 1511.05176, section 4.2; variance normalisation as in Jang, Gu, Poole (arXiv
    1611.01144, section 4), who do not say of which signal. Differences: they print the baseline ``f(c) + f'(c)(z - c)``
    at the centre without the term that corrects for its mean, which read literally is wrong even for a linear loss;
    this is the estimator that has the property they describe.
    """

    family = "first order"
    unbiased = False
    needs_gradient = True

    @classmethod
    def examples(
        cls, latents: int = 2, categories: int = 2, context_features: int | None = None
    ) -> dict[str, dict[str, Any]]:
        """Without and with the running scale."""
        return {"": {}, "scaled": {"variance_normalisation": True}}

    def __init__(
        self,
        centre: Finite | None = None,
        *,
        variance_normalisation: bool = False,
        decay: Decay = 0.8,
        replicas: int | None = None,
    ) -> None:
        super().__init__()
        given = self._number("centre", 0.0 if centre is None else centre, CENTRE)
        self.centre = None if centre is None else given
        self.variance_normalisation = variance_normalisation
        self._within("decay", decay, DECAY)  # without a use for it, too
        if variance_normalisation:
            self.decay = self._decay(decay)
            self.mean, self.square = MovingAverage("DARN", replicas), MovingAverage("DARN", replicas)

    @property
    def exact_for(self) -> int | None:  # type: ignore[override]
        """1; ``None`` with variance normalisation, which rescales the gradient."""
        return None if self.variance_normalisation else 1

    @property
    def rescales(self) -> bool:  # type: ignore[override]
        """``True`` with variance normalisation."""
        return self.variance_normalisation

    def gradient_scale(self) -> Tensor | None:
        return running_scale(self.mean, self.square) if self.variance_normalisation else None

    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        # First what earlier calls have left, then the loss, which may call this estimator for an inner layer.
        scale = self.gradient_scale()
        z, _ = sample_with_log_prob(logits.detach())
        # One evaluation gives both the losses, with their graph to what loss closes over, and the derivative in z.
        losses, g = value_and_slope(loss, z)
        with torch.no_grad():
            centre = 1 / logits.shape[-1] if self.centre is None else self.centre
            signal = (g * (z - centre)).sum(dim=-1)
        # where, not a product: 0 * -inf of an impossible category would be NaN
        log_prob = torch.where(z > 0, log_probabilities(logits), 0.0).sum(dim=-1)
        term = (signal.detach() * log_prob).sum(dim=-1)
        if scale is not None:
            wide = signal.detach().to(torch.promote_types(signal.dtype, torch.float32))
            update_moments(self.mean, self.square, wide.sum(dim=-1), self.decay)
            term = term / scale
        return with_term(losses, term)
