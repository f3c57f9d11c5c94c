"""The pathwise estimators as functions: ``z = gumbel_softmax(logits, tau, hard)``, for one line in a model.

Each is ``Estimator(options).sample(logits)`` with the categories in any dimension ``dim`` and noise from any
``generator``; formulas, biases and references stand with the classes. ``logits``: floating point, any shape with at
least two categories in ``dim``; no batch is needed. Two categories are a Bernoulli latent, whose bit is the second;
:func:`sample_bits` and :func:`gumbel_sigmoid` take its log-odds instead. The result has the shape and dtype of
``logits`` and a gradient in them.

``generator``: a ``torch.Generator`` on the device of ``logits``, from which all noise comes; ``None``: as for the
classes, that is torch's global one unless :func:`estimators.noise_source` supplies it.

A temperature is a number or a tensor that broadcasts against ``logits`` with the categories moved to the last
dimension, where it has size 1. Each call builds its estimator: :func:`sample` with one that is kept saves that
time. All raise a ``ValueError`` on logits that are not such, on another ``dim`` and on options out of their range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from estimators.base import POSITIVE, Pathwise, check_logits
from estimators.categorical import Number
from estimators.decoupled_straight_through import DecoupledStraightThrough
from estimators.gapped_straight_through import GappedStraightThrough
from estimators.gumbel_rao import GumbelRao
from estimators.gumbel_softmax import GumbelSoftmax
from estimators.noise import noise_source, open_uniform
from estimators.reinmax import ReinMax
from estimators.straight_through import StraightThrough

__all__ = [
    "decoupled_straight_through",
    "gapped_straight_through",
    "gumbel_rao",
    "gumbel_sigmoid",
    "gumbel_softmax",
    "reinmax",
    "sample",
    "sample_bits",
    "straight_through",
]


def sample(estimator: Pathwise, logits: Tensor, dim: int = -1, generator: torch.Generator | None = None) -> Tensor:
    """``estimator.sample(logits)`` with the categories in dimension ``dim``: the form of all functions here.

    Example::

        z = sample(ReinMax(1.1), logits, dim=1)   # logits [batch, categories, height, width]
    """
    name = type(estimator).__name__
    if not isinstance(estimator, Pathwise):
        raise ValueError(
            f"sample: estimator must be a pathwise one such as ReinMax(), not {estimator!r}; others have no samples "
            "with a gradient, use losses = estimator(logits, loss)"
        )
    if not isinstance(logits, Tensor):
        raise ValueError(f"{name}: logits must be a tensor, not {type(logits).__name__}; use torch.as_tensor(logits)")
    if not isinstance(dim, int) or isinstance(dim, bool) or not -logits.dim() <= dim < logits.dim():
        raise ValueError(
            f"{name}: dim must be an integer, a dimension of logits {list(logits.shape)} that holds the categories, "
            f"not {dim}"
        )
    if not logits.is_floating_point():
        raise ValueError(f"{name}: logits must be floating point, not {logits.dtype}; use logits.float()")
    if logits.shape[dim] < 2:
        raise ValueError(
            f"{name}: logits need at least 2 categories in dim={dim}, not {list(logits.shape)}; for Bernoulli latents "
            "by their log-odds use sample_bits or gumbel_sigmoid"
        )
    last = logits.movedim(dim, -1)
    if last.dim() == 1:
        return _drawn(estimator, last.unsqueeze(0), generator).squeeze(0)
    return _drawn(estimator, last, generator).movedim(-1, dim)


def sample_bits(estimator: Pathwise, log_odds: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Bits (or relaxed bits) of Bernoulli latents, of the shape of ``log_odds``, with the gradient of ``estimator``.

    The same as ``estimator.sample(torch.stack([torch.zeros_like(log_odds), log_odds], -1))[..., 1]``.

    Example::

        gate = sample_bits(StraightThrough(), log_odds)   # 0 or 1, differentiable
    """
    if not isinstance(log_odds, Tensor):
        raise ValueError(
            f"{type(estimator).__name__}: log_odds must be a tensor, not {type(log_odds).__name__}; use "
            "torch.as_tensor(log_odds)"
        )
    if not log_odds.is_floating_point():
        raise ValueError(
            f"{type(estimator).__name__}: log_odds must be floating point, not {log_odds.dtype}; use log_odds.float()"
        )
    logits = torch.stack((torch.zeros_like(log_odds), log_odds), dim=-1)
    return sample(estimator, logits, -1, generator)[..., 1]


def gumbel_softmax(
    logits: Tensor, tau: Number = 1.0, hard: bool = False, dim: int = -1, generator: torch.Generator | None = None
) -> Tensor:
    """:class:`estimators.GumbelSoftmax` in the form of ``torch.nn.functional.gumbel_softmax``.

    y = softmax((logits + G) / tau) along ``dim``, or ``one_hot(argmax y)`` with the gradient of y (``hard``).

    Args:
        tau: the temperature, > 0 and finite.
        hard: one-hot samples forward, the relaxed gradient backward.

    Example::

        z = gumbel_softmax(logits, tau=0.5, hard=True)
    """
    return sample(GumbelSoftmax(_tau("gumbel_softmax", tau), hard), logits, dim, generator)


def gumbel_sigmoid(
    log_odds: Tensor, tau: Number = 1.0, hard: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """The binary Concrete relaxation of bits, of the shape of ``log_odds``.

    y = sigmoid((log_odds + L) / tau), L standard logistic, or ``1[y > 1/2]`` with the gradient of y (``hard``).

    Args:
        tau: the temperature, > 0 and finite.
        hard: bits forward, the relaxed gradient backward.

    Example::

        gate = gumbel_sigmoid(log_odds, tau=0.5)   # in [0, 1]
    """
    return sample_bits(GumbelSoftmax(_tau("gumbel_sigmoid", tau), hard), log_odds, generator)


def straight_through(
    logits: Tensor, temperature: Number = 1.0, *, dim: int = -1, generator: torch.Generator | None = None
) -> Tensor:
    """One-hot samples with the gradient of ``softmax(logits / temperature)``: :class:`estimators.StraightThrough`."""
    return sample(StraightThrough(temperature), logits, dim, generator)


def reinmax(
    logits: Tensor, temperature: Number = 1.0, *, dim: int = -1, generator: torch.Generator | None = None
) -> Tensor:
    """One-hot samples with a gradient of second order, ``temperature`` >= 1: :class:`estimators.ReinMax`."""
    return sample(ReinMax(temperature), logits, dim, generator)


def gumbel_rao(
    logits: Tensor,
    temperature: Number = 1.0,
    num_inner: int = 10,
    *,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One-hot samples with the gradient of ``gumbel_softmax(hard=True)``, averaged over ``num_inner`` draws of the
    noise given the sample: :class:`estimators.GumbelRao`."""
    return sample(GumbelRao(temperature, num_inner), logits, dim, generator)


def gapped_straight_through(
    logits: Tensor,
    temperature: Number = 1.0,
    gap: Number | Literal["p"] = 1.0,
    *,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One-hot samples with the gradient of a softmax in which the sampled category leads by ``gap``:
    :class:`estimators.GappedStraightThrough`."""
    return sample(GappedStraightThrough(temperature, gap), logits, dim, generator)


def decoupled_straight_through(
    logits: Tensor,
    forward_temperature: Number = 1.0,
    backward_temperature: Number = 1.0,
    *,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One-hot samples of ``softmax(logits / forward_temperature)`` with the gradient of that at
    ``backward_temperature``: :class:`estimators.DecoupledStraightThrough`."""
    return sample(DecoupledStraightThrough(forward_temperature, backward_temperature), logits, dim, generator)


def _tau(name: str, tau: Number) -> Number:
    if not POSITIVE.holds(tau):
        raise ValueError(f"{name}: tau must be {POSITIVE.words}, not {tau}")
    return tau


def _drawn(estimator: Pathwise, logits: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return estimator.sample(logits)
    if not isinstance(generator, torch.Generator):
        raise ValueError(
            f"{type(estimator).__name__}: generator must be a torch.Generator, not {generator!r}; use "
            f"torch.Generator({logits.device.type!r}).manual_seed(seed)"
        )
    if generator.device.type != logits.device.type:
        raise ValueError(
            f"{type(estimator).__name__}: generator is on {generator.device}, and logits on {logits.device}; use "
            f"torch.Generator({logits.device.type!r})"
        )
    check_logits(type(estimator).__name__, logits)  # in the block it does not look at their numbers

    def source(shape: Sequence[int], dtype: torch.dtype, device: torch.device, event_dims: int) -> Tensor:
        return open_uniform(shape, dtype, device, (generator,))

    with noise_source(source):
        return estimator.sample(logits)
