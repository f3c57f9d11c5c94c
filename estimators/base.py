"""The contract of an estimator, written once.

    losses = estimator(logits, loss, context=None)

``logits`` ``[*batch, latents, categories]``: any leading dimensions; a Bernoulli latent has two categories and
``z[..., 1]`` is its bit. ``loss``: a function ``z -> [*batch]``, one value per example, **lower is better**; ``z``
has the shape of ``logits``, possibly with more sample dimensions in front. ``loss`` may close over parameters and over
``logits`` itself; both get their ordinary gradient. ``context``: what an input-dependent baseline may look at.

With sample dimensions in front a layer that takes dimension 1 for its features (``BatchNorm1d``, ``GroupNorm``, a
convolution) takes that of the examples: flatten around it, ``x.flatten(0, -2)`` and ``.unflatten(0, z.shape[:-2])``.
The call says so where torch complains or, the first time that there is a graph, where that shows it; a compiled call
does not look. Batch normalisation in training mode makes an example's loss depend on other samples and examples, for
which no estimator is unbiased.

``logits`` are finite, but for -inf at impossible categories. A state of probability 0 counts as 0, whatever the loss is
there. A latent without a possible category, or with one of several at +inf, is a ``ValueError`` where looking costs
nothing (:func:`check_logits`); NaN stays with its example.

Where the losses are no function of ``z`` (an environment's), a call has two phases: :meth:`Estimator.propose`.

Returns ``[*batch]``. The **value** is the Monte-Carlo value of ``E_q[loss(z)]``; the **backward** gives the estimated
gradient with respect to ``logits`` and the ordinary one to whatever ``loss`` closes over. Because the value is
preserved, estimators nest: ``outer(logits1, lambda z1: inner(layer2(z1), lambda z2: f(z1, z2)))``.

An estimator never indexes, reduces or counts a dimension that it did not create: replicas, outer samples and examples
are all just leading dimensions. Hyperparameters that are numbers may be tensors that broadcast against ``logits`` (with
a last dimension of 1). Learned parts are parameters of the estimator and get their gradient from the same
``backward()`` through a term whose value is zero, so a caller must minimise.

Under autocast ``loss`` runs as the caller's code does, and the estimator's own mathematics without it: ``z`` has the
dtype of ``logits``, on every device.

A second derivative has the exact mean, or it is a ``RuntimeError``: :func:`estimators.gradient_only` refuses it. A loss
that is an integer or a truth value is converted, unless the method differentiates it.
"""

from __future__ import annotations

import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from estimators import noise
from estimators._autograd import in_functorch as in_functorch
from estimators._autograd import may_look, score_term, with_term
from estimators._enumeration import expectation, multi_sample_bound
from estimators._sample_dimensions import explanation, misplaced
from estimators.categorical import Number, is_binary, sample_with_log_prob, scores

Loss = Callable[[Tensor], Tensor]
Surrogate = Callable[[Tensor], Tensor]
"""``[*samples, *batch]`` losses of samples -> ``[*batch]`` losses with the estimator's gradient."""

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


@dataclass(frozen=True)
class Range:
    """The numbers that a hyperparameter may have, between ``low`` and ``high`` (``closed``: which of them it may be).

    ``words`` complete "must be", ``hint`` says what to use instead; NaN is in no range.
    """

    words: str
    low: float = -math.inf
    high: float = math.inf
    closed: tuple[float, ...] = ()
    hint: str = ""

    def holds(self, value: Number) -> bool:
        """Whether all of ``value`` is in the range."""
        x = numbers(value)
        inside = (x > self.low) & (x < self.high)
        for end in self.closed:
            inside = inside | (x == end)
        return bool(inside.all())


FINITE = Range("finite")
POSITIVE = Range("positive and finite", low=0)
DECAY = Range("in [0, 1)", low=0, high=1, closed=(0,))


FAMILIES = (
    "enumeration",
    "score function",
    "multi-sample",
    "coupled samples",
    "control variate",
    "first order",
    "relaxation",
    "straight-through",
)
"""How the methods here work."""


class Estimator(nn.Module, ABC):
    """A gradient estimator of ``E_q[loss(z)]`` for categorical ``z``; see the module's text for the contract.

    What an estimator declares, as data that tests and tables read:

    - ``unbiased``: the mean of the estimated gradient is the exact gradient for every loss;
    - ``exact_for``: if biased, the polynomial degree of the loss in ``z`` up to which the mean is exact, or ``None``;
    - ``family``: a word for how it works, one of ``FAMILIES`` or your own; figures have a colour for each;
    - ``objective``: ``"mean"``, E_q[loss(z)], or ``"multi_sample_bound"`` (:class:`MultiSample`), whose loss is a
      negative log weight; what its exact value is says :meth:`expected`;
    - ``nests``: whether layers nest, each with its own estimator: not where the value is not linear in ``loss``;
    - ``stochastic``: whether its gradient is a draw; an enumeration has no variance, and two draws show that;
    - ``evaluations``: calls of ``loss`` per gradient, counted in samples (:meth:`evaluations_for`, where it depends on
      the shape of the logits);
    - ``needs_gradient``: whether ``loss`` must be differentiable in ``z``;
    - ``binary_only``: whether it works for two categories only;
    - ``rescales``: whether the gradient with respect to ``logits`` comes out divided by a scale, so that other terms on
      the same logits (an analytic KL) would be out of proportion beside it and belong into ``loss``;
    - ``tempered``: the argument of the constructor, and attribute, that is a temperature, over which certificates
      measure the bias, or ``None``; ``inverse_temperature``: whether it is one over a temperature, a sharpness;
    - ``relaxed``: whether the value is the loss of relaxed samples: no estimate of E_q[loss(z)], and no bound if the
      loss is a negative ELBO.

    :meth:`skip` says what it cannot be used for, and :meth:`examples` how tests, certificates and tables build it.
    """

    family: str = "other"
    unbiased: bool
    exact_for: int | None = None
    evaluations: int = 1
    needs_gradient: bool = False
    binary_only: bool = False
    rescales: bool = False
    relaxed: bool = False
    tempered: str | None = None
    inverse_temperature: bool = False
    objective: str = "mean"
    nests: bool = True
    stochastic: bool = True

    @classmethod
    def skip(
        cls,
        latents: int,
        categories: int,
        layers: int = 1,
        *,
        options: Mapping[str, Any] = MappingProxyType({}),
        kl: str | None = None,
        task: str = "the task",
    ) -> str | None:
        """Why it cannot train a problem of this form, to be read after its name; ``None`` if it can.

        A subclass that cannot do more asks this one, too: ``super().skip(latents, categories, layers, **others)``.

        Args:
            latents: of each layer.
            categories: of each latent.
            layers: each of which has its own estimator, nested in that of the layer before.
            options: the arguments of the constructor, those that are not its defaults at least.
            kl: where the KL is, beside the loss: ``"analytic"``, ``"sampled"`` or ``"relaxed"`` (of relaxed samples
                and their Concrete density); ``None`` if the loss is all there is.
            task: what the sentence calls the problem.
        """
        if cls.binary_only and categories != 2:
            return (
                f"is defined for Bernoulli latents, but {task} has {categories} categories; "
                "use a task with task.categories=2, such as vae_bernoulli"
            )
        if not cls.nests and layers > 1:
            return (
                f"trains a multi-sample bound, whose gradient does not nest: with the {layers} layers of "
                f"{task} it would be wrong; use task.layers=1, or rloo"
            )
        if kl == "relaxed" and not cls._has_density(options):
            return (
                "has no relaxed samples with a Concrete density, which task.kl=relaxed needs: use "
                "estimator=gumbel_softmax with estimator.hard=false, or task.kl=auto"
            )
        return None

    @classmethod
    def _has_density(cls, options: Mapping[str, Any]) -> bool:
        """Whether it shows the loss relaxed samples, whose density it knows, with these options."""
        return False

    @classmethod
    def examples(
        cls, latents: int = 2, categories: int = 2, context_features: int | None = None
    ) -> dict[str, dict[str, Any]]:
        """Arguments of the constructor for logits of this shape, by the name of the variant, ``""`` for the default.

        Every one is held to the contract and has a row in certificates and tables. By default those of the
        three that the constructor takes.
        """
        shape = {"latents": latents, "categories": categories, "context_features": context_features}
        taken = inspect.signature(cls).parameters
        return {"": {name: value for name, value in shape.items() if name in taken and value is not None}}

    def expected(self, logits: Tensor, loss: Loss) -> Tensor | None:
        """The objective's exact value ``[*batch]``, by enumeration; ``None`` for an objective that is not known.

        Its gradient is the mean of an unbiased estimate. Memory grows with the ``categories**latents`` joint states.
        """
        return expectation(logits, loss) if self.objective == "mean" else None

    @abstractmethod
    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        """The method itself; ``logits`` have been checked and ``loss`` checks what it is given and returns."""

    def evaluations_for(self, logits: Tensor) -> int:
        """Evaluations of ``loss`` per gradient, in samples, for logits of this shape."""
        return self.evaluations

    if TYPE_CHECKING:  # of a module's call torch's own types say nothing

        def __call__(self, logits: Tensor, loss: Loss, context: Tensor | None = None) -> Tensor: ...

    def forward(self, logits: Tensor, loss: Loss, context: Tensor | None = None) -> Tensor:
        """``[*batch]`` losses: see the contract in :mod:`estimators.base`. Raises ``ValueError`` on bad shapes."""
        loss = self._checked(in_callers_precision(loss, logits.device.type), logits)
        with own_precision(logits.device.type):
            self._check_logits(logits)
            losses = self._estimate(logits, loss, context)
        return self._of_examples(losses, logits.shape[:-2])

    def propose(self, logits: Tensor, context: Tensor | None = None) -> tuple[Tensor, Pending]:
        """The call in two phases, for losses that are no function of ``z``: an environment's, another process'.

        Only of estimators that need no derivative of the loss (:class:`BlackBox`); gradient and value are those of
        the call on the same noise.

        Returns:
            ``z`` as ``loss`` would get it, ``[*samples, *batch, latents, categories]`` without a gradient, and what
            waits for its losses (:class:`Pending`).

        Raises:
            ValueError: as a call does, and for an estimator that has no such form.

        Example::

            z, pending = RLOO(4).propose(logits)
            losses = pending.surrogate(-environment.rewards(z))   # [4, *batch] -> [*batch]; lower is better
            losses.mean().backward()
        """
        reason = (
            "differentiates the loss, which has to be a function then"
            if self.needs_gradient
            else "writes estimate itself, where an estimators.BlackBox writes draw"
        )
        raise ValueError(
            f"{type(self).__name__} {reason}: use losses = estimator(logits, loss), or propose of REINFORCE, NVIL or "
            "RLOO, which need nothing but the losses of samples"
        )

    def _of_examples(self, losses: Tensor, batch: torch.Size) -> Tensor:
        if losses.shape != batch:
            raise ValueError(
                f"{type(self).__name__}: returned shape {list(losses.shape)} instead of [*batch] = {list(batch)}; "
                "a hyperparameter that is a tensor broadcasts against logits and meets losses through "
                "estimators.per_example"
            )
        return losses

    def _estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        if torch.compiler.is_compiling():
            return self.estimate(logits, loss, context)
        try:
            return self.estimate(logits, loss, context)
        except RuntimeError as error:
            if reason := next((why for words, why in UNDER_FUNCTORCH.items() if words in str(error)), None):
                raise RuntimeError(f"{type(self).__name__} takes derivatives by torch.func: {reason}") from error
            raise

    def _check_logits(self, logits: Tensor) -> None:
        name = type(self).__name__
        check_logits(name, logits)
        if self.binary_only and logits.shape[-1] != 2:
            raise ValueError(
                f"{name} is defined for Bernoulli latents (2 categories), not {logits.shape[-1]}; "
                "use REINFORCE, NVIL or GumbelSoftmax for categorical latents"
            )

    def _checked(self, loss: Loss, logits: Tensor) -> Loss:
        def checked(z: Tensor) -> Tensor:
            losses = self._with_samples_in_front(loss, z, logits) if z.dim() > logits.dim() else loss(z)
            losses = self._one_per_example(losses, z.shape, z.dtype, ("loss must return", "returned"))
            if self.needs_gradient and z.requires_grad and torch.is_grad_enabled() and not losses.requires_grad:
                raise ValueError(
                    f"{type(self).__name__} differentiates the loss, and this one does not depend on z by a graph: it "
                    "detaches z or leaves torch; return what is computed from z itself, or use REINFORCE, NVIL or "
                    "RLOO, which need no derivative"
                )
            return losses

        return checked

    def _one_per_example(self, losses: Tensor, shape: torch.Size, dtype: torch.dtype, words: tuple[str, str]) -> Tensor:
        """``losses`` of ``z`` of this shape and dtype, converted if they are integers; ``words`` say whose they are."""
        must, did = words
        if losses.shape != shape[:-2]:
            raise ValueError(
                f"{type(self).__name__}: {must} one value per example, {list(shape[:-2])} for z of {list(shape)}, but "
                f"it {did} {list(losses.shape)}; do not reduce over examples or samples"
            )
        if losses.is_floating_point():
            return losses
        if losses.is_complex():
            raise ValueError(f"{type(self).__name__}: {must} real numbers, not {losses.dtype}")
        if self.needs_gradient:
            raise ValueError(
                f"{type(self).__name__} differentiates the loss, and one of {losses.dtype} has no derivative; "
                "return floating point numbers, or use REINFORCE, NVIL or RLOO, which need none"
            )
        return losses.to(dtype)  # rewards of 0 and 1, counts

    def _with_samples_in_front(self, loss: Loss, z: Tensor, logits: Tensor) -> Tensor:
        """``loss(z)``; a ``ValueError`` if a normalising layer in it takes the wrong dimension for its features."""
        name = type(self).__name__
        try:
            losses = loss(z)
        except (RuntimeError, ValueError) as error:
            sentence = explanation(name, error, z)
            if sentence is None:
                raise
            raise ValueError(sentence) from error
        # Once: the graph tells, and walking it costs as much as a small loss.
        if not torch.compiler.is_compiling() and not self.__dict__.get("_graph_seen"):
            sentence = misplaced(name, losses, z, logits)
            if sentence is not None:
                raise ValueError(sentence)
            self.__dict__["_graph_seen"] = losses.requires_grad
        return losses

    def _number(self, name: str, value: Number, allowed: Range = FINITE) -> Number:
        """The hyperparameter of this name, a number in the range ``allowed`` or a tensor of such.

        A plain tensor becomes a buffer, so that it moves with the module. What is assigned to the attribute later is
        held to the same, and a plain number is in the ``state_dict`` as a buffer is. What is written into a tensor in
        place is not looked at.

        Raises:
            ValueError: on a number out of range, and for a tensor that has one value per category.
        """
        self.__dict__.setdefault("_ranges", {})[name] = allowed
        return self._within(name, value, allowed)

    def _positive(self, name: str, value: Number) -> Number:
        """As :meth:`_number`, for a hyperparameter that must be positive and finite."""
        return self._number(name, value, POSITIVE)

    def gradient_scale(self) -> Tensor | None:
        """What the next call divides the gradient with respect to ``logits`` by, ``[]`` or ``[replicas, 1]``; ``None``
        if it divides by nothing."""
        return None

    def _decay(self, value: Number) -> Number:
        """As :meth:`_number`, for the decay of a moving average, in [0, 1)."""
        return self._number("decay", value, DECAY)

    def _within(self, name: str, value: Number, allowed: Range) -> Number:
        if not allowed.holds(value):
            given = value.tolist() if isinstance(value, Tensor) else value
            sentence = f"{name.removeprefix('fixed_')} must be {allowed.words}, not {given}"
            raise ValueError(f"{type(self).__name__}: {sentence}{'; ' * bool(allowed.hint)}{allowed.hint}")
        if isinstance(value, nn.Parameter):
            return value
        if not isinstance(value, Tensor):
            before = self._buffers.get(name)
            return value if before is None else nn.Buffer(torch.full_like(before, value))
        if value.dim() > 0 and value.shape[-1] != 1:
            raise ValueError(
                f"{type(self).__name__}: {name} must broadcast against logits with a last dimension of 1, for instance "
                f"[replicas, 1, 1, 1], not {list(value.shape)}"
            )
        return nn.Buffer(value)

    def __setattr__(self, name: str, value: Any) -> None:
        allowed = self.__dict__.get("_ranges", {}).get(name)
        if allowed is not None and isinstance(value, int | float | Tensor):
            value = self._within(name, value, allowed)
            if isinstance(value, Tensor):  # torch registers none under the name of an attribute
                self.__dict__.pop(name, None)
        super().__setattr__(name, value)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars:  # which asks for the tensors themselves
            for name in self.__dict__.get("_ranges", ()):
                value = self.__dict__.get(name)
                if isinstance(value, int | float):
                    destination[prefix + name] = torch.tensor(value, dtype=torch.float64, device="cpu")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        _, _, errors = lists
        own = {prefix + name: name for name in self.__dict__.get("_ranges", ()) if name in self.__dict__}
        rest = {key: value for key, value in state_dict.items() if key not in own}
        super()._load_from_state_dict(rest, prefix, metadata, strict, *lists)
        for key in own.keys() & state_dict.keys():
            saved = state_dict[key]
            try:
                setattr(self, own[key], saved.item() if saved.numel() == 1 else saved)
            except ValueError as error:
                errors.append(str(error))


class Pathwise(Estimator):
    """Estimators that differentiate ``loss`` at a (relaxed or hard) sample: implement :meth:`sample`.

    gradient = d loss(sample(logits)) / d logits, by the chain rule through the sample.

    ``sample`` of a subclass checks its logits as a call does.
    """

    family = "straight-through"
    unbiased = False
    needs_gradient = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        sample = cls.__dict__.get("sample")
        if sample is not None:

            @functools.wraps(sample)
            def checked(self: Pathwise, logits: Tensor) -> Tensor:
                with own_precision(logits.device.type):
                    self._check_logits(logits)
                    return sample(self, logits)

            cls.sample = checked  # type: ignore[method-assign]

    @abstractmethod
    def sample(self, logits: Tensor) -> Tensor:
        """``z`` of the shape of ``logits`` with a gradient: a drop-in for ``torch.nn.functional.gumbel_softmax``."""

    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        return loss(self.sample(logits))


class BlackBox(Estimator):
    """Estimators that need only the losses of samples, not the loss itself: implement :meth:`draw`.

    They have a second form for losses that are no function of ``z``, :meth:`propose`.
    """

    @abstractmethod
    def draw(self, logits: Tensor, context: Tensor | None) -> tuple[Tensor, Surrogate]:
        """Samples ``z`` ``[*samples, *batch, latents, categories]``, and the function that takes their losses
        ``[*samples, *batch]`` to ``[*batch]`` losses with the gradient: the method itself, in two halves."""

    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        z, surrogate = self.draw(logits, context)
        losses = loss(z)
        del z  # which may be most of the memory
        return surrogate(losses)

    def propose(self, logits: Tensor, context: Tensor | None = None) -> tuple[Tensor, Pending]:
        if self.needs_gradient or type(self).estimate is not BlackBox.estimate:
            return super().propose(logits, context)
        with own_precision(logits.device.type):
            self._check_logits(logits)
            z, surrogate = self.draw(logits, context)
        return z, Pending(self, z, logits, surrogate)


class Pending:
    """Samples whose losses are still to come, from :meth:`Estimator.propose`."""

    def __init__(self, estimator: Estimator, z: Tensor, logits: Tensor, surrogate: Surrogate) -> None:
        self._estimator = estimator
        self._z = z.shape, z.dtype
        self._batch, self._device = logits.shape[:-2], logits.device.type
        self._without_graph = logits.requires_grad and not torch.is_grad_enabled()
        self._surrogate: Surrogate | None = surrogate

    def surrogate(self, losses: Tensor) -> Tensor:
        """``[*batch]`` losses with the estimator's gradient, as the call returns them.

        Once: learned baselines and moving averages take the losses in.

        Args:
            losses: of the samples ``z``, ``[*samples, *batch]``, lower is better (a reward with its sign changed).
                They need no graph; one that they have gets its ordinary gradient.

        Raises:
            ValueError: on losses of another shape, after which the right ones may follow, and if ``propose`` ran
                without gradients.
            RuntimeError: when it is called again.
        """
        name = type(self._estimator).__name__
        if self._surrogate is None:
            raise RuntimeError(f"{name}: these samples have had their losses; propose gives new ones")
        if not isinstance(losses, Tensor):
            raise ValueError(
                f"{name}: surrogate must be given a tensor of losses, not {type(losses).__name__}; use "
                "torch.as_tensor(losses, device=z.device)"
            )
        if self._without_graph and torch.is_grad_enabled():
            raise ValueError(
                f"{name}: propose was called under torch.no_grad, so that the logits would get no gradient; call it "
                "outside, its samples have none anyway"
            )
        words = ("surrogate must be given", "was given")
        losses = self._estimator._one_per_example(losses, *self._z, words)
        surrogate, self._surrogate = self._surrogate, None
        with own_precision(self._device):
            return self._estimator._of_examples(surrogate(losses), self._batch)


class ScoreFunction(BlackBox):
    """Estimators of the form ``signal * grad log q(z)`` with one exact sample: implement :meth:`signal`.

    gradient = (loss(z) - baseline) * d log q(z) / d logits  +  d loss(z) / d logits  (what ``loss`` closes over).

    Second derivatives have the exact mean, too, if the estimator is ``unbiased`` and does not rescale.
    """

    family = "score function"
    unbiased = True

    @abstractmethod
    def signal(self, losses: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """From detached ``losses`` ``[*batch]``: the factor of the score, and a loss for learned parts or ``None``."""

    def draw(self, logits: Tensor, context: Tensor | None) -> tuple[Tensor, Surrogate]:
        z, log_prob = sample_with_log_prob(logits)

        def surrogate(losses: Tensor) -> Tensor:
            signal, learned = self.signal(losses.detach(), context)
            if self.unbiased and not self.rescales:
                total = score_term(losses, signal, log_prob)
            else:
                dtype = torch.promote_types(losses.dtype, log_prob.dtype)
                total = with_term(losses.to(dtype), signal.detach() * log_prob)
            return total if learned is None else with_term(total, learned).to(total.dtype)

        return z, surrogate


class MultiSample(BlackBox):
    r"""Estimators of the multi-sample (importance-weighted) bound by S independent samples: implement :meth:`signals`.

    value = -Lhat,  Lhat = log 1/S sum_s w_s,  w_s = exp(-loss(z_s)),  z_1..z_S ~ q independent;
    gradient = -sum_s signal_s * d log q(z_s) / d logits  -  sum_s w_s / (sum_t w_t) * d log w_s.

    **Another objective than that of the other estimators**: ``loss`` must be a negative log weight, that is
    ``-(log p(x, z) - log q(z))``, sampled and not with an analytic KL, and the value is the negative
    importance-weighted bound, not ``E_q[loss(z)]``. ``unbiased`` refers to that bound. ``loss`` is called once with
    ``z`` ``[num_samples, *batch, latents, categories]`` and must broadcast over the leading dimension.

    Args:
        num_samples: S >= 1, which is also the number of loss evaluations.

    Reference: Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders", arXiv 1509.00519.
    """

    family = "multi-sample"
    unbiased = True
    objective = "multi_sample_bound"
    nests = False

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.num_samples = self.evaluations = num_samples

    @classmethod
    def skip(
        cls, latents: int, categories: int, layers: int = 1, *, kl: str | None = None, **others: Any
    ) -> str | None:
        """As of any, and the KL must be part of the log weight."""
        reason = super().skip(latents, categories, layers, kl=kl, **others)
        if reason is None and kl == "analytic":
            return (
                "trains a multi-sample bound, which holds the KL at the samples: with task.kl=analytic the objective "
                "would be no bound; use task.kl=auto"
            )
        return reason

    def expected(self, logits: Tensor, loss: Loss) -> Tensor:
        """``-E[Lhat]`` ``[*batch]``, by enumeration of all multisets of ``num_samples`` joint states."""
        return multi_sample_bound(logits, loss, self.num_samples)

    @abstractmethod
    def signals(self, log_weight: Tensor, bound: Tensor) -> Tensor:
        """The factor of each sample's score, ``[S, *batch]``, from detached ``log w_s`` and Lhat ``[*batch]``."""

    def draw(self, logits: Tensor, context: Tensor | None) -> tuple[Tensor, Surrogate]:
        z, log_prob = sample_with_log_prob(logits.expand(self.num_samples, *logits.shape))

        def surrogate(losses: Tensor) -> Tensor:
            log_weight = -losses
            bound = log_weight.logsumexp(dim=0) - math.log(self.num_samples)
            signals = self.signals(log_weight.detach(), bound.detach())
            return -with_term(bound, (signals * log_prob).sum(dim=0))

        return z, surrogate


def own_precision(device: str) -> AbstractContextManager[Any]:
    """A block without autocast: which operations it has in float32 differs between devices."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def in_callers_precision(loss: Loss, device: str) -> Loss:
    """``loss`` to be called in such a block, with the autocast that is outside of it."""
    if not torch.is_autocast_enabled(device):
        return loss
    dtype = torch.get_autocast_dtype(device)

    def as_outside(z: Tensor) -> Tensor:
        with torch.autocast(device, dtype=dtype):
            return loss(z)

    return as_outside


def per_example(value: Number) -> Number:
    """A hyperparameter that broadcasts against ``logits``, reshaped to broadcast against ``[*batch]`` losses."""
    if isinstance(value, Tensor) and value.dim() > 0:
        return value.reshape(value.shape[:-2]) if value.dim() > 2 else value.reshape(())
    return value


def numbers(value: Number) -> Tensor:
    """``value`` to be looked at, whatever the default device; of a tensor on the meta device there are none."""
    if isinstance(value, Tensor) and value.is_meta:
        return torch.empty(0, device="cpu")
    return torch.as_tensor(value, device="cpu")


def check_logits(name: str, logits: Tensor) -> None:
    """Raise a ``ValueError`` unless ``logits`` are floating point ``[*batch, latents, categories >= 2]``.

    Also where a latent has no distribution because all its logits are -inf, or one of several categories is +inf, if
    it costs nothing to look (:func:`may_look`) and no harness supplies the noise, which has its own watch over runs
    that diverge. Elsewhere such a latent's sample means nothing. NaN is passed on: it stays with its example.
    """
    if not isinstance(logits, Tensor):
        raise ValueError(f"{name}: logits must be a tensor [*batch, latents, categories], not {type(logits).__name__}")
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
    # One sum tells the usual case: it is not finite if a logit is not.
    if may_look(logits) and not noise.supplied() and not bool(logits.detach().sum().isfinite()):
        clean = logits.detach()
        nowhere = scores(clean).isnan() if is_binary(clean) else clean.amax(dim=-1).isinf()
        nowhere = nowhere & ~clean.isnan().any(dim=-1)
        if bool(nowhere.any()):
            place = nowhere.nonzero()[0].tolist()
            fault = "all its logits are -inf" if clean[tuple(place)].amax() < 0 else "it has a logit of +inf"
            raise ValueError(
                f"{name}: the latent at {place} of [*batch, latents] has no distribution, {fault}; an impossible "
                "category has -inf, and a latent needs one that is possible, with a finite logit"
            )
