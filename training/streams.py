"""Randomness of a pack: every replica draws from generators seeded by its own run's seed and a purpose.

So a run's numbers do not depend on its place in a pack or on which runs are trained beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from estimators.noise import open_uniform


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
        dim = len(shape) - event_dims - 2
        if dim < 0 or shape[dim] != len(self.seeds):
            raise ValueError(f"expected {len(self.seeds)} replicas in dimension {dim} of noise of shape {list(shape)}")
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


class Streams:
    """The random streams of a pack, one per run and purpose."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self._sources: dict[str, ReplicaSource] = {}

    @property
    def replicas(self) -> int:
        return len(self.seeds)

    def source(self, purpose: str) -> ReplicaSource:
        """The stream of ``purpose``: goes on from call to call, and is part of a checkpoint."""
        return self._sources.setdefault(purpose, self.fresh(purpose))

    def fresh(self, purpose: str) -> ReplicaSource:
        """A new stream that starts at the beginning: the same numbers for the same seed and purpose every time."""
        return ReplicaSource([derive_seed(seed, purpose) for seed in self.seeds])

    def permutations(self, purpose: str, length: int) -> Tensor:
        """``[replicas, length]``: a random permutation per replica, the same for the same seed and purpose."""
        generators = [torch.Generator().manual_seed(derive_seed(seed, purpose)) for seed in self.seeds]
        return torch.stack([torch.randperm(length, generator=generator) for generator in generators])

    def state(self, replica: int) -> dict[str, Tensor]:
        """The state of one replica's streams, by purpose."""
        states = {purpose: source.state(replica) for purpose, source in self._sources.items()}
        return {purpose: state for purpose, state in states.items() if state is not None}

    def restore(self, states: Sequence[dict[str, Tensor]], device: torch.device) -> None:
        """Go on from the states of :meth:`state`, one per replica."""
        for purpose in {purpose for state in states for purpose in state}:
            self.source(purpose).restore([state.get(purpose) for state in states], device)
