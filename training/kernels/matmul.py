"""Which kernels multiply matrices: settings of the process.

torch multiplies float32 matrices on an x86 CPU with MKL, which on processors not made by Intel leaves AVX-512 unused.
oneDNN, a part of every torch build too, does not: on AMD's Zen 5 a product of the size of a training step's takes half
the time. Zen 4 computes AVX-512 in halves, and both take the same there.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SMALLEST = 2_000_000
"""Multiplications per replica from which oneDNN is worth a call per replica. It depends on shapes alone, and a
replica's product on its own factors alone, so a run's numbers do not depend on its pack."""

ZEN_5 = 26
"""AMD's processor family from which a unit for AVX-512 is 512 bits wide."""

_overrides: torch.library.Library | None = None


def is_worthwhile() -> bool:
    """Whether this processor has AVX-512 at full width, torch has oneDNN, and MKL would hold back."""
    try:
        cpu = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    family = re.search(r"cpu family\s*:\s*(\d+)", cpu)
    return (
        "GenuineIntel" not in cpu
        and (family is None or int(family[1]) >= ZEN_5)
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def is_on() -> bool:
    """Whether :func:`use_onednn` took effect in this process."""
    return _overrides is not None


def use_onednn() -> bool:
    """Let products of large float32 matrices on the CPU run in oneDNN, if that is worthwhile.

    Below autograd and ``torch.func``, so that every model, estimator and evaluation in the process has it, and plain
    torch, too; compiled code by :func:`replacements`. Returns whether it is on.
    """
    global _overrides
    if _overrides is None and is_worthwhile():
        _overrides = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():  # torch says that a kernel is replaced
            warnings.simplefilter("ignore")
            for name in _PRODUCTS:
                _overrides.impl(name, partial(_eager, name), "CPU")
    return is_on()


def use_tf32(allowed: bool) -> None:
    """Let float32 products and convolutions on a GPU round their factors to 10 bits (TF32: faster, and other numbers),
    or forbid it. Convolutions are those that give the same numbers each time, as resumed runs need them."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed
        torch.backends.cudnn.deterministic = True


def use_torch() -> None:
    """Go back to torch's own kernels."""
    global _overrides
    if _overrides is not None:
        _overrides._destroy()
        _overrides = None


def replacements() -> dict[Any, Callable[..., Any]]:
    """What stands in a trace in place of torch's products: an operator that a compiler calls as it is.

    Compiled code calls torch's products with memory for the result, which is always torch's own kernel. Empty unless
    :func:`use_onednn` took effect; what is small is left to the compiler (``NotImplemented``).
    """
    kernel = torch.ops.training.products.default
    aten = torch.ops.aten
    return {getattr(aten, name).default: partial(own, kernel) for name, own in _PRODUCTS.items()} if is_on() else {}


def _is_large(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype == torch.float32
        and a.device.type == "cpu"
        and a.numel() > 0
        and a[0].numel() * b.shape[-1] >= SMALLEST
    )


def _bmm(products: Callable[..., Tensor], a: Tensor, b: Tensor) -> Any:
    return products(a, b, None) if _is_large(a, b) else NotImplemented


def _baddbmm(
    products: Callable[..., Tensor], c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
) -> Any:
    bias = c.dim() == 3 and c.shape == (a.shape[0], 1, b.shape[2]) and beta == alpha == 1
    return products(a, b, c.squeeze(1)) if bias and _is_large(a, b) else NotImplemented


def _mm(products: Callable[..., Tensor], a: Tensor, b: Tensor) -> Any:
    result = _bmm(products, a.unsqueeze(0), b.unsqueeze(0))
    return result if result is NotImplemented else result.squeeze(0)


def _addmm(
    products: Callable[..., Tensor], c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
) -> Any:
    bias = c.expand(1, 1, -1) if c.dim() == 1 else c
    result = _baddbmm(products, bias, a.unsqueeze(0), b.unsqueeze(0), beta=beta, alpha=alpha)
    return result if result is NotImplemented else result.squeeze(0)


_PRODUCTS: dict[str, Callable[..., Any]] = {"mm": _mm, "addmm": _addmm, "bmm": _bmm, "baddbmm": _baddbmm}


def _eager(name: str, *tensors: Tensor, **factors: float) -> Tensor:
    result: Any = _PRODUCTS[name](_products, *tensors, **factors)
    if result is NotImplemented:  # with ``out`` it is always torch's kernel
        a, b = tensors[-2:]
        result = getattr(torch, name)(*tensors, **factors, out=a.new_empty(*a.shape[:-1], b.shape[-1]))
    return result  # type: ignore[no-any-return]


def _products(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """``a @ b + bias`` for ``[replicas, n, k]``, ``[replicas, k, m]``, ``[replicas, m]``."""
    linear = torch.ops.mkldnn._linear_pointwise.default
    biases = [None] * len(a) if bias is None else bias.unbind(0)
    # A matrix that is not dense would be multiplied by oneDNN's reference loops, hundreds of times slower.
    weights = b.mT if b[0].is_contiguous() or b[0].mT.is_contiguous() else b.contiguous().mT
    parts = [linear(*factors, "none", [], "") for factors in zip(a.unbind(0), weights.unbind(0), biases, strict=True)]
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)


_own = torch.library.Library("training", "DEF")
_own.define("products(Tensor a, Tensor b, Tensor? bias) -> Tensor")
_own.impl("products", lambda a, b, bias: _products(a, b, bias), "CPU")
_own.impl("products", lambda a, b, bias: a.new_empty(*a.shape[:-1], b.shape[-1]), "Meta")
