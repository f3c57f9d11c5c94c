"""Mean and variance of a gradient from independent draws, and its distance from another one, with standard errors.

Squared norms of a mean of n draws are corrected for its noise, of which they contain ``trace / n`` with ``trace`` the
sum of the parameters' variances: what is left may be negative, and is 0 in the mean where there is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Mean = tuple[Tensor, float]
"""A mean gradient ``[parameters]`` and the expected squared norm of its error."""
Statistic = Callable[[Mean, Mean], float]


@dataclass(frozen=True)
class Moments:
    """Of blocks of independent draws of one gradient.

    Attributes:
        means: ``[blocks, parameters]``, each block's mean gradient, float64.
        traces: ``[blocks]``, each block's unbiased estimate of the trace of the covariance of one draw, float64.
        size: draws in a block.
    """

    means: Tensor
    traces: Tensor
    size: int

    @property
    def draws(self) -> int:
        return len(self.means) * self.size

    @property
    def mean(self) -> Mean:
        """The mean of all draws and ``trace / draws``."""
        return self.means.mean(0), self.traces.mean().item() / self.draws

    def variance(self) -> tuple[float, float]:
        """Of one draw, mean over the parameters, and its standard error from the blocks' spread."""
        per_parameter = self.traces / self.means.shape[1]
        error = per_parameter.std() / len(per_parameter) ** 0.5 if len(per_parameter) > 1 else torch.zeros(())
        return per_parameter.mean().item(), error.item()

    def square_error(self) -> float:
        """The standard error of the corrected ``|mean|^2`` if the true mean is 0: ``sqrt(2 tr C^2)``, C the covariance
        of :attr:`mean`. The inner products of two blocks have the variance ``tr (blocks C)^2``."""
        blocks = len(self.means)
        if blocks < 3:
            return math.sqrt(2) * self.mean[1]  # at most: as if all noise were in one direction
        centred = self.means - self.means.mean(0)
        above = torch.triu_indices(blocks, blocks, 1, device=self.means.device)
        products = (centred @ centred.T)[above[0], above[1]]
        return math.sqrt(2) * products.std().item() / blocks

    def without_each(self) -> Iterator[Mean]:
        """:attr:`mean` without each of the blocks in turn; nothing if there is one only."""
        blocks = len(self.means)
        if blocks > 1:
            total, traces = self.means.sum(0), self.traces.sum()
            for mean, trace in zip(self.means, self.traces, strict=True):
                noise = (traces - trace).item() / (blocks - 1) ** 2 / self.size
                yield (total - mean) / (blocks - 1), noise


def known(gradient: Tensor) -> Moments:
    """Of a gradient ``[parameters]`` that has no noise."""
    return Moments(gradient.double()[None], gradient.new_zeros(1, dtype=torch.float64), 1)


def collect(blocks: Iterable[Iterable[Tensor]]) -> Moments:
    """From gradients ``[draws, parameters]``, at least 2 draws in each tensor, and all blocks alike."""
    means, traces, size = [], [], 0
    for block in blocks:
        own = [(len(g), g.double().mean(0), g.var(0).sum(dtype=torch.float64)) for g in block]
        size = sum(draws for draws, *_ in own)
        means.append(sum(draws * mean for draws, mean, _ in own) / size)
        traces.append(sum((draws - 1) * trace for draws, _, trace in own) / (size - len(own)))
    return Moments(torch.stack(means), torch.stack(traces), size)  # type: ignore[arg-type]


def with_error(statistic: Statistic, moments: Moments, reference: Moments) -> tuple[float, float]:
    """The value of ``statistic`` at both means, and its standard error from leaving out each block (jackknife)."""
    here, there = moments.mean, reference.mean
    variance = _jackknife([statistic(mean, there) for mean in moments.without_each()])
    variance += _jackknife([statistic(here, mean) for mean in reference.without_each()])
    return statistic(here, there), math.sqrt(variance)


def _jackknife(values: list[float]) -> float:
    """The variance of a statistic from its values without each block."""
    if not values:
        return 0.0
    middle = sum(values) / len(values)
    return (len(values) - 1) / len(values) * sum((value - middle) ** 2 for value in values)


def square(mean: Mean) -> float:
    """``|E g|^2``, corrected."""
    return mean[0].square().sum().item() - mean[1]


def bias_square(mean: Mean, reference: Mean) -> float:
    """``|E g - r|^2 / |r|^2``, both corrected; NaN where noise covers the reference."""
    norm = square(reference)
    return (square((mean[0] - reference[0], mean[1] + reference[1])) / norm) if norm > 0 else math.nan


def relative_bias(moments: Moments, reference: Moments) -> tuple[float, float]:
    """:func:`bias_square` and its standard error.

    Where the bias is as small as the noise, the jackknife, right or too large in the mean, is too small whenever the
    value is; so the error of a squared norm whose true value is 0 is added to it. By simulation (1 to 50 dimensions,
    with and without bias, with and without noise in the reference) two standard errors below the value exceed the truth
    in at most 3 % of cases, without bias in less than 1 %, and two above it fall short of the truth in at most 10 %.
    """
    value, error = with_error(bias_square, moments, reference)
    norm = square(reference.mean)
    return value, math.hypot(
        error, (moments.square_error() + reference.square_error()) / norm
    ) if norm > 0 else math.nan


def cosine(mean: Mean, reference: Mean) -> float:
    """Of the angle between ``E g`` and ``r``, with corrected norms; NaN where noise covers either."""
    norms = square(mean), square(reference)
    return (mean[0] @ reference[0]).item() / math.sqrt(norms[0] * norms[1]) if min(norms) > 0 else math.nan
