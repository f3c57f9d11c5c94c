"""A training step as a CUDA graph: its hundred small kernels are launched as one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Step = Callable[[Tensor], Tensor]

WARM_UP = 3
"""Steps before the capture: libraries, and what a step prepares once, set themselves up in the first ones."""


def capture(step: Step, argument: Tensor, written: Sequence[Tensor]) -> tuple[Step | None, str]:
    """``step`` as a CUDA graph, or ``None`` and the reason why it cannot be one.

    A step that waits for the device (looks at a number, copies from the CPU's memory) is found before the capture is
    begun, since a capture that fails leaves torch's allocator in a state of its own.

    Args:
        step: work on the device only; everything that it reads besides its argument stays in place.
        argument: an example, whose shape all others share.
        written: the tensors that ``step`` writes; they are as before when this returns.

    The captured step returns a new tensor each time.
    """
    static = argument.clone()
    before = [tensor.detach().clone() for tensor in written]
    reason = _warm_up(step, static)
    graph, result = torch.cuda.CUDAGraph(), torch.empty(0)
    if not reason:
        current = torch.cuda.current_stream(argument.device)
        try:
            with (
                torch.cuda.stream(current),
                torch.cuda.graph(graph),
            ):  # the outer one: a failed capture keeps its stream
                result = step(static)
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a failed capture raises, too
            reason = f"the capture failed: {_first_line(cause)}"
    with torch.no_grad():
        for tensor, saved in zip(written, before, strict=True):
            tensor.copy_(saved)

    def replay(argument: Tensor) -> Tensor:
        static.copy_(argument)
        graph.replay()
        return result.clone()

    return (None, reason) if reason else (replay, "")


def _warm_up(step: Step, argument: Tensor) -> str:
    """Some steps on a stream of their own, as captures want it; returns what is in the way of one."""
    device = argument.device
    side, mode = torch.cuda.Stream(device), torch.cuda.get_sync_debug_mode()
    side.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(side):
            step(argument)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
                torch.cuda.set_sync_debug_mode("error")
            for _ in range(WARM_UP - 1):
                step(argument)
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
