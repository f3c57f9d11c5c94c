"""Training batches: every replica visits the data in the order of its own seed."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.datasets import Dataset
from training.streams import Streams


class Batches:
    """``batches(step) -> [replicas, batch_size, pixels]`` float32 images.

    An epoch is a random permutation per replica, cut into batches; the last partial batch is left out. With dynamic
    binarisation every visit draws new bits from the replica's own stream.
    """

    def __init__(self, data: Dataset, batch_size: int, streams: Streams, device: torch.device) -> None:
        self.pixels = data.train.pixels.to(device)
        self.levels = data.train.levels
        self.dynamic = data.binarization == "dynamic"
        self.batch_size, self.streams, self.device = batch_size, streams, device
        self.per_epoch = len(data.train) // batch_size
        self._noise = streams.source("binarization")
        self._epoch, self._order = -1, torch.empty(0)

    def __call__(self, step: int) -> Tensor:
        """The batch of a step (counted from 0); steps must be visited in order when bits are drawn dynamically."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = self.streams.permutations(f"order/{epoch}", len(self.pixels))
            self._epoch, self._order = epoch, order.to(self.device)
        rows = self._order[:, position * self.batch_size : (position + 1) * self.batch_size]
        x = self.pixels.index_select(0, rows.flatten()).reshape(*rows.shape, -1).float()
        if self.dynamic:
            return (self._noise(x.shape, x.dtype, x.device, 1) * self.levels < x).float()
        return x if self.levels == 1 else x / self.levels
