"""MuProp: the score function with a first-order Taylor expansion at the mean as control variate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from estimators._autograd import carried, score_term, with_term
from estimators._control_variates import value_and_slope
from estimators._running import MovingAverage, baseline_of, running_scale, squarable, update_moments
from estimators.base import Estimator, Loss
from estimators.categorical import Count, Decay, probabilities, sample_with_log_prob


class MuProp(Estimator):
    r"""The score function whose control variate is the loss linearised at the mean ``p = softmax(logits)``.

    gradient = [(r - c - B(context)) * d log q(z) / d logits  +  (dp / d logits)^T g] / max(1, sigma),
    r = loss(z) - loss(p) - g . (z - p),  z ~ q,  g = d loss / d z at ``p``;
    c, sigma^2: moving average and moving variance of ``r - B`` over the examples of earlier calls; B: one hidden layer
    of ``tanh`` units, trained by the squared error ``(r - c - B)^2 / 2``. By default there is ``c`` alone.

    Unbiased for every loss that is differentiable between the corners, because ``c`` does not depend on ``z``. For a
    loss that is linear in ``z`` the residual is zero and the gradient exact without noise; otherwise its mean is
    ``E_q[loss(z)] - loss(p)``, the loss of rounding ``p`` to corners, which centring takes away. Two evaluations: one
    at the hard sample, which gives the value and the ordinary gradient to what ``loss`` closes over, and one at the
    mean, of which only ``loss(p)`` and ``g`` are used.

    With variance normalisation the whole gradient is divided, so that its mean keeps its direction: ``unbiased`` is
    ``False`` and ``rescales`` is ``True``, and every other term on the same logits belongs into ``loss``.

    Args:
        context_features: size of the last dimension of ``context``, for the input-dependent baseline.
        centring: subtract ``c``; averages are buffers, frozen by ``eval()``. Residuals that are not finite are left
            out.
        input_dependent: subtract ``B(context)``; needs ``context_features``.
        variance_normalisation: divide by ``max(1, sigma)``.
        hidden: width of the baseline's hidden layer.
        decay: of the moving averages, in [0, 1); a float or a tensor that broadcasts against ``logits``.
        replicas: if given, ``logits`` are ``[..., replicas, examples, latents, categories]`` and statistics and
            baseline are kept per replica; otherwise there is one for all examples.

    Raises:
        ValueError: if the baseline was built and ``context`` is missing or of another size.
        RuntimeError: in the backward pass, if gradient checkpointing computes the call again with averages: they hold
            its own residuals by then; and on second derivatives with variance normalisation.

    Example::

        MuProp()(logits, loss).mean().backward()

    Reference: Gu, Levine, Sutskever, Mnih, "MuProp: unbiased backpropagation for stochastic neural networks",
    arXiv 1511.05176: with centring the paper's MuProp-C, which all its published results build on, with
    ``variance_normalisation`` its MuProp-C-VN, which Jang, Gu, Poole (1611.01144, section 4) have, with
    ``input_dependent`` its MuProp-C-IDB; ``centring=False`` and ``input_dependent`` as in REBAR's code, without the
    scales that are learned there. Differences: ``c`` and ``sigma`` are of earlier calls only, with the decay of
    :class:`estimators.NVIL`, whose baseline it has. With several layers each nested call linearises at the mean of its
    own layer given the sample of the layer before (which is unbiased for any inner estimator), while the paper runs one
    mean-field pass through all layers.
    """

    family = "control variate"
    needs_gradient = True
    evaluations = 2

    @classmethod
    def examples(
        cls, latents: int = 2, categories: int = 2, context_features: int | None = None
    ) -> dict[str, dict[str, Any]]:
        """With the running average alone, with the running scale, and with the baseline if there is a context."""
        (default,) = super().examples(latents, categories, context_features).values()
        forms = {"": default, "scaled": {**default, "variance_normalisation": True}}
        return forms if context_features is None else {**forms, "baseline": {**default, "input_dependent": True}}

    def __init__(
        self,
        context_features: int | None = None,
        *,
        centring: bool = True,
        input_dependent: bool = False,
        variance_normalisation: bool = False,
        hidden: Count = 100,
        decay: Decay = 0.8,
        replicas: int | None = None,
    ) -> None:
        super().__init__()
        self.centring, self.variance_normalisation = centring, variance_normalisation
        self.decay = self._decay(decay)
        self.average = MovingAverage("MuProp", replicas) if centring or variance_normalisation else None
        self.square = MovingAverage("MuProp", replicas) if variance_normalisation else None
        self.baseline = baseline_of("MuProp", context_features if input_dependent else None, hidden, replicas)

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """``False`` with variance normalisation, which rescales the gradient."""
        return not self.variance_normalisation

    @property
    def rescales(self) -> bool:  # type: ignore[override]
        """``True`` with variance normalisation."""
        return self.variance_normalisation

    def gradient_scale(self) -> Tensor | None:
        if self.average is None or self.square is None:
            return None
        return running_scale(self.average, self.square)

    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        # First what earlier calls have left, then the sample: loss may call this estimator for an inner layer.
        centre = self.average.value() if self.average is not None else None
        scale = self.gradient_scale()
        p = probabilities(logits)
        with torch.no_grad():  # nothing that loss closes over may get a gradient from the mean
            at_mean, g = value_and_slope(loss, p.detach())
        z, log_prob = sample_with_log_prob(logits)
        losses = loss(z)
        residual = (losses - at_mean - (g * (z - p)).sum(dim=(-2, -1))).detach()
        signal, learned = self._signal(residual, centre if self.centring else None, context)
        linear = (g.detach() * p).sum(dim=(-2, -1))  # no_grad reaches the innermost of nested transforms only
        if scale is None:
            # At constant g, linear is the mean of what signal subtracts: its own graph is right to every order.
            total = score_term(losses, signal, log_prob) + carried(linear)
        else:
            dtype = torch.promote_types(losses.dtype, log_prob.dtype)
            total = with_term(losses.to(dtype), (signal * log_prob + linear) / scale)
        return total if learned is None else with_term(total, learned).to(total.dtype)

    def _signal(self, residual: Tensor, centre: Tensor | None, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The factor of the score, and the baseline's loss; the averages take the residual in."""
        learned = None
        if self.baseline is not None:
            prediction = self.baseline(context)
            wide = residual.to(torch.promote_types(residual.dtype, torch.float32))
            residual = wide - prediction.detach()
            error = wide - prediction if centre is None else wide - centre - prediction
            learned = 0.5 * torch.where(squarable(residual, torch.float32), error, 0.0) ** 2
        if self.average is not None and self.square is not None:
            wide = residual.to(torch.promote_types(residual.dtype, torch.float32))
            update_moments(self.average, self.square, wide, self.decay)
        elif self.average is not None:
            self.average.update(residual, self.decay)
        return residual if centre is None else residual - centre.to(residual.dtype), learned
