"""Randomness of a pack: every replica draws from generators seeded by its own run's seed and a purpose.

So a run's numbers do not depend on its place in a pack or on which runs are trained beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from estimators.noise import open_uniform
from training.kernels import philox

CPU = torch.device("cpu")

Shape = tuple[tuple[int, ...], torch.dtype, torch.device, int]
"""What a source is asked for: shape, dtype, device, event dimensions."""
Draws = dict[str, list[Shape]]
"""What a step draws, by purpose, in its order."""
Noise = dict[str, list[Tensor]]
"""The same, drawn."""


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

    def __init__(self, seeds: Sequence[int], told: Callable[[int], None] | None = None) -> None:
        self.seeds, self._told = list(seeds), told
        self._on_cpu: list[np.random.SFC64] | None = None
        self._on_device: list[torch.Generator] | None = None

    def __call__(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """int32 ``shape`` ``[replicas, ...]``, uniform in 0 .. 2**31 - 1; raises ``ValueError`` for other replicas."""
        if shape[0] != len(self.seeds):
            raise ValueError(f"expected {len(self.seeds)} replicas in dimension 0 of noise of shape {list(shape)}")
        if self._told:
            self._told(math.prod(shape[1:-1]))
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


class CountedSource:
    """Noise by counting (:mod:`training.kernels.philox`), for a GPU: a draw is one kernel for all replicas.

    The numbers are a function of the run's seed, the purpose, the step, which is read on the device, and of how many
    draws the step has made before: there is nothing to keep in a checkpoint, and a CUDA graph draws anew each time.

    Args:
        clock: int64, a number on the device: the step, from 0.
    """

    def __init__(self, seeds: Sequence[int], purpose: str, clock: Tensor) -> None:
        self._keys = _keys(seeds, purpose, clock.device)
        self._clock, self._next = clock, 0

    def rewind(self) -> None:
        """The next draw is the first of the step."""
        self._next = 0

    def __call__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, event_dims: int = 2) -> Tensor:
        """Uniform noise; ``shape`` is ``[..., replicas, examples, *event]`` with ``event_dims`` event dimensions."""
        dim = _replica_dimension(shape, event_dims, len(self._keys))
        draw, self._next = self._next, self._next + 1
        with torch._C._DisableFuncTorch():  # an inner layer draws within transforms, of which the noise is no part
            return philox.uniform(self._keys, draw, self._clock, shape, dim, dtype)

    def state(self, replica: int) -> None:
        """Nothing: see the class."""

    def restore(self, states: Sequence[Tensor | None], device: torch.device) -> None:
        """Nothing to do: see the class."""


def _keys(seeds: Sequence[int], purpose: str, device: torch.device) -> Tensor:
    return torch.tensor([derive_seed(seed, purpose) for seed in seeds], device=device)


def _replica_dimension(shape: Sequence[int], event_dims: int, replicas: int) -> int:
    dim = len(shape) - event_dims - 2
    if dim < 0 or shape[dim] != replicas:
        raise ValueError(f"expected {replicas} replicas in dimension {dim} of noise of shape {list(shape)}")
    return dim


class _Given:
    """Noise of one purpose that is there already, draw by draw."""

    def __init__(self, purpose: str, noise: Sequence[Tensor]) -> None:
        self.purpose, self._noise = purpose, iter(noise)

    def __call__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, event_dims: int = 2) -> Tensor:
        drawn = next(self._noise, None)
        if drawn is None or drawn.shape != tuple(shape):
            there = "none" if drawn is None else list(drawn.shape)
            raise RuntimeError(
                f"a step draws {list(shape)} for {self.purpose}, and the noise that it is given is {there}"
            )
        return drawn


class _Noted:
    """A source that writes down what it is asked for."""

    def __init__(self, source: ReplicaSource | CountedSource, draws: list[Shape]) -> None:
        self._source, self._draws = source, draws

    def __call__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, event_dims: int = 2) -> Tensor:
        self._draws.append((tuple(shape), dtype, device, event_dims))
        return self._source(shape, dtype, device, event_dims)


Source = ReplicaSource | CountedSource | _Given | _Noted


class Streams:
    """The random streams of a pack, one per run and purpose.

    ``clock``: the step that counted noise is for, a number on the device; a training step sets it to its own.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self._sources: dict[str, ReplicaSource | CountedSource] = {}
        self._given: Mapping[str, Sequence[Tensor]] | None = None
        self._noted: Draws | None = None
        self._in_step: dict[str, Source] = {}
        self._order_keys: Tensor | None = None
        self.clock = torch.zeros((), dtype=torch.int64)
        self.told: Callable[[int], None] | None = None
        """Of every block of an evaluation: the rows (samples of images) that it begins to compute."""

    @property
    def replicas(self) -> int:
        return len(self.seeds)

    def source(self, purpose: str, device: torch.device = CPU) -> Source:
        """The stream of ``purpose`` for training steps: goes on from call to call, and is part of a checkpoint.

        It belongs to one step: what it gives within :meth:`given` is given.
        """
        if self._given is not None:
            return self._in_step.setdefault(purpose, _Given(purpose, self._given.get(purpose, ())))
        own = self._stream(purpose, device)
        return own if self._noted is None else _Noted(own, self._noted.setdefault(purpose, []))

    def _stream(self, purpose: str, device: torch.device) -> ReplicaSource | CountedSource:
        if purpose not in self._sources:
            self._sources[purpose] = self._new(purpose, device)
        return self._sources[purpose]

    def _new(self, purpose: str, device: torch.device) -> ReplicaSource | CountedSource:
        if self.counts(device):
            own = self.clock.device.type == device.type  # a copy would stand still
            return CountedSource(self.seeds, purpose, self.clock if own else self.clock.to(device))
        return self.fresh(purpose)

    def counts(self, device: torch.device) -> bool:
        """Whether a step's noise and orders of data are counted on the device: on a GPU."""
        return device.type != "cpu"

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[Draws]:
        """Within the block what is drawn for a training step is written down, into what this yields, and no stream goes
        on."""
        before, self._sources, self._noted = self._sources, {}, {}
        try:
            yield self._noted
        finally:
            self._sources, self._noted = before, None

    @contextlib.contextmanager
    def given(self, noise: Mapping[str, Sequence[Tensor]]) -> Iterator[None]:
        """Within the block, which is one step, ``noise`` is what training steps draw, and no stream goes on."""
        self._given, self._in_step = noise, {}
        try:
            yield
        finally:
            self._given, self._in_step = None, {}

    def draw(self, draws: Draws) -> Noise:
        """The noise of a step, ahead of it; the numbers are those that it would draw itself."""
        self.rewind()
        return {purpose: [self._stream(purpose, d[2])(*d) for d in own] for purpose, own in draws.items()}

    def rewind(self) -> None:
        """At the beginning of a step: its draws begin with the first."""
        for source in self._sources.values():
            if isinstance(source, CountedSource):
                source.rewind()

    def fresh(self, purpose: str) -> ReplicaSource:
        """A new stream that starts at the beginning: the same numbers for the same seed and purpose every time."""
        return ReplicaSource([derive_seed(seed, purpose) for seed in self.seeds])

    def words(self, purpose: str) -> WordSource:
        """A new stream of integers, as :meth:`fresh` is one of uniform numbers."""
        return WordSource([derive_seed(seed, purpose) for seed in self.seeds], self.told)

    def permutations(self, purpose: str, length: int) -> Tensor:
        """``[replicas, length]``: a random permutation per replica, the same for the same seed and purpose."""
        generators = [torch.Generator().manual_seed(derive_seed(seed, purpose)) for seed in self.seeds]
        return torch.stack([torch.randperm(length, generator=generator) for generator in generators])

    def orders(self, epoch: int, length: int, device: torch.device = CPU) -> Tensor:
        """``[replicas, length]``: a random permutation per replica, of an epoch of the data.

        Where noise is counted it is the order of as many numbers of 53 bits, drawn on the device.
        """
        if not self.counts(device):
            return self.permutations(f"order/{epoch}", length).to(device)
        if self._order_keys is None:
            self._order_keys = _keys(self.seeds, "order", device)
        step = torch.full((), epoch, dtype=torch.int64, device=device)
        noise = philox.uniform(self._order_keys, 0, step, (self.replicas, length), 0, torch.float64)
        return noise.argsort(dim=1, stable=True)

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
            self._stream(purpose, device).restore([state.get(purpose) for state in states], device)


class TooLarge(Exception):
    """Parameters that do not fit into memory: ``bytes`` of those that were asked for, ``shape`` of the last of them."""

    def __init__(self, size: int, shape: Sequence[int]) -> None:
        super().__init__(f"{size} bytes, the last of shape {list(shape)}")
        self.bytes, self.shape = size, list(shape)


class LimitedStreams(Streams):
    """Streams that draw no more than ``most`` bytes of parameters, and raise :class:`TooLarge` before they allocate."""

    def __init__(self, seeds: Sequence[int], most: float) -> None:
        super().__init__(seeds)
        self.most, self.drawn = most, 0

    def fresh(self, purpose: str) -> ReplicaSource:
        """As of :class:`Streams`, with the limit, which all of them have in common."""
        return _Limited([derive_seed(seed, purpose) for seed in self.seeds], self)


class _Limited(ReplicaSource):
    def __init__(self, seeds: Sequence[int], streams: LimitedStreams) -> None:
        super().__init__(seeds)
        self.streams = streams

    def __call__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, event_dims: int = 2) -> Tensor:
        self.streams.drawn += math.prod(shape) * dtype.itemsize
        if self.streams.drawn > self.streams.most:
            raise TooLarge(self.streams.drawn, shape)
        return super().__call__(shape, dtype, device, event_dims)
