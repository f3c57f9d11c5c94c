"""torch's distributions of discrete variables with a gradient estimator: ``z = distribution.rsample()``.

``OneHotCategorical(logits=logits, estimator=ReinMax())`` and ``Bernoulli(logits=log_odds, estimator=ReinMax())`` are
the classes of ``torch.distributions`` of the same name, with their shapes, ``log_prob``, ``entropy``, ``expand``,
``Independent`` and ``kl_divergence``; ``estimator`` says how :meth:`rsample` is differentiated. All noise is that of
:func:`estimators.uniform`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributions

from estimators import functional
from estimators._autograd import carried
from estimators._surrogate import finite
from estimators.base import BlackBox, Estimator, Pathwise
from estimators.straight_through import StraightThrough

__all__ = ["Bernoulli", "OneHotCategorical"]

EXACT = StraightThrough()
"""Whose samples, without their gradient, are exact."""


class OneHotCategorical(distributions.OneHotCategorical):
    r"""One-hot ``z`` ``[*batch, categories]``, the last dimension the event's, with a gradient estimator.

    Args:
        probs: ``[*batch, categories]``, at least 0; normalised. Either these
        logits: or these ``[*batch, categories]``, log-probabilities up to a constant; -inf for impossible categories.
        estimator: any; a pathwise one gives :meth:`rsample`.
        validate_args: as for torch's class.

    Raises:
        ValueError: on parameters that torch's class refuses, and on an ``estimator`` that is none.

    Example::

        q = OneHotCategorical(logits=logits, estimator=ReinMax())   # in place of OneHotCategoricalStraightThrough
        z = torch.distributions.Independent(q, 1).rsample()
    """

    def __init__(
        self,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        *,
        estimator: Estimator,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(probs, logits, validate_args)  # type: ignore[no-untyped-call]
        self.estimator = _instance(type(self).__name__, estimator)
        # As given: torch normalises logits, and its logarithm of a probability of 0 is finite.
        self._given = _logarithm(self.probs) if logits is None else logits.expand(self._extended_shape())

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether ``estimator`` is pathwise."""
        return isinstance(self.estimator, Pathwise)

    def expand(self, batch_shape: Any, _instance: Any = None) -> OneHotCategorical:
        new = self._get_checked_instance(OneHotCategorical, _instance)
        new.estimator, new._given = self.estimator, self._given.expand(*batch_shape, *self.event_shape)
        return super().expand(batch_shape, _instance=new)  # type: ignore[no-untyped-call,no-any-return]

    def log_prob(self, value: Tensor) -> Tensor:
        """``value . log q`` ``[*sample_shape, *batch]``, with the gradient ``log q`` in ``value``.

        torch's class reads the logits by index: a sample of :meth:`rsample` then gets no gradient of ``log q(z)`` or
        ``log p(z)``, which an ELBO with sampled densities needs.
        """
        exact: Tensor = super().log_prob(value)  # type: ignore[no-untyped-call]
        if not value.requires_grad:
            return exact
        return exact + (carried(value) * finite(self.logits)).sum(dim=-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Exact one-hot samples ``[*sample_shape, *batch, categories]`` without a gradient, whatever the estimator."""
        with torch.no_grad():
            return functional.sample(EXACT, self._given.expand(self._extended_shape(sample_shape)))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """``estimator.sample`` of as many: one-hot, or relaxed if the estimator's samples are, with its gradient.

        Raises:
            NotImplementedError: if the estimator is not pathwise.
        """
        estimator = _pathwise(self.estimator, "distribution.logits")
        return functional.sample(estimator, self._given.expand(self._extended_shape(sample_shape)))


class Bernoulli(distributions.Bernoulli):
    r"""Bits ``[*batch]`` with a gradient estimator.

    Args:
        probs: of the bit 1, in [0, 1]. Either these
        logits: or their log-odds.
        estimator: any; a pathwise one gives :meth:`rsample`.
        validate_args: as for torch's class.

    Raises:
        ValueError: on parameters that torch's class refuses, and on an ``estimator`` that is none.

    Example::

        gate = Bernoulli(logits=log_odds, estimator=StraightThrough()).rsample()   # 0 or 1, differentiable
    """

    def __init__(
        self,
        probs: Tensor | float | None = None,
        logits: Tensor | float | None = None,
        *,
        estimator: Estimator,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(probs, logits, validate_args)  # type: ignore[no-untyped-call]
        self.estimator = _instance(type(self).__name__, estimator)
        self._given = _log_odds(self.probs) if logits is None else self.logits

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether ``estimator`` is pathwise."""
        return isinstance(self.estimator, Pathwise)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Bernoulli:
        new = self._get_checked_instance(Bernoulli, _instance)
        new.estimator, new._given = self.estimator, self._given.expand(batch_shape)
        return super().expand(batch_shape, _instance=new)  # type: ignore[no-untyped-call,no-any-return]

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Exact bits ``[*sample_shape, *batch]`` without a gradient, whatever the estimator."""
        with torch.no_grad():
            return functional.sample_bits(EXACT, self._given.expand(self._extended_shape(sample_shape)))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Bits of ``estimator.sample``, relaxed if its samples are, with its gradient.

        Raises:
            NotImplementedError: if the estimator is not pathwise.
        """
        estimator = _pathwise(self.estimator, "torch.stack([torch.zeros_like(log_odds), log_odds], -1)")
        return functional.sample_bits(estimator, self._given.expand(self._extended_shape(sample_shape)))


def _instance(name: str, estimator: Estimator) -> Estimator:
    if not isinstance(estimator, Estimator):
        raise ValueError(f"{name}: estimator must be an estimator such as ReinMax(), not {estimator!r}")
    return estimator


def _pathwise(estimator: Estimator, logits: str) -> Pathwise:
    """``estimator``, or the sentence that says what there is in place of :meth:`rsample`."""
    if isinstance(estimator, Pathwise):
        return estimator
    name = type(estimator).__name__
    form = f"losses = estimator({logits}, loss)"
    if isinstance(estimator, BlackBox):
        form = f"z, pending = estimator.propose({logits}) and pending.surrogate(losses)"
    raise NotImplementedError(
        f"{name} has no rsample, its gradient is not one through the sample: use {form} with logits [*batch, latents, "
        "categories], or a pathwise estimator such as ReinMax()"
    )


def _logarithm(p: Tensor) -> Tensor:
    """``log p``, -inf with a gradient of 0 where ``p`` is 0."""
    possible = p > 0
    return torch.where(possible, torch.where(possible, p, 1.0).log(), -torch.inf)


def _log_odds(p: Tensor) -> Tensor:
    """``log p / (1 - p)``, infinite with a gradient of 0 where ``p`` is 0 or 1."""
    inside = (p > 0) & (p < 1)
    sure = torch.where(p > 0, torch.inf, -torch.inf).to(p.dtype)
    return torch.where(inside, torch.where(inside, p, 0.5).logit(), sure)
