"""Randomness of a pack: every replica draws from generators seeded by its own run's seed and a purpose.

So a run's numbers do not depend on its place in a pack or on which runs are trained beside it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from estimators.noise import open_uniform

CPU = torch.device("cpu")
STEPS_PER_BLOCK = 8
"""A constant, since it orders the noise: numbers must not depend on a pack's memory."""


def derive_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed for one purpose of one run (SHA-256 of both), so that purposes never share a stream."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "little") >> 1


class ReplicaSource:
    """A noise source with one generator per replica, in the form that :func:`estimators.noise_source` takes."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self.generators: list[torch.Generator] | None = None

    def __call__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, event_dims: int = 2) -> Tensor:
        """Uniform noise; ``shape`` is ``[..., replicas, examples, *event]`` with ``event_dims`` event dimensions."""
        dim = _replica_dimension(shape, event_dims, len(self.seeds))
        if self.generators is None:
            self.generators = [torch.Generator(device).manual_seed(seed) for seed in self.seeds]
        return open_uniform(shape, dtype, device, self.generators, dim)

    def state(self, replica: int) -> Tensor | None:
        """The state of one replica's generator, ``None`` if it has drawn nothing yet."""
        return None if self.generators is None else self.generators[replica].get_state()

    def restore(self, states: Sequence[Tensor | None], device: torch.device) -> None:
        """Go on from the states of :meth:`state`, one per replica."""
        if any(state is not None for state in states):
            self.generators = [torch.Generator(device).manual_seed(seed) for seed in self.seeds]
            for generator, state in zip(self.generators, states, strict=True):
                if state is not None:
                    generator.set_state(state)


class WordSource:
    """Noise of 31 random bits per number, for evaluation: a draw of latents compares it with integers.

    On a CPU from NumPy's SFC64, which gives 64 bits in a third of the time that torch's Mersenne twister takes for 32
    and whose stream NumPy promises to keep (NEP 19); on a GPU from torch's generator there.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self._on_cpu: list[np.random.SFC64] | None = None
        self._on_device: list[torch.Generator] | None = None

    def __call__(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """int32 ``shape`` ``[replicas, ...]``, uniform in 0 .. 2**31 - 1; raises ``ValueError`` for other replicas."""
        if shape[0] != len(self.seeds):
            raise ValueError(f"expected {len(self.seeds)} replicas in dimension 0 of noise of shape {list(shape)}")
        if device.type != "cpu":
            self._on_device = self._on_device or [torch.Generator(device).manual_seed(seed) for seed in self.seeds]
            noise = torch.empty(tuple(shape), dtype=torch.int32, device=device)
            for part, generator in zip(noise.unbind(0), self._on_device, strict=True):
                part.random_(generator=generator)
            return noise
        self._on_cpu = self._on_cpu or [np.random.SFC64(seed) for seed in self.seeds]
        count = math.prod(shape[1:])
        parts = []
        for source in self._on_cpu:
            words = source.random_raw((count + 1) // 2)
            words &= 0x7FFFFFFF7FFFFFFF
            parts.append(torch.from_numpy(words.view(np.int32)[:count]))
        noise = parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)
        return noise.view(tuple(shape))


@dataclass
class _Draw:
    """One draw of a step: the buffer that the step reads, and the noise of the steps around it."""

    buffer: Tensor
    dim: int
    block: Tensor
    number: int = -1


class BlockSource:
    """Noise drawn for ``STEPS_PER_BLOCK`` steps at once, for a GPU, where every
    replica's draw is a kernel.

    A step's n-th draw reads a buffer that stays where it is, so that the step can be captured as a CUDA graph;
    :meth:`fill` puts a step's noise into the buffers. Block b of draw n comes from generators seeded by the run's
    seed, the purpose, n and b: the noise is a function of seed and step, and there is nothing to keep in a checkpoint.
    Every step must make the same draws. ``step``: the one in which it is asked for, which may be a run's first.
    """

    def __init__(self, seeds: Sequence[int], purpose: str, step: int = 0) -> None:
        self.seeds, self.purpose = list(seeds), purpose
        self._generators: list[torch.Generator] = []
        self._draws: list[_Draw] = []
        self._step, self._next = step, 0

    def fill(self, step: int) -> None:
        """Put the noise of ``step`` into the buffers of all draws known so far."""
        self._step = step
        for index in range(len(self._draws)):
            self._fill(index)

    def rewind(self) -> None:
        """The next draw is the first of the step."""
        self._next = 0

    def __call__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, event_dims: int = 2) -> Tensor:
        """Uniform noise; ``shape`` is ``[..., replicas, examples, *event]`` with ``event_dims`` event dimensions.

        Raises:
            RuntimeError: if a step's draws differ in shape or dtype from those of the first step.
        """
        index, self._next = self._next, self._next + 1
        if index == len(self._draws):
            dim = _replica_dimension(shape, event_dims, len(self.seeds))
            with torch._C._DisableFuncTorch():  # an inner layer draws within transforms, which the buffer outlives
                self._draws.append(_Draw(torch.empty(tuple(shape), dtype=dtype, device=device), dim, torch.empty(0)))
                self._fill(index)
        buffer = self._draws[index].buffer
        if buffer.shape != tuple(shape) or buffer.dtype != dtype:
            raise RuntimeError(
                f"draw {index} of {self.purpose} was {buffer.dtype} {list(buffer.shape)} in the first step and is "
                f"{dtype} {list(shape)} now; noise in blocks needs the same draws in every step"
            )
        return buffer

    def _fill(self, index: int) -> None:
        draw, number = self._draws[index], self._step // STEPS_PER_BLOCK
        buffer = draw.buffer.movedim(draw.dim, 0)
        if draw.number != number:
            device = buffer.device
            self._generators = self._generators or [torch.Generator(device) for _ in self.seeds]
            for seed, generator in zip(self.seeds, self._generators, strict=True):
                generator.manual_seed(derive_seed(seed, f"{self.purpose}/{index}/{number}"))
            shape = (len(self.seeds), STEPS_PER_BLOCK, *buffer.shape[1:])
            draw.block = open_uniform(shape, buffer.dtype, device, self._generators)
            draw.number = number
        buffer.copy_(draw.block[:, self._step % STEPS_PER_BLOCK])

    def state(self, replica: int) -> None:
        """Nothing: see the class."""

    def restore(self, states: Sequence[Tensor | None], device: torch.device) -> None:
        """Nothing to do: see the class."""


def _replica_dimension(shape: Sequence[int], event_dims: int, replicas: int) -> int:
    dim = len(shape) - event_dims - 2
    if dim < 0 or shape[dim] != replicas:
        raise ValueError(f"expected {replicas} replicas in dimension {dim} of noise of shape {list(shape)}")
    return dim


class Streams:
    """The random streams of a pack, one per run and purpose."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self._sources: dict[str, ReplicaSource | BlockSource] = {}
        self.step = 0

    @property
    def replicas(self) -> int:
        return len(self.seeds)

    def source(self, purpose: str, device: torch.device = CPU) -> ReplicaSource | BlockSource:
        """The stream of ``purpose`` for training steps: goes on from call to call, and is part of a checkpoint."""
        new = self.fresh(purpose) if device.type == "cpu" else BlockSource(self.seeds, purpose, self.step)
        return self._sources.setdefault(purpose, new)

    @property
    def _blocks(self) -> list[BlockSource]:
        return [source for source in self._sources.values() if isinstance(source, BlockSource)]

    def fill(self, step: int) -> None:
        """Before a step: draw its noise, where that is drawn ahead."""
        self.step = step
        for source in self._blocks:
            source.fill(step)

    def rewind(self) -> None:
        """At the beginning of a step: its draws begin with the first."""
        for source in self._blocks:
            source.rewind()

    def fresh(self, purpose: str) -> ReplicaSource:
        """A new stream that starts at the beginning: the same numbers for the same seed and purpose every time."""
        return ReplicaSource([derive_seed(seed, purpose) for seed in self.seeds])

    def words(self, purpose: str) -> WordSource:
        """A new stream of integers, as :meth:`fresh` is one of uniform numbers."""
        return WordSource([derive_seed(seed, purpose) for seed in self.seeds])

    def permutations(self, purpose: str, length: int) -> Tensor:
        """``[replicas, length]``: a random permutation per replica, the same for the same seed and purpose."""
        generators = [torch.Generator().manual_seed(derive_seed(seed, purpose)) for seed in self.seeds]
        return torch.stack([torch.randperm(length, generator=generator) for generator in generators])

    def restart(self) -> None:
        """Streams that are asked for from now on start at the beginning."""
        self._sources.clear()

    def state(self, replica: int) -> dict[str, Tensor]:
        """The state of one replica's streams, by purpose."""
        states = {purpose: source.state(replica) for purpose, source in self._sources.items()}
        return {purpose: state for purpose, state in states.items() if state is not None}

    def restore(self, states: Sequence[dict[str, Tensor]], device: torch.device) -> None:
        """Go on from the states of :meth:`state`, one per replica."""
        for purpose in {purpose for state in states for purpose in state}:
            self.source(purpose).restore([state.get(purpose) for state in states], device)
