"""A training step as a CUDA graph: its hundred small kernels are launched as one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Work = Callable[[], Tensor]

WARM_UP = 3
"""Steps before the capture: libraries, and what a step prepares once, set themselves up in the first ones."""


def capture(
    work: Work, device: torch.device, written: Sequence[Tensor], repeats: Sequence[int] = (1,)
) -> tuple[Mapping[int, Work], str]:
    """``work`` as CUDA graphs, one for each number of ``repeats`` in a row; none, and the reason why it cannot be one.

    Work that waits for the device (looks at a number, copies from the CPU's memory) is found before the capture is
    begun, since a capture that fails leaves torch's allocator in a state of its own.

    Args:
        work: on the device only; everything that it reads stays in place, and alive, as long as a graph is used.
        written: the tensors that ``work`` writes; they are as before when this returns.

    Each graph returns what the last of its repeats does, as a new tensor. They share memory, so one runs at a time.
    """
    before = [tensor.detach().clone() for tensor in written]
    reason = _warm_up(work, device)
    graphs: dict[int, _Graph] = {}
    try:
        for count in () if reason else repeats:
            pool = next((other.graph.pool() for other in graphs.values()), None)
            graphs[count] = _captured(work, count, device, pool)
    except RuntimeError as error:
        cause = error.__context__ or error  # the end of a failed capture raises, too
        graphs, reason = {}, f"the capture failed: {_first_line(cause)}"
    with torch.no_grad():
        for tensor, saved in zip(written, before, strict=True):
            tensor.copy_(saved)
    return graphs, reason


@dataclass
class _Graph:
    """A captured graph, with what it returns."""

    graph: torch.cuda.CUDAGraph
    result: Tensor

    def __call__(self) -> Tensor:
        self.graph.replay()
        return self.result.clone()  # the next replay writes there


def _captured(work: Work, count: int, device: torch.device, pool: Any) -> _Graph:
    graph, result = torch.cuda.CUDAGraph(), torch.empty(0)
    current = torch.cuda.current_stream(device)
    with torch.cuda.stream(current), torch.cuda.graph(graph, pool=pool):  # the outer one: a failed capture keeps it
        for _ in range(count):
            result = work()
    return _Graph(graph, result)


def _warm_up(work: Work, device: torch.device) -> str:
    """Some steps on a stream of their own, as captures want it; returns what is in the way of one."""
    side, mode = torch.cuda.Stream(device), torch.cuda.get_sync_debug_mode()
    side.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(side):
            work()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
                torch.cuda.set_sync_debug_mode("error")
            for _ in range(WARM_UP - 1):
                work()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if torch.cuda.get_sync_debug_mode() == mode:  # not about waiting: the step itself is broken
            raise
        return f"the step waits for the device: {_first_line(error)}"
    finally:
        torch.cuda.set_sync_debug_mode(mode)
        torch.cuda.current_stream(device).wait_stream(side)
    return ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
