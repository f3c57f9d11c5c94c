"""Training batches: every replica visits the data in the order of its own seed."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.datasets import Dataset
from training.replicas.streams import Streams


class Batches:
    """``batches(step) -> [replicas, batch_size, pixels]`` float32 images: ``gather(rows(step))``.

    An epoch is a random permutation per replica, cut into batches; the last partial batch is left out. With dynamic
    binarisation every visit draws new bits from the replica's own stream.
    """

    def __init__(self, data: Dataset, batch_size: int, streams: Streams, device: torch.device) -> None:
        self.pixels = data.train.pixels.to(device)
        self.levels = data.train.levels
        self.dynamic = data.binarization == "dynamic"
        self.batch_size, self.streams, self.device = batch_size, streams, device
        self.per_epoch = len(data.train) // batch_size
        self._epoch, self._order = -1, torch.empty(0)
        self._within = torch.arange(batch_size, device=device)

    def __call__(self, step: int) -> Tensor:
        """The batch of a step (counted from 0); steps must be visited in order when bits are drawn dynamically."""
        return self.gather(self.rows(step))

    def rows(self, step: int) -> Tensor:
        """``[replicas, batch_size]``: which images are in the batch of a step."""
        self.turn_to(step)
        start = step % self.per_epoch * self.batch_size
        return self._order[:, start : start + self.batch_size]

    def turn_to(self, step: int) -> int:
        """Have the order of this step's epoch at hand, in memory that stays; returns how many steps are left in it."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = self.streams.orders(epoch, len(self.pixels), self.device)
            if self._epoch < 0 or not self.streams.counts(self.device):
                self._order = order
            else:  # a CUDA graph reads it
                self._order.copy_(order)
            self._epoch = epoch
        return self.per_epoch - position

    def rows_at(self, step: Tensor) -> Tensor:
        """As :meth:`rows`, of a step that the device knows; :meth:`turn_to` has been called for its epoch."""
        return self._order.index_select(1, step % self.per_epoch * self.batch_size + self._within)

    def gather(self, rows: Tensor) -> Tensor:
        """The images of ``rows``, as bits if they are to be: a function of ``rows`` and noise, on the device."""
        x = self.pixels.index_select(0, rows.flatten()).reshape(*rows.shape, -1).float()
        if self.dynamic:
            uniform = self.streams.source("binarization", self.device)
            return (uniform(x.shape, x.dtype, x.device, 1) * self.levels < x).float()
        return x if self.levels == 1 else x / self.levels
