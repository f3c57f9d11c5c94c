"""Terms with value 0 and a prescribed gradient, and what becomes of their second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FIRST_ORDER_ONLY = (
    "first order only: this estimator's gradient is an estimate, whose derivative would leave terms out; for second "
    "derivatives use REINFORCE, RLOO, NVIL(variance_normalisation=False), MuProp, UnorderedSet or Exact"
)
# Open blocks of :func:`constant_gradients` in all threads; a plain number, because torch.compile traces nothing else.
_constant = 0


def in_functorch() -> bool:
    """Whether a ``torch.func`` transform is active: then running statistics must not be written."""
    return torch._C._are_functorch_transforms_active()


def in_vmap() -> bool:
    """Whether one of the active ``torch.func`` transforms is ``vmap``."""
    if not in_functorch() or torch.compiler.is_compiling():
        return False
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in levels)


def may_look(x: Tensor) -> bool:
    """Whether the host may look at numbers of ``x``: on a CPU, outside of ``torch.compile`` and ``torch.func``."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not in_functorch()


class constant_gradients:  # noqa: N801
    """Within the block estimators take their gradients for constants, so that what calls them can be differentiated."""

    def __enter__(self) -> None:
        global _constant
        _constant += 1

    def __exit__(self, *_: object) -> None:
        global _constant
        _constant -= 1


def _by_operators() -> bool:
    """Whether torch wants the formula in its own operators: in transforms, forward mode and compiled graphs."""
    return in_functorch() or torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level >= 0


def carried(x: Tensor) -> Tensor:
    """``x - x.detach()``, within what is differentiated as it stands or as a whole refuses a second derivative."""
    return x - x.detach()


def gradient_only(x: Tensor) -> Tensor:
    """``x - x.detach()``: a term with value exactly 0 and the gradient of ``x`` (for finite ``x``).

    Meant for surrogates, whose gradient is an estimate and not a function of what it depends on: its derivative, that
    is a second derivative through the term, is a ``RuntimeError``.
    """
    return with_term(torch.zeros_like(x, requires_grad=False), x)


def with_term(value: Tensor, term: Tensor) -> Tensor:
    """``value + gradient_only(term)`` in the dtype of ``value``, for half the time."""
    if _constant or torch.compiler.is_compiling():  # a compiled graph has no second derivatives, which torch says
        return value + carried(term).to(value.dtype)
    if _by_operators():
        return _WithTermByTransforms.apply(value, term)  # type: ignore[no-untyped-call,no-any-return]
    return _plain(_WithTerm)(value, term)


def score_term(losses: Tensor, signal: Tensor, log_prob: Tensor) -> Tensor:
    """``losses`` with the gradient ``signal * d log_prob`` on top of their own, right in its mean to every order.

    total = losses + (exp(log_prob - |log_prob|) - 1) (signal + losses - |losses|),  |x|: x as a constant.

    ``signal``, a number, is ``losses`` minus a baseline that the sample does not determine or whose mean stands
    elsewhere as a function of the parameters. All are ``[*batch]``, of one sample each, whose log-probability is
    ``log_prob``. The mean of every derivative is that of E_q[losses] (the "magic box" of Foerster et al., arXiv
    1802.05098, with a baseline).
    """
    signal = signal.detach()
    if _constant:
        return losses + carried(signal * log_prob)
    if not _by_operators():
        return _plain(_Score)(losses, signal, log_prob)
    return losses + torch.expm1(carried(log_prob)) * (signal + carried(losses))


def _plain(function: type[torch.autograd.Function]) -> Callable[..., Tensor]:
    """``function.apply`` where no transform is active: without torch's search for one, which takes as long again."""
    apply: Callable[..., Tensor] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return apply


class _Score(torch.autograd.Function):
    """The formula of :func:`score_term`, for a fraction of the time: its factors are 1 in a first derivative."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor, signal: Tensor, log_prob: Tensor) -> Tensor:
        ctx.save_for_backward(losses, signal, log_prob)
        return losses + (log_prob - log_prob)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, Tensor]:
        losses, signal, log_prob = ctx.saved_tensors
        if torch.is_grad_enabled():
            g, signal = g * carried(log_prob).exp(), signal + carried(losses)
        return g, None, g * signal


class _WithTerm(torch.autograd.Function):
    """:func:`with_term`; torch spends twice the time on the form that its transforms can use."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, term: Tensor) -> Tensor:
        ctx.save_for_backward(value if ctx.needs_input_grad[0] else None, term)
        return value + (term - term).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        return g, _first_order(g, *ctx.saved_tensors) if torch.is_grad_enabled() else g


class _WithTermByTransforms(torch.autograd.Function):
    """:func:`with_term` under ``torch.func`` and in forward mode."""

    @staticmethod
    def forward(value: Tensor, term: Tensor) -> Tensor:
        return value + (term - term).to(value.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        return g, _first_order(g, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, value: Tensor, term: Tensor) -> Tensor:
        return value + _first_order(term, *ctx.saved_tensors).to(value.dtype)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], value: Tensor, term: Tensor) -> tuple[Tensor, int]:
        value, term = (x if d is None else x.movedim(d, 0) for x, d in zip((value, term), dims, strict=True))
        return _WithTermByTransforms.apply(value, term), 0  # type: ignore[no-untyped-call]


def _first_order(g: Tensor, value: Tensor | None, term: Tensor) -> Tensor:
    """``g``, which refuses to be differentiated, in what ``value`` and ``term`` depend on as well."""
    return _Refuse.apply(g, term) if value is None else _Refuse.apply(g, term, value)  # type: ignore[no-untyped-call,no-any-return]


class _Refuse(torch.autograd.Function):
    """The first of the inputs; its derivative, in any of them, is an error."""

    @staticmethod
    def forward(*inputs: Tensor) -> Tensor:
        return inputs[0].clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> None:
        raise RuntimeError(FIRST_ORDER_ONLY)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> None:
        raise RuntimeError(FIRST_ORDER_ONLY)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int | None]:
        return _Refuse.apply(*inputs), dims[0]  # type: ignore[no-untyped-call]
