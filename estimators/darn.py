"""DARN, the half estimator: a first-order baseline with the derivative taken at the sample."""

from __future__ import annotations

import torch
from torch import Tensor

from estimators._autograd import with_term
from estimators._control_variates import value_and_slope
from estimators.base import Estimator, Loss, Range
from estimators.categorical import Finite, log_probabilities, sample_with_log_prob

CENTRE = Range("finite", hint="None is 1 / categories")


class DARN(Estimator):
    r"""The estimator of deep autoregressive networks, also known as the 1/2 estimator.

    gradient = sum over latents l of  (g_l . (z_l - centre)) * d log q(z_l) / d logits_l,
    z ~ q,  g = d loss / d z at the sample ``z``; the product is taken over one latent's categories.

    The score function with the loss replaced by its first-order expansion around the sample: biased. For every number
    of categories and every constant ``centre`` the mean is exact for a loss linear in ``z`` (``exact_for = 1``); with
    two categories and ``centre`` 1/2 also for a quadratic one, products of latents included, because
    ``f(1) - f(0) = (f'(0) + f'(1)) / 2``; it is biased from degree 3 on.

    Args:
        centre: of the expansion, a float or a tensor that broadcasts against ``logits``; ``None``: ``1 / categories``.

    Example::

        DARN()(logits, loss).mean().backward()

    References: Gregor, Danihelka, Mnih, Blundell, Wierstra, "Deep autoregressive networks", arXiv 1310.8499; in this
    form Gu, Levine, Sutskever, Mnih, arXiv 1511.05176, section 4.2. Differences: Jang, Gu, Poole (arXiv 1611.01144)
    print the baseline ``f(c) + f'(c)(z - c)`` at the centre without the term that corrects for its mean, which read
    literally is wrong even for a linear loss; this is the estimator that has the property they describe.
    """

    family = "first order"
    unbiased = False
    exact_for = 1
    needs_gradient = True

    def __init__(self, centre: Finite | None = None) -> None:
        super().__init__()
        given = self._number("centre", 0.0 if centre is None else centre, CENTRE)
        self.centre = None if centre is None else given

    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        z, _ = sample_with_log_prob(logits.detach())
        # One evaluation gives both the losses, with their graph to what loss closes over, and the derivative in z.
        losses, g = value_and_slope(loss, z)
        with torch.no_grad():
            centre = 1 / logits.shape[-1] if self.centre is None else self.centre
            signal = (g * (z - centre)).sum(dim=-1)
        # where, not a product: 0 * -inf of an impossible category would be NaN
        log_prob = torch.where(z > 0, log_probabilities(logits), 0.0).sum(dim=-1)
        return with_term(losses, (signal.detach() * log_prob).sum(dim=-1))
