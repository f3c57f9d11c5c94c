"""Double control variates: leave-one-out with Taylor expansions inside and outside the baseline."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from estimators._control_variates import (
    attach,
    descend_variance,
    mean_of_others,
    only_finite,
    slope_of_variance,
    value_and_slope,
)
from estimators.base import FINITE, Estimator, Loss, in_functorch
from estimators.categorical import Finite, Number, Samples, sample_with_log_prob, scores


class DoubleCV(Estimator):
    r"""RLOO for Bernoulli latents with a first-order control variate for each sample and for each baseline.

    gradient = 1/S sum_s (h_s - mean_{t != s} h_t) (b_s - p)  -  alpha * mean_s f'_s * p (1 - p)   (in the log-odds),
    h_s = loss_s + alpha * (b_s - p) . mean_{t != s} f'_t,   f'_s = d loss / d b at the sample b_s,  b_1..b_S ~ q.

    Unbiased for every ``alpha``; 0 is RLOO. ``alpha`` is learned by descent on the variance of the gradient, through
    the same ``backward()``, for a caller who minimises; it tends to -1 where the loss is nearly linear. ``loss`` is
    called once with ``z`` ``[num_samples, *batch, latents, 2]``, and the derivatives come from the same evaluations.
    Layers of the loss that take dimension 1 for features, such as BatchNorm1d, need care: :mod:`estimators.base`.

    Args:
        num_samples: S >= 2, which is also the number of loss evaluations.
        alpha: where it starts; with ``learn=False`` a float or a tensor that broadcasts against ``logits``.
        learn: learn ``alpha`` or keep it.
        replicas: if given, ``logits`` are ``[..., replicas, examples, latents, 2]`` and there is one ``alpha`` each.

    Raises:
        ValueError: at construction, if ``num_samples < 2`` or ``alpha`` is not finite; at the call, if there are more
            than two categories.

    Example::

        DoubleCV(4)(logits, loss).mean().backward()

    Reference: Titsias, Shi, "Double control variates for gradient estimation in discrete latent variable models", arXiv
    2111.05300, with the start at 0 of the authors' code. Differences: none (their code's sign of ``alpha`` is kept).
    """

    family = "control variate"
    unbiased = True
    needs_gradient = True
    binary_only = True

    def __init__(
        self,
        num_samples: Samples = 2,
        *,
        alpha: Finite = 0.0,
        learn: bool = True,
        replicas: int | None = None,
    ) -> None:
        super().__init__()
        if num_samples < 2:
            raise ValueError(
                f"DoubleCV: num_samples must be at least 2, not {num_samples}; use MuProp or REBAR for one"
            )
        self.num_samples = self.evaluations = num_samples
        self.learn = learn
        if learn:
            start = torch.as_tensor(self._within("alpha", alpha, FINITE), dtype=torch.get_default_dtype())
            self.alpha: Number = nn.Parameter(start.expand(() if replicas is None else (replicas, 1, 1, 1)).clone())
        else:
            self.alpha = self._number("alpha", alpha)

    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        z, _ = sample_with_log_prob(logits.detach().expand(self.num_samples, *logits.shape))
        losses, slope = value_and_slope(loss, z)
        with torch.no_grad():
            # With d loss / d bit, [S, *batch, L].
            frozen, slope, usable = only_finite(losses, scores(slope))
            p = scores(logits).sigmoid()
            score = z[..., 1] - p
            linear = score * mean_of_others(slope)
        alpha = self.alpha.squeeze(-1) if isinstance(self.alpha, Tensor) and self.alpha.dim() else self.alpha
        # h_s = loss_s + alpha (b_s - p) . mean_{t != s} f'_t
        h = frozen + (alpha * linear).sum(dim=-1)
        # 1/S sum_s (h_s - mean_{t != s} h_t) (b_s - p) - alpha f'_s p (1 - p)
        estimated = ((h - mean_of_others(h)).unsqueeze(-1) * score - alpha * (slope * (p * (1 - p)))).mean(dim=0)
        honest = estimated.masked_fill(~usable[..., None], torch.nan)
        total = attach(honest, logits, losses.mean(dim=0))
        if self.learn and not in_functorch():
            total = descend_variance(total, slope_of_variance(honest, logits), estimated, logits)
        return total
