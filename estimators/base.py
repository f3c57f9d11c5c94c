"""The contract of an estimator, written once.

    losses = estimator(logits, loss, context=None)

``logits`` ``[*batch, latents, categories]``: any leading dimensions; a Bernoulli latent has two categories and
``z[..., 1]`` is its bit. ``loss``: a function ``z -> [*batch]``, one value per example, **lower is better**; ``z``
has the shape of ``logits``, possibly with more sample dimensions in front. ``loss`` may close over parameters and over
``logits`` itself; both get their ordinary gradient. ``context``: what an input-dependent baseline may look at.

Returns ``[*batch]``. The **value** is the Monte-Carlo value of ``E_q[loss(z)]``; the **backward** gives the estimated
gradient with respect to ``logits`` and the ordinary one to whatever ``loss`` closes over. Because the value is
preserved, estimators nest: ``outer(logits1, lambda z1: inner(layer2(z1), lambda z2: f(z1, z2)))``.

An estimator never indexes, reduces or counts a dimension that it did not create: replicas, outer samples and examples
are all just leading dimensions. Hyperparameters that are numbers may be tensors that broadcast against ``logits`` (with
a last dimension of 1). Learned parts are parameters of the estimator and get their gradient from the same
``backward()`` through a term whose value is zero, so a caller must minimise.

A second derivative has the exact mean, or it is a ``RuntimeError``: :func:`estimators.gradient_only` refuses it. A loss
that is an integer or a truth value is converted, unless the method differentiates it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from estimators._autograd import in_functorch as in_functorch
from estimators._autograd import score_term, with_term
from estimators.categorical import Number, sample_with_log_prob

Loss = Callable[[Tensor], Tensor]

UNDER_FUNCTORCH = {
    "mutate a captured Tensor": (
        "the loss must not write what it closes over, as BatchNorm in training mode writes its running statistics; use "
        "eval(), track_running_stats=False or another normalisation, or an estimator without such derivatives (NVIL)"
    ),
    "must override the setup_context staticmethod": (
        "the loss must contain no gradient checkpointing, and no torch.autograd.Function without setup_context; leave "
        "it out, or use an estimator without such derivatives (RLOO, NVIL)"
    ),
    "saved tensor hooks": (
        "gradient checkpointing does not work inside of the loss, and needs use_reentrant=True around the estimator; "
        "leave it out, or use an estimator without such derivatives (RLOO, NVIL)"
    ),
}
"""What torch.func says about a loss that it cannot differentiate, and what to do."""


class Estimator(nn.Module, ABC):
    """A gradient estimator of ``E_q[loss(z)]`` for categorical ``z``; see the module's text for the contract.

    What an estimator declares, as data that tests and tables read:

    - ``unbiased``: the mean of the estimated gradient is the exact gradient for every loss;
    - ``exact_for``: if biased, the polynomial degree of the loss in ``z`` up to which the mean is exact, or ``None``;
    - ``objective``: ``"mean"``, E_q[loss(z)], or ``"multi_sample_bound"`` (VIMCO), whose loss is a negative log weight;
    - ``evaluations``: calls of ``loss`` per gradient, counted in samples (:meth:`evaluations_for`, where it depends on
      the shape of the logits);
    - ``needs_gradient``: whether ``loss`` must be differentiable in ``z``;
    - ``binary_only``: whether it works for two categories only;
    - ``rescales``: whether the gradient with respect to ``logits`` comes out divided by a scale, so that other terms on
      the same logits (an analytic KL) would be out of proportion beside it and belong into ``loss``;
    - ``relaxed``: whether the value is the loss of relaxed samples: no estimate of E_q[loss(z)], and no bound if the
      loss is a negative ELBO.
    """

    unbiased: bool
    exact_for: int | None = None
    evaluations: int = 1
    needs_gradient: bool = False
    binary_only: bool = False
    rescales: bool = False
    relaxed: bool = False
    objective: str = "mean"

    @abstractmethod
    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        """The method itself; ``logits`` have been checked and ``loss`` checks what it is given and returns."""

    def evaluations_for(self, logits: Tensor) -> int:
        """Evaluations of ``loss`` per gradient, in samples, for logits of this shape."""
        return self.evaluations

    def forward(self, logits: Tensor, loss: Loss, context: Tensor | None = None) -> Tensor:
        """``[*batch]`` losses: see the contract in :mod:`estimators.base`. Raises ``ValueError`` on bad shapes."""
        self._check_logits(logits)
        if torch.compiler.is_compiling():
            losses = self.estimate(logits, self._checked(loss), context)
        else:
            try:
                losses = self.estimate(logits, self._checked(loss), context)
            except RuntimeError as error:
                if reason := next((why for words, why in UNDER_FUNCTORCH.items() if words in str(error)), None):
                    raise RuntimeError(f"{type(self).__name__} takes derivatives by torch.func: {reason}") from error
                raise
        if losses.shape != logits.shape[:-2]:
            raise ValueError(
                f"{type(self).__name__}: returned shape {list(losses.shape)} instead of [*batch] = "
                f"{list(logits.shape[:-2])}; a hyperparameter that is a tensor broadcasts against logits and meets "
                "losses through estimators.per_example"
            )
        return losses

    def _check_logits(self, logits: Tensor) -> None:
        name = type(self).__name__
        if logits.dim() < 2 or not logits.is_floating_point():
            raise ValueError(
                f"{name}: logits must be floating point [*batch, latents, categories], "
                f"not {logits.dtype} {list(logits.shape)}"
            )
        if logits.shape[-1] < 2:
            raise ValueError(
                f"{name}: logits need at least 2 categories in the last dimension, not {list(logits.shape)}; "
                "a Bernoulli latent with log-odds a is torch.stack([zeros_like(a), a], -1)"
            )
        if self.binary_only and logits.shape[-1] != 2:
            raise ValueError(
                f"{name} is defined for Bernoulli latents (2 categories), not {logits.shape[-1]}; "
                "use REINFORCE, NVIL or GumbelSoftmax for categorical latents"
            )

    def _checked(self, loss: Loss) -> Loss:
        def checked(z: Tensor) -> Tensor:
            losses = loss(z)
            if losses.shape != z.shape[:-2]:
                raise ValueError(
                    f"{type(self).__name__}: loss must return one value per example, {list(z.shape[:-2])} for z of "
                    f"{list(z.shape)}, but it returned {list(losses.shape)}; do not reduce over examples or samples"
                )
            if losses.is_floating_point():
                return losses
            if losses.is_complex():
                raise ValueError(f"{type(self).__name__}: loss must return real numbers, not {losses.dtype}")
            if self.needs_gradient:
                raise ValueError(
                    f"{type(self).__name__} differentiates the loss, and one of {losses.dtype} has no derivative; "
                    "return floating point numbers, or use REINFORCE, NVIL or RLOO, which need none"
                )
            return losses.to(z.dtype)  # rewards of 0 and 1, counts

        return checked

    def _number(self, name: str, value: Number) -> Number:
        """A hyperparameter that may be a tensor: a plain one becomes a buffer, so that it moves with the module."""
        if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
            return value
        if value.dim() > 0 and value.shape[-1] != 1:
            raise ValueError(
                f"{type(self).__name__}: {name} must broadcast against logits with a last dimension of 1, for instance "
                f"[replicas, 1, 1, 1], not {list(value.shape)}"
            )
        return nn.Buffer(value)

    def _positive(self, name: str, value: Number) -> Number:
        """As :meth:`_number`, for a hyperparameter that must be positive and finite."""
        checked = numbers(value)
        if not bool(((checked > 0) & checked.isfinite()).all()):
            raise ValueError(f"{type(self).__name__}: {name} must be positive and finite, not {checked.tolist()}")
        return self._number(name, value)

    def _decay(self, value: Number) -> Number:
        """As :meth:`_number`, for the decay of a moving average, in [0, 1)."""
        checked = numbers(value)
        if not bool(((checked >= 0) & (checked < 1)).all()):
            raise ValueError(f"{type(self).__name__}: decay must be in [0, 1), not {checked.tolist()}")
        return self._number("decay", value)


class Pathwise(Estimator):
    """Estimators that differentiate ``loss`` at a (relaxed or hard) sample: implement :meth:`sample`.

    gradient = d loss(sample(logits)) / d logits, by the chain rule through the sample.
    """

    unbiased = False
    needs_gradient = True

    @abstractmethod
    def sample(self, logits: Tensor) -> Tensor:
        """``z`` of the shape of ``logits`` with a gradient: a drop-in for ``torch.nn.functional.gumbel_softmax``."""

    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        return loss(self.sample(logits))


class ScoreFunction(Estimator):
    """Estimators of the form ``signal * grad log q(z)`` with one exact sample: implement :meth:`signal`.

    gradient = (loss(z) - baseline) * d log q(z) / d logits  +  d loss(z) / d logits  (what ``loss`` closes over).

    Second derivatives have the exact mean, too, if the estimator is ``unbiased`` and does not rescale.
    """

    unbiased = True

    @abstractmethod
    def signal(self, losses: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """From detached ``losses`` ``[*batch]``: the factor of the score, and a loss for learned parts or ``None``."""

    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        z, log_prob = sample_with_log_prob(logits)
        losses = loss(z)
        signal, learned = self.signal(losses.detach(), context)
        if self.unbiased and not self.rescales:
            total = score_term(losses, signal, log_prob)
        else:
            dtype = torch.promote_types(losses.dtype, log_prob.dtype)
            total = with_term(losses.to(dtype), signal.detach() * log_prob)
        return total if learned is None else with_term(total, learned)


def numbers(value: Number) -> Tensor:
    """``value`` to be looked at, whatever the default device; of a tensor on the meta device there are none."""
    if isinstance(value, Tensor) and value.is_meta:
        return torch.empty(0, device="cpu")
    return torch.as_tensor(value, device="cpu")


def per_example(value: Number) -> Number:
    """A hyperparameter that broadcasts against ``logits``, reshaped to broadcast against ``[*batch]`` losses."""
    if isinstance(value, Tensor) and value.dim() > 0:
        return value.reshape(value.shape[:-2]) if value.dim() > 2 else value.reshape(())
    return value
