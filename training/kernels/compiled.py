"""Work on tensors as one compiled program, shared by all that do the same work on tensors of the same shapes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from training.kernels import matmul

Work = Callable[[Sequence[Tensor]], Tensor]
"""Of a list of tensors, some of which it writes in place; branches on no number."""


def compiled(work: Work, examples: Sequence[Tensor], backend: str = "inductor") -> Work:
    """``work`` as one program for tensors of the shapes and strides of ``examples``, which are overwritten.

    It is traced operator by operator, with its derivatives, and the graph goes through ``torch.compile``. Tensors that
    it closes over, and does not write, become inputs. So what a program is says its graph, and work with the same graph
    shares compiled code, whoever's tensors it is for. It has run once when this returns.

    Raises:
        Exception: of many kinds, from torch, for what cannot be traced or compiled.
    """
    graph, constants = traced(work, examples)
    inputs = [*examples, *constants]
    about = backend, torch.get_float32_matmul_precision()
    key = (*about, graph.code, tuple((t.shape, t.stride(), t.dtype, t.device) for t in inputs))
    program = _programs.get(key)
    if program is None:
        # What its guards would look at in every step is in the key.
        options: dict[str, Any] = {"guard_filter_fn": lambda guards: [False] * len(guards)}
        program = torch.compile(graph, backend=backend, fullgraph=True, dynamic=False, options=options)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # allow_tf32=false, on purpose
        program(*inputs)
    _programs[key] = program  # which compiles when it is called first

    def run(tensors: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            result: Tensor = program(*tensors, *constants)
            return result

    return run


_programs: dict[object, Callable[..., Tensor]] = {}


def any_compiled() -> bool:
    """Whether this process has compiled anything: then the compiler is loaded, and what is next takes less."""
    return bool(_programs)


def traced(work: Work, examples: Sequence[Tensor]) -> tuple[GraphModule, list[Tensor]]:
    """The graph of ``work``, a function of as many tensors as ``examples`` and of the constants beside it."""
    with _tracing():
        graph = make_fx(lambda *tensors: work(tensors), matmul.replacements())(*examples)
    constants: dict[str, Tensor] = {}
    inputs: dict[str, Node] = {}
    first = next(node for node in graph.graph.nodes if node.op != "placeholder")
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        name = str(node.target)
        if name not in inputs:
            constants[name] = getattr(graph, name)
            with graph.graph.inserting_before(first):
                inputs[name] = graph.graph.placeholder(f"constant_{len(inputs)}")
        node.replace_all_uses_with(inputs[name])
        graph.graph.erase_node(node)
    for name in constants:
        delattr(graph, name)
    graph.recompile()
    return graph, list(constants.values())


@contextlib.contextmanager
def _tracing() -> Iterator[None]:
    """Within the block code sees that it is being compiled: it looks at no number, and has forms for a compiler."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before
