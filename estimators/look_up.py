"""One-hot samples as indices into an embedding table, for numbers of categories where a matrix product is too much."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from estimators.base import in_functorch


def look_up(z: Tensor, table: Tensor) -> Tensor:
    r"""``z @ table`` for one-hot ``z``, by gathering rows: no product over the categories, in neither direction.

    value = table[category(z)];  gradient in table = z^T g, by adding the rows of g to those that were looked up;
    gradient in z = g table^T, only where ``z`` has one (pathwise estimators).

    Differentiable any number of times. Within a ``torch.func`` transform (``MuProp``, ``DARN``, ``REBAR``, ``RELAX``,
    ``DoubleCV`` and ``RODEO`` differentiate the loss so, some of them at relaxed ``z``) it **is** the product
    ``z @ table``, which is right for relaxed ``z`` too.

    Args:
        z: ``[*batch, latents, categories]``, exactly one-hot, as a loss gets it.
        table: ``[categories, features]``, or with leading dimensions that broadcast against ``batch`` as in a matrix
            product: ``[replicas, 1, categories, features]``. One table per latent ``[latents, categories, features]``:
            ``look_up(z.unsqueeze(-2), table).squeeze(-2)``.

    Returns:
        ``[*batch, latents, features]``.

    Raises:
        ValueError: if sizes or dtypes do not fit (under autocast they do as in a product), or if ``z`` is not one-hot.
            On a CUDA device, where the host does not wait for values, the latter is an assertion on the device, as that
            of an index out of range is, and in a compiled graph one within it.

    Example::

        loss = lambda z: negative_log_likelihood(decoder(look_up(z, embedding.weight)))
        RLOO(4)(logits, loss).mean().backward()
    """
    dtype = _product_dtype(z, table)
    if z.dim() < 2 or table.dim() < 2 or z.shape[-1] != table.shape[-2] or dtype is None:
        raise ValueError(
            "look_up: z [*batch, latents, categories] and table [categories, features] of one dtype, not "
            f"{z.dtype} {list(z.shape)} and {table.dtype} {list(table.shape)}"
        )
    if in_functorch():
        return z @ table
    index, top = _index(z.detach(), "look_up", "for relaxed samples use z @ table")
    # A diverged example, whose z is NaN, has to stay one.
    return (_Gather.apply(z, table, index) * top.to(table.dtype)).to(dtype)


def _product_dtype(z: Tensor, table: Tensor) -> torch.dtype | None:
    """That of ``z @ table`` where it is called, ``None`` if that would be an error."""
    device = z.device.type
    if torch.is_autocast_enabled(device) and torch.float64 not in (z.dtype, table.dtype):
        return torch.get_autocast_dtype(device)
    return z.dtype if z.dtype == table.dtype else None


def category(z: Tensor) -> Tensor:
    """The chosen categories of one-hot ``z``: ``[*batch, latents, categories]`` -> integers ``[*batch, latents]``.

    For estimators that take no derivative in ``z`` (``needs_gradient`` is ``False``): an index has none.

    Raises:
        ValueError: if ``z`` has a gradient, which would be lost (:func:`look_up` keeps it; ``category(z.detach())`` is
            for where that is meant), or if ``z`` is not one-hot (on a CUDA device an assertion there).
    """
    if z.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "category: z has a gradient, which an index cannot carry; use look_up(z, table), or category(z.detach()) "
            "where none is meant"
        )
    return _index(z, "category", "a relaxed sample has no category")[0]


def _index(z: Tensor, name: str, otherwise: str) -> tuple[Tensor, Tensor]:
    """The largest entries' places ``[*batch, latents]`` and the entries ``[*batch, latents, 1]``, which must be 1."""
    index = z.argmax(dim=-1)
    top = z.gather(-1, index.unsqueeze(-1))
    message = f"{name}: z must be exactly one-hot, and in some row the largest entry is not 1; {otherwise}"
    wrong = ((top < 1) | (top > 1)).any()  # NaN is neither
    if wrong.device.type == "cuda" or torch.compiler.is_compiling():
        torch._assert_async(~wrong, message)
    elif wrong:
        raise ValueError(message)
    return index, top


class _Gather(torch.autograd.Function):
    """``z @ table`` from the index of ``z``."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(z, table, index)
        return F.embedding(_rows(index, table.shape), table.reshape(-1, table.shape[-1]))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        z, table, index = ctx.saved_tensors
        grad_z = (g @ table.mT).sum_to_size(z.shape).to(z.dtype) if ctx.needs_input_grad[0] else None
        grad_table = _Scatter.apply(z, g, index, table.shape) if ctx.needs_input_grad[1] else None
        return grad_z, grad_table, None


class _Scatter(torch.autograd.Function):
    """``z^T g``, summed to ``shape``, from the index of ``z``: the transpose of :class:`_Gather`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, g: Tensor, index: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(z, g, index)
        rows = _rows(index, shape).expand(g.shape[:-1]).reshape(-1)
        zeros = g.new_zeros(shape.numel() // shape[-1], shape[-1])
        return zeros.index_add_(0, rows, g.reshape(-1, g.shape[-1])).reshape(shape)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        z, g, index = ctx.saved_tensors
        grad_z = (g @ c.mT).sum_to_size(z.shape).to(z.dtype) if ctx.needs_input_grad[0] else None
        grad_g = _Gather.apply(z, c, index) if ctx.needs_input_grad[1] else None
        return grad_z, grad_g, None, None


def _rows(index: Tensor, shape: torch.Size) -> Tensor:
    """Indices into a table of ``shape`` whose leading dimensions are flattened into its rows."""
    lead, categories = shape[:-2], shape[-2]
    if not lead:
        return index
    first = torch.arange(lead.numel(), device=index.device).reshape(*lead, 1) * categories
    return index + first
