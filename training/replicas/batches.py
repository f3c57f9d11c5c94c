"""Training batches: every replica visits the data in the order of its own seed."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

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
        # Permutations are drawn on the CPU: beside a GPU the next epoch's are drawn while it works.
        self._ahead = ThreadPoolExecutor(1) if device.type != "cpu" else None
        self._next: tuple[int, Future[Tensor]] | None = None

    def __call__(self, step: int) -> Tensor:
        """The batch of a step (counted from 0); steps must be visited in order when bits are drawn dynamically."""
        return self.gather(self.rows(step))

    def rows(self, step: int) -> Tensor:
        """``[replicas, batch_size]``: which images are in the batch of a step."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._order_of(epoch).to(self.device)
        return self._order[:, position * self.batch_size : (position + 1) * self.batch_size]

    def gather(self, rows: Tensor) -> Tensor:
        """The images of ``rows``, as bits if they are to be: a function of ``rows`` and noise, on the device."""
        x = self.pixels.index_select(0, rows.flatten()).reshape(*rows.shape, -1).float()
        if self.dynamic:
            uniform = self.streams.source("binarization", self.device)
            return (uniform(x.shape, x.dtype, x.device, 1) * self.levels < x).float()
        return x if self.levels == 1 else x / self.levels

    def _order_of(self, epoch: int) -> Tensor:
        def draw(epoch: int) -> Tensor:
            return self.streams.permutations(f"order/{epoch}", len(self.pixels))

        if self._ahead is None:
            return draw(epoch)
        order = self._next[1].result() if self._next and self._next[0] == epoch else draw(epoch)
        self._next = epoch + 1, self._ahead.submit(draw, epoch + 1)
        return order
