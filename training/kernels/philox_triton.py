"""The noise of :mod:`training.kernels.philox` as one Triton kernel. Only a GPU needs it, where torch brings Triton."""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512


def fill(noise: Tensor, keys: Tensor, draw: int, step: Tensor, before: int, after: int) -> None:
    """Fill ``noise``, which is ``[before, replicas, after]`` in memory, float32 or float64."""
    each, count = 2 if noise.dtype == torch.float64 else 4, before * after
    counters = -(-count // each)
    blocks = triton.cdiv(counters, BLOCK)
    on_device = torch.cuda.device(noise.device) if noise.is_cuda else contextlib.nullcontext()
    with on_device:
        # Without fused multiplication and addition the numbers are those of torch's operations, bit for bit.
        _fill[(blocks * len(keys),)](
            noise, keys, step, draw, count, counters, after, len(keys), blocks,
            DOUBLE=each == 2, FLAT=before == 1, BLOCK=BLOCK, enable_fp_fusion=False,
        )  # fmt: skip


@triton.jit(do_not_specialize=["draw", "count", "counters", "after", "replicas", "blocks"])
def _fill(  # type: ignore[no-untyped-def]
    noise, keys, step, draw, count, counters, after, replicas, blocks,
    DOUBLE: tl.constexpr, FLAT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    replica = tl.program_id(0) // blocks
    position = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    key, now = tl.load(keys + replica), tl.load(step)
    zero = position * 0
    a, b, c, d = tl.philox_impl(
        position.to(tl.uint32),
        (zero + draw).to(tl.uint32),
        (zero + now.to(tl.int32)).to(tl.uint32),
        (zero + (now >> 32).to(tl.int32)).to(tl.uint32),
        (zero + key.to(tl.int32)).to(tl.uint32),
        (zero + (key >> 32).to(tl.int32)).to(tl.uint32),
        10,
    )
    exists = position < counters
    if DOUBLE:
        _store(noise, _double(a, b), position, exists, count, after, replica, replicas, FLAT)
        _store(noise, _double(c, d), position + counters, exists, count, after, replica, replicas, FLAT)
    else:
        _store(noise, _single(a), position, exists, count, after, replica, replicas, FLAT)
        _store(noise, _single(b), position + counters, exists, count, after, replica, replicas, FLAT)
        _store(noise, _single(c), position + 2 * counters, exists, count, after, replica, replicas, FLAT)
        _store(noise, _single(d), position + 3 * counters, exists, count, after, replica, replicas, FLAT)


@triton.jit
def _single(word):  # type: ignore[no-untyped-def]
    return (word >> 1).to(tl.int32).to(tl.float32) * 4.6566125955216364e-10 + 2.3283064365386963e-10


@triton.jit
def _double(high, low):  # type: ignore[no-untyped-def]
    bits = ((high >> 5).to(tl.int64) << 26) | (low >> 6).to(tl.int64)
    return tl.maximum(bits.to(tl.float64) * 1.1102230246251565e-16, 5.551115123125783e-17)


@triton.jit
def _store(noise, numbers, position, exists, count, after, replica, replicas, FLAT: tl.constexpr):  # type: ignore[no-untyped-def]
    if FLAT:  # before == 1
        place = replica.to(tl.int64) * count + position
    else:
        place = ((position // after).to(tl.int64) * replicas + replica) * after + position % after
    tl.store(noise + place, numbers, mask=exists & (position < count))
