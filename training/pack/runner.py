"""How a pack's step is run: operator by operator, as compiled code, as a CUDA graph."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from training.kernels.capture import capture
from training.kernels.compiled import any_compiled, compiled
from training.pack.step import Step, flat

STEPS_PER_GRAPH = 8
"""Steps of one CUDA graph, where nobody looks in between; another one has a single step."""
COMPILERS = ("c++", "g++", "clang++")
FIRST, FURTHER = 20.0, 5.0
"""Seconds that a process takes to compile its first step for a GPU, and another one."""
SAVED, SAVED_PER_PARAMETER = 1e-4, 1.8e-11
"""Seconds of a step that compilation saves on a GPU: launches, and passes over memory per parameter of all replicas."""
LONG_ON_CPU = 20_000
"""Steps from which a CPU saves at least twice what it takes to compile one."""


class Runner:
    """Takes the program's own state on by one step after the other, in place.

    Args:
        program: the step.
        compile: whether as compiled code (:func:`choice`); ``reason``: in words why not.

    ``not_compiled`` and ``not_captured`` say why the step is not compiled, or no CUDA graph; set before the first step,
    they keep it from being one.
    """

    def __init__(self, program: Step, compile: bool, reason: str = "") -> None:
        self.program, self.not_compiled, self.not_captured = program, "" if compile else reason, ""
        self.on_gpu = program.device.type == "cuda"
        self._one: Callable[[int], Tensor] | None = None
        self._graphs: Mapping[int, Callable[[], Tensor]] = {}

    def __call__(self, step: int, count: int = 1) -> Tensor:
        """The losses ``[replicas]`` of the last of ``count`` steps of one epoch, of which ``step`` is the first."""
        self.program.batches.turn_to(step)
        if self._one is None:
            self._one = self._prepared(step)
        losses, last = torch.empty(0), step + count
        while step < last:
            taken = STEPS_PER_GRAPH if last - step >= STEPS_PER_GRAPH and STEPS_PER_GRAPH in self._graphs else 1
            losses = self._graphs[taken]() if taken in self._graphs else self._one(step)
            step += taken
        return losses

    def _prepared(self, step: int) -> Callable[[int], Tensor]:
        run = _plain(self.program)
        if not self.not_compiled:
            try:
                if not self.on_gpu and not any(map(shutil.which, COMPILERS)):
                    raise RuntimeError("there is no C++ compiler")
                run = _compiled(self.program, step)
            except Exception as error:  # torch raises many kinds
                self.not_compiled = _in_words(error)
        if self.on_gpu and not self.not_captured:
            device, written = self.program.device, self.program.own.tensors()
            self._graphs, self.not_captured = capture(lambda: run(step), device, written, (1, STEPS_PER_GRAPH))
        return run  # kept, since it has memory that the graphs read


# No methods: a runner in a circle of references would keep a pack's memory after its end.


def _plain(program: Step) -> Callable[[int], Tensor]:
    """The step operator by operator."""
    return lambda step: program.update(program.own, None if program.leads else program.batches.rows(step))


def _compiled(program: Step, step: int) -> Callable[[int], Tensor]:
    """The step as compiled code. Raises what torch raises for a step that cannot be."""
    streams, rows = program.streams, program.batches.rows(step).contiguous()
    draws = program.draws(rows)
    with streams.rehearsal():
        noise = flat(streams.draw(draws))
    given = [] if program.leads else [rows]
    work = compiled(program.in_place(draws), [*program.own.copied().tensors(), *given, *noise])
    tensors = [tensor.detach() for tensor in program.own.tensors()]

    def run(step: int) -> Tensor:
        given = [] if program.leads else [program.batches.rows(step).contiguous()]
        return work([*tensors, *given, *flat(streams.draw(draws))])

    return run


def choice(option: str, device: torch.device, steps: int, parameters: int, before: bool | None) -> tuple[bool, str]:
    """Whether a pack's step is compiled, and if not, why.

    ``auto``: as the runs that go on were until now; from the beginning, if what it saves is more than it takes. On a
    CPU the number of steps decides, so that a run's numbers depend on its config alone. On a GPU, where products depend
    on the pack to rounding anyway, so does what is saved, and it takes less if the process has compiled before.

    Args:
        option: ``true``, ``false`` or ``auto``.
        steps: from the first to the last.
        parameters: numbers that are trained, of all replicas.
        before: whether the runs were compiled until their checkpoint; ``None``: they begin.
    """
    option = option.lower()
    if option != "auto":
        return option == "true", "compile=false"
    if before is not None:
        return before, "compile=auto: it was not until its checkpoint"
    if device.type == "cpu":
        if steps < LONG_ON_CPU:
            return False, f"compile=auto: less than {LONG_ON_CPU} steps on a CPU"
        return any(map(shutil.which, COMPILERS)), "compile=auto: there is no C++ compiler"
    saved, cost = steps * (SAVED + SAVED_PER_PARAMETER * parameters), FURTHER if any_compiled() else FIRST
    return saved > cost, f"compile=auto: it would save {saved:.1f} s and take {cost:.0f} s"


def _in_words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
