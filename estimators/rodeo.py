"""RODEO: leave-one-out with learned control variates from a discrete Stein operator."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from estimators._control_variates import (
    Network,
    attach,
    descend_variance,
    mean_of_others,
    only_finite,
    slope_of_variance,
    value_and_slope,
)
from estimators.base import Estimator, Loss, in_functorch
from estimators.categorical import Count, Samples, sample_with_log_prob, scores


class RODEO(Estimator):
    r"""RLOO for Bernoulli latents with Stein control variates for each baseline and for the gradient.

    gradient = 1/S sum_s (loss_s - mean_{t != s} [loss_t + alpha (A h_t)(b_t)]) (b_s - p)  +  beta (A H_s)(b_s)
    in the log-odds, where A is the Stein operator of the Gibbs sampler, whose mean under q is zero for every function,

        (A h)(b) = 1/L sum_l q(bit l flipped | the others) (h(b with bit l flipped) - h(b)),

    ``h_s(b), H_s(b) / (b - p) = mean_{t != s} net(loss_t, f'_t . (b - b_t))`` are two outputs of a small network that
    sees sample s's *others* only (their losses and derivatives ``f'``), so no loss is evaluated at the flipped bits.

    Unbiased for every network, ``alpha`` and ``beta``; 0, where they start, is RLOO. All are learned by descent on the
    variance of the gradient, through the same ``backward()``, for a caller who minimises. ``loss`` is called once with
    ``z`` ``[num_samples, *batch, latents, 2]``; the network runs on ``num_samples**2 * latents`` rows per example.
    Layers of the loss that take dimension 1 for features, such as BatchNorm1d, need care: :mod:`estimators.base`.

    Args:
        num_samples: S >= 2, which is also the number of loss evaluations.
        hidden: units of the network's one hidden layer (leaky ReLU, slope 0.3).
        replicas: if given, ``logits`` are ``[..., replicas, examples, latents, 2]`` and each replica has its network.

    Raises:
        ValueError: at construction, if ``num_samples < 2``; at the call, if there are more than two categories.

    Example::

        RODEO(3)(logits, loss).mean().backward()

    Reference: Shi, Zhou, Hwang, Titsias, Mackey, "Gradient estimation with discrete Stein operators", arXiv 2202.09497.
    The formula is that of the authors' code (its choices ``discrete_stein_avg`` for S = 2,
    ``discrete_stein_output_avg`` for S > 2, which agree for S = 2). Differences: none known.
    """

    family = "control variate"
    unbiased = True
    needs_gradient = True
    binary_only = True

    def __init__(
        self,
        num_samples: Samples = 2,
        *,
        hidden: Count = 100,
        replicas: int | None = None,
    ) -> None:
        super().__init__()
        if num_samples < 2:
            raise ValueError(f"RODEO: num_samples must be at least 2, not {num_samples}; use MuProp or REBAR for one")
        if hidden < 1:
            raise ValueError(f"RODEO: hidden must be at least 1, not {hidden}; DoubleCV has no network")
        self.num_samples = self.evaluations = num_samples
        shape = () if replicas is None else (replicas, 1)
        self.alpha = nn.Parameter(torch.zeros(shape))
        self.beta = nn.Parameter(torch.zeros(shape))
        leaky = partial(F.leaky_relu, negative_slope=0.3)
        self.network = Network((2, hidden, 2), leaky, replicas, zero_output=False)

    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        z, _ = sample_with_log_prob(logits.detach().expand(self.num_samples, *logits.shape))
        losses, slope = value_and_slope(loss, z)
        with torch.no_grad():
            # With d loss / d bit, [S, *batch, L].
            frozen, slope, usable = only_finite(losses, scores(slope))
            p = scores(logits).sigmoid()
            bits = z[..., 1]
            score, turn = bits - p, 1 - 2 * bits
            flip = torch.where(bits > 0, 1 - p, p) / logits.shape[-2]  # q(bit l flipped | the others) / L
        here, flipped = self._functions(frozen, slope, bits, turn)
        # (A h)(b) = 1/L sum_l q(bit l flipped | the others) (h(b with bit l flipped) - h(b)), of both outputs h and g
        step = (flip.unsqueeze(-1) * (flipped - here.unsqueeze(-2))).sum(dim=-2)
        centred = frozen + self.alpha * step[..., 0]
        # H = (b - p) g:  (A H)_l = (b_l - p_l) A g + flip_l (1 - 2 b_l) g(b with bit l flipped)
        stein = score * step[..., 1:] + flip * turn * flipped[..., 1]
        # 1/S sum_s (loss_s - mean_{t != s} [loss_t + alpha (A h_t)(b_t)]) (b_s - p) + beta (A H_s)(b_s)
        signal = frozen - mean_of_others(centred)
        estimated = (signal.unsqueeze(-1) * score + self.beta.unsqueeze(-1) * stein).mean(dim=0)
        honest = estimated.masked_fill(~usable[..., None], torch.nan)
        total = attach(honest, logits, losses.mean(dim=0))
        if not in_functorch():
            total = descend_variance(total, slope_of_variance(honest, logits), estimated, logits)
        return total

    def _functions(self, losses: Tensor, slope: Tensor, bits: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """The network's two outputs at each sample ``[S, *batch, 2]`` and at its neighbours ``[S, *batch, L, 2]``."""
        here, flipped = [], []
        for s in range(self.num_samples):
            others = [t for t in range(self.num_samples) if t != s]
            level, gradient = losses[others].unsqueeze(-1), slope[others]  # [S-1, *batch, 1], [S-1, *batch, L]
            # net(loss_t, f'_t . (b - b_t)) at b = b_s and at b_s with bit l flipped, which adds f'_t,l (1 - 2 b_s,l)
            change = (gradient * (bits[s] - bits[others])).sum(dim=-1, keepdim=True)
            changes = torch.cat((change, change + gradient * turn[s]), dim=-1)  # [S-1, *batch, 1 + L]
            features = torch.stack((level.expand_as(changes), changes), dim=-1)
            # [..., examples, 1 + L, 2]: the rows of one replica's network are its examples' samples and neighbours.
            rows = features.flatten(-3, -2) if features.dim() > 3 else features
            values = self.network(rows).reshape(features.shape).mean(dim=0)
            here.append(values[..., 0, :])
            flipped.append(values[..., 1:, :])
        return torch.stack(here), torch.stack(flipped)
