"""What a computation allocates, counted in the tensors that torch's operators return, on any device."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Within the block: ``peak``, the most bytes that were alive at once, and ``largest``, the bytes of one tensor.

    Counted are the storages that operators return, so that views and expanded tensors cost nothing and what autograd
    saves counts until it is freed. Tensors from before the block do not count, nor does what an operator allocates and
    frees within itself.

    Example::

        with Allocations() as allocations:
            estimator(logits, loss).sum().backward()
        allocations.peak / logits.nbytes
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.largest = self._alive = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        for before in tree_leaves((arguments, options)):
            if isinstance(before, Tensor) and before.untyped_storage() not in self._known:
                self._known.add(before.untyped_storage())
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self._alive += size
        self.peak, self.largest = max(self.peak, self._alive), max(self.largest, size)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self._alive -= size
