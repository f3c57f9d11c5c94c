"""What learning signals are centred and scaled with: moving averages over earlier calls, and a learned baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from estimators.base import in_functorch, per_example
from estimators.categorical import Number
from estimators.noise import uniform


class MovingAverage(nn.Module):
    """Exponential moving average of ``[*batch]`` values over calls, each call counting by its mean over examples.

    A buffer, written in training mode as those of batch normalisation are (``eval()`` freezes it), never within a
    ``torch.func`` transform. It is corrected for its zero start, as Adam's moments are, and 0 before the first call.
    Values that are not finite are left out, and a call without any that is, or without examples, does not count. The
    buffers stay in single precision at least: in half precision a mean of squares would be infinite.

    Args:
        owner: the estimator's name, for errors.
        replicas: if given, values are ``[..., replicas, examples]`` and each replica has its own average
            ``[replicas, 1]``; otherwise there is one for all examples.
    """

    def __init__(self, owner: str, replicas: int | None) -> None:
        super().__init__()
        self.owner = owner
        self.replicas = replicas
        per_replica = () if replicas is None else (replicas, 1)
        self.total = nn.Buffer(torch.zeros(per_replica))
        self.weight = nn.Buffer(torch.zeros(per_replica))

    def value(self) -> Tensor:
        """The average so far; it broadcasts against ``[*batch]``."""
        value = self.total / self.weight.clamp_min(torch.finfo(self.weight.dtype).tiny)
        if torch.compiler.is_compiling():
            # Left to itself, the compiled backward computes the value again from the buffers, updated by then. This is
            # no operation that it would repeat.
            value = value.unsqueeze(0).amin(dim=0)
        return value

    def update(self, values: Tensor, decay: Number) -> None:
        """Take ``values`` in with weight ``1 - decay``."""
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        usable = values.abs() <= largest(values.dtype, self.total.dtype)
        update([self], [torch.where(usable, values, 0.0)], usable, decay)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MovingAverage:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype.itemsize < 4:
                self._buffers[name] = old.to(new.device)
        return self


def running_scale(mean: MovingAverage, square: MovingAverage) -> Tensor:
    """``max(1, sigma)``, sigma^2 the moving variance, from the moving averages of a signal and of its square."""
    variance: Tensor = square.value() - mean.value() ** 2
    return variance.clamp_min(1).sqrt()


def update_moments(mean: MovingAverage, square: MovingAverage, signal: Tensor, decay: Number) -> None:
    """Take ``signal``, of single precision at least, and its square in; what is not :func:`squarable` is left out."""
    usable = squarable(signal, square.total.dtype)
    clean = torch.where(usable, signal, 0.0)
    update([mean, square], [clean, clean.square()], usable, decay)


def squarable(signal: Tensor, dtype: torch.dtype) -> Tensor:
    """Which values have a square whose sum over a batch is finite for certain, also in ``dtype``."""
    return signal.abs() <= largest(signal.dtype, dtype) ** 0.5


def largest(*dtypes: torch.dtype) -> float:
    """The largest value whose sum over a batch is finite for certain in each of ``dtypes``."""
    return min(torch.finfo(dtype).max for dtype in dtypes) * 2.0**-40


def baseline_of(owner: str, features: int | None, hidden: int, replicas: int | None) -> Baseline | None:
    """A :class:`Baseline`, or ``None`` without ``features``. Raises ``ValueError`` for no hidden units."""
    if hidden < 1:
        raise ValueError(f"{owner}: hidden must be at least 1, not {hidden}; input_dependent=False drops the baseline")
    return None if features is None else Baseline(owner, features, hidden, replicas)


class Baseline(nn.Module):
    """``[..., examples, features] -> [..., examples]``: one hidden layer of tanh units, one network per replica.

    In the dtype of its weights, whatever that of ``context``.

    Args:
        owner: the estimator's name, for errors.
        features: size of the last dimension of ``context``.
        hidden: width of the hidden layer, >= 1.
        replicas: if given, contexts are ``[..., replicas, examples, features]``.

    Raises:
        ValueError: when called, for a ``context`` that is missing or of another size.
    """

    def __init__(self, owner: str, features: int, hidden: int, replicas: int | None) -> None:
        super().__init__()
        self.owner, self.features = owner, features
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

    def forward(self, context: Tensor | None) -> Tensor:
        """``[*batch]``; one example alone may come without a dimension of examples."""
        if context is None or context.shape[-1] != self.features:
            raise ValueError(
                f"{self.owner}: the input-dependent baseline needs context [*batch, {self.features}], not "
                f"{None if context is None else list(context.shape)}; pass it, or use "
                f"{self.owner}(input_dependent=False)"
            )
        rows = context if context.dim() > 1 else context[None]
        h = torch.tanh(rows.to(self.hidden_weight.dtype) @ self.hidden_weight + self.hidden_bias)
        predicted = (h @ self.output_weight + self.output_bias).squeeze(-1)
        return predicted if context.dim() > 1 else predicted[0]


@torch.no_grad()
def update(averages: Sequence[MovingAverage], values: Sequence[Tensor], usable: Tensor, decay: Number) -> None:
    """Several averages of the same owner at once, of ``values`` that are 0 where they are not ``usable``.

    Raises:
        RuntimeError: while gradient checkpointing computes this call a second time.
    """
    first = averages[0]
    if not first.training or in_functorch():
        return
    if _recomputing():
        raise RuntimeError(
            f"{first.owner}: gradient checkpointing computes this call again when its running average already holds "
            "the call's own losses, which would bias the gradient and count them twice; checkpoint the networks "
            "before and inside of the loss and leave the estimator out, or freeze it by eval(), or use RLOO, which "
            "keeps no average"
        )
    # Replicas stand before examples, whatever sample dimensions are in front.
    over = None if first.replicas is None else tuple(d for d in range(usable.dim()) if d != usable.dim() - 2)

    def total(each: Tensor) -> Tensor:
        dtype = first.total.dtype
        return each.sum(dtype=dtype) if over is None else each.sum(over, dtype=dtype).unsqueeze(-1)

    count = total(usable)
    step = count.clamp_max(1) * (1 - per_example(decay))  # 0, if nothing is usable
    step, count, one = step.to(count.dtype), count.clamp_min(1), torch.ones_like(count)
    for average, each in zip(averages, values, strict=True):
        average.total.lerp_(total(each) / count, step)
        average.weight.lerp_(one, step)


def _recomputing() -> bool:
    """Whether this runs within a backward pass, as what gradient checkpointing computes again does."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() >= 0
