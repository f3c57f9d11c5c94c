"""Neural variational inference and learning: the score function with three variance reductions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from estimators._running import MovingAverage, update
from estimators.base import ScoreFunction
from estimators.categorical import Count, Decay
from estimators.noise import uniform


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
        """With and without the running scale."""
        (default,) = super().examples(latents, categories, context_features).values()
        return {"": default, "unscaled": {**default, "variance_normalisation": False}}

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
        if hidden < 1:
            raise ValueError(f"NVIL: hidden must be at least 1, not {hidden}; input_dependent=False drops the baseline")
        self.centring = centring
        self.variance_normalisation = variance_normalisation
        self.decay = self._decay(decay)
        # Moments of loss - B.
        self.mean = MovingAverage("NVIL", replicas)
        self.square = MovingAverage("NVIL", replicas)
        self.baseline = None
        if input_dependent and context_features is not None:
            self.baseline = _Baseline(context_features, hidden, replicas)

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """``False`` with variance normalisation, which rescales the gradient."""
        return not self.variance_normalisation

    @property
    def rescales(self) -> bool:  # type: ignore[override]
        """``True`` with variance normalisation."""
        return self.variance_normalisation

    def signal(self, losses: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        prediction = self._predict(context)
        wide = losses.to(torch.promote_types(losses.dtype, torch.float32))  # squares overflow in half precision
        residual = wide if prediction is None else wide - prediction.detach()
        mean = self.mean.value()
        variance = self.square.value() - mean**2
        usable = residual.abs() <= self.square.largest(residual.dtype) ** 0.5
        if self.centring or self.variance_normalisation:
            clean = torch.where(usable, residual, 0.0)
            update([self.mean, self.square], [clean, clean.square()], usable, self.decay)
        centre = mean if self.centring else torch.zeros_like(mean)
        learned = None
        if prediction is not None:
            learned = 0.5 * torch.where(usable, wide - centre - prediction, 0.0) ** 2
        signal = residual - centre
        if self.variance_normalisation:
            signal = signal / variance.clamp_min(1).sqrt()
        return signal.to(losses.dtype), learned

    def _predict(self, context: Tensor | None) -> Tensor | None:
        if self.baseline is None:
            return None
        if context is None or context.shape[-1] != self.baseline.features:
            raise ValueError(
                f"NVIL: the input-dependent baseline needs context [*batch, {self.baseline.features}], not "
                f"{None if context is None else list(context.shape)}; pass it, or use NVIL(input_dependent=False)"
            )
        return self.baseline(context) if context.dim() > 1 else self.baseline(context[None])[0]


class _Baseline(nn.Module):
    """``[..., examples, features] -> [..., examples]``: one hidden layer of tanh units, one network per replica.

    In the dtype of its weights, whatever that of ``context``.
    """

    def __init__(self, features: int, hidden: int, replicas: int | None) -> None:
        super().__init__()
        self.features = features
        stack = () if replicas is None else (replicas,)
        bound = (6 / (features + hidden)) ** 0.5
        shape = (*stack, features, hidden)
        # Through the library's noise, with a dummy dimension of examples: a replica's weights come from its own stream.
        u = uniform((*stack, 1, *shape[-2:]), dtype=torch.get_default_dtype(), device=torch.device("cpu"))
        weight = (2 * u - 1).reshape(shape) * bound
        self.hidden_weight = nn.Parameter(weight.to(torch.get_default_device()))
        self.hidden_bias = nn.Parameter(torch.zeros(*stack, 1, hidden))
        self.output_weight = nn.Parameter(torch.zeros(*stack, hidden, 1))
        self.output_bias = nn.Parameter(torch.zeros(*stack, 1, 1))

    def forward(self, context: Tensor) -> Tensor:
        h = torch.tanh(context.to(self.hidden_weight.dtype) @ self.hidden_weight + self.hidden_bias)
        return (h @ self.output_weight + self.output_bias).squeeze(-1)
