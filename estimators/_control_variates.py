"""What REBAR, RELAX, Double CV and RODEO share: coupled relaxed samples, and learning by variance descent.

*Variance descent*: with ``G`` the estimated gradient of one example in its scores (log-odds for K = 2, logits
otherwise), the learned parts follow the gradient of ``|G|^2``: the mean of ``G`` does not depend on them, so this is an
unbiased gradient of the variance. It arises in the caller's one ``backward()`` through terms of value zero, weighted
over examples as the caller weights the losses. It never reaches ``logits`` or what ``loss`` closes over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from estimators import noise
from estimators._autograd import constant_gradients, with_term
from estimators.base import POSITIVE, Estimator, Loss, Range, in_functorch, per_example
from estimators.categorical import Number, harden, is_binary, log_softmax, relax, scores

IMPOSSIBLE = -1e4
"""Log-odds and log-probabilities are cut here: the probability is exactly 0 in every dtype and all terms are finite."""

LEARNED_SCALE = Range("finite and positive (it is learned as a logarithm; learn=False allows 0)", 0)
FIXED_SCALE = Range("finite and at least 0", 0, closed=(0,))


def sum_event(x: Tensor, logits: Tensor) -> Tensor:
    """The sum over one example's scores, ``[*batch]``."""
    return x.sum(dim=-1) if is_binary(logits) else x.sum(dim=(-2, -1))


def per_score(x: Tensor, logits: Tensor) -> Tensor:
    """``[*batch]`` losses, shaped to broadcast against scores."""
    return x[..., None] if is_binary(logits) else x[..., None, None]


def attach(gradient: Tensor, logits: Tensor, losses: Tensor) -> Tensor:
    """``[*batch]`` ``losses`` with ``gradient`` in the scores of ``logits`` on top of their own."""
    clean = scores(logits)
    clean = clean.masked_fill(clean.isinf(), 0.0)  # 0 * inf would be NaN, and the gradient there is 0
    wide = torch.promote_types(clean.dtype, torch.float32)  # where the sum does not overflow
    total = with_term(losses, sum_event(gradient.detach().to(wide) * clean, logits))
    return total.to(torch.promote_types(losses.dtype, clean.dtype))


def descend_variance(losses: Tensor, slope: Tensor, gradient: Tensor, logits: Tensor) -> Tensor:
    """``losses`` with the derivative of ``slope * gradient``, ``slope`` as from :func:`slope_of_variance`, in what the
    graph of ``gradient`` holds."""
    return with_term(losses, sum_event(slope * gradient, logits)).to(losses.dtype)


def slope_of_variance(gradient: Tensor, logits: Tensor) -> Tensor:
    """The derivative of ``|gradient|^2``, 0 for examples where that overflows: one of them must not spoil what all
    learn."""
    slope = 2 * gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))  # squares overflow in half
    usable = sum_event(slope * gradient.detach(), logits).isfinite()
    return torch.where(per_score(usable, logits), slope, 0.0)


def only_finite(losses: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``losses`` ``[S, *batch]`` and ``slope`` ``[S, *batch, L]`` as constants, 0 for examples that are not finite.

    The third says which examples are: ``[*batch]``.
    """
    usable = (losses.detach() + slope.sum(dim=-1)).isfinite().all(dim=0)  # a sum of what is not finite is not
    return torch.where(usable, losses.detach(), 0.0), torch.where(usable[..., None], slope, 0.0), usable


def mean_of_others(x: Tensor) -> Tensor:
    """``[S, ...]``: for each sample, in the first dimension, the mean of ``x`` over the S - 1 others."""
    return (x.sum(dim=0) - x) / (len(x) - 1)


def value_and_slope(function: Callable[[Tensor], Tensor], point: Tensor) -> tuple[Tensor, Tensor]:
    """``function(point)`` ``[*batch]`` and its derivative in ``point``, from one evaluation."""
    result: Any = torch.func.vjp(function, point)
    value, pull_back = result
    return value, pull_back(torch.ones_like(value))[0]


class Coupled:
    """A hard sample ``z`` and two relaxed ones before softmax: ``hat``, whose argmax is ``z``, and ``tilde`` given
    ``z``.

    With ``theta`` the log-probabilities and G standard Gumbel (K = 2: ``theta`` log-odds a, l standard logistic):
    hat = theta + G;  tilde = G_z for the sampled category and -log(exp(-G_z) + exp(-theta_k - G_k)) for the others;
    K = 2: hat = a + l;  tilde = +-softplus(l + softplus(+-a)), the sign that of the sampled bit.
    """

    def __init__(self, logits: Tensor, tied: bool) -> None:
        self.logits = logits
        if is_binary(logits):
            self.theta = scores(logits).clamp(IMPOSSIBLE, -IMPOSSIBLE)
        else:
            self.theta = log_softmax(logits).clamp_min(IMPOSSIBLE)
        hat = self.theta + self._noise()
        self.z = harden(hat, logits)
        if is_binary(logits):
            self.bits = (hat > 0).to(hat.dtype)
            self.score = self.bits - self.theta.sigmoid()
        else:
            self.score = self.z - self.theta.exp()
        tilde = hat if tied else self._conditional(self._noise())
        self.points = hat[None] if tied else torch.stack((hat, tilde))
        """``[1 or 2, *scores]``: first ``hat``, last ``tilde``; tied, the two are the same numbers."""

    def _noise(self) -> Tensor:
        dtype = torch.promote_types(self.theta.dtype, torch.float32)
        draw = noise.logistic if is_binary(self.logits) else noise.gumbel
        return draw(self.theta.shape, dtype=dtype, device=self.theta.device)

    def _conditional(self, fresh: Tensor) -> Tensor:
        if is_binary(self.logits):
            # +-softplus(l + softplus(+-a)), as softplus(x) = -log sigmoid(-x)
            sign = 2 * self.bits - 1
            return -sign * F.logsigmoid(-fresh + F.logsigmoid(-sign * self.theta))
        # G_z, and -log(exp(-G_z) + exp(-theta_k - G_k)) for the others
        top = (self.z * fresh).sum(dim=-1, keepdim=True)
        return torch.where(self.z > 0, top, -torch.logaddexp(-self.theta - fresh, -top))

    def pull_back_tilde(self, cotangent: Tensor) -> Tensor:
        """``(d tilde / d theta)^T cotangent`` at constant noise, which depends on the noise through ``tilde`` only."""
        tilde = self.points[-1]
        if is_binary(self.logits):
            # d tilde / d a = (1 - exp(-|tilde|)) sigmoid(+-a)
            sign = 2 * self.bits - 1
            return -torch.expm1(-tilde.abs()) * (sign * self.theta).sigmoid() * cotangent
        # d tilde_k / d theta_k = 1 - exp(tilde_k - tilde_z);  theta = log softmax, so (d theta)^T w = w - p sum w
        weighted = -torch.expm1(tilde - tilde.amax(dim=-1, keepdim=True)) * cotangent
        return weighted - self.theta.exp() * weighted.sum(dim=-1, keepdim=True)

    def gradient(self, losses: Tensor, control: Callable[[Tensor], Tensor]) -> Tensor:
        """``(loss - c(tilde)) * score + d/d theta (c(hat) - c(tilde))`` in the scores, for ``c = control(points)``."""
        c, q = value_and_slope(control, self.points)
        return per_score(losses - c[-1], self.logits) * self.score + q[0] - self.pull_back_tilde(q[-1])


class RelaxedControlVariate(Estimator):
    """REBAR and RELAX: ``c = scale * loss(softmax(. / temperature)) + network(softmax(. / temperature))``."""

    family = "control variate"
    unbiased = True
    has_network: bool

    def __init__(
        self, temperature: Number, scale: Number, learn: bool, tied: bool, use_loss: bool, replicas: int | None
    ) -> None:
        super().__init__()
        self.learn, self.tied, self.use_loss, self.needs_gradient = learn, tied, use_loss, use_loss
        self.evaluations = 1 + (0 if not use_loss else 1 if tied else 2)
        if learn:
            shape = () if replicas is None else (replicas, 1, 1, 1)
            temperature = self._within("temperature", temperature, POSITIVE)
            self.log_temperature = self._log_parameter("temperature", temperature, shape)
            self.log_scale = self._log_parameter("scale", self._within("scale", scale, LEARNED_SCALE), shape)
        else:
            self.fixed_temperature = self._positive("fixed_temperature", temperature)
            self.fixed_scale = self._number("fixed_scale", scale, FIXED_SCALE)

    def _log_parameter(self, name: str, value: Number, shape: tuple[int, ...]) -> nn.Parameter:
        start = torch.as_tensor(value, dtype=torch.get_default_dtype()).log()
        if start.dim() and not (start.dim() >= 3 and start.shape[-2:] == (1, 1)):
            raise ValueError(
                f"{type(self).__name__}: a learned {name} is one number, or one per replica [replicas, 1, 1, 1], not "
                f"{list(start.shape)}; learn=False takes any that broadcasts against logits"
            )
        return nn.Parameter(start.expand(shape if start.dim() == 0 else start.shape).clone())

    @property
    def temperature(self) -> Number:
        """Temperature of the relaxed samples: a tensor with a gradient if it is learned."""
        return self.log_temperature.exp() if self.learn else self.fixed_temperature

    @property
    def scale(self) -> Number:
        """eta, the factor of the relaxed loss: a tensor with a gradient if it is learned."""
        return self.log_scale.exp() if self.learn else self.fixed_scale

    def network(self, y: Tensor, context: Tensor | None) -> Tensor:
        """The learned part ``[n, *batch]`` of ``c`` at relaxed ``y`` ``[n, *batch, latents, categories]``, else 0."""
        return y.new_zeros(y.shape[:-2])

    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        frozen = logits.detach()
        context = None if context is None else context.detach()
        sample = Coupled(frozen, self.tied)
        losses = loss(sample.z)
        device = logits.device
        temperature = torch.as_tensor(self.temperature, device=device)
        scale = torch.as_tensor(self.scale, device=device)
        learning = self.learn and torch.is_grad_enabled() and not in_functorch()
        if learning:  # one copy per example, so that each gets its own gradient
            temperature = temperature.expand(*logits.shape[:-2], 1, 1)
            scale = scale.expand(*logits.shape[:-2], 1, 1)

        def gradient(temperature: Tensor, scale: Tensor) -> Tensor:
            def control(points: Tensor) -> Tensor:
                # c(x) = scale * loss(y) + network(y),  y = softmax(x / temperature)
                y = relax(points, frozen, temperature)
                relaxed = per_example(scale) * loss(y) if self.use_loss else y.new_zeros(y.shape[:-2])
                return relaxed + self.network(y, context) if self.has_network else relaxed

            return sample.gradient(losses.detach(), control)

        slopes = None
        with torch.no_grad():
            if learning:
                with constant_gradients():  # those of estimators within the loss
                    result: Any = torch.func.vjp(gradient, temperature.detach(), scale.detach())
                    estimated, pull_back = result
                    # 0 times what is not finite is not 0.
                    slopes = [
                        torch.where(s.isfinite(), s, 0.0)
                        for s in pull_back(slope_of_variance(estimated, logits).to(estimated.dtype))
                    ]
            else:
                estimated = gradient(temperature, scale)
        estimated = estimated.detach()
        total = attach(estimated, logits, losses)
        if slopes is not None:
            # As the graph would reach what loss closes over, the slopes are numbers and the graph is made here.
            descent = temperature * slopes[0].detach() + scale * slopes[1].detach()
            total = with_term(total, descent.squeeze((-2, -1)))
            if self.has_network:
                # The network's part of the estimate, with a graph to the network's parameters alone.
                part = sample.gradient(
                    torch.zeros_like(losses),
                    lambda points: self.network(relax(points, frozen, temperature.detach()), context),
                )
                slope = slope_of_variance(estimated, logits)
                total = descend_variance(total, slope, part, logits)
        return total


class Network(nn.Module):
    """``[..., (replicas,) rows, features] -> [..., (replicas,) rows, outputs]``; one network per replica.

    It works in the dtype of its weights, whatever that of its input.

    Args:
        sizes: features, hidden widths, outputs.
        activation: between the layers.
        zero_output: start the last layer at zero, so that the network starts as the constant 0.
    """

    def __init__(
        self, sizes: Sequence[int], activation: Callable[[Tensor], Tensor], replicas: int | None, zero_output: bool
    ) -> None:
        super().__init__()
        self.activation = activation
        stack = () if replicas is None else (replicas,)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            bound = 0.0 if zero_output and layer == len(sizes) - 2 else (6 / (fan_in + fan_out)) ** 0.5
            # Through the library's noise, with a dummy dimension of examples: a replica's weights are from its stream.
            u = noise.uniform(
                (*stack, 1, fan_in, fan_out), dtype=torch.get_default_dtype(), device=torch.device("cpu")
            ).reshape(*stack, fan_in, fan_out)
            self.weights.append(nn.Parameter(((2 * u - 1) * bound).to(torch.get_default_device())))
            self.biases.append(nn.Parameter(torch.zeros(*stack, 1, fan_out)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weights[0].dtype)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight + bias
            if layer < len(self.weights) - 1:
                x = self.activation(x)
        return x
