"""Evaluation in chunks: memory is bounded, and the noise has the same order whatever the size of a pack."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from tasks.datasets import Dataset

CHUNK_IMAGES = 50
CHUNK_ROWS = 1000
"""Images, and images x samples, per replica (a row is one decoder evaluation). They order the noise, so they are
constants: numbers must not depend on the size of a pack."""


def image_chunks(data: Dataset, split: str, replicas: int, like: Tensor) -> Iterator[Tensor]:
    """The intensities of a split in its order, ``[replicas, images, pixels]`` in the dtype and on the device of
    ``like``; every replica sees the same. Raises ``ValueError`` for a split that is none of ``train, valid, test``."""
    if split not in ("train", "valid", "test"):
        raise ValueError(f"split must be train, valid or test, not {split!r}")
    images = getattr(data, split)
    for pixels in images.pixels.split(CHUNK_IMAGES):
        yield (pixels.to(like.device).to(like.dtype) / images.levels).expand(replicas, -1, -1)


def sample_chunks(num_samples: int, images: int) -> Iterator[int]:
    """Numbers of samples, at least 1 each, that sum to ``num_samples`` and keep ``images`` x samples bounded."""
    size = max(1, CHUNK_ROWS // images)
    for start in range(0, num_samples, size):
        yield min(size, num_samples - start)


def check_samples(num_samples: int) -> None:
    """Raise ``ValueError`` for fewer samples than a bound needs."""
    if num_samples < 1:
        raise ValueError(f"a bound needs at least 1 sample, not {num_samples}")
