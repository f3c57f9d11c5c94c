"""A training step as a CUDA graph: its hundred small kernels are launched as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Step = Callable[[Tensor], Tensor]

WARM_UP = 3
"""Steps before the capture: libraries set themselves up in the first ones."""


def capture(step: Step, argument: Tensor, written: Sequence[Tensor]) -> tuple[Step | None, str]:
    """``step`` as a CUDA graph, ``None`` and the reason if it cannot be one (it waits for the device, say).

    Args:
        step: work on the device only; everything that it reads besides its argument stays in place.
        argument: an example, whose shape all others share.
        written: the tensors that ``step`` writes; they are as before when this returns.

    The captured step returns a new tensor each time.
    """
    static = argument.clone()
    before = [tensor.detach().clone() for tensor in written]
    reason, result = "", torch.empty(0)
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream(argument.device)
    try:
        side.wait_stream(torch.cuda.current_stream(argument.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                step(static)
        torch.cuda.current_stream(argument.device).wait_stream(side)
        with torch.cuda.graph(graph):
            result = step(static)
    except RuntimeError as error:
        cause = error.__context__ or error  # the end of a failed capture raises, too
        reason = str(cause).strip().split("\n")[0] or type(cause).__name__
        torch.cuda.synchronize(argument.device)
    with torch.no_grad():
        for tensor, saved in zip(written, before, strict=True):
            tensor.copy_(saved)

    def replay(argument: Tensor) -> Tensor:
        static.copy_(argument)
        graph.replay()
        return result.clone()

    return (None, reason) if reason else (replay, "")
