"""All randomness of the estimators comes through :func:`uniform`, so that a harness can supply it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from estimators._autograd import in_vmap

NoiseSource = Callable[[Sequence[int], torch.dtype, torch.device, int], Tensor]
"""``source(shape, dtype, device, event_dims) -> uniform noise of that shape in the open interval (0, 1)``."""

_source: ContextVar[NoiseSource | None] = ContextVar("noise_source", default=None)
# Blocks that are open in any thread: torch.compile cannot trace a ContextVar, so it is looked at only if there are any.
_open_blocks = 0
_lock = threading.Lock()


def open_uniform(
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    generators: Sequence[torch.Generator | None] = (None,),
    dim: int = 0,
) -> Tensor:
    """Uniform noise strictly inside (0, 1), so that ``log(u)`` and ``log(1 - u)`` are finite.

    With several ``generators`` ``shape[dim]`` is their number, and each fills its own slice. float32 noise has 31
    random bits: near 0 it is 128 times finer than ``torch.rand``, whose coarse tail would tie the largest of many
    Gumbel variables. Half precision is drawn in float32 and stays float32.
    """
    if in_vmap() and tuple(generators) == (None,):  # which gives each of its examples noise of its own by these only
        if dtype == torch.float64:
            return _opened(torch.rand(tuple(shape), dtype=dtype, device=device))
        return _opened(torch.randint(2**31, tuple(shape), dtype=torch.int32, device=device))
    stacked = [shape[dim], *shape[:dim], *shape[dim + 1 :]] if len(generators) > 1 else list(shape)
    double = dtype == torch.float64
    noise = torch.empty(stacked, dtype=torch.float64 if double else torch.int32, device=device)
    for part, generator in zip(noise.unbind(0) if len(generators) > 1 else (noise,), generators, strict=True):
        if double:
            part.uniform_(generator=generator)
        elif torch.compiler.is_compiling():  # the same bits; torch.compile cannot trace the method
            torch.ops.aten.random_.default(part, generator=generator)
        else:
            part.random_(generator=generator)
    noise = _opened(noise)
    return noise.movedim(0, dim) if len(generators) > 1 and dim else noise


def _opened(drawn: Tensor) -> Tensor:
    """Numbers in [0, 1), or 31 random bits, moved into (0, 1)."""
    if drawn.dtype == torch.float64:
        return drawn.clamp(2.0**-54, 1 - 2.0**-53)
    if torch.get_default_dtype() != torch.float32:  # which integers times a number become
        drawn = drawn.to(torch.float32)
    # The factor is a last bit below 2**-31, so that the largest integers do not round to 1.
    return (drawn * (2.0**-31 * (1 - 2.0**-24))).add_(2.0**-32)


def uniform(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device, event_dims: int = 2) -> Tensor:
    """The one function through which estimators draw noise: ``shape``, uniform in the open interval (0, 1).

    ``event_dims`` counts the trailing dimensions that belong to one example (2 for ``[..., latents, categories]``,
    1 for ``[..., latents]``). The dimension before them is ``examples`` and the one before that ``replicas``, which
    is how a source with a stream per replica knows whose noise is whose. By default the noise comes from torch's
    global generator.
    """
    source = _source.get() if _open_blocks else None
    if source is None:
        return open_uniform(shape, dtype, device)
    return source(shape, dtype, device, event_dims)


def supplied() -> bool:
    """Whether a block of :func:`noise_source` is open here."""
    return bool(_open_blocks) and _source.get() is not None


@contextmanager
def noise_source(source: NoiseSource | None) -> Iterator[None]:
    """Within the block, :func:`uniform` takes its noise from ``source`` (``None``: torch's global generator).

    The block belongs to its thread and task. While one is open ``torch.compile`` breaks its graph at the source.
    """
    global _open_blocks
    with _lock:
        _open_blocks += 1
    token = _source.set(source)
    try:
        yield
    finally:
        with _lock:
            _open_blocks -= 1
        _source.reset(token)


def logistic(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device, event_dims: int = 1) -> Tensor:
    """Standard logistic noise ``log u - log(1 - u)``: the difference of two Gumbel variables."""
    return uniform(shape, dtype=dtype, device=device, event_dims=event_dims).logit()


def gumbel(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device, event_dims: int = 2) -> Tensor:
    """Standard Gumbel noise ``-log(-log(1 - u))``; its upper tail sits where ``u`` is finest."""
    u = uniform(shape, dtype=dtype, device=device, event_dims=event_dims)
    # u may be the source's own buffer; its negation is ours, and one buffer instead of five matters for many categories
    return u.neg().log1p_().neg_().log_().neg_()
