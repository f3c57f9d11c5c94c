"""Layers that take dimension 1 for their features, in a loss that gets ``z`` with sample dimensions in front."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

ADVICE = (
    "flatten the leading dimensions for it, x.flatten(0, -2) for a layer of features, and unflatten(0, z.shape[:-2]) "
    "after it; with batch normalisation in training mode an example's loss then depends on the other samples and "
    "examples, for which no estimator is unbiased: use eval() or LayerNorm"
)
_COMPLAINTS = re.compile(
    r"(running_mean|running_var|weight|bias) should contain \d+ elements"
    r"|expected .*\dD .*input (\(got|to conv)"
    r"|number of channels",
    re.IGNORECASE,
)


def explanation(name: str, error: Exception, z: Tensor) -> str | None:
    """What to say for torch's ``error`` about a normalising layer in a loss at ``z``; ``None`` for another error."""
    if not _COMPLAINTS.search(str(error)):
        return None
    return (
        f"{name}: the loss gets z of {list(z.shape)}, with sample dimensions in front of the examples, and one of its "
        f"layers takes another dimension for the features ({str(error).splitlines()[0]}); {ADVICE}"
    )


def misplaced(name: str, losses: Tensor, z: Tensor, end: Tensor) -> str | None:
    """What to say if the graph of ``losses``, down to that of ``end``, normalises over leading dimensions of ``z``.

    That is batch or group normalisation of an input ``[*leading dimensions of z, ...]``, whose dimension 1 is then one
    of examples that happens to have the layer's number of features.
    """
    leading = z.shape[:-2]
    if leading[1:].numel() == 1:
        return None
    seen: set[Any] = {end.grad_fn}
    stack = [losses.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        stack += [parent for parent, _ in node.next_functions]
        kind = re.search("Batch|Group", node.name()) if "Norm" in node.name() else None
        if kind is not None:
            x = getattr(node, "_saved_input", None)
            if x is not None and x.dim() > len(leading) and x.shape[: len(leading)] == leading:
                return (
                    f"{name}: the loss gets z of {list(z.shape)}, with sample dimensions in front of the examples, and "
                    f"{kind[0].lower()} normalisation in it took dimension 1 of {list(x.shape)}, the examples, for the "
                    f"features; {ADVICE}"
                )
    return None
