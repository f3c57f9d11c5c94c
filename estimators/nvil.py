"""Neural variational inference and learning: the score function with three variance reductions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from estimators._running import MovingAverage, baseline_of, running_scale, squarable, update_moments
from estimators.base import ScoreFunction
from estimators.categorical import Count, Decay


class NVIL(ScoreFunction):
    r"""The score function with centring, an input-dependent baseline and variance normalisation.

    gradient = (loss(z) - c - B(context)) / max(1, sigma) * d log q(z) / d logits,  z ~ q, one exact sample;
    c, sigma^2: moving average and moving variance of ``loss - B``; B: one hidden layer of ``tanh`` units,
    trained by the squared error ``(loss - c - B)^2 / 2``, whose gradient comes from the same ``backward()``.

    Unbiased without variance normalisation. With it the gradient is divided by ``max(1, sigma)``: ``unbiased`` is
    ``False`` and ``rescales`` is ``True``, and every other term on the same logits belongs into ``loss``. An analytic
    KL added outside keeps its full weight and collapses the posterior; the published method has the sampled KL in the
    loss.

    Args:
        context_features: size of the last dimension of ``context``; ``None``: no input-dependent baseline.
        centring: subtract the moving average ``c``.
        input_dependent: subtract ``B(context)``; needs ``context_features``.
        variance_normalisation: divide by ``max(1, sigma)``.
        hidden: width of the baseline's hidden layer.
        decay: of the moving averages, in [0, 1); a float or a tensor that broadcasts against ``logits``.
        replicas: if given, ``logits`` are ``[..., replicas, examples, latents, categories]`` and statistics and
            baseline are kept per replica; otherwise there is one for all examples.

    The moving averages are buffers, written in training mode as those of batch normalisation are (``eval()`` freezes
    them), and a call uses only those of earlier calls: the paper's algorithm updates them first, which lets an
    example's own loss into its baseline. They are corrected for their zero start, as Adam's moments are. An example
    whose loss is not finite, or whose square overflows, enters neither the averages nor the baseline's training.

    Raises:
        ValueError: if the baseline was built and ``context`` is missing or of another size.
        RuntimeError: in the backward pass, if gradient checkpointing computes the call again: the averages hold its own
            losses by then; and on second derivatives with variance normalisation.

    Reference: Mnih, Gregor, "Neural variational inference and learning in belief networks", arXiv 1402.0030 (the
    baseline's 100 tanh units as in MuProp's and REBAR's re-implementations).
    """

    @classmethod
    def examples(
        cls, latents: int = 2, categories: int = 2, context_features: int | None = None
    ) -> dict[str, dict[str, Any]]:
        """With and without the running scale; then with one of the two baselines alone, if there is a context."""
        (default,) = super().examples(latents, categories, context_features).values()
        unscaled = {**default, "variance_normalisation": False}
        forms = {"": default, "unscaled": unscaled}
        if context_features is not None:
            forms["average only"] = {**unscaled, "input_dependent": False}
            forms["baseline only"] = {**unscaled, "centring": False}
        return forms

    def __init__(
        self,
        context_features: int | None = None,
        *,
        centring: bool = True,
        input_dependent: bool = True,
        variance_normalisation: bool = True,
        hidden: Count = 100,
        decay: Decay = 0.8,
        replicas: int | None = None,
    ) -> None:
        super().__init__()
        self.centring = centring
        self.variance_normalisation = variance_normalisation
        self.decay = self._decay(decay)
        # Moments of loss - B.
        self.mean = MovingAverage("NVIL", replicas)
        self.square = MovingAverage("NVIL", replicas)
        self.baseline = baseline_of("NVIL", context_features if input_dependent else None, hidden, replicas)

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """``False`` with variance normalisation, which rescales the gradient."""
        return not self.variance_normalisation

    @property
    def rescales(self) -> bool:  # type: ignore[override]
        """``True`` with variance normalisation."""
        return self.variance_normalisation

    def gradient_scale(self) -> Tensor | None:
        return running_scale(self.mean, self.square) if self.variance_normalisation else None

    def signal(self, losses: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        prediction = None if self.baseline is None else self.baseline(context)
        wide = losses.to(torch.promote_types(losses.dtype, torch.float32))  # squares overflow in half precision
        residual = wide if prediction is None else wide - prediction.detach()
        mean, scale = self.mean.value(), running_scale(self.mean, self.square)
        if self.centring or self.variance_normalisation:
            update_moments(self.mean, self.square, residual, self.decay)
        centre = mean if self.centring else torch.zeros_like(mean)
        learned = None
        if prediction is not None:
            usable = squarable(residual, self.square.total.dtype)
            learned = 0.5 * torch.where(usable, wide - centre - prediction, 0.0) ** 2
        signal = residual - centre
        if self.variance_normalisation:
            signal = signal / scale
        return signal.to(losses.dtype), learned
