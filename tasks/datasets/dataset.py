"""A data set as tensors of bytes, split and binarized: what tasks are given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

BINARIZATIONS = ("static", "dynamic", "threshold", "none")

BINARIZATION_SEED = 777
"""Seed of every sampled binarization, the same in every run; 777 as in VampPrior's code (the bits are not the same)."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images of one split.

    Args:
        pixels: uint8 ``[images, height * width]``, row-major and upright, 0 is background.
        levels: 1 if pixels are bits, 255 if they are grey; intensity = pixels / levels, in [0, 1].
        labels: int64 ``[images]`` where the source has labels (Omniglot: the alphabet, 0-49), otherwise None.
    """

    pixels: torch.Tensor
    levels: int
    labels: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, split and binarized; see ``load_dataset``.

    Args:
        name: one of ``DATASETS``.
        image_shape: ``(height, width)``.
        binarization: one of ``BINARIZATIONS``.
        source: the published file or package that the images come from. Omniglot has two that are not row-identical.
        train_evaluated: how many of the training images, from the first, an evaluation of ``train`` takes.
    """

    name: str
    image_shape: tuple[int, int]
    binarization: str
    train: Split
    valid: Split
    test: Split
    source: str = ""
    train_evaluated: int = 10_000

    @cached_property
    def mean(self) -> torch.Tensor:
        """Mean training intensity, float32 ``[height * width]`` in [0, 1]."""
        # NumPy's sum over bytes is exact here and 20 times as fast as torch's.
        return torch.from_numpy(self.train.pixels.numpy().mean(0, dtype=np.float64) / self.train.levels).float()

    def evaluated(self, split: str) -> Split:
        """The images of ``train``, ``valid`` or ``test`` that an evaluation sees, in order.

        Of the training images the first ``train_evaluated``; under ``dynamic`` binarization their bits are sampled
        once, with the fixed seed, and are those of ``static``.
        """
        if split != "train":
            return self.valid if split == "valid" else self.test
        some = replace(self.train, pixels=self.train.pixels[: self.train_evaluated])
        return binarize(some, "static", 0) if self.binarization == "dynamic" and some.levels > 1 else some

    def protocol(self) -> dict[str, Any]:
        """What an evaluation on Bernoulli pixels of these images depends on."""
        return {
            "data": self.name,
            "source": self.source,
            "train": len(self.train),
            "valid": len(self.valid),
            "test": len(self.test),
            "binarization": self.binarization,
            "likelihood": "bernoulli" if self.test.levels == 1 else "cross-entropy of grey pixels",
        }


def binarize(grey: Split, rule: str, stream: int) -> Split:
    """``grey`` under ``static``, ``threshold`` or ``none``; ``stream`` keeps the splits' random numbers apart."""
    if rule == "none":
        return grey
    if rule == "threshold":
        bits = grey.pixels > grey.levels // 2
    else:
        # RandomState and not default_rng: NumPy promises that its stream never changes (NEP 19). A uniform integer in
        # 0..254 lies below the pixel with probability exactly pixel / 255.
        generator = np.random.RandomState([BINARIZATION_SEED, stream])
        bits = torch.from_numpy(generator.randint(grey.levels, size=grey.pixels.shape, dtype=np.uint8)) < grey.pixels
    return replace(grey, pixels=bits.to(torch.uint8), levels=1)
