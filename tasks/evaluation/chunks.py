"""Evaluation in blocks: bounded memory, noise in an order of its own, and launches as large as the device likes.

A *block* is what noise is drawn for at once: ``images x samples`` rows (a row is one evaluation of the decoder) of
every replica. Blocks order the noise, so their sizes depend on the number of samples and the kind of device (whose
generators differ anyway) alone: a run's numbers do not depend on its pack. A *piece* is what is computed at once: a
part of a block, as large as the device works on well, for all replicas together. Pieces change nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_ROWS = {"cpu": 5_000, "cuda": 50_000}
"""Rows per replica. On a GPU every block costs each replica a launch for its noise."""
BLOCK_SAMPLES = 1_000
"""Of one image: what is computed per image and block (the encoder, probabilities) costs little beside them."""
PIECE_ROWS = {"cpu": 5_000, "cuda": 250_000}
"""Rows of all replicas together; the logits of 784 pixels take 16 MB on a CPU, 800 MB on a GPU."""


def samples_per_block(num_samples: int) -> int:
    """Samples per image in a block; the last block of an image may have fewer."""
    return min(num_samples, BLOCK_SAMPLES)


def images_per_block(num_samples: int, device: torch.device) -> int:
    """Images in a block."""
    return max(1, BLOCK_ROWS.get(device.type, BLOCK_ROWS["cuda"]) // samples_per_block(num_samples))


def pieces(images: int, samples: int, replicas: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Slices of a block's images and samples, at least one of each; an image's samples are split only if they must."""
    rows = max(1, PIECE_ROWS.get(device.type, PIECE_ROWS["cuda"]) // replicas)
    images_at_once, samples_at_once = max(1, rows // samples), min(samples, rows)
    for image in range(0, images, images_at_once):
        for sample in range(0, samples, samples_at_once):
            yield (
                slice(image, min(image + images_at_once, images)),
                slice(sample, min(sample + samples_at_once, samples)),
            )


def intensities(pixels: Tensor, levels: int, replicas: int, like: Tensor) -> Tensor:
    """Bytes ``[images, pixels]`` as intensities ``[replicas, images, pixels]``, in the dtype and on the device of
    ``like``; every replica sees the same."""
    return (pixels.to(like.device).to(like.dtype) / levels).expand(replicas, -1, -1)
