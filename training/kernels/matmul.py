"""Which kernels multiply matrices: settings of the process.

torch multiplies float32 matrices on an x86 CPU with MKL, which on processors not made by Intel leaves AVX-512 unused.
oneDNN, a part of every torch build too, does not: there a product of the size of a training step's takes half the time.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

SMALLEST = 2_000_000
"""Multiplications per replica from which oneDNN is worth a call per replica. It depends on shapes alone, and a
replica's product on its own factors alone, so a run's numbers do not depend on its pack."""

_overrides: torch.library.Library | None = None


def is_worthwhile() -> bool:
    """Whether this processor has AVX-512, torch has oneDNN, and MKL would hold back."""
    try:
        cpu = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return (
        "GenuineIntel" not in cpu
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def is_on() -> bool:
    """Whether :func:`use_onednn` took effect in this process."""
    return _overrides is not None


def use_onednn() -> bool:
    """Let ``bmm`` and ``baddbmm`` of large float32 matrices on the CPU run in oneDNN, if that is worthwhile.

    Below autograd and ``torch.func``, so that every model, estimator and evaluation in the process has it; returns
    whether it is on.
    """
    global _overrides
    if _overrides is None and is_worthwhile():
        _overrides = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():  # torch says that a kernel is replaced
            warnings.simplefilter("ignore")
            _overrides.impl("bmm", _bmm, "CPU")
            _overrides.impl("baddbmm", _baddbmm, "CPU")
    return is_on()


def use_tf32(allowed: bool) -> None:
    """Let float32 products on a GPU round their factors to 10 bits (TF32: faster, and other numbers), or forbid it."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if allowed else "highest")


def use_torch() -> None:
    """Go back to torch's own kernels."""
    global _overrides
    if _overrides is not None:
        _overrides._destroy()
        _overrides = None


def _is_large(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype == torch.float32 and a[0].numel() * b.shape[-1] >= SMALLEST


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    if a.numel() and _is_large(a, b):
        return _products(a, b, None)
    return torch.bmm(a, b, out=a.new_empty(a.shape[0], a.shape[1], b.shape[2]))


def _baddbmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    bias = c.dim() == 3 and c.shape == (a.shape[0], 1, b.shape[2]) and beta == alpha == 1
    if bias and a.numel() and _is_large(a, b):
        return _products(a, b, c.squeeze(1))
    return torch.baddbmm(c, a, b, beta=beta, alpha=alpha, out=a.new_empty(a.shape[0], a.shape[1], b.shape[2]))


def _products(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """``a @ b + bias`` for ``[replicas, n, k]``, ``[replicas, k, m]``, ``[replicas, m]``."""
    linear = torch.ops.mkldnn._linear_pointwise.default
    biases = [None] * len(a) if bias is None else bias.unbind(0)
    # A matrix that is not dense would be multiplied by oneDNN's reference loops, hundreds of times slower.
    weights = b.mT if b[0].is_contiguous() or b[0].mT.is_contiguous() else b.contiguous().mT
    parts = [linear(*factors, "none", [], "") for factors in zip(a.unbind(0), weights.unbind(0), biases, strict=True)]
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)
