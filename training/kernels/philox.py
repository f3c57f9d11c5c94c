"""Random numbers by counting: Philox4x32-10, a function of a key and of a counter, for all replicas at once.

Reference: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

There is no state. The key is a replica's own, the counter says which numbers (position, draw, step): so a run's noise
is the same alone and in a pack, and what is to be kept for going on is the step. On a GPU a draw is one Triton kernel
(:mod:`training.kernels.philox_triton`); the same numbers come from integer operations of torch, on any device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
LOW = 0xFFFFFFFF

Words = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of 32 bits each, as int64 in 0 .. 2**32 - 1."""

no_kernel = ""
"""Why this process draws by torch's operations on a GPU: the first line of what launching the kernel raised."""


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Four random words for each counter of four words and key of two; all broadcast against each other."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(ROUNDS):
        high_a, low_a = _product(a, MULTIPLIERS[0])
        high_c, low_c = _product(c, MULTIPLIERS[1])
        a, b, c, d = high_c ^ b ^ k, low_c, high_a ^ d ^ m, low_a
        k, m = (k + WEYL[0]) & LOW, (m + WEYL[1]) & LOW
    return a, b, c, d


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The high and the low word of a product of words; by halves of x, since 64 bits with a sign would overflow."""
    upper, lower = (x >> 16) * factor, (x & 0xFFFF) * factor  # x factor = upper 2**16 + lower, both < 2**48
    return (upper + (lower >> 16)) >> 16, (lower + ((upper & 0xFFFF) << 16)) & LOW


def uniform(
    keys: Tensor, draw: int, step: Tensor, shape: Sequence[int], dim: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniform noise ``shape`` strictly inside (0, 1), with ``shape[dim]`` replicas.

    float32 noise has 31 random bits, float64 noise 53; other dtypes get float32, as in :mod:`estimators.noise`.

    Args:
        keys: int64 ``[replicas]``, not negative, on the device of the noise.
        draw: which draw of a step it is, from 0.
        step: int64, a number on the same device, which the host does not look at.
    """
    global no_kernel
    double = dtype == torch.float64
    before, after = math.prod(shape[:dim]), math.prod(shape[dim + 1 :])
    if keys.device.type == "cuda" and not no_kernel and before * after > 0:
        noise = keys.new_empty(tuple(shape), dtype=torch.float64 if double else torch.float32)
        try:
            from training.kernels import philox_triton

            philox_triton.fill(noise, keys, draw, step, before, after)
            return noise
        except Exception as error:  # no Triton, or no compiler for its launcher: of many kinds
            no_kernel = next(iter(str(error).strip().splitlines()), type(error).__name__)
    words = _words(keys, draw, step, before * after, 2 if double else 4)
    numbers = _doubles(words) if double else _singles(words)
    stacked = torch.cat(numbers, dim=-1)[:, : before * after].reshape(len(keys), before, after)
    return stacked.transpose(0, 1).reshape(tuple(shape))


def _words(keys: Tensor, draw: int, step: Tensor, count: int, each: int) -> Words:
    """``[replicas, counters]`` each: of as many counters as ``count`` numbers need, of which one makes ``each``."""
    position = torch.arange(-(-count // each), device=keys.device)
    key = (keys & LOW).unsqueeze(-1), (keys >> 32).unsqueeze(-1)
    return philox((position, torch.full_like(step, draw), step & LOW, step >> 32), key)


def _singles(words: Words) -> list[Tensor]:
    """31 bits of each word, moved into (0, 1): the factor is a last bit below 2**-31, so that none rounds to 1."""
    scale = 2.0**-31 * (1 - 2.0**-24)
    return [(word >> 1).to(torch.int32).to(torch.float32).mul_(scale).add_(2.0**-32) for word in words]


def _doubles(words: Words) -> list[Tensor]:
    """53 bits of each pair of words."""
    pairs = (words[0], words[1]), (words[2], words[3])
    return [
        (((high >> 5) << 26) | (low >> 6)).to(torch.float64).mul_(2.0**-53).clamp_(min=2.0**-54) for high, low in pairs
    ]
