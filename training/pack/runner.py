"""How a pack's step is run: operator by operator, as compiled code, as a CUDA graph."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

import torch
from torch import Tensor

from training.kernels.capture import capture
from training.kernels.compiled import compiled
from training.pack.step import State, Step, flat

Run = Callable[[Tensor], Tensor]

WATCHED = 50
"""Steps that are timed before ``compile=auto`` decides."""
SAVED = 1 / 3
"""Of a step's time on a GPU, by compilation: a third to a half in a prototype (docs/performance.md)."""
COMPILERS = ("c++", "g++", "clang++")


class Runner:
    """Takes ``state`` on by one step after the other, in place.

    Args:
        program: the step.
        state: which is the program's own.
        compile: ``"true"``, ``"false"``, or ``"auto"``: on a GPU after ``WATCHED`` steps, if what compilation saves of
            the steps ahead is more than it takes. On a CPU ``auto`` is operator by operator: what is ahead may not
            decide there, since a run that goes on equals one that was never stopped bit for bit.

    ``not_compiled`` and ``not_captured`` say why the step is not compiled, or no CUDA graph; set before the first step,
    they keep it from being one.
    """

    def __init__(self, program: Step, state: State, compile: str) -> None:
        self.program, self.state, self.compile = program, state, compile.lower()
        self.not_compiled, self.not_captured = "", ""
        self.on_gpu = program.device.type == "cuda"
        self._run: Run | None = None
        self._steps, self._began = 0, 0.0
        if self.compile == "false":
            self.not_compiled = "compile=false"
        elif self.compile == "auto" and not self.on_gpu:
            self.not_compiled = "compile=auto on a CPU"

    def __call__(self, rows: Tensor, ahead: int) -> Tensor:
        """The losses ``[replicas]`` of a step for the images ``rows``, of ``ahead`` steps that are to be made."""
        if self._run is None:
            self._run = self._prepared(rows, compiles=self.compile == "true" and not self.not_compiled)
        if self._steps <= WATCHED and self.compile == "auto" and not self.not_compiled:
            self._watch(rows, ahead)
        return self._run(rows)

    def _watch(self, rows: Tensor, ahead: int) -> None:
        """Time the first steps, and then decide."""
        if self._steps == 1:  # the first one warms up
            self._began = self._now()
        elif self._steps == WATCHED and self._pays(ahead):
            self._run = self._prepared(rows, compiles=True)
        elif self._steps == WATCHED:
            self.not_compiled = "compile=auto: the steps ahead are too few"
        self._steps += 1

    def _pays(self, ahead: int) -> bool:
        """Whether compilation saves more time than the last one took."""
        each = (self._now() - self._began) / (WATCHED - 1)
        return SAVED * each * ahead > _last_compilation

    def _now(self) -> float:
        torch.cuda.synchronize(self.program.device)
        return time.monotonic()

    def _prepared(self, rows: Tensor, compiles: bool) -> Run:
        run: Run = lambda rows: self.program.update(self.state, rows)  # noqa: E731
        if compiles:
            try:
                run = self._compiled(rows)
            except Exception as error:  # torch raises many kinds
                self.not_compiled = _in_words(error)
        if self.on_gpu and not self.not_captured:
            captured, self.not_captured = capture(run, rows, self.state.tensors())
            self.program.streams.fill(self.program.streams.step)  # an estimator may have worked in the buffers
            run = captured or run
        return run

    def _compiled(self, rows: Tensor) -> Run:
        """The step as compiled code. Raises what torch raises for a step that cannot be."""
        global _last_compilation
        if not self.on_gpu and not any(map(shutil.which, COMPILERS)):
            raise RuntimeError("there is no C++ compiler")
        start = time.monotonic()
        program, streams = self.program, self.program.streams
        draws = program.draws(rows)
        with streams.rehearsal():
            noise = flat(streams.draw(draws))
        work = compiled(program.in_place(draws), [*self.state.copied().tensors(), rows.contiguous(), *noise])
        _last_compilation = time.monotonic() - start
        tensors = [tensor.detach() for tensor in self.state.tensors()]

        def run(rows: Tensor) -> Tensor:
            return work([*tensors, rows.contiguous(), *flat(streams.draw(draws))])

        return run


_last_compilation = 20.0
"""Seconds; what the first one in a process takes, until one was measured (docs/performance.md)."""


def _in_words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
